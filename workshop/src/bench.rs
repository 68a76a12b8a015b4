//! How fast a model reads and writes.

use std::fmt;
use std::time::{Duration, Instant};

use moewe::{ExpertStats, Model, Sampling, Session, SessionOptions};

use crate::Result;

/// What is measured. It begins with an empty context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Test {
    /// A prompt of so many tokens is read.
    Prefill(u32),
    /// So many tokens are generated.
    Decode(u32),
}

/// As llama-bench calls it.
impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefill(n) => write!(f, "pp{n}"),
            Self::Decode(n) => write!(f, "tg{n}"),
        }
    }
}

impl Test {
    /// Tokens that are computed while the clock runs.
    pub fn n_tokens(self) -> u32 {
        let (Self::Prefill(n) | Self::Decode(n)) = self;
        n
    }
}

/// The results of a test, under the names that llama-bench uses.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Measurement {
    /// The mean of the times.
    pub avg_ns: u64,
    /// Their standard deviation.
    pub stddev_ns: u64,
    /// The mean of the speeds, in tokens a second.
    pub avg_ts: f64,
    /// Their standard deviation.
    pub stddev_ts: f64,
    /// The time of each run.
    pub samples_ns: Vec<u64>,
    /// The speed of each run, in tokens a second.
    pub samples_ts: Vec<f64>,
    /// Of a model within a budget of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experts: Option<Experts>,
}

impl Measurement {
    fn new(test: Test, times: &[Duration], experts: Option<Experts>) -> Self {
        let n_tokens = f64::from(test.n_tokens());
        let ns: Vec<f64> = times.iter().map(|t| (t.as_nanos() as f64).max(1.0)).collect();
        let ts: Vec<f64> = ns.iter().map(|ns| 1e9 * n_tokens / ns).collect();
        Self {
            avg_ns: mean(&ns) as u64,
            stddev_ns: stddev(&ns) as u64,
            avg_ts: mean(&ts),
            stddev_ts: stddev(&ts),
            samples_ns: ns.iter().map(|&ns| ns as u64).collect(),
            samples_ts: ts,
            experts,
        }
    }
}

/// How experts did while the clock ran.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Experts {
    /// Slots, at the end.
    pub n_slots: usize,
    /// Bytes of weights in memory, at the end.
    pub resident_bytes: u64,
    /// Demanded experts that had a slot.
    pub hits: u64,
    /// Demanded experts that had none.
    pub misses: u64,
    /// Hits among all that was demanded; 1 if nothing was.
    pub hit_rate: f64,
    /// Bytes read from the disk.
    pub bytes_read: u64,
    /// How long computation waited for the disk.
    pub stall_ns: u64,
    /// Prefetches that had ended when their expert was demanded.
    pub prefetch_useful: u64,
    /// Prefetches that had not.
    pub prefetch_late: u64,
    /// Prefetches that nobody wanted.
    pub prefetch_wasted: u64,
    /// Whether experts are prefetched, at the end.
    pub prefetch_on: bool,
}

impl Experts {
    fn new(before: &ExpertStats, after: &ExpertStats) -> Self {
        let since = |count: fn(&ExpertStats) -> u64| count(after) - count(before);
        let (hits, misses) = (since(|stats| stats.hits), since(|stats| stats.misses));
        Self {
            n_slots: after.n_slots,
            resident_bytes: after.resident_bytes,
            hits,
            misses,
            hit_rate: if hits + misses == 0 { 1.0 } else { hits as f64 / (hits + misses) as f64 },
            bytes_read: since(|stats| stats.bytes_read),
            stall_ns: since(|stats| stats.stall.as_nanos() as u64),
            prefetch_useful: since(|stats| stats.prefetch_useful),
            prefetch_late: since(|stats| stats.prefetch_late),
            prefetch_wasted: since(|stats| stats.prefetch_wasted),
            prefetch_on: after.prefetch_on,
        }
    }
}

