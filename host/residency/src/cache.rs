//! Which expert lies in which slot.

use std::cmp::Ordering;

use crate::key::PerExpert;
use crate::{Key, Policy, PolicyKind};

/// How a [`Cache`] behaves.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CacheOptions {
    /// How a victim is chosen.
    pub policy: PolicyKind,
    /// Slots below which no layer is pushed for other layers, as long as there
    /// is another victim. More than an equal share of the slots counts as that.
    pub layer_floor: usize,
    /// Hot experts: once loaded they are evicted only where a demand or a
    /// smaller capacity leaves no other choice. Those that the model does not
    /// have are ignored.
    pub pins: Vec<Key>,
}

/// Where a demanded expert is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// It has a slot. A read into it may still be under way, see
    /// [`Cache::is_busy`].
    Hit {
        /// Its slot.
        slot: usize,
    },
    /// It must be read.
    Miss {
        /// The slot to read it into.
        slot: usize,
        /// What was in this slot until now.
        evicted: Option<Key>,
    },
}

/// What a [`Cache`] has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CacheStats {
    /// Demanded experts that had a slot, prefetched ones among them.
    pub hits: u64,
    /// Demanded experts that had none.
    pub misses: u64,
    /// Experts that lost their slot to another one, or to a smaller capacity.
    pub evictions: u64,
    /// Slots given to prefetches.
    pub prefetches: u64,
    /// Prefetched experts that were demanded while they had their slot. Each
    /// counts once, and its demand is among the hits.
    pub prefetch_hits: u64,
    /// Those of them that were still being read when they were demanded.
    pub prefetch_late: u64,
    /// Prefetched experts that lost their slot before anyone demanded them.
    pub prefetch_wasted: u64,
}

/// Decides which experts lie in memory. It does no I/O.
///
/// Experts lie in slots. A slot is held by a count of pins, one for each demand
/// that was acquired and not yet released, and it is busy from the time when it
/// is given out until [`loaded`](Self::loaded) or [`forget`](Self::forget) says
/// that the read into it has ended. Pinned and busy ones are never evicted.
///
/// The same calls have the same answers. Experts that the model does not have are
/// refused or ignored.
#[derive(Debug)]
pub struct Cache {
    n_expert: usize,
    capacity: usize,
    layer_floor: usize,
    policy: Box<dyn Policy>,
    /// Counts demands.
    tick: u64,
    slots: Vec<Option<Slot>>,
    n_used: usize,
    /// Slots below this one have an expert.
    free_from: usize,
    slot_of: PerExpert<Option<usize>>,
    is_hot: PerExpert<bool>,
    layers: Vec<Layer>,
    stats: CacheStats,
}

#[derive(Debug, Clone, Default)]
struct Layer {
    n_slots: usize,
    n_demands: u64,
}

#[derive(Debug)]
struct Slot {
    key: Key,
    n_pins: usize,
    is_busy: bool,
    /// The read failed while the slot was pinned.
    has_failed: bool,
    /// Prefetched and not yet demanded: how many demands the layer had seen.
    prefetched_at: Option<u64>,
}

impl Slot {
    fn is_held(&self) -> bool {
        self.n_pins > 0 || self.is_busy
    }
}

/// What a slot is wanted for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Want {
    Demand(u16),
    Prefetch(u16),
    Shrink,
}

/// How willingly a slot is given up: the first ones before the later ones.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Reluctance {
    /// Its layer's turn came, and did not want what was prefetched.
    FailedPrediction,
    Ordinary,
    UnderFloor,
    /// Prefetched, and its layer's turn is still to come.
    Prediction,
    Hot,
}

/// A slot that can be given up.
struct Candidate {
    reluctance: Reluctance,
    score: f64,
    key: Key,
    index: usize,
}

