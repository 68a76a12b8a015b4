//! IQ3_S: 3.44 bits a number, in blocks of 256.

use super::codebooks::{self, IQ3_S, odd};
use crate::quant::f16;
use crate::quant::looked_up::{Codes, LookedUp};
use crate::quant::raw::RawBlock;
use crate::simd::V;

pub(in crate::quant) type Iq3S = Codes<Iq3SCodes>;

/// An f16; the low 8 bits of 64 codes, their ninth ones, the signs of 256 numbers, and
/// eight scales of 4 bits. Magnitudes are odd, so `(15 + number) / 2` has 4 bits, and
/// that of the negative number is this with its bits exchanged.
pub(in crate::quant) struct Iq3SCodes;

impl LookedUp for Iq3SCodes {
    const BYTES: usize = 110;
    const SUB_BLOCK: usize = 32;
    const LARGEST: usize = 15;
    const FACTOR: i32 = 2;
    const OFFSET: i32 = 15;

    #[inline(always)]
    unsafe fn scales(block: RawBlock) -> [V; 2] {
        // SAFETY: the caller vouches for the block, which ends with the scales.
        let bytes = unsafe { block.word(106) }.to_le_bytes();
        let two = |i: usize| u64::from(bytes[i] & 15) | u64::from(bytes[i] >> 4) << 8;
        [odd(two(0) | two(1) << 16 | two(2) << 32 | two(3) << 48), V::splat_i32(0)]
    }

    #[inline(always)]
    unsafe fn numbers(block: RawBlock, i: usize) -> [V; 2] {
        // SAFETY: the caller vouches for the block.
        let (low, ninth, signs) = unsafe {
            let ninth = block.octet(66 + i / 2) >> (4 * (i % 2));
            (block.word(2 + 4 * i), usize::from(ninth), block.masks(74 + 2 * i))
        };
        let entry = |k: usize| IQ3_S[(low >> (8 * k) & 0xff) as usize | (ninth >> k & 1) << 8];
        let entries = V::from_i32x4([0, 1, 2, 3].map(|k| entry(k) as i32));
        [entries.xor(signs.and(V::splat_u8(15))), signs]
    }

    fn dequantize(block: &[u8], out: &mut [f32]) {
        let d = f16::first(block);
        for (i, out) in out.chunks_exact_mut(4).enumerate() {
            let ninth = block[66 + i / 8] >> (i % 8) & 1;
            let entry = IQ3_S[usize::from(block[2 + i]) | usize::from(ninth) << 8];
            let scale = block[106 + i / 16] >> (4 * (i / 8 % 2)) & 15;
            let magnitudes = entry.to_le_bytes().map(|half| 2 * half - 15);
            let signs = block[74 + i / 2] >> (4 * (i % 2));
            codebooks::write(d * f32::from(1 + 2 * scale), &magnitudes, signs, out);
        }
    }
}
