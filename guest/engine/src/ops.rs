//! Small operations on vectors of f32.

use crate::simd::V;

/// Four f32 as a vector.
#[inline(always)]
pub(crate) fn load(four: &[f32; 4]) -> V {
    // SAFETY: four f32 are 16 bytes.
    unsafe { V::load(four.as_ptr().cast()) }
}

/// Scales `x` by its root mean square, then by `weight`
/// ([RMSNorm](https://arxiv.org/abs/1910.07467)), in place.
pub(crate) fn rms_norm(x: &mut [f32], weight: &[f32], epsilon: f32) {
    assert_eq!(x.len(), weight.len());
    let square = |x: &f32| f64::from(*x) * f64::from(*x);
    // Eight sums, so that an addition need not wait for the one before it.
    let (eights, rest) = x.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for eight in eights {
        sums.iter_mut().zip(eight).for_each(|(sum, x)| *sum += square(x));
    }
    let sum = sums.iter().sum::<f64>() + rest.iter().map(square).sum::<f64>();
    let mean = (sum / x.len() as f64) as f32;
    let scale = 1.0 / (mean + epsilon).sqrt();
    x.iter_mut().zip(weight).for_each(|(x, w)| *x = *x * scale * w);
}

/// Adds `y` to `x`.
pub(crate) fn add(x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len());
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// `gate * sigmoid(gate) * up` into `gate`
/// ([SwiGLU](https://arxiv.org/abs/2002.05202)).
pub(crate) fn swiglu(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len());
    let one = V::splat_f32(1.0);
    let product = |gate: &[f32; 4], up: &[f32; 4]| {
        let gate = load(gate);
        let swish = gate.div_f32(one.add_f32(V::splat_f32(0.0).sub_f32(gate).exp_f32()));
        swish.mul_f32(load(up))
    };
    let (gates, gates_rest) = gate.as_chunks_mut::<4>();
    let (ups, ups_rest) = up.as_chunks::<4>();
    gates.iter_mut().zip(ups).for_each(|(gate, up)| product(gate, up).store_f32(gate));
    if !gates_rest.is_empty() {
        let products = product(&padded(gates_rest), &padded(ups_rest)).to_f32();
        gates_rest.copy_from_slice(&products[..gates_rest.len()]);
    }
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

/// Turns scores into probabilities, in place.
pub(crate) fn softmax(x: &mut [f32]) {
    let max = V::splat_f32(x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let weight = |four: &[f32; 4]| load(four).sub_f32(max).exp_f32();
    let (fours, rest) = x.as_chunks_mut::<4>();
    let mut sums = V::splat_f32(0.0);
    for four in fours {
        let weights = weight(four);
        sums = sums.add_f32(weights);
        weights.store_f32(four);
    }
    let weights = weight(&padded(rest)).to_f32();
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
            softmax(&mut got);
            let sum: f64 = xs.iter().map(|x| x.exp()).sum();
            close(&got, &xs.iter().map(|x| x.exp() / sum).collect::<Vec<_>>());
        }
    }
}