impl Candidate {
    /// The one to be given up first comes first.
    fn cmp(&self, other: &Self) -> Ordering {
        (self.reluctance.cmp(&other.reluctance))
            .then(self.score.total_cmp(&other.score))
            .then(self.key.cmp(&other.key))
    }
}

/// Slots to be given up, one after another.
#[derive(Default)]
struct Victims(std::vec::IntoIter<usize>);

impl Cache {
    /// A cache of `capacity` slots, all empty, for a model of this shape. More
    /// than 2^16 layers or experts cannot be named and do not count.
    pub fn new(n_layer: usize, n_expert: usize, capacity: usize, options: CacheOptions) -> Self {
        let [n_layer, n_expert] = [n_layer, n_expert].map(|n| n.min(1 << 16));
        let mut is_hot = PerExpert::new(n_layer, n_expert, false);
        for &key in &options.pins {
            if let Some(is_hot) = is_hot.get_mut(key) {
                *is_hot = true;
            }
        }
        Self {
            n_expert,
            capacity,
            layer_floor: options.layer_floor,
            policy: options.policy.policy(n_layer, n_expert),
            tick: 0,
            slots: Vec::new(),
            n_used: 0,
            free_from: 0,
            slot_of: PerExpert::new(n_layer, n_expert, None),
            is_hot,
            layers: vec![Layer::default(); n_layer],
            stats: CacheStats::default(),
        }
    }

    /// All experts of one demand, in strictly ascending order, all or nothing:
    /// every one is pinned once more, and counted as hit or miss. The answers are
    /// in the order of the experts.
    ///
    /// A miss is busy until [`loaded`](Self::loaded) or [`forget`](Self::forget)
    /// is called. An expert whose read failed and that others still pin is a miss
    /// again, in the same slot.
    ///
    /// `None` if there are not enough slots that are free or can be evicted, or if
    /// the experts are out of order or not the model's. Then nothing has changed,
    /// and nothing is counted.
    pub fn acquire(&mut self, layer: u16, experts: &[u16]) -> Option<Vec<Lookup>> {
        if !self.is_demand(layer, experts) || !self.has_room(layer, experts) {
            return None;
        }
        self.tick += 1;
        self.layers[usize::from(layer)].n_demands += 1;
        let key = |&expert| Key { layer, expert };
        // First those that are there, so that no miss evicts them.
        let mut lookups: Vec<_> = experts.iter().map(|e| self.pin(key(e))).collect();
        let n_absent = lookups.iter().filter(|lookup| lookup.is_none()).count();
        let mut victims = None;
        for (expert, lookup) in experts.iter().zip(&mut lookups) {
            self.policy.touch(key(expert), self.tick);
            if lookup.is_none() {
                let want = Want::Demand(layer);
                let victims = victims.get_or_insert_with(|| self.victims(want, n_absent));
                *lookup = self.insert(key(expert), want, victims);
            }
        }
        debug_assert!(lookups.iter().all(Option::is_some), "there was room");
        let is_miss = |lookup: &&Lookup| matches!(lookup, Lookup::Miss { .. });
        let lookups: Vec<_> = lookups.into_iter().flatten().collect();
        let n_miss = lookups.iter().filter(is_miss).count() as u64;
        self.stats.misses += n_miss;
        self.stats.hits += lookups.len() as u64 - n_miss;
        Some(lookups)
    }

    /// One pin less for each. Those that nobody pins are ignored.
    pub fn release(&mut self, layer: u16, experts: &[u16]) {
        for &expert in experts {
            let Some((index, slot)) = self.find_mut(Key { layer, expert }) else { continue };
            slot.n_pins = slot.n_pins.saturating_sub(1);
            if slot.n_pins == 0 && slot.has_failed {
                self.empty(index);
            }
        }
    }

