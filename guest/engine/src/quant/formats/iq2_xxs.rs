//! IQ2_XXS: 2.06 bits a number, in blocks of 256.

use super::codebooks::{self, IQ2_XXS, eight_signs, odd, signs};
use crate::quant::f16;
use crate::quant::looked_up::{Codes, LookedUp};
use crate::quant::raw::RawBlock;
use crate::simd::V;

pub(in crate::quant) type Iq2Xxs = Codes<Iq2XxsCodes>;

/// An f16, then eight sub-blocks: four codes of 8 bits, four of signs of 7, and a scale
/// of 4.
pub(in crate::quant) struct Iq2XxsCodes;

impl LookedUp for Iq2XxsCodes {
    const BYTES: usize = 66;
    const SUB_BLOCK: usize = 32;
    const SIGNED: bool = true;
    const LARGEST: usize = 43;
    const UNIT: f32 = 0.125;
    const OFFSET: i32 = 0;

    #[inline(always)]
    unsafe fn scales(block: RawBlock) -> [V; 2] {
        // SAFETY: the caller vouches for the block, in which each sub-block ends with its
        // scale.
        let nibble = |i: usize| u64::from(unsafe { block.octet(9 + 8 * i) } >> 4);
        let nibbles = (0..8).fold(0, |all, i| all | nibble(i) << (8 * i));
        [odd(nibbles), V::splat_i32(0)]
    }

    #[inline(always)]
    unsafe fn numbers(block: RawBlock, i: usize) -> [V; 2] {
        let at = 2 + 8 * (i / 2);
        // SAFETY: the caller vouches for the block, which has 8 bytes for a sub-block.
        let (codes, of_signs) = unsafe { (block.half(at + 2 * (i % 2)), block.word(at + 4)) };
        let of_signs = of_signs >> (14 * (i % 2));
        let entry = |code: u16| IQ2_XXS[usize::from(code & 0xff)];
        [V::from_u64(entry(codes), entry(codes >> 8)), signs([of_signs, of_signs >> 7])]
    }

    fn dequantize(block: &[u8], out: &mut [f32]) {
        let d = f16::first(block);
        let (sub_blocks, _) = block[2..].as_chunks::<8>();
        for (sub_block, out) in sub_blocks.iter().zip(out.chunks_exact_mut(32)) {
            let [codes @ .., a, b, c, e] = *sub_block;
            let rest = u32::from_le_bytes([a, b, c, e]);
            let scale = d * (0.5 + (rest >> 28) as f32) * 0.25;
            for (l, out) in out.chunks_exact_mut(8).enumerate() {
                let entry = IQ2_XXS[usize::from(codes[l])].to_le_bytes();
                codebooks::write(scale, &entry, eight_signs(rest >> (7 * l)), out);
            }
        }
    }
}
