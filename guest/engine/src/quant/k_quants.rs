//! The formats with blocks of 256: Q4_K, Q5_K, Q6_K.

use super::activations::ActivationBlock;
use super::blocks::{Block, Blocks, Headers, Quants, high_f16, low_f16};
use super::blocks32::nibbles;
use super::narrow::Narrow;
use super::raw::RawBlock;
use super::scalar::u32_at;
use crate::simd::{V, steps};

/// Q4_K, and with `FIVE` Q5_K: eight sub-blocks of 32, each with a 6-bit scale
/// and a 6-bit minimum.
pub(super) struct SubBlocks32<const FIVE: bool>;

/// Scales and minima of four rows' blocks.
#[derive(Clone, Copy)]
pub(super) struct Scales32 {
    /// The 6-bit numbers as bytes, of sub-blocks 0 to 3 and 4 to 7.
    scales: [V; 2],
    mins: [V; 2],
}

impl<const FIVE: bool> SubBlocks32<FIVE> {
    const QUANTS: usize = if FIVE { 48 } else { 16 };
}

/// The scales and the minima of one row's block, as i16.
///
/// # Safety
/// The block must be whole.
#[inline(always)]
unsafe fn scales_and_mins(block: RawBlock) -> [V; 2] {
    // SAFETY: the caller vouches for the block; two f16 stand before the 12 bytes.
    let [a, b, c] = [4, 8, 12].map(|at| u64::from(unsafe { u32_at(block.0.add(at)) }));
    let (six, four, two) = (0x3f3f_3f3f, 0x0f0f_0f0f, 0x3030_3030);
    let join = |low: u64, high: u64| V::widen_u8(low | high << 32);
    [join(a & six, c & four | a >> 2 & two), join(b & six, c >> 4 & four | b >> 2 & two)]
}

impl<const FIVE: bool> Blocks for SubBlocks32<FIVE> {
    const BYTES: usize = Self::QUANTS + 128;
    const UNITS: usize = 4;
    const SUB_BLOCKS: usize = 2;
    const SUM_PAIRS: usize = 4;
    const MIN: bool = true;

    #[inline(always)]
    fn factors(words: V) -> [V; 2] {
        // The minimum is to be taken off.
        [low_f16(words), high_f16(words).xor(V::splat_i32(i32::MIN))]
    }

    type Scales = Scales32;

    #[inline(always)]
    unsafe fn scales(rows: impl Headers) -> Scales32 {
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
        // SAFETY: the caller vouches for the block.
        let [scales, mins] = unsafe { scales_and_mins(block) };
        let mut products = V::splat_i32(0);
        steps!(Self::UNITS, units, |unit| {
            for i in 0..Self::SUB_BLOCKS {
                // SAFETY: the caller vouches for the block and its activations.
                let sums = unsafe { Self::partial(block, unit, i, x.add(2 * unit)) };
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

/// Q6_K: sixteen sub-blocks of 16, each with a signed scale of 8 bits.
pub(super) struct SubBlocks16;

impl Blocks for SubBlocks16 {
    const BYTES: usize = 210;
    const UNITS: usize = 2;
    const SUB_BLOCKS: usize = 8;
    const SUM_PAIRS: usize = 8;
    const SUMS_AT: usize = 1;
    const FACTORS: usize = 208;

    #[inline(always)]
    fn factors(words: V) -> [V; 2] {
        [low_f16(words), V::splat_f32(0.0)]
    }

    /// As bytes, of four sub-blocks each.
    type Scales = [V; 4];

    #[inline(always)]
    unsafe fn scales(rows: impl Headers) -> [V; 4] {
        // SAFETY: 16 bytes of scales and an f16 end a block.
        std::array::from_fn(|i| unsafe { rows.words(192 + 4 * i) })
    }

    #[inline(always)]
    fn scale_pairs(scales: [V; 4], i: usize) -> V {
        every_second_signed(scales[i / 4], i % 2).pairs_of(i % 4 / 2)
    }

    #[inline(always)]
    fn sum_weights(scales: [V; 4], p: usize) -> V {
        every_second_signed(scales[p / 2], p % 2)
    }

    #[inline(always)]
    unsafe fn partials(block: RawBlock, x: *const ActivationBlock, units: usize) -> [V; 2] {
        // SAFETY: the caller vouches for the block, which has 16 bytes there.
        let scales = [0, 8].map(|i| unsafe { block.wide_bytes(192 + i) });
        let mut products = V::splat_i32(0);
        steps!(Self::UNITS, units, |unit| {
            for i in 0..Self::SUB_BLOCKS {
                // SAFETY: the caller vouches for the block and its activations.
                let sums = unsafe { Self::partial(block, unit, i, x.add(4 * unit)) };
                products = products.add_i32(sums.dot_i16(scales[unit].splat_lane_i16(i)));
            }
        });
        let weighted = |i: usize| {
            // SAFETY: as above.
            let sums = unsafe { (*x.add(Self::SUMS_AT + i)).load_pairs() };
            scales[i].swap_inner_i16().dot_i16(sums)
        };
        [products, weighted(0).add_i32(weighted(1))]
    }

    #[inline(always)]
    fn total([d, _]: [V; 2], products: V, sums: V) -> V {
        // What is stored is larger by 32.
        products.sub_i32(sums.shl_i32(5)).to_f32x4().mul_f32(d)
    }
}

/// Signed bytes `first` and `first + 2` of each word, as i16.
#[inline(always)]
fn every_second_signed(words: V, first: usize) -> V {
    let words = if first == 0 { words.shl_u16(8) } else { words };
    words.shr_i16(8)
}

impl Narrow for SubBlocks16 {
    const BITS: u32 = 6;
    const HIGH: usize = 4;
    const SUB_BLOCK: usize = 16;

    #[inline(always)]
    unsafe fn quants(block: impl Block, half: usize, i: usize) -> V {
        // A unit is half a block: 64 bytes of low bits, 32 of high bits.
        // SAFETY: a block begins with 128 bytes of low bits and 64 of high bits.
        unsafe {
            let low = nibbles(block.bytes(64 * half + 16 * (i % 4)), i / 4);
            let high = block.bytes(128 + 32 * half + 16 * (i % 2));
            let high = match i / 2 {
                0 => high.shl_u16(4),
                1 => high.shl_u16(2),
                2 => high,
                _ => high.shr_u16(2),
            };
            low.or(high.and(V::splat_u8(0x30)))
        }
    }
}
