//! How a disk reads.

/// How the disk is to read.
///
/// The defaults were measured, with reads of 2.6 MiB and of 3 × 864 KiB from a
/// disk of 1.2 to 2 GB/s. While nobody else computes, two calls of 1 MiB at a
/// time keep it almost busy, whoever makes them. While all processors compute, four
/// get 0.8 times what eight get. Calls of 512 KiB cost 1.2 times the processor
/// time of those of 1 MiB; longer ones make a demand wait for prefetches, twice
/// as long with 4 MiB. io_uring costs 0.8 times what threads cost, and is as
/// fast or, with its one thread among many that compute, up to a quarter slower.
#[derive(Debug, Clone)]
pub struct DiskOptions {
    /// Who makes the calls.
    pub backend: Backend,
    /// How many calls are under way at a time; half as many for prefetches, so
    /// that a demand does not wait long for them.
    pub depth: usize,
    /// How many bytes a call reads at most: longer pieces are divided, and
    /// shorter ones joined if they are neighbours in the file.
    pub call_bytes: usize,
    /// How often a call that failed is repeated.
    pub max_retries: u32,
}

impl Default for DiskOptions {
    fn default() -> Self {
        Self { backend: Backend::Threads, depth: 8, call_bytes: 1 << 20, max_retries: 3 }
    }
}

/// Who makes the calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// io_uring where it is allowed, threads elsewhere.
    Auto,
    /// The kernel, asked by one thread. Threads still read storages without a
    /// file descriptor.
    IoUring,
    /// As many threads as calls at a time.
    Threads,
}
