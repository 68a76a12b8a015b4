//! MXFP4: floats of 4 bits (E2M1), in blocks of 32 that share a power of two (E8M0).

use crate::quant::activations::ActivationBlock;
use crate::quant::blocks::Blocks;
use crate::quant::narrow::{Narrow, nibbles, partial, sums};
use crate::quant::raw::RawBlock;
use crate::quant::rows::{Block, FourRows};
use crate::simd::V;

/// One byte of exponent, and 16 of nibbles.
pub(in crate::quant) struct MxFp4;

/// Twice the floats of 4 bits, which makes them whole.
pub(super) const NUMBERS: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// The largest one.
pub(super) const LARGEST: i8 = 12;

/// The numbers, larger by the largest one, of nibbles.
#[inline(always)]
pub(super) fn not_negative(nibbles: V) -> V {
    const NUMBERS_FROM_0: u128 = {
        let (mut all, mut i) = (0, 0);
        while i < 16 {
            all |= ((NUMBERS[i] + LARGEST) as u128) << (8 * i);
            i += 1;
        }
        all
    };
    nibbles.lookup(V::from_u64(NUMBERS_FROM_0 as u64, (NUMBERS_FROM_0 >> 64) as u64))
}

/// 2^(e - 128) of words `e` of one byte: half of what the exponent says, since numbers are
/// twice what they stand for.
#[inline(always)]
fn half_powers(e: V) -> V {
    // The product of two powers, so that those too small to be normal come out right.
    let half = e.shr_u32(1);
    let power = |e: V, bias: i32| e.add_i32(V::splat_i32(bias)).shl_i32(23);
    power(half, 64).mul_f32(power(e.sub_i32(half), 62))
}

impl Blocks for MxFp4 {
    const BYTES: usize = 17;
    const INTERLEAVING: &'static [(usize, usize)] = &[(1, 1), (16, 4)];

    #[inline(always)]
    fn factors(words: V) -> [V; 2] {
        [half_powers(words.and(V::splat_i32(0xff))), V::splat_f32(0.0)]
    }

    #[inline(always)]
    unsafe fn read_factors(rows: impl FourRows) -> [V; 2] {
        // SAFETY: the caller vouches for the blocks, which begin with the exponent.
        Self::factors(unsafe { rows.octets(0) })
    }

    type Scales = ();

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
        // Twelve times what numbers are larger by.
        let offset = sums.shl_i32(3).add_i32(sums.shl_i32(2));
        products.sub_i32(offset).to_f32x4().mul_f32(scale)
    }

    fn dequantize(block: &[u8], out: &mut [f32]) {
        let bits = match block[0] {
            // Too small to be normal.
            e @ 0..2 => 0x0020_0000 << e,
            e => (u32::from(e) - 1) << 23,
        };
        let scale = f32::from_bits(bits);
        for (i, out) in out.iter_mut().enumerate() {
            let q = block[1 + i % 16] >> (4 * (i / 16)) & 15;
            *out = scale * f32::from(NUMBERS[usize::from(q)]);
        }
    }
}

impl Narrow for MxFp4 {
    const BITS: u32 = 5;
    const HIGH: usize = 1;

    #[inline(always)]
    unsafe fn quants(block: impl Block, _unit: usize, i: usize) -> V {
        // SAFETY: 16 bytes of nibbles end the block.
        not_negative(nibbles(unsafe { block.bytes(1) }, i))
    }
}
