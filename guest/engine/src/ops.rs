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

#[inline(always)]
fn load(four: &[f32; 4]) -> V {
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

/// The scalar product of `x` with each of the vectors of the same length that
/// follow one another in `rows`.
pub(crate) fn dots(x: &[f32], rows: &[f32], out: &mut [f32]) {
    let n = x.len();
    assert!(n.is_multiple_of(4) && rows.len() == n * out.len());
    let (xs, _) = x.as_chunks::<4>();
    let mut row_groups = rows.chunks_exact(4 * n);
    let mut out_groups = out.chunks_exact_mut(4);
    for (rows, out) in row_groups.by_ref().zip(out_groups.by_ref()) {
        let (rows, _) = rows.as_chunks::<4>();
        let (a, rest) = rows.split_at(n / 4);
        let (b, rest) = rest.split_at(n / 4);
        let (c, d) = rest.split_at(n / 4);
        let mut acc = [V::splat_f32(0.0); 4];
        for ((((x, a), b), c), d) in xs.iter().zip(a).zip(b).zip(c).zip(d) {
            let x = load(x);
            acc[0] = acc[0].madd_f32(x, load(a));
            acc[1] = acc[1].madd_f32(x, load(b));
            acc[2] = acc[2].madd_f32(x, load(c));
            acc[3] = acc[3].madd_f32(x, load(d));
        }
        out.iter_mut().zip(acc).for_each(|(out, acc)| *out = acc.sum_f32());
    }
    let rest = row_groups.remainder().chunks_exact(n).zip(out_groups.into_remainder());
    for (row, out) in rest {
        let products = xs.iter().zip(row.as_chunks::<4>().0);
        let acc = products.fold(V::splat_f32(0.0), |acc, (x, y)| acc.madd_f32(load(x), load(y)));
        *out = acc.sum_f32();
    }
}

/// Adds the vectors in `rows`, each times its weight, to `out`.
pub(crate) fn weighted_sum(weights: &[f32], rows: &[f32], out: &mut [f32]) {
    let n = out.len();
    assert!(n.is_multiple_of(4) && rows.len() == n * weights.len());
    let mut column = 0;
    while column < n {
        let width = if column + 16 <= n { 16 } else { 4 };
        let (out, _) = out[column..column + width].as_chunks_mut::<4>();
        if let Ok(out) = <&mut [[f32; 4]; 4]>::try_from(&mut *out) {
            let mut acc = out.each_ref().map(load);
            for (row, &w) in rows.chunks_exact(n).zip(weights) {
                let (row, _) = row[column..column + 16].as_chunks::<4>();
                let w = V::splat_f32(w);
                acc.iter_mut().zip(row).for_each(|(acc, x)| *acc = acc.madd_f32(w, load(x)));
            }
            out.iter_mut().zip(acc).for_each(|(out, acc)| acc.store_f32(out));
        } else {
            let mut acc = load(&out[0]);
            for (row, &w) in rows.chunks_exact(n).zip(weights) {
                let (row, _) = row[column..column + 4].as_chunks::<4>();
                acc = acc.madd_f32(V::splat_f32(w), load(&row[0]));
            }
            acc.store_f32(&mut out[0]);
        }
        column += width;
    }
}
