//! What a trace would have hit with other policies and capacities, and at best.
//!
//! Predictions are left out: when a prefetch ends is a matter of time, see
//! [`timing`](crate::timing).

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use moewe_residency::trace::{Header, Record, experts_of};
use moewe_residency::{Cache, CacheOptions, Key, Lookup, PolicyKind};

/// The slots of a simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capacity {
    /// So many, whatever the trace says.
    Slots(usize),
    /// As many as the trace says, none before it says so.
    Recorded,
}

/// Who chooses the victims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chooser {
    /// A policy.
    Policy(PolicyKind),
    /// Who knows the future, and evicts what is wanted last (Belady, "A study of
    /// replacement algorithms for a virtual-storage computer", IBM Systems Journal
    /// 5(2), 1966). It heeds neither floors nor pins. The experts of a demand stay
    /// in memory together for it, too.
    Belady,
}

impl fmt::Display for Chooser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policy(policy) => policy.fmt(f),
            Self::Belady => f.pad("belady"),
        }
    }
}

/// What a simulation has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Demanded experts that had a slot.
    pub hits: u64,
    /// Demanded experts that had none.
    pub misses: u64,
}

impl Counts {
    /// Hits among all that was demanded; 0 if nothing was.
    pub fn hit_rate(&self) -> f64 {
        match self.hits + self.misses {
            0 => 0.0,
            n => self.hits as f64 / n as f64,
        }
    }
}

/// Replays the demands of a trace through a cache. With the options and the
/// capacities under which it was recorded, and without prefetching, the counts are
/// those of then.
///
/// A demand of more experts than there are slots goes through the cache in several
/// parts; without any slots, nothing is hit.
pub fn replay(
    header: &Header,
    records: &[Record],
    options: CacheOptions,
    capacity: Capacity,
) -> Counts {
    let mut cache = Cache::new(header.n_layer, header.n_expert, initial(capacity), options);
    let mut held: (u16, Vec<u16>) = (0, Vec::new());
    let mut n_without_slot = 0;
    for step in steps(records, capacity) {
        match step {
            Step::Capacity(n_slots) => drop(cache.set_capacity(n_slots)),
            Step::Demand { layer, experts } => {
                cache.release(held.0, &held.1);
                cache.set_capacity(cache.capacity());
                match cache.acquire(layer, &experts) {
                    Some(lookups) => {
                        for (&expert, lookup) in experts.iter().zip(&lookups) {
                            if let Lookup::Miss { .. } = lookup {
                                cache.loaded(Key { layer, expert });
                            }
                        }
                        held = (layer, experts);
                    }
                    None => {
                        n_without_slot += experts.len() as u64;
                        held.1.clear();
                    }
                }
            }
        }
    }
    let stats = cache.stats();
    Counts { hits: stats.hits, misses: stats.misses + n_without_slot }
}

/// The fewest misses that are possible. See [`Chooser::Belady`].
pub fn belady(records: &[Record], capacity: Capacity) -> Counts {
    let steps: Vec<_> = steps(records, capacity).collect();
    let next_uses = next_uses(&steps);
    let mut in_memory = Resident::default();
    let mut n_slots = initial(capacity);
    let mut held: &[u16] = &[];
    let mut held_layer = 0;
    let mut counts = Counts::default();
    for (step, next_uses) in steps.iter().zip(next_uses) {
        match step {
            Step::Capacity(n) => {
                n_slots = *n;
                let is_held = |key: Key| key.layer == held_layer && held.contains(&key.expert);
                in_memory.shrink(n_slots, is_held);
            }
            Step::Demand { layer, experts } => {
                let key = |&expert: &u16| Key { layer: *layer, expert };
                let n_hit = experts.iter().filter(|e| in_memory.remove(key(e))).count();
                counts.hits += n_hit as u64;
                counts.misses += (experts.len() - n_hit) as u64;
                (held_layer, held) = (*layer, &[]);
                if experts.len() <= n_slots {
                    in_memory.shrink(n_slots - experts.len(), |_| false);
                    for (expert, next_use) in experts.iter().zip(next_uses) {
                        in_memory.insert(key(expert), next_use);
                    }
                    held = experts;
                }
            }
        }
    }
    counts
}