/// Measures a model, in one session.
#[derive(Debug)]
pub struct Bench<'a> {
    model: &'a Model,
    session: Session,
    /// What a text begins with.
    bos: Vec<u32>,
    /// Equal in every run: the same tokens for all who compare.
    random: fastrand::Rng,
}

impl<'a> Bench<'a> {
    /// Begins a session that has room for these tests.
    ///
    /// # Errors
    ///
    /// Those of the session.
    pub fn new(model: &'a Model, tests: &[Test]) -> Result<Self> {
        let n_ctx = tests.iter().map(|test| match test {
            Test::Prefill(n) => *n,
            Test::Decode(n) => n.saturating_add(1),
        });
        let mut options = SessionOptions::default();
        options.n_ctx = n_ctx.max();
        options.sampling = Sampling::greedy();
        let mut session = model.session(options)?;
        let bos = session.tokenize("", true, false)?;
        Ok(Self { model, session, bos, random: fastrand::Rng::with_seed(0) })
    }

    /// Runs a test once to warm up, and then `n` times; calls `ran` behind each run.
    ///
    /// # Errors
    ///
    /// Those of the session.
    pub fn measure(&mut self, test: Test, n: u32, ran: &mut dyn FnMut()) -> Result<Measurement> {
        self.run(test)?;
        ran();
        let before = self.model.expert_stats();
        let mut times = Vec::new();
        for _ in 0..n {
            times.push(self.run(test)?);
            ran();
        }
        let after = self.model.expert_stats();
        let experts = before.zip(after).map(|(before, after)| Experts::new(&before, &after));
        Ok(Measurement::new(test, &times, experts))
    }

    fn run(&mut self, test: Test) -> Result<Duration> {
        self.session.rewind(0)?;
        let n_prompt = match test {
            Test::Prefill(n) => n.max(1) as usize,
            Test::Decode(_) => 1,
        };
        let mut prompt = self.bos.clone();
        while prompt.len() < n_prompt {
            prompt.push(self.random_token());
        }
        prompt.truncate(n_prompt);
        let start = Instant::now();
        self.session.feed(&prompt)?;
        let Test::Decode(n_gen) = test else { return Ok(start.elapsed()) };
        let start = Instant::now();
        // As llama-bench does it: whatever comes, one token after another. What
        // the model would choose repeats itself, and could be guessed.
        for _ in 0..n_gen {
            let token = self.random_token();
            self.session.feed(&[token])?;
        }
        Ok(start.elapsed())
    }

    fn random_token(&mut self) -> u32 {
        // The number is the guest's: an empty vocabulary refuses the token.
        self.random.u32(0..self.session.info().n_vocab.max(1))
    }
}

fn mean(samples: &[f64]) -> f64 {
    samples.iter().sum::<f64>() / samples.len() as f64
}

/// The standard deviation of a sample; 0 for a single one.
fn stddev(samples: &[f64]) -> f64 {
    if samples.len() < 2 {
        return 0.0;
    }
    let mean = mean(samples);
    let squares: f64 = samples.iter().map(|x| (x - mean) * (x - mean)).sum();
    (squares / (samples.len() - 1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_deviation() {
        assert_eq!(mean(&[1.0, 2.0, 6.0]), 3.0);
        assert_eq!(stddev(&[1.0, 2.0, 6.0]), 7f64.sqrt());
        assert_eq!(stddev(&[5.0]), 0.0);
    }

    #[test]
    fn speeds_are_of_the_tokens_while_the_clock_ran() {
        let times = [Duration::from_secs(2), Duration::from_secs(4)];
        let found = Measurement::new(Test::Decode(16), &times, None);
        assert_eq!((found.avg_ns, found.samples_ts), (3_000_000_000, vec![8.0, 4.0]));
        assert_eq!(found.avg_ts, 6.0);
        assert_eq!(Test::Prefill(512).to_string(), "pp512");
        assert_eq!(Test::Decode(128).to_string(), "tg128");
    }
}
