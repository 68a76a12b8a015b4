//! A file that is read around the page cache.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::num::NonZeroU64;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::{Advice, OFlags};
use rustix::io::Errno;

use crate::{ALIGNMENT, Storage};

/// A file that is read around the page cache.
///
/// That is direct I/O where the file system has it. Elsewhere reads go through
/// the page cache, and drop from it behind themselves what nobody has mapped.
#[derive(Debug)]
pub struct DirectFile {
    file: File,
    size: u64,
    is_direct: bool,
}

impl DirectFile {
    /// Opens a file for reading.
    ///
    /// # Errors
    ///
    /// Those of opening it without direct I/O.
    pub fn open(path: &Path) -> io::Result<Self> {
        match open(path, OFlags::DIRECT) {
            Ok(file) if takes_direct_io(&file) => Self::new(file, true),
            _ => Self::new(open(path, OFlags::empty())?, false),
        }
    }

    /// Opens once more a file that is open already, and so the very same, even
    /// if its path leads elsewhere by now.
    ///
    /// # Errors
    ///
    /// Those of opening it once more, and of duplicating its descriptor where
    /// there is no `/proc`.
    pub fn from_file(file: &File) -> io::Result<Self> {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        Self::open(Path::new(&path)).or_else(|_| Self::new(file.try_clone()?, false))
    }

    /// Whether the page cache takes no part at all.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.is_direct
    }

    fn new(file: File, is_direct: bool) -> io::Result<Self> {
        let size = file.metadata()?.len();
        if !is_direct {
            // Reading ahead would fill the page cache with what nobody drops.
            // Where there is no advice, there is nothing to be done about it.
            let _ = rustix::fs::fadvise(&file, 0, None, Advice::Random);
        }
        Ok(Self { file, size, is_direct })
    }
}

fn open(path: &Path, flags: OFlags) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path)
}

/// Some file systems refuse direct I/O only when it comes to reading.
fn takes_direct_io(file: &File) -> bool {
    #[repr(align(4096))]
    struct Block([u8; ALIGNMENT as usize]);
    let mut block = Box::new(Block([0; _]));
    rustix::io::pread(file, &mut block.0, 0) != Err(Errno::INVAL)
}

impl Storage for DirectFile {
    fn read_at(&self, buffers: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        let n = rustix::io::preadv(&self.file, buffers, offset)?;
        if !self.is_direct
            && let Some(length) = NonZeroU64::new(n as u64)
        {
            let _ = rustix::fs::fadvise(&self.file, offset, Some(length), Advice::DontNeed);
        }
        Ok(n)
    }

    fn promised(&self) -> u64 {
        self.size
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn raw_fd(&self) -> Option<BorrowedFd<'_>> {
        self.is_direct.then(|| self.file.as_fd())
    }
}
