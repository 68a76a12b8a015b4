//! Activations, quantised to 8 bits.

use crate::simd::V;

/// Numbers that share a scale.
pub(crate) const BLOCK: usize = 32;

/// A block of an activation vector: `x = scale * q` with `q` from -127 to 127.
#[derive(Clone, Copy, Default)]
#[repr(C, align(16))]
pub(super) struct ActivationBlock {
    /// As bytes, and widened for the formats that need 16 bits.
    pub q8: [i8; BLOCK],
    pub q16: [i16; BLOCK],
    pub scale: f32,
    /// The sum of the block's numbers.
    pub sum: f32,
    /// The sum of `q`, and of each half.
    pub whole_sum: i32,
    pub whole_half_sums: [i32; 2],
}

impl ActivationBlock {
    /// 16 numbers from `16 * i`, as i8.
    #[inline(always)]
    pub fn load_q8(&self, i: usize) -> V {
        // SAFETY: `piece` has 16 bytes.
        unsafe { V::load(self.piece(false, i).as_ptr()) }
    }

    /// 8 numbers from `8 * i`, as i16.
    #[inline(always)]
    pub fn load_q16(&self, i: usize) -> V {
        // SAFETY: `piece` has 16 bytes.
        unsafe { V::load(self.piece(true, i).as_ptr()) }
    }

    /// Bytes `16 * i` to `16 * i + 15` of the numbers, as i8 or as i16.
    #[inline(always)]
    pub fn piece(&self, wide: bool, i: usize) -> &[u8; 16] {
        let bytes =
            if wide { bytemuck::cast_slice(&self.q16) } else { bytemuck::cast_slice(&self.q8) };
        &bytes.as_chunks().0[i]
    }
}

/// A batch of activation vectors, as they are and quantised in blocks of 32.
///
/// K-quants share these blocks with the others: a finer scale than ggml's
/// blocks of 256 costs nothing here, and is more accurate.
#[derive(Default)]
pub(crate) struct Activations {
    /// Length of a vector.
    cols: usize,
    x: Vec<f32>,
    blocks: Vec<ActivationBlock>,
}

impl Activations {
    /// A copy of `x`.
    #[cfg(test)]
    pub fn set(&mut self, x: &[f32], cols: usize) {
        self.take(&mut x.to_vec(), cols);
    }

    /// Takes `x`, vectors of `cols` numbers one after another, and leaves other
    /// numbers there, of no meaning. Vectors that are not whole blocks are kept
    /// as they are only: no quantised matrix has such rows.
    pub fn take(&mut self, x: &mut Vec<f32>, cols: usize) {
        std::mem::swap(&mut self.x, x);
        assert!(cols > 0 && self.x.len().is_multiple_of(cols));
        self.cols = cols;
        if self.is_quantized() {
            let (x, _) = self.x.as_chunks();
            self.blocks.resize(x.len(), ActivationBlock::default());
            self.blocks.iter_mut().zip(x).for_each(|(block, x)| quantize(x, block));
        }
    }

    /// Length of a vector.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Whether the vectors could be quantised.
    pub(super) fn is_quantized(&self) -> bool {
        self.cols.is_multiple_of(BLOCK)
    }

    /// The numbers of a token.
    pub fn vector(&self, token: usize) -> &[f32] {
        &self.x[token * self.cols..][..self.cols]
    }

    /// The blocks of a token.
    pub(super) fn blocks(&self, token: usize) -> &[ActivationBlock] {
        let n = self.cols / BLOCK;
        &self.blocks[token * n..][..n]
    }
}

/// Quantises into `block`: a copy of it would take half of the time.
fn quantize(x: &[f32; BLOCK], block: &mut ActivationBlock) {
    let v: [V; 8] = std::array::from_fn(|i| {
        // SAFETY: `x` holds 32 f32, so 16 bytes are there from 16 * i.
        unsafe { V::load(x.as_ptr().add(4 * i).cast()) }
    });
    let zero = V::splat_f32(0.0);
    if v.iter().fold(zero, |sum, &v| sum.madd_f32(v, zero)).sum_f32().is_nan() {
        // Infinities and NaNs have no integers; the result shall be NaN.
        *block = ActivationBlock { scale: f32::NAN, sum: f32::NAN, ..ActivationBlock::default() };
        return;
    }
    let max = v.iter().fold(zero, |m, v| m.max_f32(v.abs_f32())).to_f32();
    let max = max[0].max(max[1]).max(max[2].max(max[3]));
    block.scale = max / 127.0;
    // Numbers too small for their inverse are taken for zeros.
    let inverse = Some(127.0 / max).filter(|x| x.is_finite());
    let inverse = V::splat_f32(inverse.unwrap_or(0.0));
    let q = v.map(|v| v.mul_f32(inverse).nearest_f32().to_i32());
    for half in 0..2 {
        let q = [q[4 * half], q[4 * half + 1], q[4 * half + 2], q[4 * half + 3]];
        // SAFETY: half a block is 16 i8, and twice 8 i16.
        unsafe {
            V::narrow_to_i8(q).store(block.q8.as_mut_ptr().add(16 * half).cast());
            let q16 = block.q16.as_mut_ptr().add(16 * half);
            V::narrow_to_i16(q[0], q[1]).store(q16.cast());
            V::narrow_to_i16(q[2], q[3]).store(q16.add(8).cast());
        }
        let sum = q[0].add_i32(q[1]).add_i32(q[2].add_i32(q[3])).to_i32_lanes();
        block.whole_half_sums[half] = sum.iter().sum();
    }
    block.whole_sum = block.whole_half_sums[0] + block.whole_half_sums[1];
    block.sum = block.scale * block.whole_sum as f32;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quantize(x: &[f32; BLOCK]) -> ActivationBlock {
        let mut block = ActivationBlock { q8: [99; BLOCK], ..ActivationBlock::default() };
        super::quantize(x, &mut block);
        block
    }

    #[test]
    fn numbers_without_integers() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 13, 31] {
                let mut x = [1.0; BLOCK];
                x[at] = bad;
                let block = quantize(&x);
                assert_eq!((block.q8, block.q16), ([0; BLOCK], [0; BLOCK]));
                assert!(block.scale.is_nan() && block.sum.is_nan());
            }
        }
        assert_eq!(quantize(&[1.0; BLOCK]).q8, [127; BLOCK]);
        for tiny in [1e-45, 1e-38, -3e-37] {
            let block = quantize(&[tiny; BLOCK]);
            assert_eq!((block.q8, block.sum), ([0; BLOCK], 0.0), "{tiny}");
        }
    }

    #[test]
    fn sums_are_those_of_the_numbers() {
        let block = quantize(&std::array::from_fn(|i| (i * 37 % 23) as f32 - 9.0));
        assert!(block.q8.iter().zip(block.q16).all(|(&a, b)| i16::from(a) == b));
        let sum = |q: &[i16]| q.iter().map(|&q| i32::from(q)).sum::<i32>();
        let halves = [sum(&block.q16[..16]), sum(&block.q16[16..])];
        assert_eq!(block.whole_half_sums, halves);
        assert_eq!(block.whole_sum, halves[0] + halves[1]);
        assert_eq!(block.sum, block.scale * block.whole_sum as f32);
    }
}
