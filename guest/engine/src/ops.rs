//! Small operations on vectors of f32.

use crate::simd::V;

/// Four f32 as a vector.
#[inline(always)]
pub(crate) fn load(four: &[f32; 4]) -> V {
    // SAFETY: four f32 are 16 bytes.
    unsafe { V::load(four.as_ptr().cast()) }
}

/// Replaces numbers by `f` of them, four at a time, in their order, and sixteen in
/// a turn of the loop: at every turn, Wasmtime looks whether the guest shall stop,
/// and keeps no vector in a register meanwhile.
#[inline(always)]
pub(crate) fn replace(x: &mut [[f32; 4]], mut f: impl FnMut(V) -> V) {
    let mut one = |four: &mut [f32; 4]| f(load(four)).store_f32(four);
    let (sixteens, rest) = x.as_chunks_mut();
    for [a, b, c, d] in sixteens {
        one(a);
        one(b);
        one(c);
        one(d);
    }
    rest.iter_mut().for_each(one);
}

/// Replaces the numbers of `x` by `f` of them and those of `y`, in the same way.
#[inline(always)]
fn combine(x: &mut [f32], y: &[f32], f: impl Fn(V, V) -> V) {
    assert_eq!(x.len(), y.len());
    let one = |x: &mut [f32; 4], y: &[f32; 4]| f(load(x), load(y)).store_f32(x);
    let (fours, x_rest) = x.as_chunks_mut();
    let (y_fours, y_rest) = y.as_chunks();
    let (sixteens, rest) = fours.as_chunks_mut();
    let (y_sixteens, y_more) = y_fours.as_chunks();
    for ([a, b, c, d], [ya, yb, yc, yd]) in sixteens.iter_mut().zip(y_sixteens) {
        one(a, ya);
        one(b, yb);
        one(c, yc);
        one(d, yd);
    }
    rest.iter_mut().zip(y_more).for_each(|(x, y)| one(x, y));
    if !x_rest.is_empty() {
        let mut last = padded(x_rest);
        one(&mut last, &padded(y_rest));
        x_rest.copy_from_slice(&last[..x_rest.len()]);
    }
}

/// Scales `x` by its root mean square, then by `weight`
/// ([RMSNorm](https://arxiv.org/abs/1910.07467)), in place.
pub(crate) fn rms_norm(x: &mut [f32], weight: &[f32], epsilon: f32) {
    let square = |x: &f32| f64::from(*x) * f64::from(*x);
    // Eight sums, so that an addition need not wait for the one before it.
    let mut sums = [0.0; 8];
    let mut add = |eight: &[f32; 8]| {
        sums.iter_mut().zip(eight).for_each(|(sum, x)| *sum += square(x));
    };
    let (eights, rest) = x.as_chunks::<8>();
    let (pairs, one) = eights.as_chunks::<2>();
    for [first, second] in pairs {
        add(first);
        add(second);
    }
    one.iter().for_each(add);
    let sum = sums.iter().sum::<f64>() + rest.iter().map(square).sum::<f64>();
    let mean = (sum / x.len() as f64) as f32;
    let scale = 1.0 / (mean + epsilon).sqrt();
    let scale = V::splat_f32(scale);
    combine(x, weight, |x, w| x.mul_f32(scale).mul_f32(w));
}

/// Subtracts the mean of `x`, scales it by the root of its variance, then by `weight`
/// ([LayerNorm](https://arxiv.org/abs/1607.06450)), in place.
pub(crate) fn layer_norm(x: &mut [f32], weight: &[f32], epsilon: f32) {
    let sum: f64 = x.iter().map(|&x| f64::from(x)).sum();
    let mean = V::splat_f32((sum / x.len() as f64) as f32);
    combine(x, weight, |x, _| x.sub_f32(mean));
    rms_norm(x, weight, epsilon);
}