    /// A slot for an expert that may be wanted, and what was in it until now.
    /// `None` if it has one already, or if there is none to give.
    ///
    /// The expert is not pinned, but busy until [`loaded`](Self::loaded) or
    /// [`forget`](Self::forget) is called. What was prefetched, and not demanded
    /// when its layer's turn came, is evicted first. What was prefetched for a
    /// layer whose turn is yet to come, is hot, or belongs to a layer at its
    /// floor, is not evicted at all.
    pub fn prefetch(&mut self, key: Key) -> Option<(usize, Option<Key>)> {
        if !self.may_prefetch(key) {
            return None;
        }
        self.prefetch_in(key, &mut Victims::default())
    }

    /// The same for several experts of a layer, with less effort: those that got a slot,
    /// and which.
    pub fn prefetch_all(&mut self, layer: u16, experts: &[u16]) -> Vec<(u16, usize)> {
        let absent = experts.iter().copied();
        let absent: Vec<_> =
            absent.filter(|&expert| self.may_prefetch(Key { layer, expert })).collect();
        let mut victims = self.victims(Want::Prefetch(layer), absent.len());
        let slots = absent.into_iter().map_while(|expert| {
            let (slot, _) = self.prefetch_in(Key { layer, expert }, &mut victims)?;
            Some((expert, slot))
        });
        slots.collect()
    }

    fn may_prefetch(&self, key: Key) -> bool {
        self.slot_of.get(key).is_some_and(Option::is_none) && self.n_used <= self.capacity
    }

    fn prefetch_in(&mut self, key: Key, victims: &mut Victims) -> Option<(usize, Option<Key>)> {
        let Lookup::Miss { slot: index, evicted } =
            self.insert(key, Want::Prefetch(key.layer), victims)?
        else {
            return None;
        };
        if let Some(slot) = &mut self.slots[index] {
            slot.n_pins = 0;
            slot.prefetched_at = Some(self.layers[usize::from(key.layer)].n_demands);
        }
        self.stats.prefetches += 1;
        Some((index, evicted))
    }

    /// The read of a prefetch or of a miss has ended well.
    pub fn loaded(&mut self, key: Key) {
        if let Some((_, slot)) = self.find_mut(key) {
            slot.is_busy = false;
        }
    }

    /// The read of a prefetch or of a miss has failed, or was cancelled. The slot
    /// is free again; while someone pins it, it is so when the last pin goes.
    /// Ignored unless the expert is busy.
    pub fn forget(&mut self, key: Key) {
        let Some((index, slot)) = self.find_mut(key) else { return };
        if !slot.is_busy {
            return;
        }
        slot.is_busy = false;
        slot.has_failed = true;
        if slot.n_pins == 0 {
            self.empty(index);
        }
    }

    /// The slot of an expert that is in memory, or being read. One whose read
    /// failed is not.
    pub fn contains(&self, key: Key) -> Option<usize> {
        self.find(key).filter(|(_, slot)| !slot.has_failed).map(|(index, _)| index)
    }

    /// The expert that has this slot, even if its read failed.
    pub fn expert_in(&self, slot: usize) -> Option<Key> {
        Some(self.slots.get(slot)?.as_ref()?.key)
    }

    /// Whether a read into the expert's slot is under way.
    pub fn is_busy(&self, key: Key) -> bool {
        self.find(key).is_some_and(|(_, slot)| slot.is_busy)
    }

    /// Evicts what must go, but never what is pinned or busy; answers the slots
    /// that were given up. Capacity is a count: the slots that stay may have higher
    /// numbers. Slots given out later have numbers below the capacity of then, but
    /// for those that take the place of what they evict.
    ///
    /// If more stays than fits, see [`n_used`](Self::n_used), it does not grow;
    /// call again with the same capacity when pins have gone.
    pub fn set_capacity(&mut self, capacity: usize) -> Vec<usize> {
        self.capacity = capacity;
        let mut given_up = Vec::new();
        let mut victims = self.victims(Want::Shrink, self.n_used.saturating_sub(capacity));
        while self.n_used > capacity {
            let Some(index) = self.next_victim(Want::Shrink, &mut victims) else { break };
            self.evict(index);
            given_up.push(index);
        }
        given_up
    }

