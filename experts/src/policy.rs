//! How a victim is chosen.

use std::fmt;
use std::str::FromStr;

use crate::Key;
use crate::key::PerExpert;

/// How a victim is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum PolicyKind {
    /// [`Lru`]
    Lru,
    /// [`Lfu`]
    #[default]
    Lfu,
    /// [`LayerLru`]
    LayerLru,
}

impl PolicyKind {
    /// All of them.
    pub const ALL: &[Self] = &[Self::Lru, Self::Lfu, Self::LayerLru];

    /// A policy of this kind for a model of this shape.
    pub fn policy(self, n_layer: usize, n_expert: usize) -> Box<dyn Policy> {
        match self {
            Self::Lru => Box::new(Lru::new(n_layer, n_expert)),
            Self::Lfu => Box::new(Lfu::new(n_layer, n_expert)),
            Self::LayerLru => Box::new(LayerLru::new(n_layer, n_expert)),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Lru => "lru",
            Self::Lfu => "lfu",
            Self::LayerLru => "layer-lru",
        }
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for PolicyKind {
    type Err = ParsePolicyError;

    fn from_str(name: &str) -> Result<Self, ParsePolicyError> {
        let is_named = |kind: &&Self| kind.name() == name;
        Self::ALL.iter().find(is_named).copied().ok_or_else(|| ParsePolicyError(name.to_owned()))
    }
}

/// There is no policy of this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown policy {0:?}; there are lru, lfu and layer-lru")]
pub struct ParsePolicyError(String);

/// How much the experts in memory are worth.
///
/// The tick counts demands: one for each layer of a forward pass. Experts that
/// the model does not have are ignored.
pub trait Policy: fmt::Debug + Send {
    /// The expert is demanded, be it in memory or not.
    fn touch(&mut self, key: Key, tick: u64);

    /// The expert gets a slot. If there is none free, this is called before the
    /// victim is chosen.
    fn inserted(&mut self, _key: Key) {}

    /// The expert loses its slot.
    fn removed(&mut self, _key: Key) {}

    /// The lowest is evicted first; among equals the one with the lowest key.
    fn score(&self, key: Key, tick: u64) -> f64;
}

/// The least recently used is evicted.
///
/// A token goes through all layers in turn. If not all that it takes fits, what
/// comes next is always what was evicted last, and nothing is ever hit.
#[derive(Debug, Clone)]
pub struct Lru {
    last: PerExpert<u64>,
}

impl Lru {
    /// For a model of this shape.
    pub fn new(n_layer: usize, n_expert: usize) -> Self {
        Self { last: PerExpert::new(n_layer, n_expert, 0) }
    }
}

impl Policy for Lru {
    fn touch(&mut self, key: Key, tick: u64) {
        if let Some(last) = self.last.get_mut(key) {
            *last = tick;
        }
    }

    fn score(&self, key: Key, _tick: u64) -> f64 {
        self.last.get(key).map_or(0.0, |&last| last as f64)
    }
}

/// The least frequently used is evicted, where a use counts the less the longer
/// ago it was. What is not in memory is counted as well.
///
/// This is LRFU (Lee et al., "LRFU: A Spectrum of Policies that Subsumes the
/// Least Recently Used and Least Frequently Used Policies", IEEE Transactions on
/// Computers 50(12), 2001), whose weighing function is one half to the power of
/// the age in half-lives; but each layer has its own time, which counts its
/// demands, and what counts is an expert's share of them. So the layers that had
/// their turn are not worth more than those whose turn is next.
#[derive(Debug, Clone)]
pub struct Lfu {
    half_life: f64,
    layers: Vec<LayerTime>,
    uses: PerExpert<Option<Uses>>,
}

/// The demands of a layer so far.
#[derive(Debug, Clone, Copy, Default)]
struct LayerTime {
    n_demand: u64,
    /// The sum of their weights.
    weight: f64,
    /// When the last demand was.
    tick: u64,
}

/// The uses of an expert so far: the sum of their weights at the time of the
/// last one, and this time.
#[derive(Debug, Clone, Copy)]
struct Uses {
    weight: f64,
    last: u64,
}

impl Lfu {
    /// Demands of a layer after which a use counts one half.
    pub const HALF_LIFE: f64 = 64.0;

    /// For a model of this shape.
    pub fn new(n_layer: usize, n_expert: usize) -> Self {
        Self::with_half_life(n_layer, n_expert, Self::HALF_LIFE)
    }

    /// With another half-life, in demands of a layer.
    pub fn with_half_life(n_layer: usize, n_expert: usize, half_life: f64) -> Self {
        let layers = vec![LayerTime::default(); n_layer];
        Self { half_life, layers, uses: PerExpert::new(n_layer, n_expert, None) }
    }
}

impl Policy for Lfu {
    fn touch(&mut self, key: Key, tick: u64) {
        let layer = self.layers.get_mut(usize::from(key.layer));
        let (Some(layer), Some(uses)) = (layer, self.uses.get_mut(key)) else { return };
        if layer.tick != tick {
            let weight = 1.0 + layer.weight * (-1.0 / self.half_life).exp2();
            *layer = LayerTime { n_demand: layer.n_demand + 1, weight, tick };
        }
        let now = layer.n_demand;
        let left = |u: Uses| u.weight * (-((now - u.last) as f64) / self.half_life).exp2();
        *uses = Some(Uses { weight: 1.0 + uses.map_or(0.0, left), last: now });
    }

    /// As a logarithm, so that it never becomes zero.
    fn score(&self, key: Key, _tick: u64) -> f64 {
        match (self.layers.get(usize::from(key.layer)), self.uses.get(key)) {
            (Some(layer), Some(Some(uses))) => {
                let age = (layer.n_demand - uses.last) as f64 / self.half_life;
                (uses.weight / layer.weight).log2() - age
            }
            _ => f64::NEG_INFINITY,
        }
    }
}

/// The victim comes from the layer that has most slots, the one that a slot is
/// wanted for counted with it, and is the least recently used of that layer.
///
/// All layers have the same share of the slots, so the layer with most of them
/// is the one with most beyond its share.
#[derive(Debug, Clone)]
pub struct LayerLru {
    lru: Lru,
    n_slots: Vec<u64>,
}

impl LayerLru {
    /// For a model of this shape.
    pub fn new(n_layer: usize, n_expert: usize) -> Self {
        Self { lru: Lru::new(n_layer, n_expert), n_slots: vec![0; n_layer] }
    }
}

impl Policy for LayerLru {
    fn touch(&mut self, key: Key, tick: u64) {
        self.lru.touch(key, tick);
    }

    fn inserted(&mut self, key: Key) {
        if let Some(n) = self.n_slots.get_mut(usize::from(key.layer)) {
            *n += 1;
        }
    }

    fn removed(&mut self, key: Key) {
        if let Some(n) = self.n_slots.get_mut(usize::from(key.layer)) {
            *n = n.saturating_sub(1);
        }
    }

    /// Slots come before ticks; both are exact up to 2^16 slots in a layer and
    /// 2^36 ticks, which are years.
    fn score(&self, key: Key, tick: u64) -> f64 {
        let n_slots = self.n_slots.get(usize::from(key.layer)).copied().unwrap_or(0);
        self.lru.score(key, tick) - (n_slots as f64) * (1_u64 << 36) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(layer: u16, expert: u16) -> Key {
        Key { layer, expert }
    }

    #[test]
    fn names_are_read_back() {
        for kind in PolicyKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(*kind));
        }
        let error = "fifo".parse::<PolicyKind>().unwrap_err().to_string();
        assert!(PolicyKind::ALL.iter().all(|kind| error.contains(kind.name())), "{error}");
    }

    #[test]
    fn frequent_experts_are_worth_more_until_long_ago() {
        let mut lfu = Lfu::with_half_life(2, 4, 10.0);
        for tick in 1..=3 {
            lfu.touch(key(0, 1), tick);
        }
        lfu.touch(key(0, 2), 4);
        assert!(lfu.score(key(0, 1), 4) > lfu.score(key(0, 2), 4));
        assert!(lfu.score(key(0, 2), 4) > lfu.score(key(0, 3), 4));
        (5..30).for_each(|tick| lfu.touch(key(0, 3), tick));
        lfu.touch(key(0, 2), 30);
        assert!(lfu.score(key(0, 1), 30) < lfu.score(key(0, 2), 30));
        // Neither is forgotten altogether.
        (31..100_000).for_each(|tick| lfu.touch(key(0, 3), tick));
        assert!(lfu.score(key(0, 1), 1 << 40) < lfu.score(key(0, 2), 1 << 40));
    }

    #[test]
    fn a_layer_is_not_worth_more_for_having_had_its_turn() {
        let mut lfu = Lfu::new(2, 4);
        (1..6).for_each(|tick| lfu.touch(key(tick as u16 % 2, 3), tick));
        assert_eq!(lfu.score(key(0, 3), 5), lfu.score(key(1, 3), 5));
    }

    #[test]
    fn the_largest_layer_gives() {
        let mut policy = LayerLru::new(2, 4);
        for (tick, key) in [key(0, 0), key(0, 1), key(1, 0)].into_iter().enumerate() {
            policy.inserted(key);
            policy.touch(key, tick as u64 + 1);
        }
        assert!(policy.score(key(0, 1), 4) < policy.score(key(1, 0), 4));
        assert!(policy.score(key(0, 0), 4) < policy.score(key(0, 1), 4));
        policy.removed(key(0, 0));
        assert!(policy.score(key(0, 1), 4) < policy.score(key(1, 0), 4));
        policy.inserted(key(1, 1));
        assert!(policy.score(key(0, 1), 4) > policy.score(key(1, 0), 4));
    }

    #[test]
    fn strangers_are_ignored() {
        for kind in PolicyKind::ALL {
            let mut policy = kind.policy(2, 4);
            for key in [key(2, 0), key(0, 4), key(u16::MAX, u16::MAX)] {
                policy.removed(key);
                policy.inserted(key);
                policy.touch(key, 1);
                policy.score(key, 1);
            }
        }
    }
}
