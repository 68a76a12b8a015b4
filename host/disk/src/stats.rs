//! What the disk has done so far.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What a [`Disk`](crate::Disk) has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskStats {
    /// Bytes that came from files.
    pub bytes_read: u64,
    /// Reads that have their result, whatever it is.
    pub n_reads: u64,
    /// Calls to the file system, or to another [`Storage`](crate::Storage).
    pub n_calls: u64,
    /// Calls that failed and were repeated.
    pub n_retries: u64,
    /// The time during which at least one call was under way.
    pub busy: Duration,
}

#[derive(Default)]
pub(crate) struct Counters {
    bytes_read: AtomicU64,
    n_reads: AtomicU64,
    n_calls: AtomicU64,
    n_retries: AtomicU64,
    busy: Mutex<Busy>,
}

#[derive(Default)]
struct Busy {
    n_under_way: usize,
    /// Since when there are some.
    since: Option<Instant>,
    before: Duration,
}

impl Counters {
    pub fn call_begins(&self) {
        self.n_calls.fetch_add(1, Relaxed);
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.n_under_way += 1;
        busy.since.get_or_insert_with(Instant::now);
    }

    pub fn call_ends(&self, n_bytes: usize) {
        self.bytes_read.fetch_add(n_bytes as u64, Relaxed);
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.n_under_way -= 1;
        if busy.n_under_way == 0
            && let Some(since) = busy.since.take()
        {
            busy.before += since.elapsed();
        }
    }

    pub fn count_retry(&self) {
        self.n_retries.fetch_add(1, Relaxed);
    }

    pub fn count_read(&self) {
        self.n_reads.fetch_add(1, Relaxed);
    }

    pub fn stats(&self) -> DiskStats {
        let busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        DiskStats {
            bytes_read: self.bytes_read.load(Relaxed),
            n_reads: self.n_reads.load(Relaxed),
            n_calls: self.n_calls.load(Relaxed),
            n_retries: self.n_retries.load(Relaxed),
            busy: busy.before + busy.since.map_or(Duration::ZERO, |since| since.elapsed()),
        }
    }
}
