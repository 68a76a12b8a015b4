//! Who has how much of the budget.

use super::budget::MIB;
use super::teams::TeamState;
use super::{Described, ExpertStore, Inner};
use crate::error::{Error, ErrorKind, Result};

/// What all sandboxes may have before the first of them has described the model.
const UNTOLD_BYTES_MAX: u64 = 64 * MIB;

impl ExpertStore {
    /// A team of sandboxes begins.
    pub(crate) fn add_team(&self, size: usize) -> u64 {
        let inner = &mut *self.shared.lock();
        let team = inner.next_team;
        inner.next_team += 1;
        inner.teams.insert(
            team,
            TeamState { size, private: 0, member_bytes_max: None, n_demands: 0, demand: None },
        );
        inner.budget.n_guests += size as u64;
        team
    }

    /// A team is gone, with all that it had.
    pub(crate) fn remove_team(&self, team: u64) {
        let mut inner = self.shared.lock();
        let Some(state) = inner.teams.remove(&team) else { return };
        inner.budget.n_guests -= state.size as u64;
        inner.budget.guests = inner.budget.guests.saturating_sub(state.private);
        if let Some(demand) = state.demand {
            inner.give_up(&demand);
        }
        inner.fit();
        self.shared.wake(inner);
    }

    /// A team wants to have so much memory of its own; false if that is more
    /// than there is.
    pub(crate) fn charge(&self, team: u64, private: u64) -> bool {
        let inner = &mut *self.shared.lock();
        let Some(state) = inner.teams.get_mut(&team) else { return true };
        let old = std::mem::replace(&mut state.private, private);
        let before = inner.budget;
        inner.budget.guests = before.guests.saturating_sub(old).saturating_add(private);
        // Until it has told what it needs, a small team is let alone, so that it
        // hears of that instead.
        let fits = inner.budget.has_room(inner.n_demand_max)
            || (inner.model.is_none() && inner.budget.guests <= UNTOLD_BYTES_MAX);
        if private > old && !fits {
            inner.budget = before;
            if let Some(state) = inner.teams.get_mut(&team) {
                state.private = old;
            }
            return false;
        }
        inner.fit();
        true
    }

    /// Fails if a context of `n_tokens` would not fit the budget, for a team of so many.
    pub(crate) fn check_context(&self, n_tokens: u64, team_size: usize) -> Result<()> {
        let inner = self.shared.lock();
        let Some(needs) = &inner.needs else { return Ok(()) };
        let kv = needs.kv_bytes_of(n_tokens, team_size as u64);
        let sessions = needs.session_bytes().saturating_mul(team_size as u64);
        let taken = inner.budget.floor(inner.n_demand_max);
        let floor = taken.saturating_add(sessions).saturating_add(kv);
        if floor <= inner.budget.bytes {
            return Ok(());
        }
        let message = format!(
            "{}: a context of {n_tokens} tokens takes {kv} bytes, which makes {floor} bytes at \
             least, more than the {} that may be used; allow more memory or use a smaller context",
            self.name, inner.budget.bytes
        );
        Err(Error::new(ErrorKind::OutOfMemory, message))
    }

    /// Makes room for so many bytes of weights that every token needs.
    pub(super) fn reserve_dense(&self, n: u64) -> bool {
        let inner = &mut *self.shared.lock();
        let before = inner.budget;
        inner.budget.dense_resident = before.dense_resident.saturating_add(n);
        if !inner.budget.has_room(inner.n_demand_max) {
            inner.budget = before;
            return false;
        }
        inner.fit();
        true
    }

    /// The most bytes that the process may have.
    pub(crate) fn bytes_max(&self) -> u64 {
        self.options.bytes
    }
}

impl Inner {
    /// What each member of a team may take for its KV cache and for many tokens. Whoever
    /// comes later has what is left.
    pub(super) fn member_bytes_max(&mut self, team: u64) -> u64 {
        let Some(needs) = &self.needs else { return 0 };
        let is_alone = self.teams.len() == 1;
        let Some(state) = self.teams.get_mut(&team) else { return 0 };
        // All members must hear the same.
        *state.member_bytes_max.get_or_insert_with(|| {
            let all = needs.member_bytes_max(self.budget.bytes);
            if is_alone {
                return all;
            }
            let left = self.budget.bytes.saturating_sub(self.budget.floor(self.n_demand_max));
            let each = left / (state.size as u64).max(1);
            all.min(each.saturating_sub(needs.session_bytes()))
        })
    }

    /// Gives as many slots as the budget allows.
    fn fit(&mut self) {
        let n = self.budget.n_slots().max(self.n_demand_max);
        let Some(Described { table, slots }) = &mut self.model else { return };
        let (old, n) = (slots.cache.capacity() as u64, n.min(table.n_experts()));
        if old != n && self.budget.is_change(old, n) {
            slots.set_capacity(n as usize);
            self.record(|trace| trace.capacity(n as usize));
        }
    }
}
