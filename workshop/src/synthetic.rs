//! Traces of a made-up router, to compare policies with and to test with.

use std::collections::VecDeque;

use moewe_residency::CacheOptions;
use moewe_residency::trace::{Header, Record};

/// How the made-up router chooses.
///
/// In each layer the experts have a rank for each topic, and the one of rank r is
/// chosen with a probability in proportion to r to the power of `-skew`. But with
/// the probability `persistence` it is any of those of the last `memory` tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Routing {
    /// Layers.
    pub n_layer: usize,
    /// Experts of each layer.
    pub n_expert: usize,
    /// Experts that a token takes.
    pub n_expert_used: usize,
    /// Tokens.
    pub n_token: usize,
    /// 0 is no favourites at all.
    pub skew: f64,
    /// How often an expert is one of those of the last tokens.
    pub persistence: f64,
    /// How many tokens these are.
    pub memory: usize,
    /// Tokens of a topic. The next one has other favourites for half the ranks.
    pub n_topic_token: usize,
    /// How likely each prediction is right; `None` for no predictions.
    pub foresight: Option<f64>,
    /// Another seed, another trace.
    pub seed: u64,
}

impl Default for Routing {
    fn default() -> Self {
        Self {
            n_layer: 8,
            n_expert: 32,
            n_expert_used: 4,
            n_token: 100,
            skew: 0.7,
            persistence: 0.2,
            memory: 1,
            n_topic_token: 500,
            foresight: None,
            seed: 0,
        }
    }
}

impl Routing {
    /// The header of its trace.
    pub fn header(&self) -> Header {
        Header {
            n_layer: self.n_layer,
            n_expert: self.n_expert,
            n_expert_used: self.n_expert_used,
            slot_bytes: 1,
            other_bytes: 0,
            model: "synthetic".to_owned(),
            options: CacheOptions::default(),
        }
    }

    /// The records: a demand for each layer of each token, and after each but the
    /// last layer's a prediction for the next, if any.
    pub fn records(&self) -> Vec<Record> {
        let mut random = Random::new(self.seed);
        let n_used = self.n_expert_used.min(self.n_expert);
        let weights: Vec<_> =
            (1..=self.n_expert).map(|rank| (rank as f64).powf(-self.skew)).collect();
        let mut ranking: Vec<u16> = (0..self.n_expert).map(|expert| expert as u16).collect();
        random.shuffle(&mut ranking);
        let mut rankings: Vec<_> = (0..self.n_layer)
            .map(|_| {
                random.shuffle(&mut ranking);
                ranking.clone()
            })
            .collect();
        let mut chosen = vec![Vec::new(); self.n_layer];
        let mut recent = vec![VecDeque::new(); self.n_layer];
        let mut records = Vec::new();
        for n_token in 0..self.n_token {
            if n_token > 0 && n_token.is_multiple_of(self.n_topic_token.max(1)) {
                rankings.iter_mut().for_each(|ranking| change_topic(ranking, &mut random));
            }
            for ((chosen, recent), ranking) in chosen.iter_mut().zip(&mut recent).zip(&rankings) {
                *chosen = choose(recent, ranking, &weights, n_used, self.persistence, &mut random);
                recent.extend(chosen.iter().copied());
                recent.drain(..recent.len().saturating_sub(self.memory * n_used));
            }
            for (layer, experts) in chosen.iter().enumerate() {
                let choices = experts.iter().map(|&expert| (expert, 0)).collect();
                records.push(Record::Demand { layer: layer as u16, choices });
                if let (Some(foresight), Some(next)) = (self.foresight, chosen.get(layer + 1)) {
                    let experts = predict(next, self.n_expert, foresight, &mut random);
                    records.push(Record::Predicted { layer: layer as u16 + 1, experts });
                }
            }
        }
        records
    }
}

fn change_topic(ranking: &mut [u16], random: &mut Random) {
    for _ in 0..ranking.len() / 4 {
        let [a, b] = [(); 2].map(|()| random.below(ranking.len()));
        ranking.swap(a, b);
    }
}

fn choose(
    recent: &VecDeque<u16>,
    ranking: &[u16],
    weights: &[f64],
    n: usize,
    persistence: f64,
    random: &mut Random,
) -> Vec<u16> {
    let mut chosen = Vec::new();
    for _ in 0..n {
        let stays = random.unit() < persistence;
        if let Some(expert) = recent.get(random.below(recent.len()))
            && stays
            && !chosen.contains(expert)
        {
            chosen.push(*expert);
        }
    }
    while chosen.len() < n {
        let is_free = |rank: &usize| !chosen.contains(&ranking[*rank]);
        let free: Vec<_> = (0..ranking.len()).filter(is_free).collect();
        let mut left = random.unit() * free.iter().map(|&rank| weights[rank]).sum::<f64>();
        let rank = free.iter().copied().find(|&rank| {
            left -= weights[rank];
            left < 0.0
        });
        chosen.push(ranking[rank.unwrap_or(free[free.len() - 1])]);
    }
    chosen.sort_unstable();
    chosen
}

fn predict(next: &[u16], n_expert: usize, foresight: f64, random: &mut Random) -> Vec<u16> {
    let mut wrong: Vec<_> = (0..n_expert as u16).filter(|e| !next.contains(e)).collect();
    random.shuffle(&mut wrong);
    let guess = |&right: &u16| {
        if random.unit() < foresight { Some(right) } else { wrong.pop() }
    };
    next.iter().filter_map(guess).collect()
}

/// SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number
/// generators", OOPSLA 2014): the same numbers for the same seed.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    /// Numbers of this seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub(crate) fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to below 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.any() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// From 0 to below `n`; 0 if that is 0.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.unit() * n as f64) as usize
    }

    /// Brings values into any order.
    pub(crate) fn shuffle<T>(&mut self, values: &mut [T]) {
        for i in (1..values.len()).rev() {
            values.swap(i, self.below(i + 1));
        }
    }
}
