//! The codebooks of the IQ formats, and what their codes have in common.
//!
//! A code stands for eight numbers, or four, out of a few different ones. The files have a
//! u16 for each code, of 2 bits for each of eight numbers, or 3 for each of four: which of
//! the different ones it is, the first in the lowest bits. They are part of the formats'
//! definition, as ggml has it.

use crate::simd::V;

/// The magnitudes that IQ2_XXS, IQ2_XS and IQ2_S have.
const IQ2: [u8; 4] = [8, 25, 43, 0];

pub(super) static IQ2_XXS: [u64; 256] = eights(include_bytes!("codebooks/iq2_xxs.bin"), IQ2);
pub(super) static IQ2_XS: [u64; 512] = eights(include_bytes!("codebooks/iq2_xs.bin"), IQ2);
pub(super) static IQ2_S: [u64; 1024] = eights(include_bytes!("codebooks/iq2_s.bin"), IQ2);

/// Magnitudes.
pub(super) static IQ3_XXS: [u32; 256] =
    fours(include_bytes!("codebooks/iq3_xxs.bin"), [4, 12, 20, 28, 36, 44, 52, 62]);

/// `(15 + m) / 2` of the odd magnitudes `m`.
pub(super) static IQ3_S: [u32; 512] =
    fours(include_bytes!("codebooks/iq3_s.bin"), [8, 9, 10, 11, 12, 13, 14, 15]);

/// `8 * (n + 1)` of the numbers `n`, which are -1, 0 and 1.
pub(super) static IQ1: [u64; 2048] = eights(include_bytes!("codebooks/iq1.bin"), [0, 8, 16, 0]);

/// 0xff where a number is negative, for codes of the first seven of eight signs: an even
/// number of the eight are negative.
static SIGNS: [u64; 128] = {
    let mut signs = [0; 128];
    let mut i = 0;
    while i < signs.len() {
        let bits = i as u32 | (((i as u32).count_ones() % 2) << 7);
        let mut j = 0;
        while j < 8 {
            signs[i] |= (((bits as u64 >> j) & 1) * 0xff) << (8 * j);
            j += 1;
        }
        i += 1;
    }
    signs
};

/// The signs of sixteen numbers, from seven bits of each word.
#[inline(always)]
pub(super) fn signs(codes: [u32; 2]) -> V {
    let [low, high] = codes.map(|code| SIGNS[code as usize & 127]);
    V::from_u64(low, high)
}

/// Entries of eight numbers, a byte each.
const fn eights<const N: usize>(codes: &[u8], numbers: [u8; 4]) -> [u64; N] {
    assert!(codes.len() == 2 * N);
    let mut entries = [0; N];
    let mut i = 0;
    while i < N {
        let code = codes[2 * i] as usize | (codes[2 * i + 1] as usize) << 8;
        let mut j = 0;
        while j < 8 {
            entries[i] |= (numbers[code >> (2 * j) & 3] as u64) << (8 * j);
            j += 1;
        }
        i += 1;
    }
    entries
}

/// Entries of four numbers, a byte each.
const fn fours<const N: usize>(codes: &[u8], numbers: [u8; 8]) -> [u32; N] {
    assert!(codes.len() == 2 * N);
    let mut entries = [0; N];
    let mut i = 0;
    while i < N {
        let code = codes[2 * i] as usize | (codes[2 * i + 1] as usize) << 8;
        let mut j = 0;
        while j < 4 {
            entries[i] |= (numbers[code >> (3 * j) & 7] as u32) << (8 * j);
            j += 1;
        }
        i += 1;
    }
    entries
}

/// Twice each of eight numbers of 4 bits, in a byte each, and 1 more: as i16.
#[inline(always)]
pub(super) fn odd(nibbles: u64) -> V {
    V::widen_u8(nibbles << 1 | 0x0101_0101_0101_0101)
}

/// [`odd`] ones of the low and of the high nibbles of eight bytes.
#[inline(always)]
pub(super) fn odd_nibbles(bytes: u64) -> [V; 2] {
    const FOUR: u64 = 0x0f0f_0f0f_0f0f_0f0f;
    [odd(bytes & FOUR), odd(bytes >> 4 & FOUR)]
}

/// Writes numbers as floats, from their magnitudes and a bit for each sign.
pub(super) fn write(scale: f32, magnitudes: &[u8], signs: u8, out: &mut [f32]) {
    for (i, (out, &q)) in out.iter_mut().zip(magnitudes).enumerate() {
        let sign = if signs >> i & 1 == 1 { -1.0 } else { 1.0 };
        *out = scale * f32::from(q) * sign;
    }
}

/// All eight signs, of which there are codes for seven.
pub(super) fn eight_signs(code: u32) -> u8 {
    let code = (code & 127) as u8;
    code | ((code.count_ones() % 2) as u8) << 7
}
