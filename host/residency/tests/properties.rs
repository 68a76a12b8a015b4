//! What holds of a cache, whatever is asked of it.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use moewe_residency::{Cache, CacheOptions, Key, Lookup, PolicyKind};

const N_LAYER: usize = 4;
const N_EXPERT: usize = 12;

/// What a caller knows.
#[derive(Default)]
struct Caller {
    n_pins: BTreeMap<Key, usize>,
    busy: BTreeSet<Key>,
    slots: BTreeMap<usize, Key>,
    n_demanded: u64,
}

impl Caller {
    fn is_held(&self, key: Key) -> bool {
        self.n_pins.contains_key(&key) || self.busy.contains(&key)
    }

    /// A slot was given out; an expert whose read failed has it already.
    fn put(&mut self, slot: usize, key: Key, evicted: Option<Key>) {
        let before = self.slots.insert(slot, key);
        assert!(before == evicted || before == Some(key), "{before:?} was in slot {slot}");
        if let Some(evicted) = evicted {
            assert!(!self.is_held(evicted), "{evicted} is held");
        }
        assert!(self.busy.insert(key));
    }

    fn drop(&mut self, key: Key) {
        self.slots.retain(|_, k| *k != key);
    }
}

fn experts(random: &mut Rng) -> Vec<u16> {
    let n = random.usize(..6);
    let experts: BTreeSet<_> = (0..n).map(|_| random.usize(..N_EXPERT) as u16).collect();
    experts.into_iter().collect()
}

/// Some calls in any order; the answers as text.
fn run(policy: PolicyKind, seed: u64) -> String {
    let mut random = Rng::with_seed(seed);
    let options = CacheOptions {
        policy,
        layer_floor: random.usize(..4),
        pins: (0..random.usize(..4)).map(|_| any_key(&mut random)).collect(),
    };
    let mut cache = Cache::new(N_LAYER, N_EXPERT, random.usize(..24), options);
    let mut caller = Caller::default();
    let mut demands: Vec<(u16, Vec<u16>)> = Vec::new();
    let mut failed = BTreeSet::new();
    let mut answers = String::new();
    for _ in 0..600 {
        match random.usize(..8) {
            0..3 => {
                let (layer, experts) = (random.usize(..N_LAYER) as u16, experts(&mut random));
                let key = |&expert: &u16| Key { layer, expert };
                let before = (cache.stats(), cache.n_used(), cache.n_pinned());
                let lookups = cache.acquire(layer, &experts);
                answers += &format!("{lookups:?}");
                let Some(lookups) = lookups else {
                    assert_eq!(before, (cache.stats(), cache.n_used(), cache.n_pinned()));
                    let stays = |key: &&Key| {
                        caller.is_held(**key) || key.layer == layer && experts.contains(&key.expert)
                    };
                    let n_absent =
                        experts.iter().filter(|e| !caller.slots.values().any(|k| *k == key(e)));
                    let n = caller.slots.values().filter(stays).count() + n_absent.count();
                    assert!(n > cache.capacity(), "there was room");
                    continue;
                };
                assert_eq!(lookups.len(), experts.len());
                caller.n_demanded += experts.len() as u64;
                for expert in &experts {
                    *caller.n_pins.entry(key(expert)).or_default() += 1;
                }
                for (expert, lookup) in experts.iter().zip(lookups) {
                    let key = key(expert);
                    match lookup {
                        Lookup::Hit { slot } => assert_eq!(caller.slots[&slot], key),
                        Lookup::Miss { slot, evicted } => {
                            failed.remove(&key);
                            caller.put(slot, key, evicted);
                        }
                    }
                }
                demands.push((layer, experts));
            }
            3 if !demands.is_empty() => {
                let (layer, experts) = demands.swap_remove(random.usize(..demands.len()));
                cache.release(layer, &experts);
                for expert in experts {
                    let key = Key { layer, expert };
                    let n_pins = caller.n_pins.get_mut(&key).unwrap();
                    *n_pins -= 1;
                    if *n_pins == 0 {
                        caller.n_pins.remove(&key);
                        if failed.remove(&key) {
                            caller.drop(key);
                        }
                    }
                }
            }
            4 => {
                let key = any_key(&mut random);
                let answer = cache.prefetch(key);
                answers += &format!("{answer:?}");
                if let Some((slot, evicted)) = answer {
                    caller.put(slot, key, evicted);
                }
            }
            5 | 6 => {
                let Some(&key) = caller.busy.iter().nth(random.usize(..=caller.busy.len())) else {
                    continue;
                };
                caller.busy.remove(&key);
                if random.usize(..5) > 0 {
                    cache.loaded(key);
                } else {
                    cache.forget(key);
                    if caller.n_pins.contains_key(&key) {
                        failed.insert(key);
                    } else {
                        caller.drop(key);
                    }
                }
            }
            7 if random.usize(..4) == 0 => {
                let given_up = cache.set_capacity(random.usize(..24));
                answers += &format!("{given_up:?}");
                for slot in given_up {
                    let key = caller.slots.remove(&slot).unwrap();
                    assert!(!caller.is_held(key), "{key} is held");
                }
                let n_held = caller.slots.values().filter(|k| caller.is_held(**k)).count();
                assert!(cache.n_used() <= cache.capacity().max(n_held));
            }
            _ => {}
        }
        check(&cache, &caller, &failed);
    }
    answers
}

