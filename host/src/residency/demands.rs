//! What teams demand, wait for and release.

use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use moewe_disk::{Priority, ReadError};
use moewe_residency::Key;

use super::interface::{Choice, Place};
use super::slots::{Content, Requests};
use super::table::{Table, invalid};
use super::teams::Demand;
use super::{Described, ExpertStore, Inner, Prefetch, Shared, file_error};
use crate::files::{WeightError, WeightErrorKind};

/// How often a thread that waits looks whether it shall stop.
const TICK: Duration = Duration::from_millis(10);

/// Whether a demand could begin.
pub(super) enum Begun {
    Yes,
    Later,
    Never,
}

impl ExpertStore {
    /// Demands experts, sorted, for a member of a team that has made `n_before`
    /// demands; the members make the same demands. Answers where each expert
    /// is, and whether it is there.
    pub(crate) fn demand<E>(
        &self,
        team: u64,
        n_before: u64,
        layer: u32,
        choices: &[Choice],
        interrupted: impl Fn() -> Option<E>,
    ) -> Result<Result<Vec<Place>, WeightError>, E> {
        let small = |n: u32| u16::try_from(n).ok();
        let pairs: Option<Vec<_>> =
            choices.iter().map(|c| Some((small(c.expert)?, small(c.token)?))).collect();
        let (Some(layer), Some(choices)) = (small(layer), pairs) else {
            return Ok(Err(invalid("a demand for an expert that is none")));
        };
        if !choices.is_sorted_by_key(|choice| choice.0) {
            return Ok(Err(invalid("the experts of a demand are not sorted")));
        }
        let mut experts: Vec<_> = choices.iter().map(|choice| choice.0).collect();
        experts.dedup();
        let mut inner = self.shared.lock();
        loop {
            let mut requests = Requests::default();
            let state = &mut *inner;
            let Some(n_demands) = state.teams.get(&team).map(|team| team.n_demands) else {
                return Ok(Err(invalid("the team is gone")));
            };
            if n_demands == n_before + 1 {
                return Ok(state.places(team, layer, &experts));
            }
            let is_free = state.teams.get(&team).is_some_and(|team| team.demand.is_none());
            if n_demands != n_before || experts.len() as u64 > state.n_demand_max {
                return Ok(Err(invalid("a demand out of turn, or for too many experts")));
            }
            if is_free {
                match state.begin(team, layer, &experts, &mut requests) {
                    Begun::Yes => {
                        state.record(|trace| trace.demand(layer, &choices));
                        state.pass_token(layer, choices.len());
                        let places = state.places(team, layer, &experts);
                        self.shared.wake(inner);
                        requests.send(&self.disk);
                        return Ok(places);
                    }
                    Begun::Later => {}
                    Begun::Never => {
                        return Ok(Err(invalid(format!("layer {layer} has no such experts"))));
                    }
                }
                drop(inner);
                requests.send(&self.disk);
                inner = self.shared.lock();
            }
            if let Some(interrupt) = interrupted() {
                return Err(interrupt);
            }
            inner = self.sleep(inner);
        }
    }

    fn sleep<'a>(&self, mut inner: MutexGuard<'a, Inner>) -> MutexGuard<'a, Inner> {
        inner.n_waiting += 1;
        let woken = self.shared.changed.wait_timeout(inner, TICK);
        let mut inner = woken.unwrap_or_else(PoisonError::into_inner).0;
        inner.n_waiting -= 1;
        inner
    }

    /// Waits until the expert that the team has demanded is in its slot.
    /// `counts` if the time is to be counted.
    pub(crate) fn wait<E>(
        &self,
        team: u64,
        slot: u32,
        counts: bool,
        interrupted: impl Fn() -> Option<E>,
    ) -> Result<Result<(), WeightError>, E> {
        let began = Instant::now();
        let mut progress = (self.disk.stats().bytes_read, Instant::now());
        let mut inner = self.shared.lock();
        loop {
            let state = &mut *inner;
            let demand = state.teams.get(&team).and_then(|team| team.demand.as_ref());
            let Some((slot, key)) = demand.and_then(|demand| demand.position(slot as usize)) else {
                return Ok(Err(invalid(format!("slot {slot} was not demanded"))));
            };
            let Some(model) = &mut state.model else {
                return Ok(Err(invalid("there is no model")));
            };
            match model.slots.content(slot, key) {
                Some(Content::Loaded) => {
                    if counts {
                        state.stall += began.elapsed();
                    }
                    return Ok(Ok(()));
                }
                Some(Content::Failed(e)) => return Ok(Err(self.read_error(&model.table, key, e))),
                Some(Content::Cancelled) => {
                    let Described { table, slots } = model;
                    let reads = slots.read(key, slot, Priority::Demand, table);
                    drop(inner);
                    Requests { reads, ..Requests::default() }.send(&self.disk);
                    inner = self.shared.lock();
                    continue;
                }
                Some(Content::Loading { .. }) => {}
                None => return Ok(Err(invalid(format!("slot {slot} holds another expert")))),
            }
            if let Some(interrupt) = interrupted() {
                return Err(interrupt);
            }
            let bytes_read = self.disk.stats().bytes_read;
            if bytes_read != progress.0 {
                progress = (bytes_read, Instant::now());
            } else if progress.1.elapsed() > self.stall_max {
                return Ok(Err(self.stalled()));
            }
            inner = self.sleep(inner);
        }
    }

    fn read_error(&self, table: &Table, key: Key, e: &ReadError) -> WeightError {
        let pieces = table.expert(key.layer.into(), key.expert.into());
        match pieces.first().and_then(|piece| table.files.get(piece.file)) {
            Some(file) => file_error(file, e),
            None => {
                let message = format!("{}: cannot be read: {e}", self.name);
                WeightError::new(WeightErrorKind::Io, message)
            }
        }
    }

    /// A member of a team has no more use for what was demanded.
    pub(crate) fn release(&self, team: u64) -> Result<(), WeightError> {
        let mut inner = self.shared.lock();
        let state = inner.teams.get_mut(&team);
        let Some((state, demand)) = state.and_then(|state| {
            let demand = state.demand.take()?;
            Some((state, demand))
        }) else {
            return Err(invalid("nothing was demanded"));
        };
        let demand = Demand { n_released: demand.n_released + 1, ..demand };
        if demand.n_released < state.size {
            state.demand = Some(demand);
            return Ok(());
        }
        inner.give_up(&demand);
        self.shared.wake(inner);
        Ok(())
    }

    /// A team computes nothing any more: others may have what it holds.
    pub(crate) fn give_up(&self, team: u64) {
        let mut inner = self.shared.lock();
        if let Some(demand) = inner.teams.get_mut(&team).and_then(|team| team.demand.take()) {
            inner.give_up(&demand);
            self.shared.wake(inner);
        }
    }

    /// Experts may be demanded next; whether they are read before is decided
    /// here.
    pub(crate) fn prefetch(&self, team: u64, layer: u32, experts: &[u32]) {
        let experts: Option<Vec<_>> =
            experts.iter().map(|&expert| u16::try_from(expert).ok()).collect();
        let (Ok(layer), Some(experts)) = (u16::try_from(layer), experts) else { return };
        let mut requests = Requests::default();
        {
            let inner = &mut *self.shared.lock();
            let has = |model: &Described| {
                let expert = experts.last().copied().unwrap_or_default();
                !model.table.expert(layer.into(), expert.into()).is_empty()
            };
            if !experts.is_sorted_by(|a, b| a < b) || !inner.model.as_ref().is_some_and(has) {
                return;
            }
            let demanded = inner.teams.get(&team).and_then(|team| team.demand.as_ref());
            // More of the layer that is being computed is no guess.
            let is_certain = demanded.is_some_and(|demand| demand.layer == layer);
            if !is_certain {
                inner.record(|trace| trace.predicted(layer, &experts));
            }
            let is_on = match self.options.prefetch {
                Prefetch::Auto => is_certain || inner.switch.is_on(),
                Prefetch::On => true,
                Prefetch::Off => false,
            };
            let Some(Described { table, slots }) = inner.model.as_mut().filter(|_| is_on) else {
                return;
            };
            slots.prefetch(layer, &experts, table, &mut requests);
        }
        requests.send(&self.disk);
    }
}

