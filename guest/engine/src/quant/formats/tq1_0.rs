//! TQ1_0: -1, 0 and 1 in 1.6 bits, in blocks of 256 with one scale.

use crate::quant::f16;
use crate::quant::looked_up::{Codes, LookedUp};
use crate::quant::raw::RawBlock;
use crate::simd::V;

pub(in crate::quant) type Tq1_0 = Codes<Tq1_0Digits>;

/// 32 bytes of five digits, 16 bytes of five, 4 bytes of four, and an f16. A byte is a
/// fraction of 256, whose first five digits to the base of 3 are numbers, larger by 1;
/// those of a byte lie as many columns apart as there are bytes.
pub(in crate::quant) struct Tq1_0Digits;

/// The largest fractions whose first digits are 0 and 1.
const LARGEST: [u8; 2] = [85, 170];

/// What fractions become without their first digit.
#[inline(always)]
fn rest(fractions: V) -> V {
    fractions.add_u8(fractions).add_u8(fractions)
}

/// The first digits of fractions.
#[inline(always)]
fn first_digits(fractions: V) -> V {
    // Numbers with signs are compared; the greater ones get -1.
    let sign = V::splat_u8(0x80);
    let above = |n: u8| fractions.xor(sign).gt_i8(V::splat_u8(n ^ 0x80));
    V::splat_u8(0).sub_u8(above(LARGEST[0]).add_u8(above(LARGEST[1])))
}

impl LookedUp for Tq1_0Digits {
    const BYTES: usize = 54;
    const SUB_BLOCK: usize = 32;
    const LARGEST: usize = 2;
    const OFFSET: i32 = 1;

    #[inline(always)]
    unsafe fn d(block: RawBlock) -> u16 {
        // SAFETY: the caller vouches for the block, which ends with it.
        unsafe { block.half(52) }
    }

    #[inline(always)]
    unsafe fn scales(_block: RawBlock) -> [V; 2] {
        [V::splat_i32(0x0001_0001); 2]
    }

    #[inline(always)]
    unsafe fn numbers(block: RawBlock, i: usize) -> [V; 2] {
        let (at, n) = match i {
            0..10 => (16 * (i % 2), i / 2),
            _ => (32, i - 10),
        };
        let fractions = if i < 15 {
            // SAFETY: the caller vouches for the block, which begins with 48 bytes.
            let fractions = unsafe { V::load(block.0.add(at)) };
            (0..n).fold(fractions, |fractions, _| rest(fractions))
        } else {
            // SAFETY: as above; four bytes stand behind them.
            let fractions = unsafe { V::load_splat_32(block.0.add(48)) };
            let second = rest(fractions);
            let third = rest(second);
            // All lanes of each are the same.
            let (a, b) = (V::low_32(fractions, second), V::low_32(third, rest(third)));
            V::low_64(a, b)
        };
        [first_digits(fractions), V::splat_i32(0)]
    }

    fn dequantize(block: &[u8], out: &mut [f32]) {
        let d = f16::first(&block[52..]);
        for (i, out) in out.iter_mut().enumerate() {
            let (at, n) = match i {
                0..160 => (i % 32, i / 32),
                160..240 => (32 + i % 16, (i - 160) / 16),
                _ => (48 + i % 4, (i - 240) / 4),
            };
            let fraction = (0..n).fold(block[at], |fraction, _| fraction.wrapping_mul(3));
            *out = d * (f32::from(((u16::from(fraction) * 3) >> 8) as u8) - 1.0);
        }
    }
}
