//! Choosing the next token from the logits.

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

use crate::error::{Error, ErrorKind, Result};
use crate::ops;

/// How the next token is chosen. The steps are taken in this order:
/// repetition penalty, top-k, top-p, min-p, temperature.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 takes the most probable token (greedy), the first of equal ones; all
    /// else is ignored then, but for the repetition penalty.
    pub temperature: f32,
    /// Keep the `top_k` most probable tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set whose probabilities add up to `top_p`; 1 keeps
    /// all ([Holtzman et al., 2020](https://arxiv.org/abs/1904.09751)).
    pub top_p: f32,
    /// Keep tokens at least `min_p` times as probable as the best; 0 keeps
    /// all ([Nguyen et al., 2024](https://arxiv.org/abs/2407.01082)).
    pub min_p: f32,
    /// Logits of recent tokens are divided by it if positive, multiplied if
    /// negative; 1 changes nothing
    /// ([Keskar et al., 2019](https://arxiv.org/abs/1909.05858)).
    pub repeat_penalty: f32,
    /// How many recent tokens the penalty looks at.
    pub repeat_last_n: u32,
    /// Equal seeds give equal tokens, on every platform.
    pub seed: u64,
}

/// A token that may be chosen.
#[derive(Clone, Copy)]
struct Candidate {
    logit: f32,
    token: u32,
}

/// The most probable candidate first; of equal ones the lowest token.
fn best_first(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

/// How many candidates are sorted at first when top-p alone decides.
const N_SORTED_FIRST: usize = 256;

/// Chooses tokens, with a random number generator of its own.
pub struct Sampler {
    sampling: Sampling,
    rng: Xoshiro256PlusPlus,
    /// Kept for its memory.
    logits: Vec<f32>,
    /// Kept for its memory.
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// A sampler with these settings.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) for values that are not
    /// numbers or outside their range.
    pub fn new(sampling: Sampling) -> Result<Self> {
        let check = |name: &str, value: f32, ok: bool, range: &str| {
            if ok {
                Ok(())
            } else {
                Err(Error::input(format!("{name} is {value}; it must be {range}")))
            }
        };
        let Sampling { temperature, top_p, min_p, repeat_penalty, .. } = sampling;
        let finite = temperature.is_finite() && temperature >= 0.0;
        check("temperature", temperature, finite, "0 (greedy) or more")?;
        check("top-p", top_p, (0.0..=1.0).contains(&top_p), "from 0 to 1")?;
        check("min-p", min_p, (0.0..=1.0).contains(&min_p), "from 0 to 1")?;
        let positive = repeat_penalty.is_finite() && repeat_penalty > 0.0;
        check("repeat-penalty", repeat_penalty, positive, "more than 0 (1 changes nothing)")?;
        let rng = Xoshiro256PlusPlus::seed_from_u64(sampling.seed);
        Ok(Self { sampling, rng, logits: Vec::new(), candidates: Vec::new() })
    }

    /// Chooses a token. `logits` has one number for each entry of the
    /// vocabulary, `recent` the tokens of the context, the latest last.
    ///
    /// # Errors
    /// [`InvalidModel`](ErrorKind::InvalidModel) for logits that are NaN or
    /// positive infinity, or all negative infinity;
    /// [`InvalidInput`](ErrorKind::InvalidInput) for recent tokens outside
    /// the vocabulary.
    pub fn sample(&mut self, logits: &[f32], recent: &[u32]) -> Result<u32> {
        if !ops::are_finite(logits)
            && let Some(token) = logits.iter().position(|&l| l.is_nan() || l == f32::INFINITY)
        {
            return Err(Error::not_finite(format_args!("the logit of token {token}")));
        }
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        self.penalize(recent)?;
        let best = argmax(&self.logits).ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidModel,
                "no token has a finite logit, so none can be chosen",
            )
        })?;
        if self.sampling.temperature == 0.0 {
            return Ok(best);
        }
        let best_logit = self.logits[best as usize];
        self.select(best_logit);
        Ok(self.draw(best_logit))
    }

    /// Makes recent tokens less probable.
    fn penalize(&mut self, recent: &[u32]) -> Result<()> {
        let penalty = self.sampling.repeat_penalty;
        let n = recent.len().min(self.sampling.repeat_last_n as usize);
        if penalty == 1.0 || n == 0 {
            return Ok(());
        }
        let mut tokens = recent[recent.len() - n..].to_vec();
        tokens.sort_unstable();
        tokens.dedup();
        let n_vocab = self.logits.len();
        for token in tokens {
            let logit = self.logits.get_mut(token as usize).ok_or_else(|| {
                Error::input(format!("token {token} is outside the vocabulary of {n_vocab} tokens"))
            })?;
            // A tiny penalty must not turn a logit into an infinity.
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty }.min(f32::MAX);
        }
        Ok(())
    }

    /// Fills the candidates: top-k, then top-p, then min-p.
    fn select(&mut self, best_logit: f32) {
        let Sampling { top_k, top_p, min_p, .. } = self.sampling;
        let candidates = &mut self.candidates;
        candidates.clear();
        candidates
            .extend((0..).zip(&self.logits).map(|(token, &logit)| Candidate { logit, token }));
        let top_k = top_k as usize;
        if top_k > 0 && top_k < candidates.len() {
            candidates.select_nth_unstable_by(top_k - 1, best_first);
            candidates.truncate(top_k);
            candidates.sort_unstable_by(best_first);
        }
        if top_p < 1.0 {
            keep_top_p(candidates, f64::from(top_p), best_logit);
        }
        if min_p > 0.0 {
            candidates.retain(|c| libm::expf(c.logit - best_logit) >= min_p);
        }
    }

    /// Draws one of the candidates by their probabilities at the temperature.
    fn draw(&mut self, best_logit: f32) -> u32 {
        let temperature = self.sampling.temperature;
        let weight = |c: &Candidate| f64::from(libm::expf((c.logit - best_logit) / temperature));
        let total: f64 = self.candidates.iter().map(weight).sum();
        // 53 random bits make a number from 0 to 1, without 1.
        let random = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let mut left = random * total;
        let mut chosen = None;
        for candidate in &self.candidates {
            let weight = weight(candidate);
            if weight > 0.0 {
                chosen = Some(candidate.token);
                left -= weight;
                if left < 0.0 {
                    break;
                }
            }
        }
        chosen.expect("the best token is a candidate, and weighs 1")
    }
}

