//! IQ1_S: 1.56 bits a number, in blocks of 256.

use super::codebooks::IQ1;
use crate::quant::f16;
use crate::quant::looked_up::{Codes, LookedUp};
use crate::quant::raw::RawBlock;
use crate::simd::V;

pub(in crate::quant) type Iq1S = Codes<Iq1SCodes>;

/// An f16, the low 8 bits of 32 codes, and eight times the high 3 bits of four codes, a
/// scale of 3 bits, and whether an eighth is added to the numbers or taken off. So what
/// they are in eighths, and 9 more, is what the codebook has, or 2 more than that.
pub(in crate::quant) struct Iq1SCodes;

impl LookedUp for Iq1SCodes {
    const BYTES: usize = 50;
    const SUB_BLOCK: usize = 32;
    const LARGEST: usize = 18;
    const UNIT: f32 = 0.125;
    const OFFSET: i32 = 9;

    #[inline(always)]
    unsafe fn scales(block: RawBlock) -> [V; 2] {
        // SAFETY: the caller vouches for the block, which ends with the words that have
        // the scales.
        let words = unsafe { V::load(block.0.add(34)) };
        let scales = words.shr_u16(11).and(V::splat_i32(0x000e_000e));
        [scales.or(V::splat_i32(0x0001_0001)), V::splat_i32(0)]
    }

    #[inline(always)]
    unsafe fn numbers(block: RawBlock, i: usize) -> [V; 2] {
        // SAFETY: the caller vouches for the block.
        let (low, word) = unsafe { (block.half(2 + 2 * i), block.half(34 + 2 * (i / 2))) };
        let high = usize::from(word) >> (6 * (i % 2));
        let entry = |low: u16, high: usize| IQ1[usize::from(low & 0xff) | high << 8 & 0x700];
        let numbers = V::from_u64(entry(low, high), entry(low >> 8, high >> 3));
        let added = V::splat_u8(if word >> 15 == 1 { 0 } else { 2 });
        [numbers.or(added), V::splat_i32(0)]
    }

    fn dequantize(block: &[u8], out: &mut [f32]) {
        let d = f16::first(block);
        for (i, out) in out.chunks_exact_mut(8).enumerate() {
            let word = u16::from_le_bytes([block[34 + 2 * (i / 4)], block[35 + 2 * (i / 4)]]);
            let scale = d * f32::from(2 * (word >> 12 & 7) + 1);
            let delta = if word >> 15 == 1 { -0.125 } else { 0.125 };
            let high = word >> (3 * (i % 4)) & 7;
            let entry = IQ1[usize::from(block[2 + i]) | usize::from(high) << 8].to_le_bytes();
            for (out, q) in out.iter_mut().zip(entry) {
                *out = scale * (f32::from(q) / 8.0 - 1.0 + delta);
            }
        }
    }
}
