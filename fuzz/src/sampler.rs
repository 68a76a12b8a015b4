//! Sampler settings and logits: any numbers at all.
//!
//! Settings are refused if and only if they are outside of what their documentation
//! says, logits if and only if none or too much is known. A token that is chosen is
//! one of those that the settings leave; at temperature 0 it is the best one.

use arbitrary::{Arbitrary, Result, Unstructured};
use moewe_engine::ErrorKind;
use moewe_engine::sampler::{Sampler, Sampling};

use crate::memory;
use crate::target::{Target, check_message, reached};

/// See the module.
pub const TARGET: Target = Target {
    name: "sampler",
    fuzz,
    seeds,
    words: &["\0\0\u{80}?", "\0\0\0\0", "\0\0\0\u{3f}"],
    len_max: 1 << 12,
};

fn seeds() -> Vec<Vec<u8>> {
    (1..=6u8).map(|step| (0..=150u8).map(|i| i.wrapping_mul(step * 11)).collect()).collect()
}

/// See the module.
///
/// # Panics
///
/// If a promise is broken.
pub fn fuzz(data: &[u8]) {
    let _ = described(&mut Unstructured::new(data));
}

/// A float that programs stumble over, or a decent one.
fn float(u: &mut Unstructured<'_>) -> Result<f32> {
    Ok(match u.int_in_range(0..=7)? {
        0 => f32::from_bits(u32::arbitrary(u)?),
        1 => *u.choose(&[
            0.0,
            -0.0,
            1.0,
            f32::MIN_POSITIVE,
            1e-45,
            f32::MAX,
            f32::MIN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
        ])?,
        _ => f32::from(i16::arbitrary(u)?) / 1024.0,
    })
}

/// From 0 to 1, or any.
fn share(u: &mut Unstructured<'_>) -> Result<f32> {
    if u.ratio(1, 8)? { float(u) } else { Ok(f32::from(u8::arbitrary(u)?) / 255.0) }
}

fn described(u: &mut Unstructured<'_>) -> Result<()> {
    let sampling = Sampling {
        temperature: if u.ratio(1, 3)? { 0.0 } else { float(u)?.abs() },
        top_k: if u.ratio(1, 8)? { u32::arbitrary(u)? } else { u.int_in_range(0..=40)? },
        top_p: share(u)?,
        min_p: share(u)?,
        repeat_penalty: if u.ratio(1, 2)? { 1.0 } else { float(u)?.abs() },
        repeat_last_n: if u.ratio(1, 8)? { u32::arbitrary(u)? } else { u.int_in_range(0..=9)? },
        seed: u64::arbitrary(u)?,
    };
    let is_allowed = sampling.temperature.is_finite()
        && sampling.temperature >= 0.0
        && (0.0..=1.0).contains(&sampling.top_p)
        && (0.0..=1.0).contains(&sampling.min_p)
        && sampling.repeat_penalty.is_finite()
        && sampling.repeat_penalty > 0.0;
    let sampler = Sampler::new(sampling.clone());
    if let Err(error) = &sampler {
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        check_message(error);
    }
    assert_eq!(sampler.is_ok(), is_allowed, "{sampling:?}");
    let (Ok(mut sampler), Ok(mut again)) = (sampler, Sampler::new(sampling.clone())) else {
        return Ok(());
    };

    let n_recent = u.int_in_range(0..=12)?;
    let n_vocab = u.int_in_range(0..=700)?;
    let recent: Vec<u32> = (0..n_recent)
        .map(|_| {
            if u.ratio(1, 30)? { u32::arbitrary(u) } else { u.int_in_range(0..=n_vocab.max(1) - 1) }
        })
        .collect::<Result<_>>()?;
    let mut logits: Vec<f32> = Vec::new();
    let mut like = 0.0;
    for i in 0..n_vocab {
        // When the bytes have ended, the rest differs by a little.
        like = if u.is_empty() { (i * 37 % 101) as f32 / 16.0 } else { float(u)? };
        logits.push(like);
    }
    if u8::arbitrary(u)? % 4 != 3 {
        // Most are to be decent.
        logits.iter_mut().filter(|l| l.is_nan() || **l == f32::INFINITY).for_each(|l| *l = like);
    }
    for _ in 0..3 {
        let bytes_max = 4096 + 64 * (logits.len() + recent.len());
        let chosen = memory::bounded(bytes_max, || sampler.sample(&logits, &recent));
        let chosen_again = again.sample(&logits, &recent);
        assert_eq!(chosen.as_ref().ok(), chosen_again.as_ref().ok(), "equal seeds, equal tokens");
        check(&sampling, &logits, &recent, chosen);
    }
    Ok(())
}