/// The first token with the greatest logit; `None` if none is finite.
fn argmax(logits: &[f32]) -> Option<u32> {
    let mut best = None;
    let mut best_logit = f32::NEG_INFINITY;
    for (token, &logit) in (0..).zip(logits) {
        if logit > best_logit {
            (best, best_logit) = (Some(token), logit);
        }
    }
    best
}

/// Keeps the fewest candidates that have at least this share of the
/// probability, sorted. The tail is only sorted as far as it is needed.
fn keep_top_p(candidates: &mut Vec<Candidate>, top_p: f64, best_logit: f32) {
    let weight = |c: &Candidate| f64::from(libm::expf(c.logit - best_logit));
    let wanted = top_p * candidates.iter().map(weight).sum::<f64>();
    let mut sorted = 0;
    let mut have = 0.0;
    while sorted < candidates.len() {
        let n = (sorted * 8).max(N_SORTED_FIRST).min(candidates.len());
        let rest = &mut candidates[sorted..];
        if n - sorted < rest.len() {
            rest.select_nth_unstable_by(n - sorted - 1, best_first);
        }
        rest[..n - sorted].sort_unstable_by(best_first);
        for i in sorted..n {
            have += weight(&candidates[i]);
            if have >= wanted {
                candidates.truncate(i + 1);
                return;
            }
        }
        sorted = n;
    }
}
