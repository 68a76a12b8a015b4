//! The formats of 4 and 5 bits with blocks of 32: Q4_0, Q4_1, Q5_0, Q5_1.

use crate::quant::activations::ActivationBlock;
use crate::quant::blocks::Blocks;
use crate::quant::f16;
use crate::quant::narrow::{Narrow, nibbles, partial, sums};
use crate::quant::raw::RawBlock;
use crate::quant::rows::{Block, FourRows};
use crate::simd::V;

pub(in crate::quant) type Q4_0 = Nibbles<false, false>;
pub(in crate::quant) type Q4_1 = Nibbles<true, false>;
pub(in crate::quant) type Q5_0 = Nibbles<false, true>;
pub(in crate::quant) type Q5_1 = Nibbles<true, true>;

/// 4 bits a number; 5 if `FIVE`, where a u32 of fifth bits stands before the
/// nibbles. With `MIN` each block brings its minimum.
pub(in crate::quant) struct Nibbles<const MIN: bool, const FIVE: bool>;

impl<const MIN: bool, const FIVE: bool> Nibbles<MIN, FIVE> {
    const HEADER: usize = if MIN { 4 } else { 2 };
    const QUANTS: usize = Self::HEADER + if FIVE { 4 } else { 0 };
}

impl<const MIN: bool, const FIVE: bool> Blocks for Nibbles<MIN, FIVE> {
    const BYTES: usize = Self::QUANTS + 16;
    const INTERLEAVING: &'static [(usize, usize)] =
        if MIN { &[(Self::BYTES, 4)] } else { &[(2, 2), (Self::BYTES - 2, 4)] };
    const MIN: bool = MIN;

    type Scales = ();

    #[inline(always)]
    fn factors(words: V) -> [V; 2] {
        [f16::low(words), if MIN { f16::high(words) } else { V::splat_f32(0.0) }]
    }

    #[inline(always)]
    unsafe fn scales(_rows: impl FourRows) {}

    #[inline(always)]
    unsafe fn partials(block: RawBlock, x: *const ActivationBlock, _units: usize) -> [V; 2] {
        // SAFETY: the caller vouches for the same.
        [unsafe { partial::<Self>(block, 0, 0, x) }, V::splat_i32(0)]
    }

    #[inline(always)]
    fn sums(partials: [V; 4]) -> V {
        sums::<Self>(partials)
    }

    #[inline(always)]
    fn total([scale, _]: [V; 2], products: V, sums: V) -> V {
        if MIN {
            return products.to_f32x4().mul_f32(scale);
        }
        // What is stored is larger by 8 or 16.
        let offset = sums.shl_i32(if FIVE { 4 } else { 3 });
        products.sub_i32(offset).to_f32x4().mul_f32(scale)
    }

    fn dequantize(block: &[u8], out: &mut [f32]) {
        let d = f16::first(block);
        let min = match MIN {
            true => f16::first(&block[2..]),
            false => d * if FIVE { -16.0 } else { -8.0 },
        };
        for (i, out) in out.iter_mut().enumerate() {
            let fifth = if FIVE { block[Self::HEADER + i / 8] >> (i % 8) & 1 } else { 0 };
            let q = block[Self::QUANTS + i % 16] >> (4 * (i / 16)) & 15 | fifth << 4;
            *out = d * f32::from(q) + min;
        }
    }
}

impl<const MIN: bool, const FIVE: bool> Narrow for Nibbles<MIN, FIVE> {
    const BITS: u32 = if FIVE { 5 } else { 4 };
    const HIGH: usize = 1;

    #[inline(always)]
    unsafe fn quants(block: impl Block, _unit: usize, i: usize) -> V {
        // SAFETY: 16 bytes of nibbles end the block, fifth bits stand before
        // them.
        unsafe {
            let q = nibbles(block.bytes(Self::QUANTS), i);
            if FIVE { q.or(block.fifth_bits(Self::HEADER, i)) } else { q }
        }
    }
}