/// The logits after the penalty, written down once more; `None` if a recent token is
/// outside the vocabulary.
fn penalized(sampling: &Sampling, logits: &[f32], recent: &[u32]) -> Option<Vec<f32>> {
    let mut logits = logits.to_vec();
    let penalty = sampling.repeat_penalty;
    let last = recent.iter().rev().take(sampling.repeat_last_n as usize);
    let mut seen = Vec::new();
    for &token in last.filter(|_| penalty != 1.0) {
        let logit = logits.get_mut(token as usize)?;
        if !seen.contains(&token) {
            *logit = if *logit > 0.0 { (*logit / penalty).min(f32::MAX) } else { *logit * penalty };
            seen.push(token);
        }
    }
    Some(logits)
}

fn check(sampling: &Sampling, logits: &[f32], recent: &[u32], chosen: moewe_engine::Result<u32>) {
    let is_damaged = logits.iter().any(|l| l.is_nan() || *l == f32::INFINITY);
    let after = penalized(sampling, logits, recent);
    let best = after.iter().flatten().copied().fold(f32::NEG_INFINITY, f32::max);
    let token = match chosen {
        Ok(token) => token as usize,
        Err(error) => {
            check_message(&error);
            let expected = if is_damaged {
                ErrorKind::InvalidModel
            } else if after.is_none() {
                ErrorKind::InvalidInput
            } else {
                assert_eq!(best, f32::NEG_INFINITY, "{error}");
                ErrorKind::InvalidModel
            };
            return assert_eq!(error.kind(), expected, "{error}");
        }
    };
    let after = after.expect("a recent token is outside the vocabulary");
    assert!(!is_damaged && token < logits.len(), "{token}");
    let logit = after[token];
    assert!(logit > f32::NEG_INFINITY, "a token that cannot be was chosen");
    let better = after.iter().filter(|&&l| l > logit);
    let n_better = better.clone().count();
    if sampling.temperature == 0.0 {
        let first = after.iter().position(|&l| l == best);
        assert_eq!(Some(token), first, "greedy takes the first of the best");
        return reached("greedy");
    }
    if sampling.top_k > 0 {
        assert!(n_better < sampling.top_k as usize, "{n_better} are better, and {sampling:?}");
        reached("top-k");
    }
    // The tokens that are better have less than top-p, or this one would not be needed.
    if sampling.top_p < 1.0 {
        let share = |l: f32| f64::from(l - best).exp();
        let top_k = if sampling.top_k == 0 { after.len() } else { sampling.top_k as usize };
        let mut kept = after.clone();
        kept.sort_by(|a, b| b.total_cmp(a));
        kept.truncate(top_k);
        let total: f64 = kept.iter().map(|&l| share(l)).sum();
        let above: f64 = better.map(|&l| share(l)).sum();
        let wanted = f64::from(sampling.top_p) * total;
        assert!(n_better == 0 || above < wanted + 1e-4 * total, "{above} of {wanted}");
        reached("top-p");
    }
    let relative = f64::from(logit - best).exp();
    // The smallest floats are far apart.
    let least = f64::from(sampling.min_p) * (1.0 - 1e-4) - 1e-44;
    assert!(relative >= least, "{relative}, {sampling:?}");
    reached(["the best", "another"][usize::from(n_better > 0)]);
}
