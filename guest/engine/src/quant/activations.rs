//! Activations, quantised to 8 bits.

use super::blocks::Blocks;
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
    /// The sum of `q` in each half block, and in each block.
    sums16: Vec<i32>,
    sums32: Vec<i32>,
    /// `d` times the sum of `q` in each block.
    sums: Vec<f32>,
}

/// One vector of the batch, as the kernels read it.
#[derive(Clone, Copy)]
pub(super) struct Vector {
    pub x: *const f32,
    pub q8: *const u8,
    pub q16: *const u8,
    d: *const f32,
    sums16: *const i32,
    sums32: *const i32,
    sums: *const f32,
}

impl Vector {
    /// The quantised vector from column `col` on, a multiple of 32.
    ///
    /// # Safety
    /// The column must lie in the vector.
    #[inline(always)]
    pub unsafe fn from(self, col: usize) -> Self {
        // SAFETY: the caller vouches for the column.
        unsafe {
            Self {
                x: self.x.add(col),
                q8: self.q8.add(col),
                q16: self.q16.add(2 * col),
                d: self.d.add(col / BLOCK),
                sums16: self.sums16.add(col / 16),
                sums32: self.sums32.add(col / BLOCK),
                sums: self.sums.add(col / BLOCK),
            }
        }
    }

    /// What the format's offset adds to the integer products of sub-block
    /// `i`, in each lane.
    ///
    /// # Safety
    /// The sub-block must lie in the vector.
    #[inline(always)]
    pub unsafe fn offset<B: Blocks>(self, i: usize) -> V {
        if B::OFFSET == 0 {
            return V::splat_i32(0);
        }
        let sums = if B::SUB_BLOCK < BLOCK { self.sums16 } else { self.sums32 };
        // SAFETY: the caller vouches for the sub-block.
        let sum = unsafe { V::load_splat_32(sums.add(i).cast()) };
        V::splat_i32(0).sub_i32(sum.shl_i32(B::OFFSET.ilog2()))
    }

    /// The scale of sub-block `i`, in each lane.
    ///
    /// # Safety
    /// As for [`Vector::offset`].
    #[inline(always)]
    pub unsafe fn scale<B: Blocks>(self, i: usize) -> V {
        // SAFETY: the caller vouches for the sub-block.
        unsafe { V::load_splat_32(self.d.add(i * B::SUB_BLOCK / BLOCK).cast()) }
    }

    /// The sum of the numbers of block `i`, in each lane.
    ///
    /// # Safety
    /// The block must lie in the vector.
    #[inline(always)]
    pub unsafe fn sum(self, i: usize) -> V {
        // SAFETY: the caller vouches for the block.
        unsafe { V::load_splat_32(self.sums.add(i).cast()) }
    }
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
        self.sums16.resize(n / 16, 0);
        self.sums32.resize(n / BLOCK, 0);
        self.sums.resize(n / BLOCK, 0.0);
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
        let max = v.iter().fold(zero, |m, v| v.abs_f32().max_f32(m)).to_f32();
        let max = max[0].max(max[1]).max(max[2].max(max[3]));
        // Infinities and NaNs have no integers; the result shall be NaN.
        let finite = v.iter().fold(zero, |sum, &v| sum.madd_f32(v, zero)).sum_f32() == 0.0;
        let d = if finite { max / 127.0 } else { f32::NAN };
        // Numbers too small for their inverse are taken for zeros.
        let inverse = Some(127.0 / max).filter(|x| finite && x.is_finite());
        let inverse = V::splat_f32(inverse.unwrap_or(0.0));
        let q = v.map(|v| if finite { v.mul_f32(inverse).nearest_f32().to_i32() } else { zero });
        let halves = [[q[0], q[1], q[2], q[3]], [q[4], q[5], q[6], q[7]]];
        for (half, q) in halves.into_iter().enumerate() {
            let out = &mut self.q8[b * BLOCK + 16 * half..][..16];
            let out16 = &mut self.q16[b * BLOCK + 16 * half..][..16];
            // SAFETY: the slices hold 16 bytes and 16 i16.
            unsafe {
                V::narrow_to_i8(q).store(out.as_mut_ptr().cast());
                V::narrow_to_i16(q[0], q[1]).store(out16.as_mut_ptr().cast());
                V::narrow_to_i16(q[2], q[3]).store(out16.as_mut_ptr().add(8).cast());
            }
            let sum = q[0].add_i32(q[1]).add_i32(q[2].add_i32(q[3])).to_i32_lanes();
            self.sums16[2 * b + half] = sum.iter().sum();
        }
        self.d[b] = d;
        self.sums32[b] = self.sums16[2 * b] + self.sums16[2 * b + 1];
        self.sums[b] = d * self.sums32[b] as f32;
    }

    /// Length of a vector.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Whether the vectors could be quantised.
    pub(super) fn is_quantized(&self) -> bool {
        self.cols.is_multiple_of(BLOCK)
    }

    /// The quantised numbers of a token, as the bytes of i8.
    pub(super) fn bytes8(&self, token: usize) -> &[u8] {
        bytemuck::cast_slice(&self.q8[token * self.cols..][..self.cols])
    }

    /// The same as the bytes of i16.
    pub(super) fn bytes16(&self, token: usize) -> &[u8] {
        bytemuck::cast_slice(&self.q16[token * self.cols..][..self.cols])
    }

    /// The scales of a token's blocks.
    pub(super) fn scales(&self, token: usize) -> &[f32] {
        let n = self.cols / BLOCK;
        &self.d[token * n..][..n]
    }

    /// The sums of a token's blocks.
    pub(super) fn sums(&self, token: usize) -> &[f32] {
        let n = self.cols / BLOCK;
        &self.sums[token * n..][..n]
    }

    /// The sums of the whole numbers of a token's sub-blocks of 16 or 32.
    pub(super) fn whole_sums(&self, token: usize, sub_block: usize) -> &[i32] {
        let n = self.cols / sub_block;
        let sums = if sub_block < BLOCK { &self.sums16 } else { &self.sums32 };
        &sums[token * n..][..n]
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
            sums16: self.sums16[q / 16..].as_ptr(),
            sums32: self.sums32[q / BLOCK..].as_ptr(),
            sums: self.sums[q / BLOCK..].as_ptr(),
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
                assert!(activations.d[0].is_nan() && activations.sums[0].is_nan());
                assert_eq!(activations.q8[BLOCK..], [127; BLOCK]);
            }
        }
        for tiny in [1e-45, 1e-38, -3e-37] {
            let mut activations = Activations::default();
            activations.set(&[tiny; BLOCK], BLOCK);
            assert_eq!(activations.q8, [0; BLOCK], "{tiny}");
            assert_eq!(activations.sums, [0.0], "{tiny}");
        }
    }
}
