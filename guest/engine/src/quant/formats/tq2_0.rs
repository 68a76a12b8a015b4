//! TQ2_0: -1, 0 and 1 in 2 bits, in blocks of 256 with one scale.

use crate::quant::activations::ActivationBlock;
use crate::quant::blocks::Blocks;
use crate::quant::f16;
use crate::quant::narrow::{Narrow, crumbs, partial};
use crate::quant::raw::RawBlock;
use crate::quant::rows::{Block, FourRows};
use crate::simd::{V, steps};

/// 64 bytes, and an f16. What a byte has 2 bits for lies 32 columns apart.
pub(in crate::quant) struct Tq2_0;

/// 1, as i16.
fn ones() -> V {
    V::splat_i32(0x0001_0001)
}

impl Blocks for Tq2_0 {
    const BYTES: usize = 66;
    const INTERLEAVING: &'static [(usize, usize)] = &[(64, 4), (2, 2)];
    const UNITS: usize = 2;
    const SUB_BLOCKS: usize = 4;
    const SUM_PAIRS: usize = 4;
    const FACTORS: usize = 64;

    #[inline(always)]
    fn factors(words: V) -> [V; 2] {
        [f16::low(words), V::splat_f32(0.0)]
    }

    type Scales = ();

    #[inline(always)]
    unsafe fn scales(_rows: impl FourRows) {}

    #[inline(always)]
    fn sum_weights(_scales: (), _p: usize) -> V {
        ones()
    }

    #[inline(always)]
    unsafe fn partials(block: RawBlock, x: *const ActivationBlock, units: usize) -> [V; 2] {
        let mut products = V::splat_i32(0);
        steps!(Self::UNITS, units, |unit| {
            for i in 0..Self::SUB_BLOCKS {
                // SAFETY: the caller vouches for the block and its activations.
                let sums = unsafe { partial::<Self>(block, unit, i, x.add(4 * unit)) };
                products = products.add_i32(sums.dot_i16(ones()));
            }
        });
        // SAFETY: as above.
        [products, ones().dot_i16(unsafe { (*x).load_pairs() })]
    }

    #[inline(always)]
    fn total([d, _]: [V; 2], products: V, sums: V) -> V {
        // What is stored is larger by 1.
        products.sub_i32(sums).to_f32x4().mul_f32(d)
    }

    fn dequantize(block: &[u8], out: &mut [f32]) {
        let d = f16::first(&block[Self::FACTORS..]);
        for (i, out) in out.iter_mut().enumerate() {
            let q = block[i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3;
            *out = d * (f32::from(q) - 1.0);
        }
    }
}

impl Narrow for Tq2_0 {
    const BITS: u32 = 2;
    const HIGH: usize = 4;

    #[inline(always)]
    unsafe fn quants(block: impl Block, half: usize, i: usize) -> V {
        // SAFETY: a block begins with 64 bytes, 32 for each half.
        crumbs(unsafe { block.bytes(32 * half + 16 * (i % 2)) }, i / 2)
    }
}
