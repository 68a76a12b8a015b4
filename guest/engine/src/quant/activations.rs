//! Activations, quantised to 8 bits.

use std::cell::{Cell, OnceCell};

use crate::simd::V;

/// Numbers of a block.
pub(crate) const BLOCK: usize = 32;
/// Numbers that share a scale where the weights come in blocks of as many.
pub(super) const WIDE: usize = 256;

/// A block of an activation vector: `x = scale * q` with `q` from -127 to 127.
#[derive(Clone, Copy, Default)]
#[repr(C, align(16))]
pub(super) struct ActivationBlock {
    /// As bytes, and widened for the formats that need 16 bits.
    pub q8: [i8; BLOCK],
    pub q16: [i16; BLOCK],
    pub scale: f32,
    /// The sum of `q`, and that times `scale`.
    pub sum: i32,
    pub scaled_sum: f32,
    /// If blocks share a scale: the sums of this block and of the next but one;
    /// those of the first halves of this block and the next; those of the second.
    pub sum_pair: [i16; 2],
    pub half_pairs: [[i16; 2]; 2],
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
/// For weights in blocks of 256, as many numbers share a scale, as in ggml's
/// `block_q8_K`: the products of a whole block are then summed as integers.
#[derive(Default)]
pub(crate) struct Activations {
    /// Length of a vector.
    cols: usize,
    x: Vec<f32>,
    blocks: Quantized,
    wide_blocks: Quantized,
}

/// Blocks that are made when they are wanted first.
#[derive(Default)]
struct Quantized {
    blocks: OnceCell<Vec<ActivationBlock>>,
    /// Room from before.
    spare: Cell<Vec<ActivationBlock>>,
}

impl Quantized {
    fn clear(&mut self) {
        if let Some(blocks) = self.blocks.take() {
            self.spare.set(blocks);
        }
    }

    /// The blocks of `x`, of which each `N` numbers share a scale.
    fn get<const N: usize>(&self, x: &[f32]) -> &[ActivationBlock] {
        self.blocks.get_or_init(|| {
            let mut blocks = self.spare.take();
            blocks.resize(x.len() / BLOCK, ActivationBlock::default());
            let groups = blocks.chunks_exact_mut(N / BLOCK);
            x.as_chunks::<N>().0.iter().zip(groups).for_each(|(x, blocks)| quantize(x, blocks));
            blocks
        })
    }
}

impl Activations {
    /// A copy of `x`.
    #[cfg(test)]
    pub fn set(&mut self, x: &[f32], cols: usize) {
        self.take(&mut x.to_vec(), cols);
    }

    /// Takes `x`, vectors of `cols` numbers one after another, and leaves other
    /// numbers there, of no meaning. Vectors that are not whole blocks are never
    /// quantised: no quantised matrix has such rows.
    pub fn take(&mut self, x: &mut Vec<f32>, cols: usize) {
        std::mem::swap(&mut self.x, x);
        assert!(cols > 0 && self.x.len().is_multiple_of(cols));
        self.cols = cols;
        self.blocks.clear();
        self.wide_blocks.clear();
    }

    /// Length of a vector.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The numbers of a token.
    pub fn vector(&self, token: usize) -> &[f32] {
        &self.x[token * self.cols..][..self.cols]
    }

