//! What a model takes of a budget: for those who plan, for those who are refused, and
//! for guests, who are told how much they may take.

use super::budget::{Budget, MIB, SLOTS_PER_DEMAND, n_demand_max};
use super::table::Table;

/// What compiling the guest takes, measured, and some more: nobody is allowed less, as a
/// process that had to do so first has had it.
const COMPILING_BYTES: u64 = 148 * MIB;

/// What a model takes of the memory that its process may have
/// ([`MemoryOptions`](crate::MemoryOptions)), as
/// [`Model::memory_needs`](crate::Model::memory_needs) finds out.
#[derive(Debug, Clone, Copy)]
pub struct MemoryNeeds {
    /// As it is when the model is described.
    budget: Budget,
    /// The sandboxes' memory when they have described it.
    guests: u64,
    n_experts: u64,
    n_expert_used: u64,
    /// Of each sandbox.
    kv_bytes_per_token: u64,
    kv_chunk: u64,
    session_bytes: u64,
}

impl MemoryNeeds {
    pub(super) fn new(budget: Budget, table: &Table, guests: u64) -> Self {
        let shape = table.shape;
        let budget = Budget { dense: shape.dense_bytes, slot_bytes: table.slot_bytes, ..budget };
        let n_used = shape.n_expert_used.clamp(1, shape.n_expert.max(1));
        Self {
            budget,
            guests,
            n_experts: table.n_experts(),
            n_expert_used: if table.slot_bytes == 0 { 0 } else { n_used.into() },
            kv_bytes_per_token: shape.kv_bytes_per_token,
            kv_chunk: shape.kv_chunk.into(),
            session_bytes: shape.session_bytes,
        }
    }

    /// Bytes of the weights that every token needs.
    pub fn dense_bytes(&self) -> u64 {
        self.budget.dense
    }

    /// Bytes of an expert, in whole pages.
    pub fn expert_bytes(&self) -> u64 {
        self.budget.slot_bytes
    }

    /// How many experts all layers have together.
    pub fn n_experts(&self) -> u64 {
        self.n_experts
    }

    /// How many of them a layer uses for a token.
    pub fn n_expert_used(&self) -> u64 {
        self.n_expert_used
    }

    /// Bytes of the KV cache of so many tokens.
    pub fn kv_bytes(&self, n_tokens: u64) -> u64 {
        self.kv_bytes_of(n_tokens, self.budget.n_guests)
    }

    /// The same for a team of so many.
    pub(super) fn kv_bytes_of(&self, n_tokens: u64, team_size: u64) -> u64 {
        let n_tokens = n_tokens.div_ceil(self.kv_chunk.max(1)).saturating_mul(self.kv_chunk);
        self.kv_bytes_per_token.saturating_mul(n_tokens).saturating_mul(team_size)
    }

    /// Bytes of a session in each sandbox, beside its KV cache.
    pub(super) fn session_bytes(&self) -> u64 {
        self.session_bytes
    }

    /// The least memory that suffices for a session with a context of `n_tokens`,
    /// however many of them are its prompt.
    pub fn least(&self, n_tokens: u64) -> u64 {
        let guests = self.guests(n_tokens);
        let mut least = self.least_for_a_token();
        loop {
            // With more memory more is demanded at once, but not without limit. What
            // suffices must still do so when that is one more.
            let n_slots = self.n_slots(least, 1).saturating_add(SLOTS_PER_DEMAND);
            let n_demand = n_demand_max(self.n_expert_used, n_slots.min(self.n_experts));
            let more = self.budget.least(guests, n_demand);
            if more <= least {
                return told(least);
            }
            least = more;
        }
    }

    /// The least memory that suffices for a token.
    pub(super) fn least_for_a_token(&self) -> u64 {
        let least = self.budget.least(self.guests(1), self.n_expert_used);
        least.max(self.budget.base.saturating_add(COMPILING_BYTES))
    }

    /// How many experts fit into so much memory beside a context of `n_tokens`.
    pub fn n_slots(&self, bytes: u64, n_tokens: u64) -> u64 {
        let dense_resident = self.budget.dense;
        let loaded = Budget { bytes, dense_resident, guests: self.guests(n_tokens), ..self.budget };
        loaded.n_slots().min(self.n_experts)
    }

    /// How many experts are demanded at once, at most, with so much memory.
    pub(super) fn n_demand_max(&self, bytes: u64) -> u64 {
        n_demand_max(self.n_expert_used, self.n_slots(bytes, 1))
    }

    /// What of so much memory each sandbox may take for its KV cache and to compute many
    /// tokens together: all but the slots that have to stay. [`least`](Self::least) leaves
    /// a context's KV cache of it, so who fills that first always has room for it.
    pub(super) fn member_bytes_max(&self, bytes: u64) -> u64 {
        let taken = self.budget.least(self.guests(0), self.n_demand_max(bytes));
        bytes.saturating_sub(taken) / self.budget.n_guests.max(1)
    }

    /// The sandboxes' memory when they compute.
    fn guests(&self, n_tokens: u64) -> u64 {
        (self.budget.n_guests.saturating_mul(self.session_bytes))
            .saturating_add(self.kv_bytes(n_tokens))
            .saturating_add(self.guests)
    }
}

/// What people are told to allow: what the process takes differs a little from
/// time to time.
pub(super) fn told(least: u64) -> u64 {
    (least / MIB).saturating_add(3).saturating_mul(MIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What suffices leaves room for the KV cache and for the slots that are demanded,
    /// and so does any larger budget.
    #[test]
    fn what_suffices_leaves_room_for_the_context() {
        for (slot_bytes, n_experts, n_expert_used) in
            [(0, 0, 0), (454_656, 64, 4), (2_654_208, 1536, 8), (90_000_000, 256, 2)]
        {
            for n_guests in [1, 2, 8] {
                let needs = MemoryNeeds {
                    budget: Budget {
                        bytes: 0,
                        base: 30 * MIB,
                        dense: 90 * MIB,
                        dense_resident: 0,
                        guests: 0,
                        n_guests,
                        slot_bytes,
                        page_size: 4096,
                    },
                    guests: n_guests * 3 * MIB,
                    n_experts,
                    n_expert_used,
                    kv_bytes_per_token: 50_000,
                    kv_chunk: 64,
                    session_bytes: 5 * MIB,
                };
                for n_tokens in [1, 64, 500, 512, 4096] {
                    let least = needs.least(n_tokens);
                    for bytes in (0..1000).map(|i| least + i * 300_000) {
                        let what = format!("{slot_bytes}, {n_guests}, {n_tokens}, {bytes}");
                        let each = needs.kv_bytes(n_tokens) / n_guests;
                        assert!(needs.member_bytes_max(bytes) >= each, "{what}");
                        let n_slots = needs.n_slots(bytes, n_tokens);
                        assert!(n_slots >= needs.n_demand_max(bytes), "{what}");
                    }
                }
            }
        }
    }
}