    /// How many slots there are.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many slots are in use.
    pub fn n_used(&self) -> usize {
        self.n_used
    }

    /// How many slots demands pin.
    pub fn n_pinned(&self) -> usize {
        self.slots.iter().flatten().filter(|slot| slot.n_pins > 0).count()
    }

    /// What was counted so far.
    pub fn stats(&self) -> CacheStats {
        self.stats
    }

    fn is_demand(&self, layer: u16, experts: &[u16]) -> bool {
        usize::from(layer) < self.layers.len()
            && experts.is_sorted_by(|a, b| a < b)
            && experts.last().is_none_or(|&e| usize::from(e) < self.n_expert)
    }

    /// Whether the experts fit beside all that cannot go.
    fn has_room(&self, layer: u16, experts: &[u16]) -> bool {
        let is_absent = |&&expert: &&u16| self.find(Key { layer, expert }).is_none();
        let n_absent = experts.iter().filter(is_absent).count();
        let n_wanted = (self.n_used + n_absent).saturating_sub(self.capacity);
        let is_wanted = |key: Key| key.layer == layer && experts.binary_search(&key.expert).is_ok();
        let goes = |slot: &&Slot| !slot.is_held() && !is_wanted(slot.key);
        n_absent == 0 || self.slots.iter().flatten().filter(goes).take(n_wanted).count() == n_wanted
    }

    /// `None` if it has no slot.
    fn pin(&mut self, key: Key) -> Option<Lookup> {
        let (index, slot) = self.find_mut(key)?;
        slot.n_pins += 1;
        if slot.has_failed {
            slot.has_failed = false;
            slot.is_busy = true;
            slot.prefetched_at = None;
            return Some(Lookup::Miss { slot: index, evicted: None });
        }
        let is_late = slot.is_busy;
        if slot.prefetched_at.take().is_some() {
            self.stats.prefetch_hits += 1;
            self.stats.prefetch_late += u64::from(is_late);
        }
        Some(Lookup::Hit { slot: index })
    }

    /// Gives a slot to an expert that has none: it is busy, and pinned once.
    fn insert(&mut self, key: Key, want: Want, victims: &mut Victims) -> Option<Lookup> {
        self.policy.inserted(key);
        let (index, evicted) = if self.n_used < self.capacity {
            (self.free_slot(), None)
        } else if let Some(index) = self.next_victim(want, victims) {
            (index, self.evict(index))
        } else {
            self.policy.removed(key);
            return None;
        };
        self.slots[index] =
            Some(Slot { key, n_pins: 1, is_busy: true, has_failed: false, prefetched_at: None });
        self.n_used += 1;
        self.layers[usize::from(key.layer)].n_slots += 1;
        if let Some(slot_of) = self.slot_of.get_mut(key) {
            *slot_of = Some(index);
        }
        Some(Lookup::Miss { slot: index, evicted })
    }

    /// The first slot without an expert: as fewer than the capacity are in use,
    /// its number is below.
    fn free_slot(&mut self) -> usize {
        let free = self.slots.iter().skip(self.free_from).position(Option::is_none);
        let index = free.map_or(self.slots.len(), |n| self.free_from + n);
        if index == self.slots.len() {
            self.slots.push(None);
        }
        self.free_from = index + 1;
        index
    }

    fn next_victim(&self, want: Want, victims: &mut Victims) -> Option<usize> {
        victims.0.next().or_else(|| self.victims(want, 1).0.next())
    }

