//! IQ2_XS: 2.31 bits a number, in blocks of 256.

use super::codebooks::{self, IQ2_XS, eight_signs, odd_nibbles, signs};
use crate::quant::f16;
use crate::quant::looked_up::{Codes, LookedUp};
use crate::quant::raw::RawBlock;
use crate::simd::V;

pub(in crate::quant) type Iq2Xs = Codes<Iq2XsCodes>;

/// An f16, 32 times a code of 9 bits and one of signs of 7, and sixteen scales of 4.
pub(in crate::quant) struct Iq2XsCodes;

impl LookedUp for Iq2XsCodes {
    const BYTES: usize = 74;
    const SUB_BLOCK: usize = 16;
    const SIGNED: bool = true;
    const LARGEST: usize = 43;
    const UNIT: f32 = 0.125;
    const OFFSET: i32 = 0;

    #[inline(always)]
    unsafe fn scales(block: RawBlock) -> [V; 2] {
        // SAFETY: the caller vouches for the block, which ends with the scales.
        odd_nibbles(unsafe { block.long(66) })
    }

    #[inline(always)]
    unsafe fn numbers(block: RawBlock, i: usize) -> [V; 2] {
        // SAFETY: the caller vouches for the block, which has 4 bytes for 16 numbers.
        let two = unsafe { block.word(2 + 4 * i) };
        let entry = |code: u32| IQ2_XS[code as usize & 511];
        [V::from_u64(entry(two), entry(two >> 16)), signs([two >> 9, two >> 25])]
    }

    fn dequantize(block: &[u8], out: &mut [f32]) {
        let d = f16::first(block);
        for (i, out) in out.chunks_exact_mut(8).enumerate() {
            let code = u16::from_le_bytes([block[2 + 2 * i], block[3 + 2 * i]]);
            let scale = block[66 + i / 4] >> (4 * (i / 2 % 2)) & 15;
            let scale = d * (0.5 + f32::from(scale)) * 0.25;
            let entry = IQ2_XS[usize::from(code & 511)].to_le_bytes();
            codebooks::write(scale, &entry, eight_signs(u32::from(code >> 9)), out);
        }
    }
}
