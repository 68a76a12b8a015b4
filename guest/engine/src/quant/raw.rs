//! Rows as a GGUF file has them, one after another.

use super::activations::ActivationBlock;
use super::blocks::{Block, FourRows, low_f16};
use super::narrow::{Narrow, products_max};
use super::scalar::u32_at;
use crate::simd::V;

/// The blocks of four rows.
#[derive(Clone, Copy)]
pub(super) struct RawRows(pub [*const u8; 4]);

impl FourRows for RawRows {
    #[inline(always)]
    unsafe fn behind(self, offset: usize) -> Self {
        // SAFETY: the caller vouches for the blocks there.
        Self(self.0.map(|p| unsafe { p.add(offset) }))
    }

    #[inline(always)]
    unsafe fn words(self, offset: usize) -> V {
        // SAFETY: the caller vouches for the words.
        V::from_i32x4(self.0.map(|p| unsafe { u32_at(p.add(offset)) } as i32))
    }

    #[inline(always)]
    unsafe fn halves(self, offset: usize) -> V {
        let half = |p: *const u8| {
            // SAFETY: the caller vouches for the two bytes.
            u16::from_le_bytes(unsafe { p.add(offset).cast::<[u8; 2]>().read() })
        };
        low_f16(V::from_i32x4(self.0.map(|p| i32::from(half(p)))))
    }

    #[inline(always)]
    unsafe fn dots<Q: Narrow>(self, unit: usize, i: usize, x: *const ActivationBlock) -> V {
        let pieces = Q::SUB_BLOCK / 16;
        let mut sums = [V::splat_i32(0); 4];
        for piece in i * pieces..(i + 1) * pieces {
            // SAFETY: the caller vouches for the unit's activations.
            let x = unsafe { (*x.add(piece / 2)).load_q8(piece % 2) };
            for (sums, row) in sums.iter_mut().zip(self.0) {
                // SAFETY: the caller vouches for the blocks.
                let q = unsafe { Q::quants(RawBlock(row), unit, piece) };
                *sums = sums.add_i16(V::dot_i8_u7(x, q));
            }
        }
        // A lane holds two products for each piece.
        if products_max(Q::BITS) / (2 * pieces) >= 4 {
            V::sums_i16::<4>(sums)
        } else {
            V::sums_i16::<2>(sums)
        }
    }

    #[inline(always)]
    unsafe fn unpack<Q: Narrow>(self, unit: usize, i: usize, mut put: impl FnMut(usize, V)) {
        let pieces = Q::SUB_BLOCK / 16;
        for piece in 0..pieces {
            // SAFETY: the caller vouches for the blocks.
            let q = self.0.map(|row| unsafe { Q::quants(RawBlock(row), unit, i * pieces + piece) });
            for (j, q) in V::transpose_32(q).into_iter().enumerate() {
                put(4 * piece + j, q);
            }
        }
    }

    #[inline(always)]
    unsafe fn dots_bytes(self, offset: usize, x: *const ActivationBlock) -> V {
        // SAFETY: the caller vouches for the activations, and for the bytes.
        unsafe {
            let x: [V; 4] = std::array::from_fn(|i| (*x).load_q16(i));
            V::sums_i32(self.0.map(|p| {
                let dot = |i: usize| V::load_i8x8(p.add(offset + 8 * i)).dot_i16(x[i]);
                dot(0).add_i32(dot(1)).add_i32(dot(2).add_i32(dot(3)))
            }))
        }
    }

    #[inline(always)]
    unsafe fn unpack_bytes(self, offset: usize, mut put: impl FnMut(usize, V)) {
        for i in 0..4 {
            // SAFETY: the caller vouches for the bytes.
            let q = self.0.map(|p| unsafe { V::load_i8x8(p.add(offset + 8 * i)) });
            for (j, q) in V::transpose_32(q).into_iter().enumerate() {
                put(4 * i + j, q);
            }
        }
    }
}

/// A block of one row.
#[derive(Clone, Copy)]
struct RawBlock(*const u8);

impl Block for RawBlock {
    #[inline(always)]
    unsafe fn bytes(self, offset: usize) -> V {
        // SAFETY: the caller vouches for the bytes.
        unsafe { V::load(self.0.add(offset)) }
    }

    #[inline(always)]
    unsafe fn fifth_bits(self, offset: usize, i: usize) -> V {
        // SAFETY: the caller vouches for the u32.
        let bits = unsafe { V::load_splat_32(self.0.add(offset)) };
        let select = V::from_u64(0x8040_2010_0804_0201, 0x8040_2010_0804_0201);
        bits.spread_u16(i).and(select).eq_u8(select).and(V::splat_u8(0x10))
    }
}
