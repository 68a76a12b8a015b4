//! Q2_K: 2 bits, in blocks of 256.

use crate::quant::activations::ActivationBlock;
use crate::quant::blocks::Blocks;
use crate::quant::f16;
use crate::quant::narrow::{Narrow, crumbs, partial};
use crate::quant::raw::RawBlock;
use crate::quant::rows::{Block, FourRows};
use crate::simd::{V, steps};

/// Sixteen sub-blocks of 16, each with a scale and a minimum of 4 bits, in one byte.
pub(in crate::quant) struct Q2K;

impl Blocks for Q2K {
    const BYTES: usize = 84;
    const INTERLEAVING: &'static [(usize, usize)] = &[(84, 4)];
    const UNITS: usize = 2;
    const SUB_BLOCKS: usize = 8;
    const SUM_PAIRS: usize = 8;
    const SUMS_AT: usize = 1;
    const MIN: bool = true;
    const FACTORS: usize = 80;

    #[inline(always)]
    fn factors(words: V) -> [V; 2] {
        // The minimum is to be taken off.
        [f16::low(words), f16::high(words).xor(V::splat_i32(i32::MIN))]
    }

    /// Bytes, of four sub-blocks each.
    type Scales = [V; 4];

    #[inline(always)]
    unsafe fn scales(rows: impl FourRows) -> [V; 4] {
        // SAFETY: a block begins with 16 bytes of scales and minima.
        std::array::from_fn(|i| unsafe { rows.words(4 * i) })
    }

    #[inline(always)]
    fn scale_pairs(scales: [V; 4], i: usize) -> V {
        scales[i / 4].shr_u16(8 * (i % 2) as u32).and(V::splat_i32(0x000f_000f)).pairs_of(i % 4 / 2)
    }

    #[inline(always)]
    fn sum_weights(scales: [V; 4], p: usize) -> V {
        scales[p / 2].shr_u16(8 * (p % 2) as u32 + 4).and(V::splat_i32(0x000f_000f))
    }

    #[inline(always)]
    unsafe fn partials(block: RawBlock, x: *const ActivationBlock, units: usize) -> [V; 2] {
        const FOUR: u64 = 0x0f0f_0f0f_0f0f_0f0f;
        // SAFETY: the caller vouches for the block, which begins with 16 bytes of them.
        let bytes = [0, 8].map(|i| unsafe { block.long(i) });
        let scales = bytes.map(|bytes| V::widen_u8(bytes & FOUR));
        let mins = bytes.map(|bytes| V::widen_u8(bytes >> 4 & FOUR));
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
            mins[i].swap_inner_i16().dot_i16(sums)
        };
        [products, weighted(0).add_i32(weighted(1))]
    }

    #[inline(always)]
    fn total([d, dmin]: [V; 2], products: V, sums: V) -> V {
        products.to_f32x4().mul_f32(d).madd_f32(dmin, sums.to_f32x4())
    }

    fn dequantize(block: &[u8], out: &mut [f32]) {
        let (d, dmin) = (f16::first(&block[80..]), f16::first(&block[82..]));
        for (i, out) in out.iter_mut().enumerate() {
            let (scale, min) = (block[i / 16] & 15, block[i / 16] >> 4);
            let q = block[16 + i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3;
            *out = d * f32::from(scale) * f32::from(q) - dmin * f32::from(min);
        }
    }
}

impl Narrow for Q2K {
    const BITS: u32 = 2;
    const HIGH: usize = 4;
    const SUB_BLOCK: usize = 16;

    #[inline(always)]
    unsafe fn quants(block: impl Block, half: usize, i: usize) -> V {
        // SAFETY: 64 bytes stand behind the scales, 32 for each half.
        crumbs(unsafe { block.bytes(16 + 32 * half + 16 * (i % 2)) }, i / 2)
    }
}
