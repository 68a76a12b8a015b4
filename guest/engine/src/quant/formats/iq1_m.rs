//! IQ1_M: 1.75 bits a number, in blocks of 256.

use super::codebooks::IQ1;
use crate::quant::f16;
use crate::quant::looked_up::{Codes, LookedUp};
use crate::quant::raw::RawBlock;
use crate::simd::V;

pub(in crate::quant) type Iq1M = Codes<Iq1MCodes>;

/// The low 8 bits of 32 codes; a nibble for each, of its high 3 bits and whether an eighth
/// is added to its numbers or taken off; and four words of four scales of 3 bits, whose
/// high nibbles are an f16. What numbers are in eighths, and 9 more, is what the codebook
/// has, or 2 more than that.
pub(in crate::quant) struct Iq1MCodes;

/// What is added to eight numbers of a codebook, from the nibble.
#[inline(always)]
fn added(nibble: u8) -> u64 {
    u64::from(!nibble >> 3 & 1) * 0x0202_0202_0202_0202
}

/// The f16 out of the words with the scales.
fn d(words: u64) -> u16 {
    let nibble = |i: u32| (words >> (16 * i + 12) & 15) << (4 * i);
    (nibble(0) | nibble(1) | nibble(2) | nibble(3)) as u16
}

impl LookedUp for Iq1MCodes {
    const BYTES: usize = 56;
    const SUB_BLOCK: usize = 16;
    const LARGEST: usize = 18;
    const UNIT: f32 = 0.125;
    const OFFSET: i32 = 9;

    #[inline(always)]
    unsafe fn d(block: RawBlock) -> u16 {
        // SAFETY: the caller vouches for the block, which ends with four words.
        d(unsafe { block.long(48) })
    }

    #[inline(always)]
    unsafe fn scales(block: RawBlock) -> [V; 2] {
        // SAFETY: as above.
        let words = unsafe { block.long(48) };
        // Each word twice, once for two scales from the lowest bits, once for two from
        // bit 6.
        let twice = V::from_u64(0x0302_0302_0100_0100, 0x0706_0706_0504_0504);
        let words = twice.lookup(V::from_u64(words, words));
        let first = words.and(V::splat_i32(0x3f));
        let both = first.or(words.shr_u16(6).and(V::splat_i32(0x3f << 16)));
        let seven = V::splat_i32(0x0007_0007);
        let odd = |v: V| v.and(seven).shl_u16(1).or(V::splat_i32(0x0001_0001));
        [odd(both), odd(both.shr_u16(3))]
    }

    #[inline(always)]
    unsafe fn numbers(block: RawBlock, i: usize) -> [V; 2] {
        // SAFETY: the caller vouches for the block.
        let (low, nibbles) = unsafe { (block.half(2 * i), block.octet(32 + i)) };
        let eight = |low: u16, nibble: u8| {
            let code = usize::from(low & 0xff) | usize::from(nibble & 7) << 8;
            IQ1[code] | added(nibble)
        };
        [V::from_u64(eight(low, nibbles), eight(low >> 8, nibbles >> 4)), V::splat_i32(0)]
    }

    fn dequantize(block: &[u8], out: &mut [f32]) {
        let words = u64::from_le_bytes(std::array::from_fn(|i| block[48 + i]));
        let d = f16::from_bits(d(words));
        for (i, out) in out.chunks_exact_mut(8).enumerate() {
            // Two bytes of codes share a scale; four scales stand in a word.
            let scale = words >> (16 * (i / 8) + 3 * (i / 2 % 4)) & 7;
            let scale = d * (2 * scale + 1) as f32;
            let nibble = block[32 + i / 2] >> (4 * (i % 2)) & 15;
            let delta = if nibble >> 3 == 1 { -0.125 } else { 0.125 };
            let entry = IQ1[usize::from(block[i]) | usize::from(nibble & 7) << 8].to_le_bytes();
            for (out, q) in out.iter_mut().zip(entry) {
                *out = scale * (f32::from(q) / 8.0 - 1.0 + delta);
            }
        }
    }
}