fn any_key(random: &mut Rng) -> Key {
    Key { layer: random.usize(..N_LAYER) as u16, expert: random.usize(..N_EXPERT) as u16 }
}

fn check(cache: &Cache, caller: &Caller, failed: &BTreeSet<Key>) {
    let stats = cache.stats();
    assert_eq!(stats.hits + stats.misses, caller.n_demanded);
    assert!(stats.prefetch_late <= stats.prefetch_hits);
    assert!(stats.prefetch_hits + stats.prefetch_wasted <= stats.prefetches);
    assert!(stats.prefetch_hits <= stats.hits);
    assert_eq!(cache.n_pinned(), caller.n_pins.len());
    assert_eq!(cache.n_used(), caller.slots.len());
    let keys: BTreeSet<_> = caller.slots.values().collect();
    assert_eq!(keys.len(), caller.slots.len(), "an expert has two slots");
    for layer in 0..N_LAYER as u16 {
        for expert in 0..N_EXPERT as u16 {
            let key = Key { layer, expert };
            let slot = caller.slots.iter().find(|(_, k)| **k == key && !failed.contains(&key));
            assert_eq!(cache.contains(key), slot.map(|(slot, _)| *slot));
            assert_eq!(cache.is_busy(key), caller.busy.contains(&key));
        }
    }
}

#[test]
fn a_cache_keeps_its_promises() {
    for &policy in PolicyKind::ALL {
        for seed in 0..100 {
            assert_eq!(run(policy, seed), run(policy, seed), "the same calls, other answers");
        }
    }
}

/// Without failing reads and changes of capacity, what was read is there or was
/// evicted, and there is never more than fits.
#[test]
fn counts_add_up() {
    for &policy in PolicyKind::ALL {
        let mut random = Rng::with_seed(7);
        let capacity = 15;
        let options = CacheOptions { policy, ..CacheOptions::default() };
        let mut cache = Cache::new(N_LAYER, N_EXPERT, capacity, options);
        for _ in 0..3000 {
            let (layer, experts) = (random.usize(..N_LAYER) as u16, experts(&mut random));
            let lookups = cache.acquire(layer, &experts).unwrap();
            assert!(lookups.iter().all(|lookup| match lookup {
                Lookup::Hit { slot } | Lookup::Miss { slot, .. } => *slot < capacity,
            }));
            experts.iter().for_each(|&expert| cache.loaded(Key { layer, expert }));
            let key = any_key(&mut random);
            cache.prefetch(key);
            cache.loaded(key);
            cache.release(layer, &experts);
            let stats = cache.stats();
            assert!(cache.n_used() <= capacity);
            assert_eq!(stats.misses + stats.prefetches, stats.evictions + cache.n_used() as u64);
        }
        let stats = cache.stats();
        assert!(stats.hits > 0 && stats.prefetch_hits > 0 && stats.prefetch_wasted > 0);
    }
}
