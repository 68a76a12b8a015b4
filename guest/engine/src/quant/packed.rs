//! Four or eight rows interleaved, as [`pack`](crate::pack) writes them.
//!
//! A block of four rows takes the place of four blocks of one row each: the
//! same bytes in another order, so that one load brings something of each row
//! and no sums across lanes are left. Of eight rows, each piece of the first
//! four stands before that of the others. Where numbers are looked up, a row at a
//! time, a piece is a whole block.

use super::rows::{Block, FourRows};
use super::shape::ROWS;
use crate::simd::V;

/// The blocks of four rows, group `.1` of the `N` that are interleaved.
#[derive(Clone, Copy)]
pub(super) struct PackedRows<const N: usize>(pub *const u8, pub usize);

impl<const N: usize> FourRows for PackedRows<N> {
    const ARE_APART: bool = false;

    type Quarter = PackedBlock<N>;

    #[inline(always)]
    unsafe fn behind(self, offset: usize) -> Self {
        // SAFETY: the caller vouches for the blocks there.
        Self(unsafe { self.0.add(ROWS * N * offset) }, self.1)
    }

    #[inline(always)]
    unsafe fn words(self, offset: usize) -> V {
        // SAFETY: the caller vouches for the words.
        unsafe { V::load(self.at::<4>(offset)) }
    }

    #[inline(always)]
    unsafe fn halves(self, offset: usize) -> V {
        // SAFETY: the caller vouches for the numbers.
        unsafe { V::load_u16x4(self.at::<2>(offset)) }
    }

    #[inline(always)]
    unsafe fn octets(self, offset: usize) -> V {
        // SAFETY: the caller vouches for the bytes.
        unsafe { V::load_u8x4(self.at::<1>(offset)) }
    }

    #[inline(always)]
    fn whole(self, bytes: usize) -> [*const u8; ROWS] {
        std::array::from_fn(|r| self.0.wrapping_add((ROWS * self.1 + r) * bytes))
    }

    #[inline(always)]
    fn quarter(self, i: usize) -> PackedBlock<N> {
        PackedBlock(self, i)
    }
}

impl<const N: usize> PackedRows<N> {
    /// Where the group's pieces of so many bytes lie that are at `offset` of
    /// each block.
    ///
    /// # Safety
    /// They must lie in the blocks.
    #[inline(always)]
    unsafe fn at<const PIECE: usize>(self, offset: usize) -> *const u8 {
        // Added one by one, they become part of the load; their sum might overflow,
        // for all that the compiler knows.
        // SAFETY: the caller vouches for the bytes.
        unsafe { self.0.add(ROWS * N * offset).add(ROWS * PIECE * self.1) }
    }
}

/// Quarter `.1` of what is read of four rows' blocks: four or two bytes of each.
#[derive(Clone, Copy)]
pub(super) struct PackedBlock<const N: usize>(PackedRows<N>, usize);

impl<const N: usize> Block for PackedBlock<N> {
    #[inline(always)]
    unsafe fn bytes(self, offset: usize) -> V {
        // SAFETY: the caller vouches for the bytes.
        unsafe { self.0.words(offset + 4 * self.1) }
    }

    #[inline(always)]
    unsafe fn wide_bytes(self, offset: usize) -> V {
        // SAFETY: the caller vouches for the bytes.
        unsafe { V::load_i8x8(self.0.at::<2>(offset + 2 * self.1)) }
    }

    #[inline(always)]
    unsafe fn fifth_bits(self, offset: usize, i: usize) -> V {
        // SAFETY: the caller vouches for the words.
        let bits = unsafe { self.0.words(offset) };
        let bits = bits.shr_u32((16 * i + 4 * self.1) as u32);
        // Bit n of four goes to bit 4 of byte n.
        let bit = |n: u32| bits.shl_i32(4 + 7 * n).and(V::splat_i32(0x10 << (8 * n)));
        bit(0).or(bit(1)).or(bit(2)).or(bit(3))
    }
}
