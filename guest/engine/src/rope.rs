//! Rotary position embeddings ([RoFormer](https://arxiv.org/abs/2104.09864)),
//! with linear scaling, [YaRN](https://arxiv.org/abs/2309.00071), and the
//! frequency factors of Llama 3.

use crate::error::{Error, Result};
use crate::plan::{FrequencyScaling, Pairs, RopePlan};

/// How positions turn queries and keys.
pub(crate) struct Rope {
    /// Radians a position, for each pair of numbers.
    frequencies: Vec<f32>,
    /// The same in long contexts, where they are others then.
    long: Option<Vec<f32>>,
    /// Factor on sine and cosine.
    magnitude: f32,
    pairs: Pairs,
}

/// Sines and cosines of the positions of a batch.
pub(crate) struct Angles {
    /// `[n_tokens][n_pairs]`
    sin_cos: Vec<(f32, f32)>,
    n_pairs: usize,
    pairs: Pairs,
}

impl Rope {
    /// `factors`, and those of `long` contexts, are what the plan names: they divide the
    /// frequencies.
    pub fn new(plan: &RopePlan, factors: Option<&[f32]>, long: Option<&[f32]>) -> Result<Self> {
        let frequencies = frequencies(plan, factors)?;
        let long = long.map(|long| self::frequencies(plan, Some(long))).transpose()?;
        let magnitude = plan.magnitude as f32;
        let mut all = frequencies.iter().chain(long.iter().flatten());
        if !magnitude.is_finite() || all.any(|f| !f.is_finite()) {
            return Err(Error::invalid("the RoPE scaling overflows; the file is damaged"));
        }
        Ok(Self { frequencies, long, magnitude, pairs: plan.pairs })
    }

    /// The angles of `n_tokens` tokens at positions from `position` on, in a context that
    /// is long or not; all heads of all layers share them.
    pub fn angles(&self, position: usize, n_tokens: usize, is_long: bool) -> Angles {
        let frequencies = self.long.as_ref().filter(|_| is_long).unwrap_or(&self.frequencies);
        let sin_cos = (position..position + n_tokens).flat_map(|position| {
            frequencies.iter().map(move |f| {
                let (sin, cos) = libm::sincosf(position as f32 * f);
                (sin * self.magnitude, cos * self.magnitude)
            })
        });
        Angles { sin_cos: sin_cos.collect(), n_pairs: self.frequencies.len(), pairs: self.pairs }
    }
}

/// Radians a position for each pair of numbers, divided by factors if there are any.
fn frequencies(plan: &RopePlan, factors: Option<&[f32]>) -> Result<Vec<f32>> {
    let &RopePlan { dims, base, .. } = plan;
    if factors.is_some_and(|factors| factors.iter().any(|&factor| factor <= 0.0)) {
        let long = plan.long.as_ref().map(|long| long.factors.as_str());
        let names = [plan.factors.as_deref(), long].into_iter().flatten();
        return Err(Error::invalid(format!(
            "RoPE has factors that are not positive ({}); the file is damaged",
            names.collect::<Vec<_>>().join(", ")
        )));
    }
    let frequency = |i: usize| {
        let f = libm::pow(base, -2.0 * i as f64 / dims as f64);
        f / factors.map_or(1.0, |factors| f64::from(factors[i]))
    };
    let scale: Box<dyn Fn(usize) -> f64> = match plan.scaling {
        FrequencyScaling::Linear { factor } => Box::new(move |_| 1.0 / factor),
        FrequencyScaling::Yarn { factor, n_ctx, fast, slow, whole_pairs } => {
            // The pair that turns `n` times within the original context.
            let pair = |n: f64| {
                let turns = n_ctx / (n * 2.0 * std::f64::consts::PI);
                dims as f64 * libm::log(turns) / (2.0 * libm::log(base))
            };
            let (low, high) = match whole_pairs {
                true => (libm::floor(pair(fast)), libm::ceil(pair(slow))),
                false => (pair(fast), pair(slow)),
            };
            let (low, high) = (low.max(0.0), high.min(dims as f64 - 1.0));
            Box::new(move |i| {
                let ramp = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                ramp / factor + (1.0 - ramp)
            })
        }
    };
    Ok((0..dims / 2).map(|i| (frequency(i) * scale(i)) as f32).collect())
}

