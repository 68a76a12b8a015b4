//! Where bytes come from.

use std::io::{self, IoSliceMut};
use std::os::fd::BorrowedFd;

/// Where bytes come from: a [`DirectFile`](crate::DirectFile), or something
/// else, in tests for example. Its methods must not panic.
pub trait Storage: Send + Sync {
    /// Reads into the buffers, one after another, what is there from `offset`
    /// on, and says how many bytes. These may be fewer than wanted: a multiple
    /// of [`ALIGNMENT`](crate::ALIGNMENT), or up to the end.
    ///
    /// # Errors
    ///
    /// Whatever goes wrong; the [`Disk`](crate::Disk) decides about a retry.
    fn read_at(&self, buffers: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize>;

    /// How many bytes there were when it was opened: what reads may rely on.
    /// Always the same.
    fn promised(&self) -> u64;

    /// How many bytes there are now.
    ///
    /// # Errors
    ///
    /// Those of asking.
    fn size(&self) -> io::Result<u64>;

    /// The file, if reading it at an offset is all that
    /// [`read_at`](Self::read_at) does: io_uring may read it instead then.
    /// Always the same.
    fn raw_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
