//! Q6_K: 6 bits, in blocks of 256.

use crate::quant::activations::ActivationBlock;
use crate::quant::blocks::Blocks;
use crate::quant::f16;
use crate::quant::narrow::{Narrow, nibbles, partial};
use crate::quant::raw::RawBlock;
use crate::quant::rows::{Block, FourRows};
use crate::simd::{V, steps};

/// Sixteen sub-blocks of 16, each with a signed scale of 8 bits.
pub(in crate::quant) struct Q6K;

impl Blocks for Q6K {
    const BYTES: usize = 210;
    const INTERLEAVING: &'static [(usize, usize)] = &[(208, 4), (2, 2)];
    const UNITS: usize = 2;
    const SUB_BLOCKS: usize = 8;
    const SUM_PAIRS: usize = 8;
    const SUMS_AT: usize = 1;
    const FACTORS: usize = 208;

    #[inline(always)]
    fn factors(words: V) -> [V; 2] {
        [f16::low(words), V::splat_f32(0.0)]
    }

    /// As bytes, of four sub-blocks each.
    type Scales = [V; 4];

    #[inline(always)]
    unsafe fn scales(rows: impl FourRows) -> [V; 4] {
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
        // What is stored is larger by 32.
        products.sub_i32(sums.shl_i32(5)).to_f32x4().mul_f32(d)
    }

    fn dequantize(block: &[u8], out: &mut [f32]) {
        let d = f16::first(&block[Self::FACTORS..]);
        for (i, out) in out.iter_mut().enumerate() {
            let (half, i) = (i / 128, i % 128);
            let low = block[half * 64 + i % 64] >> (4 * (i / 64)) & 15;
            let high = block[128 + half * 32 + i % 32] >> (2 * (i / 32)) & 3;
            let scale = block[192 + half * 8 + i / 16] as i8;
            *out = d * f32::from(scale) * (f32::from(low | high << 4) - 32.0);
        }
    }
}

/// Signed bytes `first` and `first + 2` of each word, as i16.
#[inline(always)]
fn every_second_signed(words: V, first: usize) -> V {
    let words = if first == 0 { words.shl_u16(8) } else { words };
    words.shr_i16(8)
}

impl Narrow for Q6K {
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
