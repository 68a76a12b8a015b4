//! Q3_K: 3 bits, in blocks of 256.

use crate::quant::activations::ActivationBlock;
use crate::quant::blocks::Blocks;
use crate::quant::f16;
use crate::quant::narrow::{Narrow, crumbs, partial};
use crate::quant::raw::RawBlock;
use crate::quant::rows::{Block, FourRows};
use crate::simd::{V, steps};

/// Sixteen sub-blocks of 16, each with a signed scale of 6 bits. A block is 32 bytes of
/// third bits, 64 of the other two, 12 of scales and an f16.
pub(in crate::quant) struct Q3K;

/// What scales are stored larger by.
const SCALE_OFFSET: i32 = 32;

/// The scales, larger by 32, a byte each: low bits are the nibbles of the first two words,
/// high ones stand in pairs in the third.
fn scales_from_0([a, b, c]: [u32; 3]) -> [u32; 4] {
    let (four, two) = (0x0f0f_0f0f, 0x0303_0303);
    let high = |i: u32| (c >> (2 * i) & two) << 4;
    [a & four | high(0), b & four | high(1), a >> 4 & four | high(2), b >> 4 & four | high(3)]
}

/// Numbers of which i16 hold those that are larger by 32.
#[inline(always)]
fn signed(scales: V) -> V {
    scales.add_i16(V::splat_i32(-SCALE_OFFSET << 16 | -SCALE_OFFSET & 0xffff))
}

impl Blocks for Q3K {
    const BYTES: usize = 110;
    const INTERLEAVING: &'static [(usize, usize)] = &[(108, 4), (2, 2)];
    const UNITS: usize = 2;
    const SUB_BLOCKS: usize = 8;
    const SUM_PAIRS: usize = 8;
    const SUMS_AT: usize = 1;
    const FACTORS: usize = 108;

    #[inline(always)]
    fn factors(words: V) -> [V; 2] {
        [f16::low(words), V::splat_f32(0.0)]
    }

    /// As bytes, larger by 32, of four sub-blocks each.
    type Scales = [V; 4];

    #[inline(always)]
    unsafe fn scales(rows: impl FourRows) -> [V; 4] {
        // SAFETY: 12 bytes of scales stand there.
        let [a, b, c] = [96, 100, 104].map(|at| unsafe { rows.words(at) });
        let (four, two) = (V::splat_i32(0x0f0f_0f0f), V::splat_i32(0x0303_0303));
        let high = |i: u32| c.shr_u32(2 * i).and(two).shl_i32(4);
        [
            a.and(four).or(high(0)),
            b.and(four).or(high(1)),
            a.shr_u32(4).and(four).or(high(2)),
            b.shr_u32(4).and(four).or(high(3)),
        ]
    }

    #[inline(always)]
    fn scale_pairs(scales: [V; 4], i: usize) -> V {
        Self::sum_weights(scales, i / 4 * 2 + i % 2).pairs_of(i % 4 / 2)
    }

    #[inline(always)]
    fn sum_weights(scales: [V; 4], p: usize) -> V {
        signed(scales[p / 2].shr_u16(8 * (p % 2) as u32).and(V::splat_i32(0x00ff_00ff)))
    }

    #[inline(always)]
    unsafe fn partials(block: RawBlock, x: *const ActivationBlock, units: usize) -> [V; 2] {
        // SAFETY: the caller vouches for the block, which has 12 bytes of scales there.
        let words = [96, 100, 104].map(|at| unsafe { block.word(at) });
        let [a, b, c, d] = scales_from_0(words).map(u64::from);
        let scales = [a | b << 32, c | d << 32].map(|bytes| signed(V::widen_u8(bytes)));
        let mut products = V::splat_i32(0);
        steps!(Self::UNITS, units, |unit| {
            for i in 0..Self::SUB_BLOCKS {
                // SAFETY: the caller vouches for the block and its activations.
                let sums = unsafe { partial::<Self>(block, unit, i, x.add(4 * unit)) };
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
        // What is stored is larger by 4.
        products.sub_i32(sums.shl_i32(2)).to_f32x4().mul_f32(d)
    }

    fn dequantize(block: &[u8], out: &mut [f32]) {
        let d = f16::first(&block[Self::FACTORS..]);
        let (words, _) = block[96..108].as_chunks();
        let scales = scales_from_0(std::array::from_fn(|i| u32::from_le_bytes(words[i])));
        for (i, out) in out.iter_mut().enumerate() {
            let low = block[32 + i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3;
            let high = block[i % 32] >> (i / 32) & 1;
            let scale = (scales[i / 64] >> (8 * (i / 16 % 4)) & 0xff) as i32 - SCALE_OFFSET;
            *out = d * scale as f32 * (f32::from(low | high << 2) - 4.0);
        }
    }
}

impl Narrow for Q3K {
    const BITS: u32 = 3;
    const HIGH: usize = 4;
    const SUB_BLOCK: usize = 16;

    #[inline(always)]
    unsafe fn quants(block: impl Block, half: usize, i: usize) -> V {
        // SAFETY: a block begins with 32 bytes of third bits and 64 of the others.
        unsafe {
            let low = crumbs(block.bytes(32 + 32 * half + 16 * (i % 2)), i / 2);
            let high = block.bytes(16 * (i % 2));
            let at = 4 * half + i / 2;
            let high =
                if at < 2 { high.shl_u16(2 - at as u32) } else { high.shr_u16(at as u32 - 2) };
            low.or(high.and(V::splat_u8(4)))
        }
    }
}
