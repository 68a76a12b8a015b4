//! What becomes of a page that the kernel cannot bring any more.
//!
//! A mapped file that is cut short, a disk that fails, a server that is gone: whoever
//! touches such a page is sent `SIGBUS`, which ends the process and all sandboxes in
//! it. If that is a guest, or the host on behalf of one, the page becomes zeros here,
//! and the region is marked as lost. The guest computes on, with zeros, until its host
//! looks at the mark, which it does as often as for any other interrupt.
//!
//! A thread calls one guest at a time, and only that one's memory is touched then. So
//! the handler needs no list of memories, but the one that this thread is using.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::mem;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::mm::{MapFlags, ProtFlags};

thread_local! {
    /// The memory of the guest that is being called. Without a destructor and with a
    /// constant to begin with, so that a signal handler can look at it.
    static CALLED: Cell<*const Accessible> = const { Cell::new(ptr::null()) };
}

/// What a guest may use of its region: all of a region that a signal handler knows.
pub(crate) struct Accessible {
    pub base: *mut u8,
    /// Bytes from `base` on.
    pub n_bytes: AtomicUsize,
    /// Whether the guest has zeros where a file was.
    pub lost: AtomicBool,
}

// SAFETY: `base` is an address that stays valid as long as the region lives. The bytes
// behind it are the guest's and whoever's it calls; the methods here only change
// mappings, of pages that their thread waits for.
unsafe impl Send for Accessible {}
// SAFETY: as above.
unsafe impl Sync for Accessible {}

impl Accessible {
    /// Puts zeros in place of a page that this thread has touched and the kernel cannot
    /// bring; false if it is none of the guest's. A signal handler calls it, so there are
    /// no locks and nothing is allocated.
    fn lose(&self, address: usize) -> bool {
        let offset = address.wrapping_sub(self.base.addr());
        if offset >= self.n_bytes.load(Ordering::Relaxed) {
            return false;
        }
        let page = rustix::param::page_size();
        let at = self.base.wrapping_add(offset / page * page).cast();
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: the page lies within the region's accessible part, so nothing but the
        // guest's own bytes is replaced. Nobody has seen a byte of it: it is not there.
        // Nobody maps meanwhile: that is up to this thread, which waits here.
        let mapped = unsafe { rustix::mm::mmap_anonymous(at, page, prot, flags) };
        self.lost.store(true, Ordering::Relaxed);
        mapped.is_ok()
    }
}

/// What handled the signal before.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Takes over `SIGBUS`, if that has not been done.
pub(crate) fn install() {
    PREVIOUS.get_or_init(|| {
        // SAFETY: zeros are an action: the default one, with an empty mask.
        let (mut previous, mut own): (libc::sigaction, libc::sigaction) =
            unsafe { (mem::zeroed(), mem::zeroed()) };
        own.sa_sigaction = on_fault as *const () as usize;
        // Threads of Rust have a stack for signals. A fault in the handler ends the
        // process either way.
        own.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        // SAFETY: both actions live as long as the call, and the handler does nothing
        // that a signal handler may not. It fails only for signals that are none.
        let failed = unsafe { libc::sigaction(libc::SIGBUS, &own, &mut previous) };
        debug_assert_eq!(failed, 0);
        previous
    });
}

/// Runs `f`, which calls the guest of this memory, if there is one.
pub(crate) fn catch<T>(called: Option<&Accessible>, f: impl FnOnce() -> T) -> T {
    struct Restore(*const Accessible);
    impl Drop for Restore {
        fn drop(&mut self) {
            CALLED.set(self.0);
        }
    }
    let _restore = Restore(CALLED.replace(called.map_or(ptr::null(), ptr::from_ref)));
    f()
}

extern "C" fn on_fault(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes what it knows about the signal. Any has a code, and one
    // that comes from the kernel has an address.
    let address = unsafe {
        let is_fault = (*info).si_code > 0;
        is_fault.then(|| (*info).si_addr().addr())
    };
    // SAFETY: whoever set it borrows the memory until it is set back, on this thread.
    let called = unsafe { CALLED.get().as_ref() };
    let (Some(address), Some(called)) = (address, called) else {
        return pass_on(signal, info, context);
    };
    if !called.lose(address) {
        pass_on(signal, info, context);
    }
}

/// Leaves a signal to whoever handled it before.
fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // A moment after it was installed, nobody may be known yet: that is the default.
    // SAFETY: see `install`.
    let previous = PREVIOUS.get().copied().unwrap_or_else(|| unsafe { mem::zeroed() });
    // SAFETY: the kernel passes what it knows about the signal.
    let code = unsafe { (*info).si_code };
    // Somebody has sent it, or a page is gone that nobody has touched.
    let is_no_fault = code <= 0 || code == libc::BUS_MCEERR_AO;
    match previous.sa_sigaction {
        libc::SIG_IGN if is_no_fault => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // What faulted does so again, and ends the process as it would have before.
            // SAFETY: the action is one that was in place already.
            unsafe { libc::sigaction(signal, &previous, ptr::null_mut()) };
            if is_no_fault {
                // SAFETY: a signal handler may do this.
                unsafe { libc::raise(signal) };
            }
        }
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
            // SAFETY: an action with this flag has a handler of this type.
            let handler = unsafe { mem::transmute::<usize, Handler>(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: an action without that flag has a handler of this type.
            let handler = unsafe { mem::transmute::<usize, extern "C" fn(c_int)>(handler) };
            handler(signal);
        }
    }
}