/// All policies, with the trace's own floor and pins, and at last the optimum.
pub fn compare(header: &Header, records: &[Record], capacity: Capacity) -> Vec<(Chooser, Counts)> {
    let replay = |&policy: &PolicyKind| {
        let options = CacheOptions { policy, ..header.options.clone() };
        (Chooser::Policy(policy), replay(header, records, options, capacity))
    };
    let best = (Chooser::Belady, belady(records, capacity));
    PolicyKind::ALL.iter().map(replay).chain([best]).collect()
}

enum Step {
    Capacity(usize),
    Demand { layer: u16, experts: Vec<u16> },
}

fn initial(capacity: Capacity) -> usize {
    match capacity {
        Capacity::Slots(n_slots) => n_slots,
        Capacity::Recorded => 0,
    }
}

/// The demands, in parts that fit, and the changes of capacity.
fn steps(records: &[Record], capacity: Capacity) -> impl Iterator<Item = Step> {
    let mut now = initial(capacity);
    records.iter().flat_map(move |record| match record {
        Record::Capacity { n_slots } if capacity == Capacity::Recorded => {
            now = *n_slots;
            vec![Step::Capacity(now)]
        }
        Record::Demand { layer, choices } => {
            let demand = |part: &[u16]| Step::Demand { layer: *layer, experts: part.to_vec() };
            experts_of(choices).chunks(now.max(1)).map(demand).collect()
        }
        Record::Capacity { .. } | Record::Predicted { .. } => vec![],
    })
}

/// For each expert of each demand the step that demands it next.
fn next_uses(steps: &[Step]) -> Vec<Vec<usize>> {
    let mut next_use = HashMap::new();
    let uses = |(index, step): (usize, &Step)| match step {
        Step::Capacity(_) => vec![],
        Step::Demand { layer, experts } => {
            let key = |&expert| Key { layer: *layer, expert };
            let next = |e| next_use.insert(key(e), index).unwrap_or(usize::MAX);
            experts.iter().map(next).collect()
        }
    };
    let mut all: Vec<_> = steps.iter().enumerate().rev().map(uses).collect();
    all.reverse();
    all
}

/// What is in memory, by the time of its next use.
#[derive(Default)]
struct Resident {
    next_use: HashMap<Key, usize>,
    by_next_use: BTreeSet<(usize, Key)>,
}

impl Resident {
    fn insert(&mut self, key: Key, next_use: usize) {
        self.next_use.insert(key, next_use);
        self.by_next_use.insert((next_use, key));
    }

    /// Whether it was there.
    fn remove(&mut self, key: Key) -> bool {
        let next_use = self.next_use.remove(&key);
        next_use.is_some_and(|next_use| self.by_next_use.remove(&(next_use, key)))
    }

