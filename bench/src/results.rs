//! What was measured, and what was not and why.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Result;

use crate::contender::Lane;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Test {
    /// Tokens read per second
    Prefill,
    /// Tokens generated per second
    Decode,
    /// Milliseconds from the start of the process to the first token
    Start,
    /// Tokens generated per second in a control group whose memory is a share of
    /// the model's size
    Memory,
    /// The same without a group: what reading ahead brings, and whether `moewe
    /// plan` knew
    Prefetch,
}

impl Test {
    /// What models that fit in memory are measured with.
    pub const USUAL: [Self; 3] = [Self::Decode, Self::Prefill, Self::Start];

    pub fn is_usual(self) -> bool {
        Self::USUAL.contains(&self)
    }
}

/// A measurement that says nothing about a contender, only about what it can
/// do: it is left out without a word.
#[derive(Debug)]
pub struct NotMeant;

impl fmt::Display for NotMeant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not meant to be measured")
    }
}

impl std::error::Error for NotMeant {}

type Key = (String, Lane, Test);

/// The samples of all rounds. Sample `i` of two contenders comes from the same
/// round.
pub struct Results<T = f64> {
    samples: BTreeMap<Key, Vec<T>>,
    missing: BTreeMap<Key, String>,
}

impl<T> Default for Results<T> {
    fn default() -> Self {
        Self { samples: BTreeMap::new(), missing: BTreeMap::new() }
    }
}

impl<T> Results<T> {
    /// Notes a sample, or why there is none: then there will be no more.
    pub fn add(&mut self, model: &str, lane: Lane, test: Test, measured: Result<T>) {
        let key = (model.to_owned(), lane, test);
        match measured {
            Ok(sample) => self.samples.entry(key).or_default().push(sample),
            Err(error) => {
                self.samples.remove(&key);
                let reason = match error.is::<NotMeant>() {
                    true => String::new(),
                    false => format!("{error:#}"),
                };
                self.missing.insert(key, reason);
            }
        }
    }

    pub fn is_missing(&self, model: &str, lane: Lane, test: Test) -> bool {
        self.missing.contains_key(&(model.to_owned(), lane, test))
    }

    /// The samples of all rounds; empty if something is missing.
    pub fn samples(&self, model: &str, lane: Lane, test: Test) -> &[T] {
        self.samples.get(&(model.to_owned(), lane, test)).map_or(&[], Vec::as_slice)
    }

    /// One number of each sample.
    pub fn map(&self, f: impl Fn(&T) -> f64) -> Results {
        let of = |(key, samples): (&Key, &Vec<T>)| (key.clone(), samples.iter().map(&f).collect());
        Results { samples: self.samples.iter().map(of).collect(), missing: self.missing.clone() }
    }

    /// Who was not measured where, by the reason.
    pub fn reasons(&self) -> BTreeMap<&str, Vec<&Key>> {
        let mut reasons = BTreeMap::<_, Vec<_>>::new();
        for (key, reason) in self.missing.iter().filter(|(_, reason)| !reason.is_empty()) {
            reasons.entry(reason.as_str()).or_default().push(key);
        }
        reasons
    }
}

/// Median, least and greatest of some samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Summary {
    /// `None` without samples.
    pub fn of(samples: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut samples: Vec<f64> = samples.into_iter().collect();
        samples.sort_by(f64::total_cmp);
        let (&min, &max) = (samples.first()?, samples.last()?);
        let n = samples.len();
        let median = (samples[(n - 1) / 2] + samples[n / 2]) / 2.0;
        Some(Self { median, min, max })
    }

    /// Of the ratios of samples from the same round.
    pub fn of_ratios(ours: &[f64], theirs: &[f64]) -> Option<Self> {
        Self::of(ours.iter().zip(theirs).map(|(a, b)| a / b))
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;
    use crate::contender::Contender;

    #[test]
    fn summaries() {
        assert_eq!(Summary::of([]), None);
        let summary = |median, min, max| Some(Summary { median, min, max });
        assert_eq!(Summary::of([3.0, 1.0, 2.0]), summary(2.0, 1.0, 3.0));
        assert_eq!(Summary::of([4.0, 1.0, 2.0, 3.0]), summary(2.5, 1.0, 4.0));
        // The median of the ratios, not the ratio of the medians.
        let ratios = Summary::of_ratios(&[1.0, 6.0, 2.0], &[2.0, 2.0, 1.0]);
        assert_eq!(ratios, summary(2.0, 0.5, 3.0));
        assert_eq!(Summary::of_ratios(&[1.0], &[]), None);
    }

    #[test]
    fn what_failed_once_counts_no_more() {
        let lane = Lane { contender: Contender::Moewe, threads: 1 };
        let mut results = Results::default();
        results.add("m", lane, Test::Decode, Ok(1.0));
        assert_eq!(results.samples("m", lane, Test::Decode), [1.0]);
        results.add("m", lane, Test::Decode, Err(anyhow!("why")));
        assert!(results.is_missing("m", lane, Test::Decode));
        assert!(results.samples("m", lane, Test::Decode).is_empty());
        results.add("m", lane, Test::Start, Err(NotMeant.into()));
        assert_eq!(results.reasons().keys().copied().collect::<Vec<_>>(), ["why"]);
    }
}
