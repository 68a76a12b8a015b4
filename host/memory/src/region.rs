//! Linear memories that files can be mapped into.
//!
//! A [`Region`] is the whole address range of one linear memory, reserved
//! once, so that it never moves. Files, and the shared region of a team, are
//! mapped over parts of it with `MAP_FIXED`. Three rules keep that sound:
//!
//! - Every byte of the reservation is mapped at all times; a part is only
//!   ever replaced, never given back before the whole region goes.
//! - Whatever is mapped within the accessible part is readable and writable:
//!   Wasmtime writes there on behalf of the guest, at addresses that the guest
//!   picks. Files are private mappings, so a write copies the page and never
//!   reaches the file.
//! - Only [`Region`] maps, and only after it has checked the range.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::mm::{Advice, MapFlags, MprotectFlags, MsyncFlags, ProtFlags};

use crate::MapError;
use crate::fault::{self, Accessible};
use crate::mappings::{boundaries, is_at_limit, n_mappings_left, note_used};
use crate::windows::Windows;

/// Windows up to this many bytes get their page tables filled at once; for
/// larger ones, touching the pages as they are used costs less than waiting.
const POPULATE_BYTES_MAX: usize = 16 << 20;

/// Windows up to this many bytes are read ahead; of larger ones, whole files, nobody knows
/// yet what will be wanted.
const WANTED_BYTES_MAX: usize = 1 << 30;

/// The unit of mapping, in bytes.
pub fn page_size() -> u64 {
    rustix::param::page_size() as u64
}

/// The address range of one linear memory.
pub struct Region {
    accessible: Accessible,
    /// The most bytes that can be accessible.
    capacity: usize,
    /// Bytes reserved, guard included.
    reserved: usize,
    windows: Mutex<Windows>,
    /// The most mappings that the windows may take.
    n_mappings_max: AtomicUsize,
}

