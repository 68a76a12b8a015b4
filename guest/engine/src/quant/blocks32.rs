//! The formats of 4 and 5 bits with blocks of 32: Q4_0, Q4_1, Q5_0, Q5_1.

use super::blocks::{Block, Blocks, Headers, high_f16, low_f16};
use super::narrow::Narrow;
use crate::simd::V;

/// The low (`i` is 0) or the high (1) nibbles of 16 bytes.
#[inline(always)]
pub(super) fn nibbles(v: V, i: usize) -> V {
    v.shr_u16(4 * i as u32).and(V::splat_u8(0x0f))
}

/// 4 bits a number; 5 if `FIVE`, where a u32 of fifth bits stands before the
/// nibbles. With `MIN` each block brings its minimum.
pub(super) struct Nibbles<const MIN: bool, const FIVE: bool>;

impl<const MIN: bool, const FIVE: bool> Nibbles<MIN, FIVE> {
    const HEADER: usize = if MIN { 4 } else { 2 };
    const QUANTS: usize = Self::HEADER + if FIVE { 4 } else { 0 };
}

impl<const MIN: bool, const FIVE: bool> Blocks for Nibbles<MIN, FIVE> {
    const BYTES: usize = Self::QUANTS + 16;
    const MIN: bool = MIN;

    type Scales = ();

    #[inline(always)]
    fn factors(words: V) -> [V; 2] {
        [low_f16(words), if MIN { high_f16(words) } else { V::splat_f32(0.0) }]
    }

    #[inline(always)]
    unsafe fn scales(_rows: impl Headers) {}

    #[inline(always)]
    fn total([scale, _]: [V; 2], products: V, sums: V) -> V {
        if MIN {
            return products.to_f32x4().mul_f32(scale);
        }
        // What is stored is larger by 8 or 16.
        let offset = sums.shl_i32(if FIVE { 4 } else { 3 });
        products.sub_i32(offset).to_f32x4().mul_f32(scale)
    }
}

impl<const MIN: bool, const FIVE: bool> Narrow for Nibbles<MIN, FIVE> {
    const BITS: u32 = if FIVE { 5 } else { 4 };
    const HIGH: usize = 1;

    #[inline(always)]
    unsafe fn quants(block: impl Block, _unit: usize, i: usize) -> V {
        // SAFETY: 16 bytes of nibbles end the block, fifth bits stand before
        // them.
        unsafe {
            let q = nibbles(block.bytes(Self::QUANTS), i);
            if FIVE { q.or(block.fifth_bits(Self::HEADER, i)) } else { q }
        }
    }
}