    fn shrink(&mut self, n_slots: usize, is_held: impl Fn(Key) -> bool) {
        while self.by_next_use.len() > n_slots {
            let mut last_used_first = self.by_next_use.iter().rev();
            let Some(&(_, key)) = last_used_first.find(|(_, key)| !is_held(*key)) else { break };
            self.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::{Random, Routing};

    /// The hits of Belady's rule cannot be beaten: all ways to choose are tried.
    #[test]
    fn nothing_beats_belady() {
        fn best(demands: &[Vec<u16>], memory: &BTreeSet<u16>, n_slots: usize) -> u64 {
            let Some((now, later)) = demands.split_first() else { return 0 };
            let hits = now.iter().filter(|e| memory.contains(e)).count() as u64;
            let others: Vec<_> = memory.iter().filter(|e| !now.contains(e)).copied().collect();
            let n_kept = others.len().min(n_slots - now.len());
            let ways = (0..1_u32 << others.len()).filter(|w| w.count_ones() as usize == n_kept);
            let hits_later = ways.map(|way| {
                let kept = others.iter().enumerate().filter(|(i, _)| way >> i & 1 == 1);
                best(later, &kept.map(|(_, &e)| e).chain(now.iter().copied()).collect(), n_slots)
            });
            hits + hits_later.max().unwrap_or(0)
        }
        let mut random = Random::new(1);
        for _ in 0..50 {
            let demands: Vec<Vec<u16>> = (0..8)
                .map(|_| {
                    let n = 1 + random.below(2);
                    BTreeSet::from_iter((0..n).map(|_| random.below(6) as u16))
                })
                .map(Vec::from_iter)
                .collect();
            let choices = |d: &Vec<u16>| d.iter().map(|&expert| (expert, 0)).collect();
            let records: Vec<_> =
                demands.iter().map(|d| Record::Demand { layer: 0, choices: choices(d) }).collect();
            for n_slots in 2..5 {
                let found = belady(&records, Capacity::Slots(n_slots));
                assert_eq!(found.hits, best(&demands, &BTreeSet::new(), n_slots));
            }
        }
    }

    #[test]
    fn belady_is_at_least_as_good_as_every_policy() {
        let mut random = Random::new(2);
        for seed in 0..20 {
            let routing = Routing {
                n_layer: 3,
                n_expert: 12,
                n_expert_used: 3,
                n_token: 60,
                seed,
                ..Routing::default()
            };
            let mut records = routing.records();
            for _ in 0..8 {
                let at = random.below(records.len());
                records.insert(at, Record::Capacity { n_slots: random.below(30) });
            }
            let all: Vec<u16> = (0..12).collect();
            let choices = all.iter().flat_map(|&expert| [(expert, 0), (expert, 1)]).collect();
            records.insert(random.below(records.len()), Record::Demand { layer: 1, choices });
            let n_demanded = records.iter().map(|record| match record {
                Record::Demand { choices, .. } => experts_of(choices).len() as u64,
                _ => 0,
            });
            let n_demanded = n_demanded.sum::<u64>();
            let capacities = [0, 1, 2, 5, 9, 12, 20, 36].map(Capacity::Slots);
            for capacity in capacities.into_iter().chain([Capacity::Recorded]) {
                let all = compare(&routing.header(), &records, capacity);
                let (chooser, best) = all.last().unwrap();
                assert_eq!(*chooser, Chooser::Belady);
                for (chooser, counts) in &all {
                    assert_eq!(counts.hits + counts.misses, n_demanded);
                    assert!(counts.hits <= best.hits, "{chooser} {capacity:?}");
                }
            }
        }
    }

    #[test]
    fn with_room_for_all_everything_is_read_once() {
        let routing = Routing { n_layer: 2, n_expert: 8, n_token: 300, ..Routing::default() };
        let counts = compare(&routing.header(), &routing.records(), Capacity::Slots(16));
        assert!(counts.iter().all(|(_, counts)| counts.misses <= 16));
    }

    #[test]
    fn a_cyclic_scan_is_lost_on_lru_alone() {
        let choices = vec![(0, 0), (1, 0)];
        let demand = |i: u16| Record::Demand { layer: i % 4, choices: choices.clone() };
        let records: Vec<_> = (0..400).map(demand).collect();
        let header = Routing { n_layer: 4, n_expert: 2, ..Routing::default() }.header();
        let hit_rates = compare(&header, &records, Capacity::Slots(6)).into_iter();
        let hit_rates: Vec<_> = hit_rates.map(|(_, counts)| counts.hit_rate()).collect();
        assert_eq!(hit_rates[0], 0.0);
        assert!(hit_rates[1..].iter().all(|&rate| rate > 0.2), "{hit_rates:?}");
    }

    #[test]
    fn a_recorded_run_is_counted_again() {
        for &policy in PolicyKind::ALL {
            let routing = Routing { n_layer: 4, n_expert: 16, ..Routing::default() };
            let options =
                CacheOptions { policy, layer_floor: 3, pins: vec![Key { layer: 1, expert: 2 }] };
            let mut cache = Cache::new(4, 16, 30, options.clone());
            let mut records = vec![Record::Capacity { n_slots: 30 }];
            for (i, record) in routing.records().into_iter().enumerate() {
                let Record::Demand { layer, choices } = &record else { continue };
                let experts = experts_of(choices);
                cache.acquire(*layer, &experts).unwrap();
                experts.iter().for_each(|&e| cache.loaded(Key { layer: *layer, expert: e }));
                records.push(record.clone());
                if i % 40 == 0 {
                    let n_slots = 20 + i % 33;
                    cache.set_capacity(n_slots);
                    records.push(Record::Capacity { n_slots });
                }
                cache.release(*layer, &experts);
            }
            let counts = replay(&routing.header(), &records, options, Capacity::Recorded);
            assert_eq!(
                (counts.hits, counts.misses),
                (cache.stats().hits, cache.stats().misses),
                "{policy}"
            );
        }
    }
}