impl Angles {
    /// Turns one head of a query or key of a token of the batch, in place.
    pub fn turn(&self, token: usize, head: &mut [f32]) {
        let turn = |x: &mut f32, y: &mut f32, (sin, cos): (f32, f32)| {
            (*x, *y) = (*x * cos - *y * sin, *x * sin + *y * cos);
        };
        let sin_cos = &self.sin_cos[token * self.n_pairs..][..self.n_pairs];
        match self.pairs {
            Pairs::Neighbours => {
                let (pairs, _) = head.as_chunks_mut::<2>();
                pairs.iter_mut().zip(sin_cos).for_each(|([x, y], &angle)| turn(x, y, angle));
            }
            Pairs::Halves => {
                let (xs, ys) = head.split_at_mut(self.n_pairs);
                xs.iter_mut().zip(ys).zip(sin_cos).for_each(|((x, y), &angle)| turn(x, y, angle));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::tests::{plan_loaded, plan_with};
    use crate::gguf::Value;
    use crate::options::{LoadOptions, RopeScaling};

    /// As a model of one head of 128 numbers whose metadata have `pairs`.
    fn rope(pairs: &[(&str, Value)]) -> Rope {
        Rope::new(&plan_with(pairs).unwrap().ropes[0], None, None).unwrap()
    }

    #[track_caller]
    fn check(rope: &Rope, want: &[(usize, f32)]) {
        for &(i, want) in want {
            let got = rope.frequencies[i];
            assert!((got / want - 1.0).abs() < 1e-6, "frequency {i} is {got}, not {want}");
        }
    }

    /// As llama.cpp reads the keys.
    #[test]
    fn linear_scaling_divides_all_frequencies() {
        let ty = |name: &str| ("rope.scaling.type", Value::String(name.to_owned()));
        let factor = |x| ("rope.scaling.factor", Value::Float(x));
        let early = |x| ("rope.scale_linear", Value::Float(x));
        let plain = [(0, 1.0), (10, 0.115_478_2), (63, 1.240_937_8e-6)];
        for pairs in [
            &[][..],
            &[ty("none"), factor(4.0)],
            &[factor(0.0)],
            &[factor(1.0), early(4.0)],
            &[ty("none"), early(4.0)],
        ] {
            check(&rope(pairs), &plain);
        }
        let scaled = plain.map(|(i, frequency)| (i, frequency / 4.0));
        for pairs in [
            &[ty("linear"), factor(4.0)][..],
            &[factor(4.0)],
            &[early(4.0)],
            &[ty("linear"), early(4.0)],
            &[factor(4.0), early(2.0)],
        ] {
            let rope = rope(pairs);
            check(&rope, &scaled);
            assert_eq!(rope.magnitude, 1.0);
        }
    }

    /// The same, loaded with this scaling.
    fn scaled(pairs: &[(&str, Value)], scaling: RopeScaling) -> Rope {
        let options = LoadOptions { rope_scaling: Some(scaling), ..LoadOptions::default() };
        Rope::new(&plan_loaded(pairs, &options).unwrap().ropes[0], None, None).unwrap()
    }

    /// What is chosen is computed as the same in the file would be, whatever that says.
    #[test]
    fn a_chosen_scaling_takes_the_place_of_the_files() {
        let ty = |name: &str| ("rope.scaling.type", Value::String(name.to_owned()));
        let factor = ("rope.scaling.factor", Value::Float(8.0));
        let original = ("rope.scaling.original_context_length", Value::Uint(4096));
        let files = [
            vec![original.clone()],
            vec![ty("linear"), factor.clone(), original.clone()],
            vec![ty("yarn"), factor.clone(), original.clone()],
            // One that is not known here.
            vec![ty("longrope"), factor, original.clone()],
        ];
        let four = ("rope.scaling.factor", Value::Float(4.0));
        let of_file = |name| rope(&[ty(name), four.clone(), original.clone()]);
        for file in files {
            for (scaling, want) in [
                (RopeScaling::None, of_file("none")),
                (RopeScaling::Linear { factor: 4.0 }, of_file("linear")),
                (RopeScaling::Yarn { factor: 4.0 }, of_file("yarn")),
            ] {
                let got = scaled(&file, scaling);
                assert_eq!(got.frequencies, want.frequencies, "{scaling:?}, {file:?}");
                assert_eq!(got.magnitude, want.magnitude, "{scaling:?}, {file:?}");
            }
        }
    }

    /// The formulas of the paper, with the bounds of the ramp as llama.cpp rounds them:
    /// of 128 numbers that turn by a base of 1e6, for contexts of 131,072.
    #[test]
    fn yarn_is_what_the_formulas_say() {
        for factor in [1.0f32, 1.5, 4.0, 16.0] {
            let got = scaled(&[], RopeScaling::Yarn { factor });
            let s = f64::from(factor);
            // The pair that turns so often within the context.
            let pair = |turns: f64| {
                128.0 * (131_072.0 / (turns * std::f64::consts::TAU)).ln() / (2.0 * 1e6f64.ln())
            };
            let (low, high) = (pair(32.0).floor(), pair(1.0).ceil());
            assert!(0.0 < low && low < high && high < 63.0);
            for (i, got) in got.frequencies.iter().enumerate() {
                let theta = 1e6f64.powf(-(i as f64) / 64.0);
                let gamma = 1.0 - ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                let want = (1.0 - gamma) * theta / s + gamma * theta;
                assert!((f64::from(*got) / want - 1.0).abs() < 1e-7, "{factor}, pair {i}");
            }
            let want = 0.1 * s.ln() + 1.0;
            assert!((f64::from(got.magnitude) - want).abs() < 1e-7, "{factor}");
        }
    }

    /// A context is as much longer as positions are scaled.
    #[test]
    fn contexts_are_as_long_as_the_scaling_allows() {
        let original = |n| ("rope.scaling.original_context_length", Value::Uint(n));
        let n_ctx_max = |pairs: &[(&str, Value)], rope_scaling| {
            let options = LoadOptions { rope_scaling, ..LoadOptions::default() };
            plan_loaded(pairs, &options).map(|plan| plan.n_ctx_max)
        };
        let yarn = |factor| Some(RopeScaling::Yarn { factor });
        let linear = |factor| Some(RopeScaling::Linear { factor });
        for (pairs, scaling, want) in [
            (&[][..], None, 131_072),
            (&[], Some(RopeScaling::None), 131_072),
            (&[], yarn(4.0), 524_288),
            (&[], linear(1.5), 196_608),
            // The file's context is a scaled one.
            (&[original(32_768)], None, 131_072),
            (&[original(32_768)], yarn(2.0), 131_072),
            (&[original(32_768)], yarn(8.0), 262_144),
        ] {
            assert_eq!(n_ctx_max(pairs, scaling).unwrap(), want, "{scaling:?}, {pairs:?}");
        }
        for factor in [0.0, 0.5, -4.0, 2000.0, f32::NAN, f32::INFINITY] {
            let error = n_ctx_max(&[], yarn(factor)).unwrap_err();
            assert!(error.to_string().contains("must be 1 to 1024"), "{error}");
        }
    }

    /// Values of the formula in Hugging Face's `_compute_yarn_parameters`, for
    /// the scaling that the Qwen models recommend.
    #[test]
    fn yarn_scales_slow_frequencies_only() {
        let scaled = rope(&[
            ("rope.scaling.type", Value::String("yarn".to_owned())),
            ("rope.scaling.factor", Value::Float(4.0)),
            ("rope.scaling.original_context_length", Value::Uint(32_768)),
        ]);
        let want = [
            (0, 1.0),
            (23, 6.978_306e-3),
            (30, 1.064_361e-3),
            (35, 2.462_584e-4),
            (40, 4.445_698_5e-5),
            (63, 3.102_344_4e-7),
        ];
        check(&scaled, &want);
        assert!((scaled.magnitude - 1.138_629_4).abs() < 1e-6);
    }
}
