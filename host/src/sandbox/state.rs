//! The data of a guest's store: what the host knows of a guest.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use moewe_memory::{Region, page_size};
use wasmtime::component::ResourceTable;

use super::limits::{Interrupt, Limiter, Limits};
use super::memory::MEMORY_BYTES_MAX;
use super::team::Team;
use crate::weights::Weights;

/// The most open sources: as many as a split model has files.
pub(super) const N_SOURCES_MAX: usize = 1 << 10;

/// The most addresses that are reserved for what a guest with 64-bit addresses has beside
/// weights, whatever it may have: processors have 47 bits for all of a process.
const RESERVED_BYTES_MAX: u64 = 1 << 40;

/// The data of a store.
pub(crate) struct State {
    pub(super) weights: Arc<Weights>,
    pub(super) team: Arc<Team>,
    pub(super) rank: usize,
    /// Open files; the guest knows them by number.
    pub(super) sources: ResourceTable,
    /// Sizes of the files that were opened so far, each counted once.
    pub(super) opened: BTreeMap<String, u64>,
    /// Whether it has a handle of the store, of which one is enough.
    pub(super) has_store: bool,
    /// The memory that files can be attached to.
    pub(super) region: Option<Arc<Region>>,
    /// What the guest may have; it tells what was refused during this call.
    pub(super) limiter: Limiter,
    /// Time that one call may take.
    pub(super) time_max: Option<Duration>,
    pub(super) deadline: Option<Instant>,
    /// How often it has asked during this call whether to stop.
    pub(super) n_stop_asked: u64,
}

impl State {
    /// For member `rank` of a team whose guests have 64-bit addresses or not.
    pub(super) fn new(
        weights: Arc<Weights>,
        limits: Limits,
        team: Arc<Team>,
        rank: usize,
        is_wide: bool,
    ) -> Self {
        let mut sources = ResourceTable::new();
        sources.set_max_capacity(N_SOURCES_MAX);
        let limiter = Limiter {
            team: team.clone(),
            rank: Some(rank),
            bytes_max: match is_wide {
                false => MEMORY_BYTES_MAX,
                // The files as a whole, or as many slots as they have experts, and all else.
                true => (weights.files.bytes().saturating_mul(2))
                    .saturating_add(limits.memory_max.min(RESERVED_BYTES_MAX))
                    .saturating_add(MEMORY_BYTES_MAX),
            },
            memory_max: limits.memory_max,
            granted: 0,
            refused: None,
        };
        Self {
            weights,
            team,
            rank,
            sources,
            opened: BTreeMap::new(),
            has_store: false,
            region: None,
            limiter,
            time_max: limits.time_max,
            deadline: None,
            n_stop_asked: 0,
        }
    }

    /// Why the call that is under way shall end now.
    pub(super) fn interrupt(&self) -> Option<Interrupt> {
        if self.team.cancelled.load(Ordering::Relaxed) {
            return Some(Interrupt::Cancelled);
        }
        if self.has_lost_weights() {
            return Some(Interrupt::WeightsLost);
        }
        let late = self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        late.then_some(Interrupt::TimeLimit)
    }

    /// Whether the guest has zeros where weights were.
    pub(super) fn has_lost_weights(&self) -> bool {
        self.region.as_ref().is_some_and(|region| region.is_lost())
    }

    /// The unit in which the guest maps: the system's pages, but for stores in tests.
    pub(super) fn page_size(&self) -> u64 {
        self.team.store().map_or_else(page_size, |(store, _)| store.page_size())
    }

    /// Tells the team about the windows of this guest.
    pub(super) fn account_windows(&self) {
        if let Some(region) = &self.region {
            let (n_windows, attached) = region.windows();
            self.team.account(self.rank, |account| {
                account.n_windows = n_windows as u64;
                account.attached = attached;
            });
        }
    }
}
