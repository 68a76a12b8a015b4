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

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::MemfdFlags;
use rustix::mm::{Advice, MapFlags, MprotectFlags, MsyncFlags, ProtFlags};
use wasmtime::{LinearMemory, MemoryCreator, MemoryType};

use super::{MapError, N_WINDOWS_MAX, fault};

/// Windows up to this many bytes get their page tables filled at once; for
/// larger ones, touching the pages as they are used costs less than waiting.
const POPULATE_BYTES_MAX: usize = 16 << 20;

/// The unit of mapping, in bytes.
pub(crate) fn page_size() -> u64 {
    rustix::param::page_size() as u64
}

/// Memory that several guests can map: zeros at first.
pub(crate) fn shared_memory(length: u64) -> io::Result<File> {
    let file = File::from(rustix::fs::memfd_create("moewe-team", MemfdFlags::CLOEXEC)?);
    file.set_len(length)?;
    Ok(file)
}

/// Has Wasmtime create its linear memories here.
pub(crate) fn configure(config: &mut wasmtime::Config) {
    config.with_host_memory(Arc::new(GuestMemoryCreator));
    // An image of the initial data would be mapped over the region by
    // Wasmtime; copied data leaves all mapping to `Region`.
    config.memory_init_cow(false);
}

/// What was mapped over a region: disjoint ranges, not merged, by their start.
///
/// Ranges that were given back count as well: the kernel does not always join
/// their pages with those around them again, and so keeps a mapping for each.
#[derive(Default)]
struct Mappings {
    ranges: BTreeMap<usize, Mapping>,
    n_attached: usize,
    bytes_attached: usize,
}

#[derive(Clone, Copy)]
struct Mapping {
    end: usize,
    attached: bool,
}

impl Mappings {
    /// What has bytes in common with the range.
    fn touched(&self, start: usize, end: usize) -> impl Iterator<Item = (usize, Mapping)> {
        let first = self.ranges.range(..start).next_back().map_or(start, |(&s, _)| s);
        self.ranges.range(first..end).map(|(&s, &m)| (s, m)).filter(move |(_, m)| m.end > start)
    }

    /// Whether all of the range is attached.
    fn covers(&self, start: usize, end: usize) -> bool {
        let mut at = start;
        for (s, m) in self.touched(start, end).filter(|(_, m)| m.attached) {
            if s > at {
                return false;
            }
            at = m.end;
        }
        at >= end
    }

    /// How many mappings there would be if the range was replaced.
    fn len_replaced(&self, start: usize, end: usize) -> usize {
        let mut n = self.ranges.len() + 1;
        for (s, m) in self.touched(start, end) {
            n += usize::from(s < start) + usize::from(m.end > end);
            n -= 1;
        }
        n
    }

    fn replace(&mut self, start: usize, end: usize, attached: bool) {
        let touched: Vec<_> = self.touched(start, end).collect();
        for (s, m) in touched {
            self.remove(s);
            if s < start {
                self.insert(s, Mapping { end: start, ..m });
            }
            if m.end > end {
                self.insert(end, m);
            }
        }
        self.insert(start, Mapping { end, attached });
    }

    fn insert(&mut self, start: usize, mapping: Mapping) {
        self.ranges.insert(start, mapping);
        if mapping.attached {
            self.n_attached += 1;
            self.bytes_attached += mapping.end - start;
        }
    }

    fn remove(&mut self, start: usize) {
        if let Some(Mapping { end, attached: true }) = self.ranges.remove(&start) {
            self.n_attached -= 1;
            self.bytes_attached -= end - start;
        }
    }
}

/// The address range of one linear memory.
pub(crate) struct Region {
    base: *mut u8,
    /// Bytes reserved from `base`, guard included.
    reserved: usize,
    /// Bytes from `base` that the guest may use.
    accessible: AtomicUsize,
    mappings: Mutex<Mappings>,
    /// Whether the guest has zeros where a file was.
    lost: AtomicBool,
}