/// Whether no number is an infinity or NaN.
pub(crate) fn are_finite(x: &[f32]) -> bool {
    // A product with zero is NaN then, and so is a sum with it.
    let zero = V::splat_f32(0.0);
    let mut sums = [zero; 4];
    let add = |sum: &mut V, four: &[f32; 4]| *sum = sum.madd_f32(load(four), zero);
    let (fours, rest) = x.as_chunks();
    let (sixteens, more) = fours.as_chunks::<4>();
    for sixteen in sixteens {
        sums.iter_mut().zip(sixteen).for_each(|(sum, four)| add(sum, four));
    }
    more.iter().chain([&padded(rest)]).for_each(|four| add(&mut sums[0], four));
    let [a, b, c, d] = sums;
    !a.add_f32(b).add_f32(c.add_f32(d)).sum_f32().is_nan()
}

/// Adds `y` to `x`.
pub(crate) fn add(x: &mut [f32], y: &[f32]) {
    combine(x, y, V::add_f32);
}

/// Adds `y` times `scale` to `x`.
pub(crate) fn add_scaled(x: &mut [f32], y: &[f32], scale: f32) {
    let scale = V::splat_f32(scale);
    combine(x, y, |x, y| x.add_f32(y.mul_f32(scale)));
}

/// `limit * tanh(x / limit)`, in place.
pub(crate) fn softcap(x: &mut [f32], limit: f32) {
    // The hyperbolic tangent is 1 - 2 / (e^(2 x) + 1).
    let (one, two) = (V::splat_f32(1.0), V::splat_f32(2.0));
    let (limit, factor) = (V::splat_f32(limit), V::splat_f32(2.0 / limit));
    let cap = |x: V| {
        let e = x.mul_f32(factor).exp_f32();
        limit.mul_f32(one.sub_f32(two.div_f32(e.add_f32(one))))
    };
    let (fours, rest) = x.as_chunks_mut::<4>();
    replace(fours, cap);
    let last = cap(load(&padded(rest))).to_f32();
    rest.copy_from_slice(&last[..rest.len()]);
}

/// Multiplies `x` by `factor`.
pub(crate) fn scale(x: &mut [f32], factor: f32) {
    x.iter_mut().for_each(|x| *x *= factor);
}

/// `gate * sigmoid(gate) * up` into `gate`
/// ([SwiGLU](https://arxiv.org/abs/2002.05202)).
pub(crate) fn swiglu(gate: &mut [f32], up: &[f32]) {
    let one = V::splat_f32(1.0);
    combine(gate, up, |gate, up| {
        let swish = gate.div_f32(one.add_f32(V::splat_f32(0.0).sub_f32(gate).exp_f32()));
        swish.mul_f32(up)
    });
}

/// `gelu(gate) * up` into `gate` ([GELU](https://arxiv.org/abs/1606.08415)), with the
/// hyperbolic tangent in place of the error function.
pub(crate) fn geglu(gate: &mut [f32], up: &[f32]) {
    // (1 + tanh x) / 2 is the logistic function of 2 x; this is -2 sqrt(2 / pi).
    let scale = V::splat_f32(-1.595_769);
    let (one, cubic) = (V::splat_f32(1.0), V::splat_f32(0.044_715));
    combine(gate, up, |gate, up| {
        let inner = one.add_f32(gate.mul_f32(gate).mul_f32(cubic)).mul_f32(gate);
        gate.div_f32(one.add_f32(inner.mul_f32(scale).exp_f32())).mul_f32(up)
    });
}

/// `g * sigmoid(alpha * g) * (u + 1)` into `gate`, where `g` is `gate`, but `limit` at
/// most, and `u` is `up`, but between `-limit` and `limit`.
pub(crate) fn clamped_swiglu(gate: &mut [f32], up: &[f32], alpha: f32, limit: f32) {
    let (one, alpha) = (V::splat_f32(1.0), V::splat_f32(-alpha));
    let (low, high) = (V::splat_f32(-limit), V::splat_f32(limit));
    combine(gate, up, |gate, up| {
        let gate = high.min_f32(gate);
        let up = low.max_f32(high.min_f32(up));
        let swish = gate.div_f32(one.add_f32(gate.mul_f32(alpha).exp_f32()));
        swish.mul_f32(up.add_f32(one))
    });
}

/// Fewer than four numbers, and zeros.
fn padded(x: &[f32]) -> [f32; 4] {
    let mut four = [0.0; 4];
    four[..x.len()].copy_from_slice(x);
    four
}

/// The logistic function.
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + libm::expf(-x))
}

