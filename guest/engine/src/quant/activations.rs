//! Activations, quantised to 8 bits.

use crate::simd::V;

/// Numbers that share a scale.
pub(crate) const BLOCK: usize = 32;

/// A batch of activation vectors, quantised in blocks of 32: `x = d * q` with
/// `q` from -127 to 127.
///
/// K-quants share these blocks with the others: a finer scale than ggml's
/// blocks of 256 costs nothing here, and is more accurate.
#[derive(Default)]
pub(crate) struct Activations {
    /// Length of a vector.
    cols: usize,
    n_tokens: usize,
    /// The vectors as they were given.
    x: Vec<f32>,
    /// Quantised, as bytes and widened for the formats that need 16 bits.
    q8: Vec<i8>,
    q16: Vec<i16>,
    /// The scale of each block.
    d: Vec<f32>,
    /// `d` times the sum of `q`, for each half block, and for each block.
    sum16: Vec<f32>,
    sum32: Vec<f32>,
}

/// One vector of the batch, as the kernels read it.
#[derive(Clone, Copy)]
pub(super) struct Vector {
    pub x: *const f32,
    pub q8: *const u8,
    pub q16: *const u8,
    pub d: *const f32,
    pub sum16: *const f32,
    pub sum32: *const f32,
}

impl Activations {
    /// Takes `x`, vectors of `cols` numbers one after another. Vectors that
    /// are not whole blocks are kept as they are only: no quantised matrix
    /// has such rows.
    pub fn set(&mut self, x: &[f32], cols: usize) {
        assert!(cols > 0 && x.len().is_multiple_of(cols));
        self.cols = cols;
        self.n_tokens = x.len() / cols;
        self.x.clear();
        self.x.extend_from_slice(x);
        let n = if cols.is_multiple_of(BLOCK) { x.len() } else { 0 };
        self.q8.resize(n, 0);
        self.q16.resize(n, 0);
        self.d.resize(n / BLOCK, 0.0);
        self.sum32.resize(n / BLOCK, 0.0);
        self.sum16.resize(n / 16, 0.0);
        for (b, block) in x[..n].as_chunks::<BLOCK>().0.iter().enumerate() {
            self.quantize(b, block);
        }
    }

    fn quantize(&mut self, b: usize, x: &[f32; BLOCK]) {
        let v: [V; 8] = std::array::from_fn(|i| {
            // SAFETY: `x` holds 32 f32, so 16 bytes are there from 16 * i.
            unsafe { V::load(x.as_ptr().add(4 * i).cast()) }
        });
        let zero = V::splat_f32(0.0);
        if v.iter().fold(zero, |sum, &v| sum.madd_f32(v, zero)).sum_f32().is_nan() {
            // Infinities and NaNs have no integers; the result shall be NaN.
            self.q8[b * BLOCK..][..BLOCK].fill(0);
            self.q16[b * BLOCK..][..BLOCK].fill(0);
            self.d[b] = f32::NAN;
            self.sum16[2 * b..][..2].fill(f32::NAN);
            self.sum32[b] = f32::NAN;
            return;
        }
        let max = v.iter().fold(zero, |m, v| m.max_f32(v.abs_f32())).to_f32();
        let max = max[0].max(max[1]).max(max[2].max(max[3]));
        let d = max / 127.0;
        // Numbers too small for their inverse are taken for zeros.
        let inverse = Some(127.0 / max).filter(|x| x.is_finite());
        let inverse = V::splat_f32(inverse.unwrap_or(0.0));
        let mut sums = [0i32; 2];
        for (i, v) in v.iter().enumerate() {
            for (j, q) in
                v.mul_f32(inverse).nearest_f32().to_i32().to_i32_lanes().iter().enumerate()
            {
                self.q8[b * BLOCK + 4 * i + j] = *q as i8;
                self.q16[b * BLOCK + 4 * i + j] = *q as i16;
                sums[i / 4] += q;
            }
        }
        self.d[b] = d;
        self.sum16[2 * b] = d * sums[0] as f32;
        self.sum16[2 * b + 1] = d * sums[1] as f32;
        self.sum32[b] = d * (sums[0] + sums[1]) as f32;
    }

    /// Length of a vector.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Whether the vectors could be quantised.
    pub(super) fn is_quantized(&self) -> bool {
        self.cols.is_multiple_of(BLOCK)
    }

    /// The vector of a token.
    pub(super) fn vector(&self, token: usize) -> Vector {
        assert!(token < self.n_tokens);
        let n = token * self.cols;
        let q = if self.is_quantized() { n } else { 0 };
        Vector {
            x: self.x[n..].as_ptr(),
            q8: self.q8[q..].as_ptr().cast(),
            q16: self.q16[q..].as_ptr().cast(),
            d: self.d[q / BLOCK..].as_ptr(),
            sum16: self.sum16[q / 16..].as_ptr(),
            sum32: self.sum32[q / BLOCK..].as_ptr(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_without_integers() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 13, 31] {
                let mut x = vec![1.0; 2 * BLOCK];
                x[at] = bad;
                let mut activations = Activations::default();
                activations.set(&[7.0; 2 * BLOCK], 2 * BLOCK);
                activations.set(&x, 2 * BLOCK);
                assert!(activations.q8[..BLOCK].iter().all(|&q| q == 0));
                assert!(activations.d[0].is_nan() && activations.sum32[0].is_nan());
                assert!(activations.sum16[..2].iter().all(|s| s.is_nan()));
                assert_eq!(activations.q8[BLOCK..], [127; BLOCK]);
            }
        }
        for tiny in [1e-45, 1e-38, -3e-37] {
            let mut activations = Activations::default();
            activations.set(&[tiny; BLOCK], BLOCK);
            assert_eq!(activations.q16, [0; BLOCK], "{tiny}");
            assert_eq!(activations.sum32, [0.0], "{tiny}");
        }
    }
}
