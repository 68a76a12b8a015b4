//! What of a budget of memory is left for experts.

use moewe_memory::{Mapping, page_size};

pub(super) const MIB: u64 = 1 << 20;

/// What cannot be counted beforehand: threads, queues, the host's own tables.
const HEADROOM_BYTES: u64 = 40 << 20;
/// While a slot is read, the host maps the huge pages that it lies in as a whole,
/// on average one more than it takes: what else is in them counts twice meanwhile.
/// Of eight calls of the disk each may be for another slot.
const AROUND_READS_BYTES: u64 = 8 * Mapping::REGION_BYTES;
/// What cannot be counted beforehand includes the pages around the weights that
/// every token needs, of which other weights have a part.
const AROUND_DENSE_BYTES: u64 = 8 << 20;
/// What is gained by a change of this size or less does not make slots come
/// back: they would soon go again.
const SLACK_BYTES: u64 = 16 << 20;

/// The most experts that are demanded at once, if the router does not pick more
/// for a token: while some are computed, others are read.
const N_DEMAND_MAX: u64 = 32;
/// For each of those that are demanded at once there are so many slots.
pub(super) const SLOTS_PER_DEMAND: u64 = 4;

/// How many experts are demanded at once, at most, with so many slots when the
/// model is loaded.
pub(super) fn n_demand_max(n_used: u64, n_slots: u64) -> u64 {
    n_used.max((n_slots / SLOTS_PER_DEMAND).min(N_DEMAND_MAX))
}

/// A budget, and what is known of its use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget {
    /// The most that there may be.
    pub bytes: u64,
    /// What the process had before the model was opened.
    pub base: u64,
    /// The weights that every token needs, and what of them is in memory.
    pub dense: u64,
    pub dense_resident: u64,
    /// Sandboxes' memory without their windows.
    pub guests: u64,
    /// How many sandboxes map all of it.
    pub n_guests: u64,
    pub slot_bytes: u64,
    pub page_size: u64,
}

impl Budget {
    /// Of memory that guests and the host map, with the tables for that.
    pub fn mapped(&self, bytes: u64) -> u64 {
        let entries = (bytes / self.page_size).saturating_mul(8 * (self.n_guests + 1));
        bytes.saturating_add(entries)
    }

    /// All but the experts.
    pub fn others(&self) -> u64 {
        // Before a window is attached, its place counts as a guest's own memory,
        // though nobody has touched it.
        let untouched = (self.dense.saturating_sub(self.dense_resident))
            .saturating_add(self.slot_bytes.saturating_mul(self.n_guests));
        // Whoever maps more than was said must have the room for it.
        let more = self.dense_resident.saturating_sub(AROUND_DENSE_BYTES);
        HEADROOM_BYTES
            .saturating_add(AROUND_READS_BYTES)
            .saturating_add(self.base)
            .saturating_add(self.mapped(self.dense.max(more)))
            .saturating_add(self.guests.saturating_sub(untouched))
    }

    /// How many experts fit.
    pub fn n_slots(&self) -> u64 {
        match self.slot_bytes {
            0 => 0,
            bytes => self.bytes.saturating_sub(self.others()) / self.mapped(bytes),
        }
    }

    /// The least that suffices for `n_slots` experts when sandboxes have taken
    /// so many bytes and all weights that they need.
    pub fn least(&self, guests: u64, n_slots: u64) -> u64 {
        let loaded = Self { dense_resident: self.dense, guests: 0, ..*self };
        loaded.floor(n_slots).saturating_add(guests)
    }

    /// The least that suffices for `n_slots` experts as things are.
    pub fn floor(&self, n_slots: u64) -> u64 {
        self.others().saturating_add(self.mapped(self.slot_bytes).saturating_mul(n_slots))
    }

    /// Whether there is room for all but the experts, and for `n_slots` of them.
    pub fn has_room(&self, n_slots: u64) -> bool {
        self.others() <= self.bytes && self.n_slots() >= n_slots
    }

    /// Whether a change from `old` slots to `new` is worth its trouble.
    pub fn is_change(&self, old: u64, new: u64) -> bool {
        new < old || (new - old).saturating_mul(self.slot_bytes) > SLACK_BYTES
    }
}

/// Bytes of memory that the process has, as the kernel counts them.
pub(super) fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok());
    pages.unwrap_or(0).saturating_mul(page_size())
}
