//! What is asked of the disk, and what can go wrong.

use std::io;
use std::sync::Arc;

use crate::Storage;

/// Offsets, lengths and addresses of [`Piece`]s are multiples of it.
pub const ALIGNMENT: u64 = 4096;

/// A piece of a file, and the memory it goes to.
///
/// It may reach beyond the end of the file, up to the next multiple of
/// [`ALIGNMENT`]. Behind the end it is filled with zeros, as in a mapping.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    /// Its first byte in the file.
    pub offset: u64,
    /// How many bytes it has.
    pub length: usize,
    /// Where they go.
    pub memory: *mut u8,
}

// SAFETY: it is only an address. Whoever has it written to vouches for it; see
// `Disk::read`.
unsafe impl Send for Piece {}

/// What is read first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Somebody waits for it.
    Demand,
    /// Somebody may want it later; read when there is no demand.
    Prefetch,
}

/// Pieces of a file that are wanted together.
pub struct Read {
    /// What [`Disk::cancel`](crate::Disk::cancel) and
    /// [`Disk::promote`](crate::Disk::promote) know it by. No two reads under
    /// way should have the same.
    pub id: u64,
    /// The file.
    pub storage: Arc<dyn Storage>,
    /// Which pieces of it, in any order.
    pub pieces: Vec<Piece>,
    /// How urgent they are.
    pub priority: Priority,
    /// Called exactly once, when all pieces are there, or the disk has done
    /// with them otherwise: with the first error then. It runs on a thread of
    /// the disk (or on the one that cancels), which reads nothing meanwhile, so
    /// it should be short. It may ask for more reads, and even drop the disk.
    pub done: Done,
}

/// What is called with the result of a [`Read`].
pub(crate) type Done = Box<dyn FnOnce(Result<(), ReadError>) + Send>;

/// Why a [`Read`] did not succeed. What its memory holds is anybody's guess then.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The file has become shorter since it was opened.
    #[error("the file ends at byte {offset}, it has become shorter: {size} bytes")]
    Truncated {
        /// Where it turned out to end.
        offset: u64,
        /// Its size now.
        size: u64,
    },
    /// Reading failed, several times if that was worth a try.
    #[error("cannot read the file at byte {offset}")]
    Io {
        /// Where reading failed.
        offset: u64,
        /// How.
        source: Arc<io::Error>,
    },
    /// It was cancelled, or the disk was dropped before it was read.
    #[error("the read was cancelled")]
    Cancelled,
}
