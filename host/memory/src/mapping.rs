//! Memory that the host reads into and others map, in a file of its own.

use std::fs::File;
use std::io;
use std::ops::Range;

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::shared_memory;

/// A huge page's bytes on most machines.
const REGION: usize = 2 << 20;
/// `MADV_COLLAPSE`; not every C library has the number.
const COLLAPSE: libc::c_int = 25;

/// Memory of this process that others can map: a memfd, mapped as a whole. Pages
/// that nobody has touched take no memory.
///
/// A disk writes to it twice as fast where it lies in huge pages: a kernel that
/// hands out single pages scatters them, and a call is cut into as many pieces as
/// it has pages then. Huge pages come where [`gather`](Self::gather) asks for
/// them, and nowhere else, so that they take no memory that was not meant to be
/// taken.
pub struct Mapping {
    file: File,
    /// Addresses that nobody else gets, and how many.
    reserved: *mut u8,
    n_reserved: usize,
    /// The first of them that is a multiple of a region.
    base: *mut u8,
    length: usize,
}

// SAFETY: the address stays valid as long as the mapping lives, and nothing
// here reads or writes what is behind it.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// What becomes a huge page: so many bytes, from a multiple of them on.
    pub const REGION_BYTES: u64 = REGION as u64;

    /// `length` bytes, at least one.
    ///
    /// # Errors
    ///
    /// Those of the system, for lack of addresses or of file descriptors.
    pub fn new(name: &str, length: u64) -> io::Result<Self> {
        let out_of_memory = || io::Error::from(io::ErrorKind::OutOfMemory);
        let bytes = usize::try_from(length).map_err(|_| out_of_memory())?;
        let n_reserved = bytes.checked_add(REGION).ok_or_else(out_of_memory)?;
        let file = shared_memory(name, length)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address that the kernel picks touches
        // nothing that exists.
        let reserved = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), n_reserved, ProtFlags::empty(), flags)
        }?;
        let reserved = reserved.cast::<u8>();
        let base =
            reserved.wrapping_add(reserved.addr().next_multiple_of(REGION) - reserved.addr());
        let mapping = Self { file, reserved, n_reserved, base, length: bytes };
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: the range lies within the addresses that were just reserved,
        // which nobody else knows.
        unsafe { rustix::mm::mmap(base.cast(), bytes, prot, flags, &mapping.file, 0) }?;
        // A system may give huge pages to whoever touches a byte.
        mapping.advise(0..bytes, Advice::LinuxNoHugepage);
        Ok(mapping)
    }

    /// The file, to be mapped elsewhere.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The address of `length` bytes from `offset`.
    ///
    /// # Panics
    ///
    /// If they do not lie within the mapping.
    pub fn at(&self, offset: usize, length: usize) -> *mut u8 {
        assert!(offset.checked_add(length).is_some_and(|end| end <= self.length));
        self.base.wrapping_add(offset)
    }

    /// Has the system make a huge page of each region that lies within this range
    /// as a whole, which takes all its memory. What is in it stays. A system that
    /// cannot (before Linux 6.1, or without memory in one piece) leaves some as
    /// they are, which costs nothing but speed.
    ///
    /// Many regions together take no longer than a single one: 32 MiB some 3 ms.
    pub fn gather(&self, bytes: Range<u64>) {
        let end = bytes.end.min(self.length as u64) as usize / REGION * REGION;
        let start = usize::try_from(bytes.start).map_or(end, |n| n.min(end));
        let regions = start.next_multiple_of(REGION)..end;
        if regions.is_empty() {
            return;
        }
        self.advise(regions.clone(), Advice::LinuxHugepage);
        // A region without a single page would be refused.
        for region in regions.clone().step_by(REGION) {
            self.advise(region..region + 1, Advice::LinuxPopulateWrite);
        }
        let at = self.at(regions.start, regions.len()).cast();
        // SAFETY: the range is mapped, and this moves its bytes to other pages, at
        // the same addresses. Whatever fails leaves them where they are.
        let _ = unsafe { libc::madvise(at, regions.len(), COLLAPSE) };
        self.advise(regions, Advice::LinuxDontNeed);
    }

    /// Has this mapping forget some bytes; the memory keeps them. So they count
    /// once as the process's own, where others of its mappings have them. It
    /// forgets what lies around them too, as the system maps huge pages as a
    /// whole.
    ///
    /// # Panics
    ///
    /// If they do not lie within the mapping.
    pub fn forget(&self, offset: usize, length: usize) {
        self.at(offset, length);
        let end = (offset + length).next_multiple_of(REGION).min(self.length);
        self.advise(offset / REGION * REGION..end, Advice::LinuxDontNeed);
    }

    /// Gives the memory of some pages back to the system; they read as zeros. False
    /// if it did not take all: a huge page cannot be divided as long as the system
    /// reads into another part of it, so it is worth another try later.
    #[must_use]
    pub fn discard(&self, bytes: Range<u64>) -> bool {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let punched =
            rustix::fs::fallocate(&self.file, flags, bytes.start, bytes.end - bytes.start);
        // No data behind is an error, too.
        let next = rustix::fs::seek(&self.file, SeekFrom::Data(bytes.start));
        punched.is_ok() && next.map_or(true, |next| next >= bytes.end)
    }

    /// Gives an advice that changes no byte; a system that does not take it does no
    /// harm.
    fn advise(&self, bytes: Range<usize>, advice: Advice) {
        let at = self.at(bytes.start, bytes.len()).cast();
        // SAFETY: the range is this mapping's own. It is one of a file that is
        // shared, so the bytes stay there, whatever it forgets.
        let _ = unsafe { rustix::mm::madvise(at, bytes.len(), advice) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping's own, and whoever had an address
        // in it owned a part of this mapping.
        let unmapped = unsafe { rustix::mm::munmap(self.reserved.cast(), self.n_reserved) };
        debug_assert!(unmapped.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    use super::*;

    /// Bytes of the file that take memory.
    fn n_bytes(mapping: &Mapping) -> u64 {
        mapping.file.metadata().unwrap().blocks() * 512
    }

    /// Pages of the process that are there, of those at an address.
    fn n_present(mapping: &Mapping) -> usize {
        let mut entries = vec![0; mapping.length / 4096 * 8];
        let pages = File::open("/proc/self/pagemap").unwrap();
        pages.read_exact_at(&mut entries, mapping.base.addr() as u64 / 4096 * 8).unwrap();
        entries.chunks_exact(8).filter(|entry| entry[7] & 0x80 != 0).count()
    }

    #[test]
    fn huge_pages_lie_where_they_were_asked_for_and_count_once() {
        const LENGTH: u64 = 5 * Mapping::REGION_BYTES + 4096;
        let mapping = Mapping::new("test", LENGTH).unwrap();
        assert!(mapping.at(0, 1).addr().is_multiple_of(REGION));
        assert_eq!(n_bytes(&mapping), 0);
        mapping.file.write_all_at(b"here", LENGTH / 2).unwrap();
        assert_eq!(n_bytes(&mapping), 4096);
        // Of these, two lie within as a whole.
        mapping.gather(Mapping::REGION_BYTES - 1..4 * Mapping::REGION_BYTES - 1);
        let n_gathered = n_bytes(&mapping);
        assert!(n_gathered <= 2 * Mapping::REGION_BYTES, "{n_gathered}");
        assert_eq!(n_present(&mapping), 0);
        // Nothing within: no region as a whole, none at all, none of the mapping's.
        for bytes in [1..2 * Mapping::REGION_BYTES - 1, 9..9, LENGTH - 1..u64::MAX] {
            mapping.gather(bytes);
            assert_eq!(n_bytes(&mapping), n_gathered);
        }
        let at = mapping.at(LENGTH as usize / 2, 4).cast::<[u8; 4]>();
        // SAFETY: nobody writes there.
        assert_eq!(unsafe { at.read() }, *b"here");
        assert!(n_present(&mapping) > 0);
        mapping.forget(LENGTH as usize / 2 + 5, 1);
        assert_eq!(n_present(&mapping), 0, "a huge page is there as a whole");
        // The middle of a huge page, and what was no part of one.
        let page = LENGTH / 2 / 4096 * 4096;
        assert!(mapping.discard(page..page + 4096) && mapping.discard(0..4096));
        assert_eq!(n_bytes(&mapping), n_gathered - 4096);
        assert!(mapping.discard(0..LENGTH));
        assert_eq!(n_bytes(&mapping), 0);
    }

    #[test]
    fn memory_that_is_kept_is_told() {
        const LENGTH: u64 = Mapping::REGION_BYTES;
        let mapping = Mapping::new("test", LENGTH).unwrap();
        mapping.gather(0..LENGTH);
        if n_bytes(&mapping) < LENGTH {
            moewe_fixtures::skip("there are no huge pages here");
            return;
        }
        // A pipe has a page of it, as a read that is under way would.
        let (reader, writer) = io::pipe().unwrap();
        let page = libc::iovec { iov_base: mapping.at(4096, 4096).cast(), iov_len: 4096 };
        // SAFETY: the page is mapped, and nobody writes to it.
        assert_eq!(unsafe { libc::vmsplice(writer.as_raw_fd(), &page, 1, 0) }, 4096);
        assert!(!mapping.discard(8192..LENGTH));
        assert_eq!(n_bytes(&mapping), LENGTH);
        drop((reader, writer));
        assert!(mapping.discard(8192..LENGTH));
        assert_eq!(n_bytes(&mapping), 8192);
    }
}
