//! How long a trace would have taken with prefetching and without, on a clock that
//! is only counted.
//!
//! The disk serves one read at a time, in order, but for reads that a demand waits
//! for: these come before all prefetches that wait. A read under way is not
//! stopped. A layer's computation begins when all its experts are there, and
//! prefetches for what was predicted then begin, in as far as the cache has slots
//! to give. A prefetch that still waits when its expert is demanded becomes a read
//! of the demand; one whose layer's turn comes without it is dropped.

use std::collections::VecDeque;

use moewe::Prefetch;
use moewe_residency::trace::{Header, Record, experts_of};
use moewe_residency::{Cache, CacheOptions, CacheStats, Key, Lookup, Switch, SwitchStats};

/// What takes how long, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Costs {
    /// Reading an expert.
    pub read: f64,
    /// Computing a layer.
    pub compute: f64,
}

/// How a replay went.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timing {
    /// Seconds in all.
    pub total: f64,
    /// Seconds of them that computation waited for reads.
    pub stall: f64,
    /// Forward passes.
    pub n_pass: u64,
    /// Experts that were read.
    pub n_read: u64,
    /// Prefetches that were dropped before their read began; they are among the
    /// wasted ones.
    pub n_dropped: u64,
    /// What the cache has counted.
    pub cache: CacheStats,
    /// How the switch stands at the end, if there is one.
    pub switch: Option<SwitchStats>,
}

impl Timing {
    /// Prefetches that had ended when their expert was demanded.
    pub fn useful(&self) -> u64 {
        self.cache.prefetch_hits - self.cache.prefetch_late
    }

    /// Prefetches that waited or were under way when their expert was demanded.
    pub fn late(&self) -> u64 {
        self.cache.prefetch_late
    }

    /// Prefetches that were evicted or dropped before their expert was demanded.
    pub fn wasted(&self) -> u64 {
        self.cache.prefetch_wasted
    }
}

/// Replays a trace. A forward pass begins where a demand's layer is not above that
/// of the demand before. Capacities in the trace are left out.
///
/// A demand of more experts than there are slots goes in several parts; without
/// slots, everything is read and nothing is kept.
///
/// With [`Prefetch::Auto`] a [`Switch`] is told the time of each forward pass.
pub fn replay(
    header: &Header,
    records: &[Record],
    options: CacheOptions,
    capacity: usize,
    costs: Costs,
    prefetch: Prefetch,
) -> Timing {
    let mut clock = Clock {
        now: 0.0,
        stall: 0.0,
        n_read: 0,
        n_dropped: 0,
        costs,
        cache: Cache::new(header.n_layer, header.n_expert, capacity, options),
        reading: None,
        queue: VecDeque::new(),
    };
    let mut switch = (prefetch == Prefetch::Auto).then(Switch::new);
    let mut last_layer = None;
    let mut pass_began = 0.0;
    let mut n_pass = 0;
    // The demand whose layer is being computed.
    let mut held: Option<(u16, Vec<u16>)> = None;
    for record in records {
        match record {
            Record::Demand { layer, choices } => {
                clock.compute(held.take());
                if last_layer.is_none_or(|last| *layer <= last) {
                    if let (Some(switch), Some(_)) = (&mut switch, last_layer) {
                        switch.token(clock.now - pass_began);
                    }
                    (pass_began, n_pass) = (clock.now, n_pass + 1);
                }
                last_layer = Some(*layer);
                let experts = experts_of(choices);
                clock.overtake(*layer, &experts);
                let mut parts = experts.chunks(capacity.max(1)).peekable();
                while let Some(part) = parts.next() {
                    clock.demand(*layer, part);
                    if parts.peek().is_some() {
                        clock.cache.release(*layer, part);
                    } else {
                        held = Some((*layer, part.to_vec()));
                    }
                }
            }
            Record::Predicted { layer, experts } => {
                let is_on = match &switch {
                    Some(switch) => switch.is_on(),
                    None => prefetch == Prefetch::On,
                };
                if is_on {
                    clock.prefetch(*layer, experts);
                }
            }
            Record::Capacity { .. } => {}
        }
    }
    clock.compute(held);
    Timing {
        total: clock.now,
        stall: clock.stall,
        n_pass,
        n_read: clock.n_read,
        n_dropped: clock.n_dropped,
        cache: clock.cache.stats(),
        switch: switch.map(|switch| switch.stats()),
    }
}