// SAFETY: `base` is an address that stays valid as long as the region lives.
// The bytes behind it are reached through Wasmtime alone; the methods here only
// change mappings, under the lock of `mappings`, or of pages that its thread waits for.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    fn new(reserved: usize) -> io::Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address that the kernel picks touches
        // nothing that exists.
        let base = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), reserved, ProtFlags::empty(), flags)
        }?;
        Ok(Self {
            base: base.cast(),
            reserved,
            accessible: AtomicUsize::new(0),
            mappings: Mutex::default(),
            lost: AtomicBool::new(false),
        })
    }

    /// Makes the first `size` bytes accessible.
    fn grow(&self, size: usize) -> io::Result<()> {
        let old = self.accessible.load(Ordering::Relaxed);
        if size <= old {
            return Ok(());
        }
        // The page that `old` ends in is accessible already.
        let start = old.next_multiple_of(rustix::param::page_size());
        if start < size {
            // SAFETY: the creator checked that `size` lies within the
            // reservation, and nothing is mapped behind `old` but the
            // reservation's own pages.
            unsafe {
                rustix::mm::mprotect(
                    self.at(start),
                    size - start,
                    MprotectFlags::READ | MprotectFlags::WRITE,
                )
            }?;
        }
        self.accessible.store(size, Ordering::Relaxed);
        Ok(())
    }

    fn at(&self, offset: usize) -> *mut c_void {
        self.base.wrapping_add(offset).cast()
    }

    /// Checks that the range is made of whole, accessible pages, and not
    /// empty; answers its bounds.
    pub(crate) fn check(&self, address: u64, length: u64) -> Result<(usize, usize), MapError> {
        let page = page_size();
        match address.checked_add(length) {
            Some(end)
                if length > 0
                    && end <= self.byte_size()
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
    pub(crate) fn attach(
        &self,
        file: &File,
        offset: u64,
        length: u64,
        address: u64,
    ) -> Result<u64, MapError> {
        fault::install();
        let (first, start, end) = self.map_file(file, offset, length, address)?;
        let advice = if end - start <= POPULATE_BYTES_MAX {
            Advice::LinuxPopulateRead
        } else {
            Advice::WillNeed
        };
        // SAFETY: the range was just mapped, and this advice changes no byte.
        // It saves time only, so a kernel that refuses it does no harm.
        let _ = unsafe { rustix::mm::madvise(self.at(start), end - start, advice) };
        Ok(first)
    }

    /// The same for memory of the host that is used as it comes.
    pub(crate) fn attach_part(
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
    pub(crate) fn share(&self, memory: &File, length: u64, address: u64) -> Result<(), MapError> {
        let (start, end) = self.check(address, length)?;
        self.map(start, end, MapFlags::SHARED, Some((memory, 0)))
    }

    /// Gives the guest zeros of its own in place of what is attached.
    pub(crate) fn detach(&self, address: u64, length: u64) -> Result<(), MapError> {
        let (start, end) = self.check(address, length)?;
        let attached = self.lock().covers(start, end);
        if !attached {
            return Err(MapError::NotAttached { address, length });
        }
        self.map(start, end, MapFlags::PRIVATE | MapFlags::NORESERVE, None)
    }

    /// Bytes that the guest may use, windows included.
    fn byte_size(&self) -> u64 {
        self.accessible.load(Ordering::Relaxed) as u64
    }

    /// How many windows are attached, and the bytes of their pages.
    pub(crate) fn windows(&self) -> (usize, u64) {
        let mappings = self.lock();
        (mappings.n_attached, mappings.bytes_attached as u64)
    }

    /// Whether bytes of a file were wanted that are not there any more. The guest got
    /// zeros instead: nothing that it says can be trusted.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// Puts zeros in place of a page that this thread has touched and the kernel cannot
    /// bring; false if it is none of the guest's. A signal handler calls it, so there are
    /// no locks and nothing is allocated.
    pub(super) fn lose(&self, address: usize) -> bool {
        let offset = address.wrapping_sub(self.base.addr());
        if offset >= self.accessible.load(Ordering::Relaxed) {
            return false;
        }
        let page = rustix::param::page_size();
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: the page lies within this region's accessible part, so nothing but the
        // guest's own bytes is replaced. Nobody has seen a byte of it: it is not there.
        // Nobody maps meanwhile: that is up to this thread, which waits here.
        let mapped =
            unsafe { rustix::mm::mmap_anonymous(self.at(offset / page * page), page, prot, flags) };
        self.lost.store(true, Ordering::Relaxed);
        mapped.is_ok()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Mappings> {
        self.mappings.lock().unwrap_or_else(PoisonError::into_inner)
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
        let mut mappings = self.lock();
        let n = mappings.len_replaced(start, end);
        if n > N_WINDOWS_MAX && n > mappings.ranges.len() {
            return Err(MapError::TooMany);
        }
        let (at, length) = (self.at(start), end - start);
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let failed = |e: rustix::io::Errno| MapError::Map(e.into());
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
        mappings.replace(start, end, file.is_some());
        Ok(())
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the range is this region's own, and both who use it, the
        // linear memory and the store's data, are gone.
        let unmapped = unsafe { rustix::mm::munmap(self.base.cast(), self.reserved) };
        debug_assert!(unmapped.is_ok());
    }
}

thread_local! {
    /// Regions created since [`capture`] began on this thread.
    static CREATED: RefCell<Option<Vec<Arc<Region>>>> = const { RefCell::new(None) };
}

/// Runs `f`, which instantiates a guest, and answers the region of the memory
/// that was created meanwhile, if it was exactly one.
///
/// Wasmtime creates memories on the thread that instantiates, and does not say
/// for which store.
pub(crate) fn capture<T>(f: impl FnOnce() -> T) -> (T, Option<Arc<Region>>) {
    CREATED.set(Some(Vec::new()));
    let value = f();
    let created = CREATED.take().unwrap_or_default();
    (value, <[_; 1]>::try_from(created).ok().map(|[region]| region))
}

/// Creates linear memories that files can be mapped into.
struct GuestMemoryCreator;

// SAFETY: a region is reserved once with its guard, stays where it is, is zero
// at first, and is accessible up to exactly `byte_size`, guard excluded.
unsafe impl MemoryCreator for GuestMemoryCreator {
    fn new_memory(
        &self,
        _ty: MemoryType,
        minimum: usize,
        maximum: Option<usize>,
        reserved_size_in_bytes: Option<usize>,
        guard_size_in_bytes: usize,
    ) -> Result<Box<dyn LinearMemory>, String> {
        let capacity = reserved_size_in_bytes.or(maximum).unwrap_or(minimum);
        if minimum > capacity {
            return Err(format!("a memory of {minimum} bytes exceeds {capacity} bytes"));
        }
        let reserved = capacity
            .checked_add(guard_size_in_bytes)
            .and_then(|n| n.checked_next_multiple_of(rustix::param::page_size()))
            .ok_or("a memory larger than the address space")?;
        let region = Region::new(reserved).and_then(|region| {
            region.grow(minimum)?;
            Ok(Arc::new(region))
        });
        let region = region.map_err(|e| {
            format!(
                "cannot reserve {reserved} bytes of address space for a sandbox ({e}); raise \
                 `ulimit -v`"
            )
        })?;
        CREATED.with_borrow_mut(|created| {
            if let Some(created) = created {
                created.push(region.clone());
            }
        });
        Ok(Box::new(GuestMemory { region, capacity }))
    }
}

struct GuestMemory {
    region: Arc<Region>,
    capacity: usize,
}

// SAFETY: see the creator.
unsafe impl LinearMemory for GuestMemory {
    fn byte_size(&self) -> usize {
        self.region.accessible.load(Ordering::Relaxed)
    }

    fn byte_capacity(&self) -> usize {
        self.capacity
    }

    fn grow_to(&mut self, new_size: usize) -> wasmtime::Result<()> {
        if new_size > self.capacity {
            return Err(wasmtime::format_err!(
                "a memory of {new_size} bytes exceeds {} bytes",
                self.capacity
            ));
        }
        Ok(self.region.grow(new_size)?)
    }

    fn as_ptr(&self) -> *mut u8 {
        self.region.base
    }
}