    /// The slots to be given up for so many experts, one after another, as far as that can
    /// be said at once.
    fn victims(&self, want: Want, n: usize) -> Victims {
        let n_free = self.capacity.saturating_sub(self.n_used);
        let is_stable = self.layer_floor == 0 && self.policy.keeps_scores();
        let n = n.saturating_sub(n_free).min(if is_stable { usize::MAX } else { 1 });
        // The first ones so far, in their order.
        let mut first: Vec<Candidate> = Vec::new();
        let slots = if n > 0 { &self.slots[..] } else { &[] };
        for (index, slot) in slots.iter().enumerate() {
            let Some(slot) = slot else { continue };
            let Some(reluctance) = self.reluctance(slot, want) else { continue };
            let score = self.policy.score(slot.key, self.tick);
            let candidate = Candidate { reluctance, score, key: slot.key, index };
            let at = first.partition_point(|other| other.cmp(&candidate).is_le());
            if at < n {
                first.truncate(n - 1);
                first.insert(at, candidate);
            }
        }
        let indices: Vec<_> = first.into_iter().map(|candidate| candidate.index).collect();
        Victims(indices.into_iter())
    }

    /// `None` if the slot cannot be given up for this.
    fn reluctance(&self, slot: &Slot, want: Want) -> Option<Reluctance> {
        if slot.is_held() {
            return None;
        }
        let layer = &self.layers[usize::from(slot.key.layer)];
        let is_hot = self.is_hot.get(slot.key).is_some_and(|&is_hot| is_hot);
        let is_own = matches!(want, Want::Demand(l) | Want::Prefetch(l) if l == slot.key.layer);
        let floor = self.layer_floor.min(self.capacity / self.layers.len().max(1));
        let reluctance = match slot.prefetched_at {
            _ if is_hot => Reluctance::Hot,
            Some(n_demands) if layer.n_demands > n_demands => Reluctance::FailedPrediction,
            Some(_) => Reluctance::Prediction,
            None if layer.n_slots <= floor && !is_own => Reluctance::UnderFloor,
            None => Reluctance::Ordinary,
        };
        let is_prefetch = matches!(want, Want::Prefetch(_));
        (!is_prefetch || reluctance <= Reluctance::Ordinary).then_some(reluctance)
    }

    fn evict(&mut self, index: usize) -> Option<Key> {
        self.stats.evictions += 1;
        self.empty(index)
    }

    fn empty(&mut self, index: usize) -> Option<Key> {
        let slot = self.slots[index].take()?;
        self.free_from = self.free_from.min(index);
        self.policy.removed(slot.key);
        self.n_used -= 1;
        self.layers[usize::from(slot.key.layer)].n_slots -= 1;
        if let Some(slot_of) = self.slot_of.get_mut(slot.key) {
            *slot_of = None;
        }
        self.stats.prefetch_wasted += u64::from(slot.prefetched_at.is_some());
        Some(slot.key)
    }

    fn find(&self, key: Key) -> Option<(usize, &Slot)> {
        let index = (*self.slot_of.get(key)?)?;
        Some((index, self.slots[index].as_ref()?))
    }