impl Shared {
    /// A read of an expert into a slot has ended.
    pub(super) fn read_ended(&self, key: Key, slot: usize, result: Result<(), ReadError>) {
        let mut inner = self.lock();
        let is_wanted = inner.is_wanted(slot, key);
        if let Some(model) = &mut inner.model {
            model.slots.read_ended(key, slot, result, is_wanted);
        }
        self.wake(inner);
    }
}

impl Inner {
    /// Whether a team has demanded this expert, in this slot.
    pub(super) fn is_wanted(&self, slot: usize, key: Key) -> bool {
        let is_demanded = |demand: &Demand| demand.position(slot) == Some((slot, key));
        self.teams.values().any(|team| team.demand.as_ref().is_some_and(is_demanded))
    }

    /// Releases what a team, which does not have it any more, had demanded.
    pub(super) fn give_up(&mut self, demand: &Demand) {
        let keys = demand.slots.iter().filter_map(|&slot| demand.position(slot));
        let unwanted: Vec<_> = keys.filter(|&(slot, key)| !self.is_wanted(slot, key)).collect();
        let Some(Described { slots, .. }) = &mut self.model else { return };
        slots.cache.release(demand.layer, &demand.experts);
        for (slot, key) in unwanted {
            slots.unwanted(key, slot);
        }
        if slots.cache.n_used() > slots.cache.capacity() {
            slots.set_capacity(slots.cache.capacity());
        }
    }

    pub(super) fn begin(
        &mut self,
        team: u64,
        layer: u16,
        experts: &[u16],
        requests: &mut Requests,
    ) -> Begun {
        let Some(Described { table, slots }) = &mut self.model else { return Begun::Never };
        let n_expert = table.shape.n_expert;
        if experts.last().is_none_or(|&e| u32::from(e) >= n_expert)
            || table.expert(layer.into(), 0).is_empty()
        {
            return Begun::Never;
        }
        let Some(taken) = slots.demand(layer, experts, table, requests) else {
            // Others have what is missing; reads that did not begin need not.
            slots.cancel_prefetches(requests);
            return Begun::Later;
        };
        if let Some(team) = self.teams.get_mut(&team) {
            team.n_demands += 1;
            let experts = experts.to_vec();
            team.demand = Some(Demand { layer, experts, slots: taken, n_released: 0 });
        }
        Begun::Yes
    }

    /// Where the experts are that the team has demanded.
    fn places(&self, team: u64, layer: u16, experts: &[u16]) -> Result<Vec<Place>, WeightError> {
        let demand = self.teams.get(&team).and_then(|team| team.demand.as_ref());
        let demand = demand.filter(|demand| demand.layer == layer && demand.experts == experts);
        let (Some(demand), Some(model)) = (demand, &self.model) else {
            return Err(invalid("the threads of the session demand different experts"));
        };
        let place = |(&slot, &expert): (&usize, &u16)| Place {
            slot: slot as u32,
            loaded: model.slots.is_loaded(slot, Key { layer, expert }),
        };
        Ok(demand.slots.iter().zip(experts).map(place).collect())
    }
}
