//! Activations, quantised to 8 bits.

use std::cell::{Cell, OnceCell};
use std::collections::TryReserveError;
use std::mem::offset_of;

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
    /// If blocks share a scale, pairs of their sums and of those of half blocks, each
    /// number with the next but one: the sums in the first block, the halves in the
    /// second (of blocks 0 to 3) and the third.
    pub pairs: [[i16; 2]; 4],
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

    /// The scale, the sum and the scaled sum, each in four lanes.
    #[inline(always)]
    pub fn load_scale_and_sums(&self) -> [V; 3] {
        let at = std::ptr::from_ref(self).cast::<u8>().wrapping_add(offset_of!(Self, scale));
        // SAFETY: 12 bytes of these are followed by pairs.
        let v = unsafe { V::load(at) };
        [0, 1, 2].map(|i| v.splat_lane(i))
    }

    /// The pairs of sums.
    #[inline(always)]
    pub fn load_pairs(&self) -> V {
        // SAFETY: eight i16 are 16 bytes.
        unsafe { V::load(self.pairs.as_ptr().cast()) }
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
    /// Bytes of `n` numbers, quantised for blocks of all these lengths.
    pub fn bytes(n: usize, blocks: &[usize]) -> usize {
        let quantized = n.div_ceil(BLOCK).saturating_mul(size_of::<ActivationBlock>());
        n.saturating_mul(size_of::<f32>()).saturating_add(quantized.saturating_mul(blocks.len()))
    }

    /// Room for as much.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn with_room(n: usize, blocks: &[usize]) -> Result<Self, TryReserveError> {
        let mut activations = Self::default();
        activations.x.try_reserve_exact(n)?;
        for &len in blocks {
            let mut spare = Vec::new();
            spare.try_reserve_exact(n.div_ceil(BLOCK))?;
            match len {
                WIDE => activations.wide_blocks.spare.set(spare),
                _ => activations.blocks.spare.set(spare),
            }
        }
        Ok(activations)
    }

    /// Bytes that it has room for.
    #[cfg(test)]
    pub fn room(&self) -> usize {
        let quantized = |q: &Quantized| {
            let spare = q.spare.take();
            let n = q.blocks.get().map_or(spare.capacity(), Vec::capacity);
            q.spare.set(spare);
            n * size_of::<ActivationBlock>()
        };
        self.x.capacity() * size_of::<f32>()
            + quantized(&self.blocks)
            + quantized(&self.wide_blocks)
    }

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
    let mut all_half_sums = [[0; 2]; WIDE / BLOCK];
    for (i, (block, x)) in blocks.iter_mut().zip(x).enumerate() {
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
        // At most 16 times 127.
        all_half_sums[i] = half_sums.map(|sum| sum as i16);
    }
    if N == WIDE {
        let pairs = |[a, b, c, d]: [i16; 4]| [[a, c], [b, d]];
        let (fours, _) = all_half_sums.as_flattened().as_chunks::<4>();
        let sums: [i16; WIDE / BLOCK] = std::array::from_fn(|i| blocks[i].sum as i16);
        let (sums, _) = sums.as_chunks::<4>();
        for (block, [a, b]) in
            blocks.iter_mut().zip([[sums[0], sums[1]], [fours[0], fours[1]], [fours[2], fours[3]]])
        {
            let ([a, b], [c, d]) = (pairs(a), pairs(b));
            block.pairs = [a, b, c, d];
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
        for block in &blocks {
            assert!(block.q8.iter().zip(block.q16).all(|(&a, b)| i16::from(a) == b));
            assert_eq!(block.sum, i32::from(sum(&block.q16)));
        }
        let whole: Vec<i16> = blocks.iter().map(|block| sum(&block.q16)).collect();
        let halves = blocks.iter().flat_map(|block| block.q16.as_chunks::<16>().0);
        let halves: Vec<i16> = halves.map(|half| sum(half)).collect();
        for (of, block, first) in [(whole, 0, 0), (halves.clone(), 1, 0), (halves, 2, 8)] {
            let want = [0, 1, 4, 5].map(|i| [of[first + i], of[first + i + 2]]);
            assert_eq!(blocks[block].pairs, want);
        }
    }
}
