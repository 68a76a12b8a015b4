//! What a team of sandboxes has and holds.

use moewe_residency::Key;

pub(super) struct TeamState {
    pub size: usize,
    /// Bytes of the sandboxes' memory without their windows.
    pub private: u64,
    /// What each member was told that it may take.
    pub member_bytes_max: Option<u64>,
    /// How many demands there were, the last one included.
    pub n_demands: u64,
    pub demand: Option<Demand>,
}

/// Experts that a team has demanded and not given up.
pub(super) struct Demand {
    pub layer: u16,
    pub experts: Vec<u16>,
    pub slots: Vec<usize>,
    pub n_released: usize,
}

impl Demand {
    pub fn position(&self, slot: usize) -> Option<(usize, Key)> {
        let i = self.slots.iter().position(|&s| s == slot)?;
        Some((slot, Key { layer: self.layer, expert: self.experts[i] }))
    }
}
