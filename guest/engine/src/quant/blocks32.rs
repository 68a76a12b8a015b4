//! Kernels of the formats with blocks of 32: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.

use super::activations::Vector;
use super::rows::Kernel;
use super::scalar::{f16_at, u32_at};
use crate::simd::V;

/// The 16 low and the 16 high nibbles of 16 bytes.
#[inline(always)]
pub(super) fn nibbles(v: V) -> (V, V) {
    let mask = V::splat_u8(0x0f);
    (v.and(mask), v.shr_u16::<4>().and(mask))
}

/// Bits 0 to 15 of `bits` as 0x10 or 0 in 16 bytes.
#[inline(always)]
fn fifth_bits(bits: u32) -> V {
    const SPREAD: u64 = 0x0101_0101_0101_0101;
    let select = V::from_u64(0x8040_2010_0804_0201, 0x8040_2010_0804_0201);
    let bytes = V::from_u64(u64::from(bits & 0xff) * SPREAD, u64::from(bits >> 8 & 0xff) * SPREAD);
    bytes.and(select).eq_u8(select).and(V::splat_u8(0x10))
}

/// A format of 4 or 5 bits a number: `OFFSET` is what the stored numbers are
/// shifted by, unless `MIN` says that each block brings its own minimum;
/// `FIVE` says whether a u32 of fifth bits stands before the nibbles.
pub(super) struct Nibbles<const MIN: bool, const FIVE: bool>;

impl<const MIN: bool, const FIVE: bool> Kernel for Nibbles<MIN, FIVE> {
    const ROWS: usize = 4;

    #[inline(always)]
    unsafe fn dot<const R: usize>(rows: [*const u8; R], x: Vector, cols: usize) -> [f32; R] {
        let quants = 2 + if MIN { 2 } else { 0 } + if FIVE { 4 } else { 0 };
        let offset = if FIVE { -16.0 } else { -8.0 };
        let mut acc = [V::splat_f32(0.0); R];
        let mut mins = [0.0; R];
        for b in 0..cols / 32 {
            // SAFETY: the caller vouches for `cols` numbers in `x` and in
            // each row; block `b` is one of them.
            unsafe {
                let x_low = V::load(x.q8.add(b * 32));
                let x_high = V::load(x.q8.add(b * 32 + 16));
                let dx = *x.d.add(b);
                let sum = *x.sum32.add(b);
                for r in 0..R {
                    let block = rows[r].add(b * (quants + 16));
                    let (mut low, mut high) = nibbles(V::load(block.add(quants)));
                    if FIVE {
                        let bits = u32_at(block.add(quants - 4));
                        low = low.or(fifth_bits(bits));
                        high = high.or(fifth_bits(bits >> 16));
                    }
                    let dot = V::dot_i8_u7(x_low, low, V::splat_i32(0));
                    let dot = V::dot_i8_u7(x_high, high, dot);
                    let d = f16_at(block);
                    acc[r] = acc[r].madd_f32(dot.to_f32x4(), V::splat_f32(d * dx));
                    mins[r] += sum * if MIN { f16_at(block.add(2)) } else { d * offset };
                }
            }
        }
        std::array::from_fn(|r| acc[r].sum_f32() + mins[r])
    }
}

/// Q8_0: signed bytes, so both sides are widened to 16 bits.
pub(super) struct Bytes;

impl Kernel for Bytes {
    const ROWS: usize = 4;

    #[inline(always)]
    unsafe fn dot<const R: usize>(rows: [*const u8; R], x: Vector, cols: usize) -> [f32; R] {
        let mut acc = [V::splat_f32(0.0); R];
        for b in 0..cols / 32 {
            // SAFETY: the caller vouches for `cols` numbers in `x` and in
            // each row; block `b` is one of them.
            unsafe {
                let xs: [V; 4] = std::array::from_fn(|i| V::load(x.q16.add(b * 64 + i * 16)));
                let dx = *x.d.add(b);
                for r in 0..R {
                    let block = rows[r].add(b * 34);
                    let part = |i: usize| V::load_i8x8(block.add(2 + i * 8)).dot_i16(xs[i]);
                    let dot = part(0).add_i32(part(1)).add_i32(part(2).add_i32(part(3)));
                    let d = f16_at(block) * dx;
                    acc[r] = acc[r].madd_f32(dot.to_f32x4(), V::splat_f32(d));
                }
            }
        }
        std::array::from_fn(|r| acc[r].sum_f32())
    }
}
