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
    Lfu,
    /// [`LayerLru`]
    LayerLru,
    /// [`Blend`]: hits most, or nearly so, however a router may choose; see the
    /// example `policies`.
    #[default]
    Blend,
}

impl PolicyKind {
    /// All of them.
    pub const ALL: &[Self] = &[Self::Lru, Self::Lfu, Self::LayerLru, Self::Blend];

    /// A policy of this kind for a model of this shape.
    pub fn policy(self, n_layer: usize, n_expert: usize) -> Box<dyn Policy> {
        match self {
            Self::Lru => Box::new(Lru::new(n_layer, n_expert)),
            Self::Lfu => Box::new(Lfu::new(n_layer, n_expert)),
            Self::LayerLru => Box::new(LayerLru::new(n_layer, n_expert)),
            Self::Blend => Box::new(Blend::new(n_layer, n_expert)),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Lru => "lru",
            Self::Lfu => "lfu",
            Self::LayerLru => "layer-lru",
            Self::Blend => "blend",
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
#[error("unknown policy {0:?}; there are lru, lfu, layer-lru and blend")]
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

    /// Whether scores stay what they are when an expert gets a slot, or loses its own.
    fn keeps_scores(&self) -> bool {
        false
    }

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

    fn keeps_scores(&self) -> bool {
        true
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
    turns: Turns,
    shares: Shares,
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
        Self { turns: Turns::new(n_layer), shares: Shares::new(n_layer, n_expert, half_life) }
    }
}

impl Policy for Lfu {
    fn touch(&mut self, key: Key, tick: u64) {
        if self.turns.begin(key.layer, tick) {
            self.shares.age(key.layer);
        }
        self.shares.count(key);
    }

    fn keeps_scores(&self) -> bool {
        true
    }

    fn score(&self, key: Key, _tick: u64) -> f64 {
        self.shares.of(key)
    }
}

/// The one that is least probable to be wanted at its layer's next turn is
/// evicted; of those as probable, the one whose turn comes last. The probability is
/// a blend of its shares of the layer's demands over a short, a middling and a long
/// time, in the parts that would have predicted the demands so far best.
///
/// Models differ in whether an expert that was just used is used again more often
/// than over a long time (Liang et al., "Not All Models Suit Expert Offloading: On
/// Local Routing Consistency of Mixture-of-Expert Models", arXiv:2505.16056), so
/// the parts are found by least squares, over all layers together.
#[derive(Debug, Clone)]
pub struct Blend {
    turns: Turns,
    long: Shares,
    shorter: [Shares; 2],
    fit: Fit,
    /// Of the shorter shares in the blend.
    parts: [f64; 2],
    layer: u16,
    n_layer: usize,
}

impl Blend {
    /// Demands of a layer after which a use counts one half.
    const LONG: f64 = 64.0;
    const SHORTER: [f64; 2] = [8.0, 1.0];
    /// What an expert is worth less if its turn comes last, as a share.
    const DISTANCE: f64 = 0.5;

    /// For a model of this shape.
    pub fn new(n_layer: usize, n_expert: usize) -> Self {
        let shares = |half_life| Shares::new(n_layer, n_expert, half_life);
        let fit = Fit::new();
        Self {
            turns: Turns::new(n_layer),
            long: shares(Self::LONG),
            shorter: Self::SHORTER.map(shares),
            parts: fit.parts(),
            fit,
            layer: 0,
            n_layer,
        }
    }

    /// A demand of the layer begins.
    fn begin(&mut self, layer: u16) {
        self.layer = layer;
        self.fit.age();
        let [middling, short] = &self.shorter;
        let shorter = middling.of_layer(layer).zip(short.of_layer(layer));
        for (long, (middling, short)) in self.long.of_layer(layer).zip(shorter) {
            self.fit.add([middling - long, short - long], -long);
        }
        self.parts = self.fit.parts();
        self.long.age(layer);
        self.shorter.iter_mut().for_each(|shares| shares.age(layer));
    }
}

impl Policy for Blend {
    fn touch(&mut self, key: Key, tick: u64) {
        if self.turns.begin(key.layer, tick) {
            self.begin(key.layer);
        }
        let long = self.long.before(key);
        self.fit.add_used(self.shorter.each_ref().map(|shares| shares.before(key) - long));
        self.long.count(key);
        self.shorter.iter_mut().for_each(|shares| shares.count(key));
    }

    fn keeps_scores(&self) -> bool {
        true
    }

    fn score(&self, key: Key, _tick: u64) -> f64 {
        let long = self.long.of(key);
        let [middling, short] = self.shorter.each_ref().map(|shares| shares.of(key) - long);
        let probability = long + self.parts[0] * middling + self.parts[1] * short;
        // Layers between this one and its turn; all of them if it is this one.
        let [now, then] = [self.layer, key.layer].map(usize::from);
        let n_between = if then > now { then - now } else { self.n_layer + then - now } - 1;
        probability * (1.0 - Self::DISTANCE * n_between as f64 / self.n_layer as f64)
    }
}

/// Least squares: which parts of the shorter shares, each as its difference from
/// the long one, come closest to what a use, 0 or 1, has beyond the long share.
/// Old demands count less.
#[derive(Debug, Clone)]
struct Fit {
    squares: [f64; 2],
    mixed: f64,
    products: [f64; 2],
}

impl Fit {
    /// Demands after which an error counts one half.
    const HALF_LIFE: f64 = 2000.0;

    /// At first as if there were some experience with equal parts.
    fn new() -> Self {
        Self { squares: [2.0; 2], mixed: 0.0, products: [0.6; 2] }
    }

    fn age(&mut self) {
        let decay = (-1.0 / Self::HALF_LIFE).exp2();
        let [a, b] = &mut self.squares;
        let [c, d] = &mut self.products;
        [a, b, c, d, &mut self.mixed].into_iter().for_each(|sum| *sum *= decay);
    }

    /// An expert that may be used or not.
    fn add(&mut self, shorter: [f64; 2], beyond: f64) {
        let sums = self.squares.iter_mut().zip(&mut self.products);
        for ((square, product), share) in sums.zip(shorter) {
            *square += share * share;
            *product += share * beyond;
        }
        self.mixed += shorter[0] * shorter[1];
    }

    /// One of those added is used.
    fn add_used(&mut self, shorter: [f64; 2]) {
        self.products.iter_mut().zip(shorter).for_each(|(product, share)| *product += share);
    }

    fn parts(&self) -> [f64; 2] {
        let [a, d] = self.squares.map(|square| square * 1.001 + 1e-9);
        let (b, [x, y]) = (self.mixed, self.products);
        let determinant = a * d - b * b;
        [(d * x - b * y) / determinant, (a * y - b * x) / determinant]
    }
}

/// The tick of each layer's last demand.
#[derive(Debug, Clone)]
struct Turns(Vec<u64>);

impl Turns {
    fn new(n_layer: usize) -> Self {
        Self(vec![0; n_layer])
    }

    /// Whether this tick is a new demand of the layer.
    fn begin(&mut self, layer: u16, tick: u64) -> bool {
        let last = self.0.get_mut(usize::from(layer));
        last.is_some_and(|last| std::mem::replace(last, tick) != tick)
    }
}

/// In which share of its layer's demands an expert was used, where a demand weighs
/// one half after a number of demands.
#[derive(Debug, Clone)]
struct Shares {
    decay: f64,
    uses: PerExpert<f64>,
    /// The weight of all demands of each layer.
    demands: Vec<f64>,
}

impl Shares {
    /// A weight that is as good as none. Computing with far smaller ones is slow.
    const NOTHING: f64 = 1e-30;

    fn new(n_layer: usize, n_expert: usize, half_life: f64) -> Self {
        Self {
            decay: (-1.0 / half_life).exp2(),
            uses: PerExpert::new(n_layer, n_expert, 0.0),
            demands: vec![0.0; n_layer],
        }
    }

    /// Another demand of the layer.
    fn age(&mut self, layer: u16) {
        for uses in self.uses.layer_mut(layer) {
            *uses = if *uses < Self::NOTHING { 0.0 } else { *uses * self.decay };
        }
        if let Some(demands) = self.demands.get_mut(usize::from(layer)) {
            *demands = *demands * self.decay + 1.0;
        }
    }

    /// This demand uses it.
    fn count(&mut self, key: Key) {
        if let Some(uses) = self.uses.get_mut(key) {
            *uses += 1.0;
        }
    }

    fn of(&self, key: Key) -> f64 {
        let demands = self.demands.get(usize::from(key.layer)).copied().unwrap_or(0.0);
        self.uses.get(key).map_or(0.0, |uses| uses / demands.max(1.0))
    }

    /// What the share was before this demand, which did not count the expert yet.
    fn before(&self, key: Key) -> f64 {
        let demands = self.demands.get(usize::from(key.layer)).map_or(0.0, |demands| demands - 1.0);
        let uses = self.uses.get(key).copied().unwrap_or(0.0);
        if demands > 0.0 { uses / demands } else { 0.0 }
    }

    fn of_layer(&self, layer: u16) -> impl Iterator<Item = f64> {
        let demands = self.demands.get(usize::from(layer)).map_or(1.0, |demands| demands.max(1.0));
        self.uses.layer(layer).iter().map(move |uses| uses / demands)
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
    }

    #[test]
    fn a_layer_is_not_worth_more_for_having_had_its_turn() {
        let mut lfu = Lfu::new(2, 4);
        (1..6).for_each(|tick| lfu.touch(key(tick as u16 % 2, 3), tick));
        assert_eq!(lfu.score(key(0, 3), 5), lfu.score(key(1, 3), 5));
    }

    #[test]
    fn the_blend_learns_whether_recency_is_worth_something() {
        // What the last one used is worth beyond the one used before it, if each
        // expert is used for some demands, and then the next one.
        let advantage = |stays: u64| {
            let mut blend = Blend::new(1, 8);
            let expert = |tick: u64| key(0, (tick / stays % 8) as u16);
            let n = 400 * stays - 1;
            (1..=n).for_each(|tick| blend.touch(expert(tick), tick));
            blend.score(expert(n), n) - blend.score(expert(n - stays), n)
        };
        assert!(advantage(20) > 0.5, "{}", advantage(20));
        assert!(advantage(1) < 0.1, "{}", advantage(1));
    }

    #[test]
    fn of_equals_the_blend_evicts_the_one_whose_turn_comes_last() {
        let mut blend = Blend::new(3, 4);
        (1..=7).for_each(|tick| blend.touch(key((tick as u16 - 1) % 3, 1), tick));
        let [this, next, last] = [0, 1, 2].map(|layer| blend.score(key(layer, 1), 7));
        assert!(this < last && last < next, "{this} {next} {last}");
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
