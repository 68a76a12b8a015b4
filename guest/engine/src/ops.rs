//! Small operations on vectors of f32.

use crate::simd::V;

/// Four numbers at a time: `f` of each group of `x`, in place. The length
/// must be a multiple of four, or the rest is padded with zeros.
fn map4(x: &mut [f32], f: impl Fn(V) -> V) {
    let (whole, rest) = x.as_chunks_mut::<4>();
    for four in whole {
        f(load(four)).store_f32(four);
    }
    if !rest.is_empty() {
        let mut four = [0.0; 4];
        four[..rest.len()].copy_from_slice(rest);
        f(load(&four)).store_f32(&mut four);
        rest.copy_from_slice(&four[..rest.len()]);
    }
}

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
    let square: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    let mean = (square / x.len() as f64) as f32;
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
    map4(gate, |x| x.div_f32(one.add_f32(V::splat_f32(0.0).sub_f32(x).exp_f32())));
    gate.iter_mut().zip(up).for_each(|(g, u)| *g *= u);
}

/// The logistic function.
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + libm::expf(-x))
}

/// Turns scores into probabilities, in place.
pub(crate) fn softmax(x: &mut [f32]) {
    let max = V::splat_f32(x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    map4(x, |x| x.sub_f32(max).exp_f32());
    let scale = 1.0 / x.iter().sum::<f32>();
    x.iter_mut().for_each(|x| *x *= scale);
}