impl Region {
    /// Reserves addresses for a memory of up to `capacity` bytes, and a guard behind it.
    /// None of them is accessible yet.
    ///
    /// # Errors
    ///
    /// Those of the system, for lack of addresses.
    pub fn new(capacity: usize, guard: usize) -> io::Result<Self> {
        let reserved = capacity
            .checked_add(guard)
            .and_then(|n| n.checked_next_multiple_of(rustix::param::page_size()))
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address that the kernel picks touches
        // nothing that exists.
        let base = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), reserved, ProtFlags::empty(), flags)
        }?;
        let (n_bytes, lost) = (AtomicUsize::new(0), AtomicBool::new(false));
        let accessible = Accessible { base: base.cast(), n_bytes, lost };
        // Until it is known how many share them.
        let n_mappings_max = (n_mappings_left() / 2).into();
        let windows = Mutex::default();
        Ok(Self { accessible, capacity, reserved, windows, n_mappings_max })
    }

    /// Makes the first `size` bytes accessible, zeros at first; they stay so.
    ///
    /// # Errors
    ///
    /// `OutOfMemory` for more than the region was made for, and those of the system.
    pub fn grow(&self, size: usize) -> io::Result<()> {
        if size > self.capacity {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        // The page that the accessible part ends in is accessible already.
        let start = self.byte_size().next_multiple_of(rustix::param::page_size());
        if start < size {
            // SAFETY: the range lies within the reservation, and nothing is mapped
            // behind what is accessible but the reservation's own pages.
            unsafe {
                rustix::mm::mprotect(
                    self.at(start),
                    size - start,
                    MprotectFlags::READ | MprotectFlags::WRITE,
                )
            }?;
        }
        self.accessible.n_bytes.fetch_max(size, Ordering::Relaxed);
        Ok(())
    }

    /// Where it begins. What lies there is the guest's: only those who run it may read
    /// or write it, and only what is accessible, as long as the region lives.
    pub fn as_ptr(&self) -> *mut u8 {
        self.accessible.base
    }

    /// Bytes that the guest may use, windows included.
    pub fn byte_size(&self) -> usize {
        self.accessible.n_bytes.load(Ordering::Relaxed)
    }

    /// The most bytes that it can grow to.
    pub fn byte_capacity(&self) -> usize {
        self.capacity
    }

    fn at(&self, offset: usize) -> *mut c_void {
        self.accessible.base.wrapping_add(offset).cast()
    }

    /// Checks that the range is made of whole, accessible pages, and not
    /// empty; answers its bounds.
    pub fn check(&self, address: u64, length: u64) -> Result<(usize, usize), MapError> {
        let page = page_size();
        match address.checked_add(length) {
            Some(end)
                if length > 0
                    && end <= self.byte_size() as u64
                    && address.is_multiple_of(page)
                    && length.is_multiple_of(page) =>
            {
                Ok((address as usize, end as usize))
            }
            _ => Err(MapError::Range { address, length }),
        }
    }

    /// Maps `length` bytes of a file from `offset` into the window at
    /// `address`, and answers the address of the first of them.
    ///
    /// The caller has checked that the bytes lie within the file.
    pub fn attach(
        &self,
        file: &File,
        offset: u64,
        length: u64,
        address: u64,
    ) -> Result<u64, MapError> {
        fault::install();
        let (first, start, end) = self.map_file(file, offset, length, address)?;
        let advice = match end - start {
            0..=POPULATE_BYTES_MAX => Some(Advice::LinuxPopulateRead),
            n if n <= WANTED_BYTES_MAX => Some(Advice::WillNeed),
            _ => None,
        };
        if let Some(advice) = advice {
            // SAFETY: the range was just mapped, and this advice changes no byte.
            // It saves time only, so a kernel that refuses it does no harm.
            let _ = unsafe { rustix::mm::madvise(self.at(start), end - start, advice) };
        }
        Ok(first)
    }

    /// The same for memory of the host that is used as it comes.
    pub fn attach_part(
        &self,
        memory: &File,
        offset: u64,
        length: u64,
        address: u64,
    ) -> Result<u64, MapError> {
        self.map_file(memory, offset, length, address).map(|(first, ..)| first)
    }

    /// Answers the address of the first byte, and the bounds of the window.
    fn map_file(
        &self,
        file: &File,
        offset: u64,
        length: u64,
        address: u64,
    ) -> Result<(u64, usize, usize), MapError> {
        let skew = offset % page_size();
        let bytes = (skew.checked_add(length))
            .filter(|_| length > 0)
            .and_then(|n| n.checked_next_multiple_of(page_size()))
            .ok_or(MapError::Range { address, length })?;
        let (start, end) = self.check(address, bytes)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        self.map(start, end, flags, Some((file, offset - skew)))?;
        Ok((address + skew, start, end))
    }

    /// Maps `length` bytes of `memory` at `address`, shared with whoever maps
    /// them too.
    pub fn share(&self, memory: &File, length: u64, address: u64) -> Result<(), MapError> {
        let (start, end) = self.check(address, length)?;
        self.map(start, end, MapFlags::SHARED, Some((memory, 0)))
    }

    /// Gives the guest zeros of its own in place of what is attached.
    pub fn detach(&self, address: u64, length: u64) -> Result<(), MapError> {
        let (start, end) = self.check(address, length)?;
        let attached = self.lock().covers(start, end);
        if !attached {
            return Err(MapError::NotAttached { address, length });
        }
        self.map(start, end, MapFlags::PRIVATE | MapFlags::NORESERVE, None)
    }

    /// Has the windows take at most so many mappings of those that the process may have
    /// for windows, or half of what is left if this is never said. A window takes one, and
    /// the room behind it another one unless the next window begins there.
    pub fn limit_mappings(&self, n_max: usize) {
        self.n_mappings_max.store(n_max, Ordering::Relaxed);
    }

    /// How many windows are attached, and the bytes of their pages.
    pub fn windows(&self) -> (usize, u64) {
        let (n, bytes) = self.lock().attached();
        (n, bytes as u64)
    }

    /// Whether bytes of a file were wanted that are not there any more. The guest got
    /// zeros instead: nothing that it says can be trusted.
    pub fn is_lost(&self) -> bool {
        self.accessible.lost.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Windows> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces what is mapped from `start` to `end`, two checked multiples of
    /// the page size, by a file from an offset or by zeros.
    fn map(
        &self,
        start: usize,
        end: usize,
        flags: MapFlags,
        file: Option<(&File, u64)>,
    ) -> Result<(), MapError> {
        let mut windows = self.lock();
        if !self.has_room(&mut windows, start, end) {
            return Err(MapError::TooMany);
        }
        let (at, length) = (self.at(start), end - start);
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let failed = |e: rustix::io::Errno| match e {
            rustix::io::Errno::NOMEM if is_at_limit() => MapError::TooMany,
            rustix::io::Errno::NOMEM => MapError::NoMemory,
            e => MapError::Map(e.into()),
        };
        if let Some((file, offset)) = file {
            // A kernel may remove what is mapped before it finds that a file
            // cannot be, so that is found out elsewhere.
            // SAFETY: a new mapping at an address that the kernel picks touches
            // nothing that exists; nobody uses it before it goes again.
            unsafe {
                let trial =
                    rustix::mm::mmap(std::ptr::null_mut(), length, prot, flags, file, offset);
                rustix::mm::munmap(trial.map_err(failed)?, length).map_err(failed)?;
            }
        }
        let flags = flags | MapFlags::FIXED;
        let mapped = match file {
            // SAFETY: the range lies within this region's accessible part, so
            // nothing but the guest's own bytes is replaced, and no reference
            // to those exists while the guest waits for this call.
            Some((file, offset)) => unsafe {
                rustix::mm::mmap(at, length, prot, flags, file, offset)
            },
            // SAFETY: as above.
            None => unsafe { rustix::mm::mmap_anonymous(at, length, prot, flags) },
        };
        if let Err(error) = mapped {
            // SAFETY: asks for nothing to be written, as all is private or
            // anonymous; fails if a part is not mapped.
            if unsafe { rustix::mm::msync(at, length, MsyncFlags::ASYNC) }.is_err() {
                // The guest could read whatever is mapped into the hole next,
                // and another thread may have mapped something there already.
                eprintln!("moewe: a sandbox lost a part of its memory: {error}");
                std::process::abort();
            }
            return Err(failed(error));
        }
        let before = windows.n_mappings();
        windows.replace(start, end, file.is_some());
        note_used(before, windows.n_mappings());
        Ok(())
    }

    /// Whether there are mappings left to replace what is mapped in a range.
    fn has_room(&self, windows: &mut Windows, start: usize, end: usize) -> bool {
        let n_max = self.n_mappings_max.load(Ordering::Relaxed);
        let has_room = |windows: &Windows| {
            let (now, then) = (windows.n_mappings(), windows.n_mappings_replaced(start, end));
            then <= now || (then <= n_max && then - now <= n_mappings_left())
        };
        // The kernel has joined some of them since it was last asked, which takes it so
        // long that it is not asked each time.
        if has_room(windows) || windows.n_new() <= n_max / 16 {
            return has_room(windows);
        }
        let base = self.accessible.base.addr();
        if let Some(boundaries) = boundaries(base..base + self.capacity) {
            let before = windows.n_mappings();
            windows.merge(|at| boundaries.contains(&(base + at)));
            note_used(before, windows.n_mappings());
        }
        has_room(windows)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        note_used(self.lock().n_mappings(), 0);
        // SAFETY: the range is this region's own, and whoever used what lies there held
        // the region.
        let unmapped = unsafe { rustix::mm::munmap(self.at(0), self.reserved) };
        debug_assert!(unmapped.is_ok());
    }
}

/// Runs `f`, which calls the guest of a region, if there is one. What it touches there
/// and is not there any more is zeros; see [`Region::is_lost`].
pub fn catch_faults<T>(region: Option<&Region>, f: impl FnOnce() -> T) -> T {
    fault::catch(region.map(|region| &region.accessible), f)
}
