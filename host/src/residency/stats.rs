//! What the store of experts has counted.

use std::time::Duration;

/// How the experts of a model within a budget of memory are doing, all sessions
/// together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ExpertStats {
    /// Experts that fit in memory at present.
    pub n_slots: usize,
    /// Bytes of each.
    pub slot_bytes: u64,
    /// Demanded experts that were in memory, or on their way.
    pub hits: u64,
    /// Demanded experts that had to be read.
    pub misses: u64,
    /// Experts that made room for others.
    pub evictions: u64,
    /// Bytes read from the disk, those of the weights that every token needs
    /// included.
    pub bytes_read: u64,
    /// How often a read was tried again.
    pub n_retries: u64,
    /// Time that sessions waited for experts.
    pub stall: Duration,
    /// Prefetched experts that were there when they were demanded.
    pub prefetch_useful: u64,
    /// Prefetched experts that were still being read.
    pub prefetch_late: u64,
    /// Prefetched experts that nobody demanded.
    pub prefetch_wasted: u64,
    /// Whether experts are prefetched at present.
    pub prefetch_on: bool,
    /// Bytes of weights in memory.
    pub resident_bytes: u64,
}

impl ExpertStats {
    /// The share of demanded experts that were in memory; 1 if none was
    /// demanded.
    pub fn hit_rate(&self) -> f64 {
        match self.hits + self.misses {
            0 => 1.0,
            n => self.hits as f64 / n as f64,
        }
    }
}
