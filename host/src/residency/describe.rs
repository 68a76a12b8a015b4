//! Models that guests describe, and the slots that are made for them.

use std::io::BufWriter;
use std::sync::Arc;

use moewe_memory::Mapping;
use moewe_output::Output;
use moewe_residency::trace::{Header, Recorder};
use moewe_residency::{Cache, CacheOptions};

use super::budget::Budget;
use super::interface::Capacity;
use super::slots::{Ended, Slots};
use super::table::{Table, invalid};
use super::teams::TeamState;
use super::{Described, ExpertStore, Inner, MemoryNeeds, MemoryOptions, needs};
use crate::error::Result;
use crate::files::{WeightError, WeightErrorKind};

impl ExpertStore {
    /// A store that takes no model, but has what it needs told.
    pub(crate) fn asking(name: &str) -> Result<Self> {
        let mut store = Self::new(name, MemoryOptions::new(u64::MAX))?;
        store.only_asks = true;
        Ok(store)
    }

    /// What the model needs that a guest has described to a store that only asks.
    pub(crate) fn needs(&self) -> Option<MemoryNeeds> {
        self.shared.lock().needs
    }

    /// Takes a description of the model, the first or one more of the same, and
    /// says what there is room for.
    /// A team takes `guests` bytes before it computes anything.
    pub(crate) fn describe(
        &self,
        team: u64,
        table: Table,
        guests: u64,
    ) -> Result<Capacity, WeightError> {
        let inner = &mut *self.shared.lock();
        if let Some(model) = &inner.model {
            if !model.table.is_same(&table) {
                return Err(invalid("another sandbox has described another model"));
            }
        } else {
            let is_other = |&(&id, _): &(&u64, &TeamState)| id != team;
            let others = inner.teams.iter().filter(is_other).map(|(_, other)| other.private);
            let guests = others.fold(guests, u64::saturating_add);
            self.make_slots(inner, table, guests)?;
        }
        Ok(Capacity {
            slot_bytes: inner.budget.slot_bytes,
            n_demand_max: inner.n_demand_max as u32,
            member_bytes_max: inner.member_bytes_max(team),
        })
    }

    fn make_slots(&self, inner: &mut Inner, table: Table, guests: u64) -> Result<(), WeightError> {
        let shape = table.shape;
        let needs = MemoryNeeds::new(inner.budget, &table, guests);
        inner.needs = Some(needs);
        if self.only_asks {
            return Err(invalid("nobody wants them"));
        }
        let io = |e: std::io::Error| {
            let message = format!("{}: no memory for experts: {e}", self.name);
            WeightError::new(WeightErrorKind::Io, message)
        };
        let storages = table.files.iter().map(|file| (self.open)(file));
        let storages = storages.collect::<std::io::Result<Vec<_>>>().map_err(io)?;
        // The headers went through the page cache, which counts for some.
        for file in &table.files {
            let _ = rustix::fs::fadvise(file.file(), 0, None, rustix::fs::Advice::DontNeed);
        }
        let n_used = needs.n_expert_used();
        let budget =
            Budget { dense: needs.dense_bytes(), slot_bytes: needs.expert_bytes(), ..inner.budget };
        let n_slots = budget.n_slots();
        let least = needs.least_for_a_token();
        if least > budget.bytes {
            return Err(WeightError::new(
                WeightErrorKind::OutOfMemory,
                format!(
                    "{} bytes of memory do not suffice for a single token: {} are the least, of \
                     which {} for the weights that every token needs and {} for {n_used} experts",
                    budget.bytes,
                    needs::told(least),
                    budget.dense,
                    table.slot_bytes * n_used
                ),
            ));
        }
        let n_experts = table.n_experts();
        let n_max = n_experts.min(budget.bytes / table.slot_bytes.max(1));
        let length = n_max.saturating_mul(table.slot_bytes).max(1);
        let arena = Arc::new(Mapping::new("moewe-experts", length).map_err(io)?);
        let n_slots = n_slots.min(n_experts);
        let options = CacheOptions {
            policy: self.options.policy,
            layer_floor: self.options.layer_floor,
            pins: self.options.pins.iter().take(n_slots as usize / 2).copied().collect(),
        };
        let (n_layer, n_expert) = (shape.n_layer as usize, shape.n_expert as usize);
        if let Some(path) = &self.options.trace {
            let header = Header {
                n_layer,
                n_expert,
                n_expert_used: shape.n_expert_used as usize,
                slot_bytes: budget.mapped(table.slot_bytes),
                other_bytes: budget.others(),
                model: self.name.clone(),
                options: options.clone(),
            };
            let files = table.files.iter().map(|file| file.path());
            let inputs: Vec<_> = files.flat_map(moewe_packed::family).collect();
            let output = Output::create(path, &inputs);
            let output =
                output.map_err(|e| WeightError::new(WeightErrorKind::Io, e.to_string()))?;
            let recorder =
                Recorder::new(BufWriter::new(output), header).and_then(|mut recorder| {
                    recorder.capacity(n_slots as usize)?;
                    Ok(recorder)
                });
            inner.trace = Some(recorder);
        }
        let cache = Cache::new(n_layer, n_expert, n_slots as usize, options);
        inner.budget = budget;
        inner.n_demand_max = needs.n_demand_max(budget.bytes);
        // The slots are a part of what they tell it to.
        let shared = Arc::downgrade(&self.shared);
        let ended: Ended = Arc::new(move |key, slot, result| {
            if let Some(shared) = shared.upgrade() {
                shared.read_ended(key, slot, result);
            }
        });
        let slots = Slots::new(cache, arena, table.slot_bytes, storages, ended);
        inner.model = Some(Described { table: Arc::new(table), slots });
        Ok(())
    }
}
