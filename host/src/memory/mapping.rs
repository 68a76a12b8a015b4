//! Memory of the host that guests can map: a memfd, mapped as a whole.

use std::fs::File;
use std::io;

use rustix::fs::{FallocateFlags, MemfdFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags};

/// Memory that the host fills and guests map; pages that nobody has touched
/// take no memory.
pub(crate) struct Mapping {
    file: File,
    base: *mut u8,
    length: usize,
}

// SAFETY: the address stays valid as long as the mapping lives, and nothing
// here reads or writes what is behind it.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `length` bytes, at least one.
    pub(crate) fn new(name: &str, length: u64) -> io::Result<Self> {
        let bytes = usize::try_from(length).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let file = File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?);
        file.set_len(length)?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel picks touches
        // nothing that exists.
        let base = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), bytes, prot, MapFlags::SHARED, &file, 0)
        }?;
        Ok(Self { file, base: base.cast(), length: bytes })
    }

    /// The file to map into guests.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// The address of `length` bytes from `offset`.
    ///
    /// # Panics
    ///
    /// If they do not lie within the mapping.
    pub(crate) fn at(&self, offset: usize, length: usize) -> *mut u8 {
        assert!(offset.checked_add(length).is_some_and(|end| end <= self.length));
        self.base.wrapping_add(offset)
    }

    /// Has the host's own mapping forget some pages; the memory keeps them. So
    /// they count once as the process's own, where guests map them.
    pub(crate) fn forget(&self, offset: usize, length: usize) {
        let at = self.at(offset, length).cast();
        // SAFETY: a mapping of a file that is shared: the bytes stay in the file.
        // It saves no memory, so a kernel that refuses it does no harm.
        let _ = unsafe { rustix::mm::madvise(at, length, Advice::LinuxDontNeed) };
    }

    /// Gives the memory of some pages back to the system; they read as zeros.
    pub(crate) fn discard(&self, offset: u64, length: u64) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // A system that refuses it keeps the memory, which is used again later.
        let _ = rustix::fs::fallocate(&self.file, flags, offset, length);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping's own, and whoever had an address
        // in it owned a part of this mapping.
        let unmapped = unsafe { rustix::mm::munmap(self.base.cast(), self.length) };
        debug_assert!(unmapped.is_ok());
    }
}
