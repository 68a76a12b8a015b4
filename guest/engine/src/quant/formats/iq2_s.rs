//! IQ2_S: 2.56 bits a number, in blocks of 256.

use super::codebooks::{self, IQ2_S, odd_nibbles};
use crate::quant::f16;
use crate::quant::looked_up::{Codes, LookedUp};
use crate::quant::raw::RawBlock;
use crate::simd::V;

pub(in crate::quant) type Iq2S = Codes<Iq2SCodes>;

/// An f16; the low 8 bits of 32 codes, the signs of 256 numbers, the high 2 bits of the
/// codes, and sixteen scales of 4 bits.
pub(in crate::quant) struct Iq2SCodes;

impl LookedUp for Iq2SCodes {
    const BYTES: usize = 82;
    const SUB_BLOCK: usize = 16;
    const SIGNED: bool = true;
    const LARGEST: usize = 43;
    const UNIT: f32 = 0.125;
    const OFFSET: i32 = 0;

    #[inline(always)]
    unsafe fn scales(block: RawBlock) -> [V; 2] {
        // SAFETY: the caller vouches for the block, which ends with the scales.
        odd_nibbles(unsafe { block.long(74) })
    }

    #[inline(always)]
    unsafe fn numbers(block: RawBlock, i: usize) -> [V; 2] {
        // SAFETY: the caller vouches for the block.
        let (low, high, signs) = unsafe {
            let high = block.octet(66 + i / 2) >> (4 * (i % 2));
            (block.half(2 + 2 * i), usize::from(high), block.masks(34 + 2 * i))
        };
        let entry = |low: u16, high: usize| IQ2_S[usize::from(low & 0xff) | high << 8 & 0x300];
        [V::from_u64(entry(low, high), entry(low >> 8, high >> 2)), signs]
    }

    fn dequantize(block: &[u8], out: &mut [f32]) {
        let d = f16::first(block);
        for (i, out) in out.chunks_exact_mut(8).enumerate() {
            let high = block[66 + i / 4] >> (2 * (i % 4)) & 3;
            let code = usize::from(block[2 + i]) | usize::from(high) << 8;
            let scale = block[74 + i / 4] >> (4 * (i / 2 % 2)) & 15;
            let scale = d * (0.5 + f32::from(scale)) * 0.25;
            codebooks::write(scale, &IQ2_S[code].to_le_bytes(), block[34 + i], out);
        }
    }
}
