//! The formats of 4 and 5 bits with blocks of 256: Q4_K, Q5_K.

use crate::quant::activations::ActivationBlock;
use crate::quant::blocks::Blocks;
use crate::quant::f16;
use crate::quant::narrow::{Narrow, nibbles, partial};
use crate::quant::raw::RawBlock;
use crate::quant::rows::{Block, FourRows};
use crate::quant::scalar::u32_at;
use crate::simd::{V, steps};

pub(in crate::quant) type Q4K = SubBlocks32<false>;
pub(in crate::quant) type Q5K = SubBlocks32<true>;

/// Eight sub-blocks of 32, each with a 6-bit scale and a 6-bit minimum; with `FIVE`
/// 32 bytes of fifth bits stand before the nibbles.
pub(in crate::quant) struct SubBlocks32<const FIVE: bool>;

/// Scales and minima of four rows' blocks.
#[derive(Clone, Copy)]
pub(in crate::quant) struct Scales32 {
    /// The 6-bit numbers as bytes, of sub-blocks 0 to 3 and 4 to 7.
    scales: [V; 2],
    mins: [V; 2],
}

impl<const FIVE: bool> SubBlocks32<FIVE> {
    const QUANTS: usize = if FIVE { 48 } else { 16 };
}

/// The scales and the minima of one row's block, a byte each, from the 12 bytes
/// that hold them.
#[inline(always)]
fn scales_and_mins(words: [u32; 3]) -> [u64; 2] {
    let [a, b, c] = words.map(u64::from);
    let (six, four, two) = (0x3f3f_3f3f, 0x0f0f_0f0f, 0x3030_3030);
    let join = |low: u64, high: u64| low | high << 32;
    [join(a & six, c & four | a >> 2 & two), join(b & six, c >> 4 & four | b >> 2 & two)]
}

impl<const FIVE: bool> Blocks for SubBlocks32<FIVE> {
    const BYTES: usize = Self::QUANTS + 128;
    const INTERLEAVING: &'static [(usize, usize)] = &[(Self::BYTES, 4)];
    const UNITS: usize = 4;
    const SUB_BLOCKS: usize = 2;
    const SUM_PAIRS: usize = 4;
    const MIN: bool = true;

    #[inline(always)]
    fn factors(words: V) -> [V; 2] {
        // The minimum is to be taken off.
        [f16::low(words), f16::high(words).xor(V::splat_i32(i32::MIN))]
    }

    type Scales = Scales32;

    #[inline(always)]
    unsafe fn scales(rows: impl FourRows) -> Scales32 {
        // SAFETY: a block begins with two f16 and 12 bytes of scales and
        // minima.
        let (a, b, c) = unsafe { (rows.words(4), rows.words(8), rows.words(12)) };
        let six = V::splat_i32(0x3f3f_3f3f);
        let four = V::splat_i32(0x0f0f_0f0f);
        let two = V::splat_i32(0x3030_3030);
        Scales32 {
            scales: [a.and(six), c.and(four).or(a.shr_u32(2).and(two))],
            mins: [b.and(six), c.shr_u32(4).and(four).or(b.shr_u32(2).and(two))],
        }
    }

    #[inline(always)]
    fn scale_pairs(scales: Scales32, i: usize) -> V {
        every_second(scales.scales[i / 4], i % 2).pairs_of(i % 4 / 2)
    }

    #[inline(always)]
    fn sum_weights(scales: Scales32, p: usize) -> V {
        every_second(scales.mins[p / 2], p % 2)
    }

    #[inline(always)]
    unsafe fn partials(block: RawBlock, x: *const ActivationBlock, units: usize) -> [V; 2] {
        // SAFETY: the caller vouches for the block; two f16 stand before the 12 bytes.
        let words = [4, 8, 12].map(|at| unsafe { u32_at(block.0.add(at)) });
        let [scales, mins] = scales_and_mins(words).map(V::widen_u8);
        let mut products = V::splat_i32(0);
        steps!(Self::UNITS, units, |unit| {
            for i in 0..Self::SUB_BLOCKS {
                // SAFETY: the caller vouches for the block and its activations.
                let sums = unsafe { partial::<Self>(block, unit, i, x.add(2 * unit)) };
                let scale = scales.splat_lane_i16(Self::SUB_BLOCKS * unit + i);
                products = products.add_i32(sums.dot_i16(scale));
            }
        });
        // SAFETY: as above.
        let sums = unsafe { (*x).load_pairs() };
        [products, mins.swap_inner_i16().dot_i16(sums)]
    }

    #[inline(always)]
    fn total([d, dmin]: [V; 2], products: V, sums: V) -> V {
        products.to_f32x4().mul_f32(d).madd_f32(dmin, sums.to_f32x4())
    }

    fn dequantize(block: &[u8], out: &mut [f32]) {
        let (d, dmin) = (f16::first(block), f16::first(&block[2..]));
        let (words, _) = block[4..16].as_chunks();
        let words = std::array::from_fn(|i| u32::from_le_bytes(words[i]));
        let [scales, mins] = scales_and_mins(words).map(u64::to_le_bytes);
        for (i, out) in out.chunks_exact_mut(32).enumerate() {
            let (scale, min) = (d * f32::from(scales[i]), dmin * f32::from(mins[i]));
            for (l, out) in out.iter_mut().enumerate() {
                let fifth = if FIVE { block[16 + l] >> i & 1 } else { 0 };
                let q = block[Self::QUANTS + i / 2 * 32 + l] >> (4 * (i % 2)) & 15 | fifth << 4;
                *out = scale * f32::from(q) - min;
            }
        }
    }
}

/// Bytes `first` and `first + 2` of each word, as i16.
#[inline(always)]
fn every_second(words: V, first: usize) -> V {
    if first == 0 { words.and(V::splat_i32(0x00ff_00ff)) } else { words.shr_u16(8) }
}

impl<const FIVE: bool> Narrow for SubBlocks32<FIVE> {
    const BITS: u32 = if FIVE { 5 } else { 4 };
    const HIGH: usize = 2;

    #[inline(always)]
    unsafe fn quants(block: impl Block, unit: usize, i: usize) -> V {
        let (sub_block, half) = (i / 2, i % 2);
        // SAFETY: 32 bytes of fifth bits stand before the 128 of nibbles, if
        // the block has them.
        unsafe {
            let q = nibbles(block.bytes(Self::QUANTS + 32 * unit + 16 * half), sub_block);
            if !FIVE {
                return q;
            }
            let fifth = block.bytes(16 + 16 * half).shr_u16((2 * unit + sub_block) as u32);
            q.or(fifth.and(V::splat_u8(1)).shl_u16(4))
        }
    }
}
