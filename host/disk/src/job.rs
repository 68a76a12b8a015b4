//! Pieces that are read with one call.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::sync::Arc;
use std::time::Duration;

use crate::progress::{Next, Progress};
use crate::stats::Counters;
use crate::ticket::Ticket;
use crate::{Piece, ReadError, Storage};

/// A piece, or a part of one, of a read.
pub(crate) struct Part {
    pub ticket: Arc<Ticket>,
    pub piece: Piece,
}

impl Part {
    /// Takes its first `n` bytes away from it.
    pub fn cut(&mut self, n: usize) -> Self {
        let Piece { offset, length, memory } = self.piece;
        self.piece =
            Piece { offset: offset + n as u64, length: length - n, memory: memory.wrapping_add(n) };
        Self { ticket: self.ticket.clone(), piece: Piece { offset, length: n, memory } }
    }

    /// Zeros behind the end of the file, where direct I/O may write or not.
    fn clear_behind(&self, end: u64) {
        let Piece { offset, length, memory } = self.piece;
        let there = end.saturating_sub(offset).min(length as u64) as usize;
        // SAFETY: the range lies in the part, whose memory is the disk's until
        // it has its result.
        unsafe { memory.add(there).write_bytes(0, length - there) };
    }

    pub fn settle(&self, result: Result<(), ReadError>) {
        self.ticket.settle(self.piece.length, result);
    }
}

/// Parts that lie one behind another in a file, and are read with one call.
pub(crate) struct Job {
    storage: Arc<dyn Storage>,
    /// Those which have not been read yet.
    parts: VecDeque<Part>,
    progress: Progress,
    /// Held by all jobs that prefetch, which are counted by it.
    prefetch: Option<Arc<()>>,
    max_retries: u32,
    counters: Arc<Counters>,
}

/// What comes next for a job.
pub(crate) enum Step {
    /// Nothing: all parts have their result.
    Finished,
    /// Another call.
    Again,
    /// Another call after a pause.
    Pause(Duration),
    /// The parts go on without each other: see [`Job::split`].
    Split,
}

impl Job {
    /// `parts` are not empty.
    pub fn new(
        parts: VecDeque<Part>,
        prefetch: Option<Arc<()>>,
        max_retries: u32,
        counters: Arc<Counters>,
    ) -> Self {
        let (first, last) = (&parts[0], &parts[parts.len() - 1].piece);
        let storage = first.ticket.storage.clone();
        let end = last.offset + last.length as u64;
        let progress = Progress::new(first.piece.offset, end, storage.promised(), max_retries);
        Self { storage, parts, progress, prefetch, max_retries, counters }
    }

    pub fn storage(&self) -> &dyn Storage {
        &*self.storage
    }

    /// Where the next call starts.
    pub fn offset(&self) -> u64 {
        self.progress.position()
    }

    /// Where the next call reads into.
    ///
    /// # Safety
    ///
    /// The job must outlive the buffers, and there may be no others of it.
    pub unsafe fn buffers<'a>(&self) -> Vec<IoSliceMut<'a>> {
        let buffer = |part: &Part| {
            let Piece { length, memory, .. } = part.piece;
            // SAFETY: whoever asked for the read vouches for the memory until
            // it is told the result, which happens after the last part of it
            // has left a job.
            IoSliceMut::new(unsafe { std::slice::from_raw_parts_mut(memory, length) })
        };
        self.parts.iter().map(buffer).collect()
    }

    /// Counts the call that begins.
    pub fn call_begins(&self) {
        self.counters.call_begins();
    }

    /// What comes next after a call. Tells results, so nobody may hold a lock.
    pub fn after(&mut self, result: io::Result<usize>) -> Step {
        self.counters.call_ends(*result.as_ref().unwrap_or(&0));
        let before = self.progress.position();
        let next = self.progress.after(result, || self.storage.size());
        self.advance((self.progress.position() - before) as usize);
        match next {
            Next::Done => Step::Finished,
            Next::Again => Step::Again,
            // One of several may have nothing to do with what went wrong.
            Next::Pause(_) | Next::Failed(_) if self.parts.len() > 1 => {
                self.counters.count_retry();
                Step::Split
            }
            Next::Pause(pause) => {
                self.counters.count_retry();
                Step::Pause(pause)
            }
            Next::Failed(error) => {
                self.settle(&Err(error));
                Step::Finished
            }
        }
    }

    /// A job for each part.
    pub fn split(self) -> impl Iterator<Item = Self> {
        let Self { parts, prefetch, max_retries, counters, .. } = self;
        parts.into_iter().map(move |part| {
            Self::new([part].into(), prefetch.clone(), max_retries, counters.clone())
        })
    }

    /// The parts that have no result yet.
    pub fn into_parts(self) -> impl Iterator<Item = Part> {
        self.parts.into_iter()
    }

    /// Gives all parts their result.
    fn settle(&mut self, result: &Result<(), ReadError>) {
        for part in self.parts.drain(..) {
            part.settle(result.clone());
        }
    }

    /// The first `n` bytes have been read.
    fn advance(&mut self, mut n: usize) {
        while n > 0
            && let Some(first) = self.parts.front_mut()
        {
            let read = if first.piece.length > n {
                first.cut(n)
            } else {
                self.parts.pop_front().expect("there is a first part")
            };
            n -= read.piece.length;
            read.clear_behind(self.storage.promised());
            read.settle(Ok(()));
        }
    }
}