/// Turns numbers into their [logistic function](sigmoid), in place.
pub(crate) fn sigmoids(x: &mut [f32]) {
    let one = V::splat_f32(1.0);
    let of = |x: V| one.div_f32(one.add_f32(V::splat_f32(0.0).sub_f32(x).exp_f32()));
    let (fours, rest) = x.as_chunks_mut::<4>();
    replace(fours, of);
    let last = of(load(&padded(rest))).to_f32();
    rest.copy_from_slice(&last[..rest.len()]);
}

/// Turns scores into probabilities, in place.
pub(crate) fn softmax(x: &mut [f32]) {
    let max = V::splat_f32(x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let weight = |x: V| x.sub_f32(max).exp_f32();
    let (fours, rest) = x.as_chunks_mut::<4>();
    let mut sums = V::splat_f32(0.0);
    replace(fours, |x| {
        let weights = weight(x);
        sums = sums.add_f32(weights);
        weights
    });
    let weights = weight(load(&padded(rest))).to_f32();
    rest.copy_from_slice(&weights[..rest.len()]);
    let scale = 1.0 / (sums.sum_f32() + rest.iter().sum::<f32>());
    x.iter_mut().for_each(|x| *x *= scale);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn close(got: &[f32], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            assert!((f64::from(*got) - want).abs() < 1e-6 * want.abs().max(1.0), "{got}, {want}");
        }
    }

    /// Vectors of all lengths agree with the formulas, in f64.
    #[test]
    fn lengths_need_not_be_a_multiple_of_anything() {
        for n in 1..40 {
            let x: Vec<f32> = (0..n).map(|i| ((i * 37 % 41) as f32 - 20.0) / 5.0).collect();
            let y: Vec<f32> = x.iter().rev().map(|x| x + 0.5).collect();
            let exact = |x: &[f32]| -> Vec<f64> { x.iter().map(|&x| x.into()).collect() };
            let (xs, ys) = (exact(&x), exact(&y));

            let mut got = x.clone();
            rms_norm(&mut got, &y, 1e-5);
            let rms = (xs.iter().map(|x| x * x).sum::<f64>() / n as f64 + 1e-5).sqrt();
            close(&got, &xs.iter().zip(&ys).map(|(x, w)| x / rms * w).collect::<Vec<_>>());

            let mut got = x.clone();
            swiglu(&mut got, &y);
            let swish = |x: &f64| x / (1.0 + (-x).exp());
            close(&got, &xs.iter().zip(&ys).map(|(x, y)| swish(x) * y).collect::<Vec<_>>());

            let mut got = x.clone();
            layer_norm(&mut got, &y, 1e-5);
            let mean = xs.iter().sum::<f64>() / n as f64;
            let variance = xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
            let magnitude = (variance + 1e-5).sqrt();
            close(
                &got,
                &xs.iter().zip(&ys).map(|(x, w)| (x - mean) / magnitude * w).collect::<Vec<_>>(),
            );

            let mut got = x.clone();
            geglu(&mut got, &y);
            let gelu = |x: &f64| {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                x / 2.0 * (1.0 + inner.tanh())
            };
            close(&got, &xs.iter().zip(&ys).map(|(x, y)| gelu(x) * y).collect::<Vec<_>>());

            let mut got = x.clone();
            clamped_swiglu(&mut got, &y, 1.7, 2.5);
            let clamped = |(x, y): (&f64, &f64)| {
                let (gate, up) = (x.min(2.5), y.clamp(-2.5, 2.5));
                gate / (1.0 + (-f64::from(1.7f32) * gate).exp()) * (up + 1.0)
            };
            close(&got, &xs.iter().zip(&ys).map(clamped).collect::<Vec<_>>());

            let mut got = x.clone();
            softcap(&mut got, 1.5);
            close(&got, &xs.iter().map(|x| 1.5 * (x / 1.5).tanh()).collect::<Vec<_>>());

            let mut got = x.clone();
            sigmoids(&mut got);
            close(&got, &xs.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect::<Vec<_>>());

            let mut got = x.clone();
            softmax(&mut got);
            let sum: f64 = xs.iter().map(|x| x.exp()).sum();
            close(&got, &xs.iter().map(|x| x.exp() / sum).collect::<Vec<_>>());
        }
    }
}