struct Clock {
    now: f64,
    stall: f64,
    n_read: u64,
    n_dropped: u64,
    costs: Costs,
    cache: Cache,
    /// A prefetch under way, and when it ends.
    reading: Option<(Key, f64)>,
    /// Prefetches that wait.
    queue: VecDeque<Key>,
}

impl Clock {
    /// Computes the layer of a demand, if there was one, while the disk goes on.
    fn compute(&mut self, held: Option<(u16, Vec<u16>)>) {
        if let Some((layer, experts)) = held {
            self.now += self.costs.compute;
            self.cache.release(layer, &experts);
        }
        self.catch_up();
    }

    /// Does what the disk has done until now.
    fn catch_up(&mut self) {
        while let Some((key, end)) = self.reading.take_if(|(_, end)| *end <= self.now) {
            self.cache.loaded(key);
            self.start(end);
        }
    }

    /// Begins the first prefetch that waits, if any.
    fn start(&mut self, now: f64) {
        if let Some(key) = self.queue.pop_front() {
            self.n_read += 1;
            self.reading = Some((key, now + self.costs.read));
        }
    }

    fn prefetch(&mut self, layer: u16, experts: &[u16]) {
        for &expert in experts {
            let key = Key { layer, expert };
            if self.cache.prefetch(key).is_some() {
                self.queue.push_back(key);
            }
        }
        if self.reading.is_none() {
            self.start(self.now);
        }
    }

    /// Drops the prefetches that wait for this layer and are not wanted.
    fn overtake(&mut self, layer: u16, experts: &[u16]) {
        let is_wanted = |key: &Key| key.layer != layer || experts.contains(&key.expert);
        let (queue, dropped): (VecDeque<_>, _) = self.queue.iter().copied().partition(is_wanted);
        self.queue = queue;
        self.drop_prefetches(dropped);
    }

    fn drop_prefetches(&mut self, keys: VecDeque<Key>) {
        self.n_dropped += keys.len() as u64;
        keys.into_iter().for_each(|key| self.cache.forget(key));
    }

    /// Reads what is missing, and waits until all is there.
    fn demand(&mut self, layer: u16, experts: &[u16]) {
        let began = self.now;
        let is_demanded = |key: &Key| key.layer == layer && experts.contains(&key.expert);
        let mut to_read: Vec<Key> = Vec::new();
        match self.acquire(layer, experts) {
            Some(lookups) => {
                for (&expert, lookup) in experts.iter().zip(lookups) {
                    if let Lookup::Miss { .. } = lookup {
                        to_read.push(Key { layer, expert });
                    }
                }
            }
            None => to_read.extend(experts.iter().map(|&expert| Key { layer, expert })),
        }
        let (late, queue): (VecDeque<_>, _) = self.queue.iter().copied().partition(is_demanded);
        self.queue = queue;
        to_read.extend(late);
        // The one under way must end first, if it is wanted or in the way.
        if let Some((key, end)) = self.reading
            && (!to_read.is_empty() || is_demanded(&key))
        {
            self.reading = None;
            self.cache.loaded(key);
            self.now = self.now.max(end);
        }
        self.now += to_read.len() as f64 * self.costs.read;
        self.n_read += to_read.len() as u64;
        to_read.into_iter().for_each(|key| self.cache.loaded(key));
        if self.reading.is_none() {
            self.start(self.now);
        }
        self.stall += self.now - began;
    }