    fn find_mut(&mut self, key: Key) -> Option<(usize, &mut Slot)> {
        let index = (*self.slot_of.get(key)?)?;
        Some((index, self.slots[index].as_mut()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(layer: u16, expert: u16) -> Key {
        Key { layer, expert }
    }

    fn lru(capacity: usize) -> Cache {
        with(capacity, CacheOptions { policy: PolicyKind::Lru, ..Default::default() })
    }

    fn with(capacity: usize, options: CacheOptions) -> Cache {
        Cache::new(4, 8, capacity, options)
    }

    /// Acquires, loads and releases.
    fn demand(cache: &mut Cache, layer: u16, experts: &[u16]) -> Option<Vec<Lookup>> {
        let lookups = cache.acquire(layer, experts);
        experts.iter().for_each(|&expert| cache.loaded(Key { layer, expert }));
        cache.release(layer, experts);
        lookups
    }

    #[test]
    fn slots_are_reused() {
        let mut cache = lru(2);
        let miss = |slot, evicted| Lookup::Miss { slot, evicted };
        assert_eq!(demand(&mut cache, 0, &[1, 2]).unwrap(), [miss(0, None), miss(1, None)]);
        let lookups = demand(&mut cache, 0, &[2, 3]).unwrap();
        assert_eq!(lookups, [Lookup::Hit { slot: 1 }, miss(0, Some(key(0, 1)))]);
        let stats = cache.stats();
        assert_eq!((stats.hits, stats.misses, stats.evictions), (1, 3, 1));
    }

    #[test]
    fn a_demand_is_all_or_nothing() {
        let mut cache = lru(3);
        cache.acquire(0, &[0, 1]).unwrap();
        assert_eq!(cache.acquire(1, &[0, 1]), None);
        assert_eq!((cache.n_used(), cache.n_pinned(), cache.stats().misses), (2, 2, 2));
        cache.release(0, &[0, 1]);
        assert_eq!(cache.n_pinned(), 0);
        assert_eq!(cache.acquire(1, &[0, 1]), None, "both are still being read");
        cache.loaded(key(0, 0));
        assert!(cache.acquire(1, &[0, 1]).is_some());
        assert_eq!(cache.contains(key(0, 0)), None);
    }

    #[test]
    fn nonsense_is_refused() {
        let mut cache = lru(3);
        for (layer, experts) in [
            (4, vec![0]),
            (0, vec![8]),
            (u16::MAX, vec![u16::MAX]),
            (0, vec![1, 1]),
            (0, vec![2, 1]),
        ] {
            assert_eq!(cache.acquire(layer, &experts), None);
            cache.release(layer, &experts);
        }
        for key in [key(4, 0), key(0, 8), key(u16::MAX, u16::MAX)] {
            assert_eq!(cache.prefetch(key), None);
            cache.loaded(key);
            cache.forget(key);
            assert_eq!(cache.contains(key), None);
            assert!(!cache.is_busy(key));
        }
        assert_eq!(cache.stats(), CacheStats::default());
        let mut empty = Cache::new(0, 0, 0, CacheOptions::default());
        assert_eq!((empty.acquire(0, &[]), empty.prefetch(key(0, 0))), (None, None));
        assert!(empty.set_capacity(3).is_empty());
        assert_eq!(lru(0).acquire(0, &[]), Some(vec![]));
    }

    #[test]
    fn pins_are_counted() {
        let mut cache = lru(1);
        cache.acquire(0, &[0]).unwrap();
        cache.acquire(0, &[0]).unwrap();
        cache.loaded(key(0, 0));
        cache.release(0, &[0]);
        assert_eq!(cache.acquire(0, &[1]), None);
        cache.release(0, &[0]);
        assert!(cache.acquire(0, &[1]).is_some());
    }

    #[test]
    fn a_failed_read_frees_its_slot_with_the_last_pin() {
        let mut cache = lru(1);
        cache.acquire(0, &[0]).unwrap();
        cache.forget(key(0, 0));
        assert_eq!((cache.contains(key(0, 0)), cache.n_used()), (None, 1));
        let again = [Lookup::Miss { slot: 0, evicted: None }];
        assert_eq!(cache.acquire(0, &[0]).unwrap(), again, "someone else tries again");
        cache.loaded(key(0, 0));
        cache.forget(key(0, 0));
        assert_eq!(cache.contains(key(0, 0)), Some(0), "it was read");
        cache.release(0, &[0]);
        cache.release(0, &[0]);
        assert_eq!(cache.n_used(), 1);

        cache.acquire(0, &[1]).unwrap();
        cache.forget(key(0, 1));
        cache.release(0, &[1]);
        assert_eq!(cache.n_used(), 0);
        cache.prefetch(key(0, 2)).unwrap();
        cache.forget(key(0, 2));
        assert_eq!((cache.n_used(), cache.stats().prefetch_wasted), (0, 1));
    }

    #[test]
    fn a_prefetch_is_busy_until_loaded() {
        let mut cache = lru(1);
        assert_eq!(cache.prefetch(key(1, 0)), Some((0, None)));
        assert_eq!(cache.prefetch(key(1, 0)), None, "it is there");
        assert_eq!(cache.prefetch(key(1, 1)), None, "there is no room");
        assert_eq!(cache.acquire(0, &[0]), None);
        assert!(cache.is_busy(key(1, 0)));
        assert_eq!(cache.acquire(1, &[0]).unwrap(), [Lookup::Hit { slot: 0 }]);
        cache.release(1, &[0]);
        cache.loaded(key(1, 0));
        let stats = cache.stats();
        assert_eq!((stats.prefetches, stats.prefetch_hits, stats.prefetch_late), (1, 1, 1));
        assert_eq!((stats.hits, stats.misses), (1, 0));
    }

    #[test]
    fn failed_predictions_go_first_and_others_last() {
        let mut cache = lru(3);
        demand(&mut cache, 0, &[0]);
        for expert in [0, 1] {
            cache.prefetch(key(1, expert)).unwrap();
            cache.loaded(key(1, expert));
        }
        // The turn of layer 1 is yet to come.
        assert_eq!(cache.prefetch(key(1, 2)), Some((0, Some(key(0, 0)))));
        cache.loaded(key(1, 2));
        assert_eq!(cache.prefetch(key(1, 3)), None);
        // It came, and wanted one of three.
        demand(&mut cache, 1, &[1]);
        let slot = cache.contains(key(1, 0)).unwrap();
        assert_eq!(cache.prefetch(key(2, 0)), Some((slot, Some(key(1, 0)))));
    }

    #[test]
    fn hot_experts_go_last() {
        let pins = vec![key(0, 0), key(9, 9)];
        let mut cache =
            with(2, CacheOptions { policy: PolicyKind::Lru, pins, ..Default::default() });
        demand(&mut cache, 0, &[0, 1]);
        demand(&mut cache, 1, &[0]);
        demand(&mut cache, 2, &[0]);
        assert!(cache.contains(key(0, 0)).is_some());
        assert!(cache.acquire(3, &[0, 1]).is_some(), "a demand comes first");
    }

    #[test]
    fn a_layer_keeps_its_floor() {
        let mut cache =
            with(8, CacheOptions { policy: PolicyKind::Lru, layer_floor: 2, ..Default::default() });
        demand(&mut cache, 0, &[0, 1]);
        demand(&mut cache, 1, &[0, 1, 2, 3, 4, 5]);
        demand(&mut cache, 2, &[0, 1]);
        assert!(cache.contains(key(0, 0)).is_some() && cache.contains(key(0, 1)).is_some());
        assert_eq!(cache.contains(key(1, 0)), None);
        demand(&mut cache, 0, &[2]);
        assert_eq!(cache.contains(key(0, 0)), None, "its own demands may push it");
    }

    #[test]
    fn capacity_is_a_count() {
        let mut cache = lru(4);
        demand(&mut cache, 0, &[0, 1, 2]);
        cache.acquire(1, &[0]).unwrap();
        assert_eq!(cache.set_capacity(1), [0, 1, 2]);
        assert_eq!(cache.acquire(1, &[0]).unwrap(), [Lookup::Hit { slot: 3 }]);
        assert!(cache.set_capacity(0).is_empty());
        assert_eq!((cache.n_used(), cache.capacity()), (1, 0));
        assert_eq!((cache.acquire(1, &[1]), cache.prefetch(key(1, 1))), (None, None));
        cache.release(1, &[0]);
        cache.release(1, &[0]);
        cache.loaded(key(1, 0));
        assert_eq!(cache.set_capacity(0), [3]);
        cache.set_capacity(2);
        assert_eq!(cache.prefetch(key(1, 1)), Some((0, None)));
    }
}