    /// The blocks of a token, for weights in blocks of `len` numbers, of which
    /// the vectors must be made.
    pub(super) fn blocks(&self, token: usize, len: usize) -> &[ActivationBlock] {
        assert!(self.cols.is_multiple_of(len));
        let blocks = match len {
            WIDE => self.wide_blocks.get::<WIDE>(&self.x),
            _ => self.blocks.get::<BLOCK>(&self.x),
        };
        let n = self.cols / BLOCK;
        &blocks[token * n..][..n]
    }
}

/// Quantises `N` numbers that share a scale, 32 or 256, into `blocks`: copies of
/// them would take half of the time.
fn quantize<const N: usize>(x: &[f32; N], blocks: &mut [ActivationBlock]) {
    let (x, _) = x.as_chunks::<BLOCK>();
    let (zero, loads) = (V::splat_f32(0.0), || x.iter().flat_map(load));
    if loads().fold(zero, |sum, v| sum.madd_f32(v, zero)).sum_f32().is_nan() {
        // Infinities and NaNs have no integers; the result shall be NaN.
        blocks.fill(ActivationBlock { scale: f32::NAN, ..ActivationBlock::default() });
        return;
    }
    let max = loads().fold(zero, |max, v| max.max_f32(v.abs_f32())).to_f32();
    let max = max[0].max(max[1]).max(max[2].max(max[3]));
    // Numbers too small for their inverse are taken for zeros.
    let inverse = Some(127.0 / max).filter(|x| x.is_finite());
    let inverse = V::splat_f32(inverse.unwrap_or(0.0));
    for (block, x) in blocks.iter_mut().zip(x) {
        let q = load(x).map(|v| v.mul_f32(inverse).round_to_i32());
        block.scale = max / 127.0;
        let mut half_sums = [0; 2];
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
            half_sums[half] = sum.iter().sum();
        }
        block.sum = half_sums[0] + half_sums[1];
        block.scaled_sum = block.sum as f32 * block.scale;
        // At most 32 times 127.
        block.sum_pair[0] = block.sum as i16;
        block.half_pairs = half_sums.map(|sum| [sum as i16, 0]);
    }
    if N == WIDE {
        for i in 0..blocks.len() {
            let sum = |i: usize| blocks.get(i).map_or(0, |block| block.sum_pair[0]);
            let half = |i: usize, half: usize| blocks.get(i).map_or(0, |b| b.half_pairs[half][0]);
            let (sum, halves) = (sum(i + 2), [half(i + 1, 0), half(i + 1, 1)]);
            blocks[i].sum_pair[1] = sum;
            blocks[i].half_pairs.iter_mut().zip(halves).for_each(|(pair, half)| pair[1] = half);
        }
    }
}

/// A block's numbers.
#[inline(always)]
fn load(x: &[f32; BLOCK]) -> [V; 8] {
    std::array::from_fn(|i| {
        // SAFETY: `x` holds 32 f32, so 16 bytes are there from 16 * i.
        unsafe { V::load(x.as_ptr().add(4 * i).cast()) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quantized<const N: usize>(x: [f32; N]) -> Vec<ActivationBlock> {
        let mut blocks = vec![ActivationBlock::default(); N / BLOCK];
        quantize(&x, &mut blocks);
        blocks
    }

    #[test]
    fn numbers_without_integers() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 13, 31] {
                let mut x = [1.0; WIDE];
                x[at] = bad;
                let narrow: [f32; BLOCK] = *x.first_chunk().unwrap();
                for block in quantized(x).into_iter().chain(quantized(narrow)) {
                    assert_eq!((block.q8, block.q16), ([0; BLOCK], [0; BLOCK]));
                    assert!(block.scale.is_nan() && block.sum == 0);
                }
            }
        }
        assert_eq!(quantized([1.0; BLOCK])[0].q8, [127; BLOCK]);
        for tiny in [1e-45, 1e-38, -3e-37] {
            let block = quantized([tiny; BLOCK])[0];
            assert_eq!((block.q8, block.sum), ([0; BLOCK], 0), "{tiny}");
        }
    }

    #[test]
    fn sums_are_those_of_the_numbers() {
        let blocks = quantized::<WIDE>(std::array::from_fn(|i| (i * 37 % 23) as f32 - 9.0));
        assert_eq!(blocks.len(), WIDE / BLOCK);
        assert!(blocks.iter().all(|block| block.scale == blocks[0].scale));
        let sum = |q: &[i16]| q.iter().sum::<i16>();
        for (i, block) in blocks.iter().enumerate() {
            assert!(block.q8.iter().zip(block.q16).all(|(&a, b)| i16::from(a) == b));
            assert_eq!(block.sum, i32::from(sum(&block.q16)));
            let next = |n: usize| blocks.get(i + n).map_or([0; BLOCK], |block| block.q16);
            assert_eq!(block.sum_pair, [sum(&block.q16), sum(&next(2))]);
            for (half, pair) in block.half_pairs.iter().enumerate() {
                let at = 16 * half..16 * half + 16;
                assert_eq!(*pair, [sum(&block.q16[at.clone()]), sum(&next(1)[at])]);
            }
        }
    }
}