    /// If prefetches are in the way they are dropped, and the one under way is
    /// awaited. `None` if the cache is too small.
    fn acquire(&mut self, layer: u16, experts: &[u16]) -> Option<Vec<Lookup>> {
        if let Some(lookups) = self.cache.acquire(layer, experts) {
            return Some(lookups);
        }
        let dropped = std::mem::take(&mut self.queue);
        self.drop_prefetches(dropped);
        if let Some(lookups) = self.cache.acquire(layer, experts) {
            return Some(lookups);
        }
        let (key, end) = self.reading.take()?;
        self.cache.loaded(key);
        self.now = self.now.max(end);
        self.cache.acquire(layer, experts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::Routing;

    const COSTS: Costs = Costs { read: 1.0, compute: 3.0 };

    fn one_layer_after_another(predicted: &[u16], wanted: &[u16]) -> Timing {
        let demand = |layer, experts: &[u16]| Record::Demand {
            layer,
            choices: experts.iter().map(|&expert| (expert, 0)).collect(),
        };
        let records = [
            demand(0, &[0, 1]),
            Record::Predicted { layer: 1, experts: predicted.to_vec() },
            demand(1, wanted),
        ];
        let header = Routing::default().header();
        replay(&header, &records, CacheOptions::default(), 16, COSTS, Prefetch::On)
    }

    #[test]
    fn the_clock_counts_reads_and_computation() {
        // Nothing is predicted: 2 reads, 3, 2 reads, 3.
        let timing = one_layer_after_another(&[], &[0, 1]);
        assert_eq!((timing.total, timing.stall, timing.n_read), (10.0, 4.0, 4));
        // Both are there in time.
        let timing = one_layer_after_another(&[0, 1], &[0, 1]);
        assert_eq!((timing.total, timing.stall, timing.useful()), (8.0, 2.0, 2));
        // Three are there in time, and two must still be read.
        let timing = one_layer_after_another(&[0, 1, 2, 3, 4], &[0, 1, 2, 3, 4]);
        assert_eq!((timing.total, timing.useful(), timing.late()), (10.0, 3, 2));
        // The fourth is under way, the fifth is dropped; neither is wanted.
        let timing = one_layer_after_another(&[0, 1, 2, 3, 4], &[0, 7]);
        assert_eq!((timing.total, timing.useful(), timing.n_dropped), (10.0, 1, 1));
        assert_eq!(timing.n_read, 2 + 4 + 1);
    }

    #[test]
    fn prefetches_in_the_way_of_a_demand_are_dropped() {
        let demand = |layer, experts: &[u16]| Record::Demand {
            layer,
            choices: experts.iter().map(|&expert| (expert, 0)).collect(),
        };
        let records = [
            demand(0, &[0]),
            Record::Predicted { layer: 1, experts: vec![0, 1, 2] },
            demand(2, &[0, 1, 2, 3]),
        ];
        let header = Routing::default().header();
        let costs = Costs { read: 1.0, compute: 0.5 };
        let timing = replay(&header, &records, CacheOptions::default(), 4, costs, Prefetch::On);
        assert_eq!((timing.n_dropped, timing.wasted(), timing.n_read), (2, 3, 1 + 1 + 4));
        assert_eq!(timing.total, 1.0 + 1.0 + 4.0 + 0.5);
    }

    #[test]
    fn without_slots_everything_is_read() {
        let routing = Routing { foresight: Some(1.0), n_token: 10, ..Routing::default() };
        let options = CacheOptions::default();
        let records = routing.records();
        let timing = replay(&routing.header(), &records, options, 0, COSTS, Prefetch::On);
        assert_eq!((timing.n_read, timing.n_pass), (10 * 8 * 4, 10));
        assert_eq!(timing.total, 10.0 * 8.0 * (4.0 + 3.0));
    }

    fn three_ways(foresight: f64) -> [Timing; 3] {
        let routing = Routing { foresight: Some(foresight), n_token: 4000, ..Routing::default() };
        let (header, records) = (routing.header(), routing.records());
        [Prefetch::Off, Prefetch::On, Prefetch::Auto].map(|prefetch| {
            let options = CacheOptions::default();
            replay(&header, &records, options, 48, COSTS, prefetch)
        })
    }

    #[test]
    fn where_predictions_are_wrong_the_switch_goes_off() {
        let [off, on, switched] = three_ways(0.0);
        assert!(on.total > 1.1 * off.total, "{on:?} {off:?}");
        assert!(switched.total < 1.03 * off.total, "{} {}", switched.total, off.total);
        assert!(!switched.switch.unwrap().is_preferred);
        assert_eq!(on.useful() + on.late(), 0);
    }

    #[test]
    fn where_predictions_are_right_it_stays_on() {
        let [off, on, switched] = three_ways(1.0);
        assert!(on.total < 0.9 * off.total, "{on:?} {off:?}");
        assert!(switched.total < 1.03 * on.total, "{} {}", switched.total, on.total);
        assert!(switched.switch.unwrap().is_preferred);
    }

    #[test]
    fn prefetches_add_up() {
        for foresight in [0.0, 0.5, 1.0] {
            for timing in three_ways(foresight) {
                let known = timing.useful() + timing.late() + timing.wasted();
                assert!((known..=known + 48).contains(&timing.cache.prefetches));
                let sum = timing.n_pass as f64 * 8.0 * COSTS.compute + timing.stall;
                assert!((sum / timing.total - 1.0).abs() < 1e-9);
            }
        }
    }
}
