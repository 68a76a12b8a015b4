//! The disk as its callers see it.

use std::io;
use std::sync::Arc;

use crate::job::Part;
use crate::queue::Queue;
use crate::ring::Ring;
use crate::stats::Counters;
use crate::threads::Threads;
use crate::ticket::Ticket;
use crate::{ALIGNMENT, Backend, DiskOptions, DiskStats, Piece, Read, ReadError, Storage};

/// Reads pieces of files, demands before prefetches.
///
/// Demands are begun in the order in which they were asked for; those of one
/// batch in the order of the file. A piece is read by several calls at a time
/// if it is long, and neighbours share one, even of different reads and in
/// different places of memory.
///
/// A call that fails is repeated a few times, after pauses of 10, 50 and 250 ms;
/// one that several pieces share is made for each of them instead.
///
/// Dropping it cancels what has not begun, waits for the calls under way, and
/// for its threads, except the one that drops it.
pub struct Disk {
    threads: Threads,
    /// Reads the storages that have a file descriptor.
    ring: Option<Ring>,
    counters: Arc<Counters>,
}

impl Disk {
    /// Starts the threads.
    ///
    /// # Errors
    ///
    /// No more threads; `InvalidInput` for options that make no sense; with
    /// [`Backend::IoUring`] its absence.
    pub fn new(options: DiskOptions) -> io::Result<Self> {
        let DiskOptions { backend, depth, call_bytes, .. } = options;
        if depth == 0 || call_bytes == 0 || !is_aligned(call_bytes as u64) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let counters = Arc::new(Counters::default());
        let queue = || Queue::new(&options, counters.clone());
        let ring = match backend {
            Backend::Auto => Ring::new(depth, queue()).ok(),
            Backend::IoUring => Some(Ring::new(depth, queue())?),
            Backend::Threads => None,
        };
        Ok(Self { threads: Threads::new(depth, queue())?, ring, counters })
    }

    /// Who makes the calls; never [`Backend::Auto`].
    #[must_use]
    pub fn backend(&self) -> Backend {
        if self.ring.is_some() { Backend::IoUring } else { Backend::Threads }
    }

    /// Asks for a batch. Returns at once.
    ///
    /// A read whose pieces are not aligned, or reach too far beyond the end of
    /// the file, fails as [`ReadError::Io`] with `InvalidInput`.
    ///
    /// # Safety
    ///
    /// The memory of each piece is valid, with something in it, and nobody else
    /// reads or writes it, until `done` of its read was called. This holds for
    /// pieces of the same batch as well: they do not overlap in memory.
    pub unsafe fn read(&self, reads: Vec<Read>) {
        let mut parts = Vec::new();
        let mut settled = Vec::new();
        for Read { id, storage, pieces, priority, done } in reads {
            let invalid = pieces.iter().find(|piece| !is_valid(piece, storage.promised()));
            let result = invalid.map_or(Ok(()), |piece| {
                let source = Arc::new(io::ErrorKind::InvalidInput.into());
                Err(ReadError::Io { offset: piece.offset, source })
            });
            if result.is_err() || pieces.iter().all(|piece| piece.length == 0) {
                let ticket = Ticket::new(id, storage, 0, done, self.counters.clone());
                let piece = Piece { offset: 0, length: 0, memory: std::ptr::null_mut() };
                settled.push((Part { ticket: Arc::new(ticket), piece }, result));
                continue;
            }
            let length = pieces.iter().map(|piece| piece.length).sum();
            let ticket = Arc::new(Ticket::new(id, storage, length, done, self.counters.clone()));
            let pieces = pieces.into_iter().filter(|piece| piece.length > 0);
            parts.extend(pieces.map(|piece| (priority, Part { ticket: ticket.clone(), piece })));
        }
        parts.sort_by_key(|(_, part)| (address(&part.ticket.storage), part.piece.offset));
        let (by_ring, by_threads) = parts.into_iter().partition::<Vec<_>, _>(|(_, part)| {
            self.ring.is_some() && part.ticket.storage.raw_fd().is_some()
        });
        if let Some(ring) = &self.ring
            && !by_ring.is_empty()
        {
            ring.change(|queue| queue.extend(by_ring));
        }
        if by_threads.is_empty() && settled.is_empty() {
            return;
        }
        self.threads.change(|queue| {
            settled.into_iter().for_each(|(part, result)| queue.settle(part, result));
            queue.extend(by_threads);
        });
    }

    /// Cancels a prefetch that has not begun: its `done` is called with
    /// [`ReadError::Cancelled`], on this thread, before this returns true.
    /// Otherwise nothing happens.
    pub fn cancel(&self, id: u64) -> bool {
        let mut parts = self.threads.change(|queue| queue.cancel(id));
        if let Some(ring) = &self.ring {
            parts.extend(ring.change(|queue| queue.cancel(id)));
        }
        let is_cancelled = !parts.is_empty();
        for part in parts {
            part.settle(Err(ReadError::Cancelled));
        }
        is_cancelled
    }

    /// Makes a demand of a prefetch, of what has not begun of it, as if it were
    /// asked for now.
    pub fn promote(&self, id: u64) {
        self.threads.change(|queue| queue.promote(id));
        if let Some(ring) = &self.ring {
            ring.change(|queue| queue.promote(id));
        }
    }

    /// What was done so far.
    #[must_use]
    pub fn stats(&self) -> DiskStats {
        self.counters.stats()
    }
}

fn is_aligned(n: u64) -> bool {
    n.is_multiple_of(ALIGNMENT)
}

fn is_valid(piece: &Piece, promised: u64) -> bool {
    let Piece { offset, length, memory } = *piece;
    let end = offset.checked_add(length as u64);
    let last = promised.checked_next_multiple_of(ALIGNMENT);
    is_aligned(offset)
        && is_aligned(length as u64)
        && is_aligned(memory.addr() as u64)
        && end.is_some()
        && end <= last
}

fn address(storage: &Arc<dyn Storage>) -> usize {
    Arc::as_ptr(storage).addr()
}
