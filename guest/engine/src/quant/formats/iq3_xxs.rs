//! IQ3_XXS: 3.06 bits a number, in blocks of 256.

use super::codebooks::{self, IQ3_XXS, eight_signs, odd, signs};
use crate::quant::f16;
use crate::quant::looked_up::{Codes, LookedUp};
use crate::quant::raw::RawBlock;
use crate::simd::V;

pub(in crate::quant) type Iq3Xxs = Codes<Iq3XxsCodes>;

/// An f16, 64 codes of 8 bits, and eight times four codes of signs of 7 bits and a scale
/// of 4.
pub(in crate::quant) struct Iq3XxsCodes;

impl LookedUp for Iq3XxsCodes {
    const BYTES: usize = 98;
    const SUB_BLOCK: usize = 32;
    const SIGNED: bool = true;
    const LARGEST: usize = 62;
    const UNIT: f32 = 0.25;
    const OFFSET: i32 = 0;

    #[inline(always)]
    unsafe fn scales(block: RawBlock) -> [V; 2] {
        // SAFETY: the caller vouches for the block, which ends with eight words of which
        // the highest bits are the scale.
        let nibble = |i: usize| u64::from(unsafe { block.octet(69 + 4 * i) } >> 4);
        let nibbles = (0..8).fold(0, |all, i| all | nibble(i) << (8 * i));
        [odd(nibbles), V::splat_i32(0)]
    }

    #[inline(always)]
    unsafe fn numbers(block: RawBlock, i: usize) -> [V; 2] {
        // SAFETY: the caller vouches for the block.
        let (codes, of_signs) = unsafe { (block.word(2 + 4 * i), block.word(66 + 4 * (i / 2))) };
        let of_signs = of_signs >> (14 * (i % 2));
        let entries = codes.to_le_bytes().map(|code| IQ3_XXS[usize::from(code)] as i32);
        [V::from_i32x4(entries), signs([of_signs, of_signs >> 7])]
    }

    fn dequantize(block: &[u8], out: &mut [f32]) {
        let d = f16::first(block);
        let (words, _) = block[66..].as_chunks::<4>();
        for (i, out) in out.chunks_exact_mut(4).enumerate() {
            let word = u32::from_le_bytes(words[i / 8]);
            let scale = d * (0.5 + (word >> 28) as f32) * 0.5;
            let signs = eight_signs(word >> (7 * (i / 2 % 4))) >> (4 * (i % 2));
            let entry = IQ3_XXS[usize::from(block[2 + i])].to_le_bytes();
            codebooks::write(scale, &entry, signs, out);
        }
    }
}
