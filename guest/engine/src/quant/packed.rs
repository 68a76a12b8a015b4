//! Four or eight rows interleaved, as `moewe pack` writes them.
//!
//! A block of four rows takes the place of four blocks of one row each: the
//! same bytes in another order, so that one load brings something of each row
//! and no sums across lanes are left. Of eight rows, each piece of the first
//! four stands before that of the others.

use super::blocks::{Block, FourRows, Headers};
use super::narrow::Narrow;
use super::{Encoding, Format};
use crate::gguf::TensorType;
use crate::simd::V;

/// Rows that the kernels take together: a lane for each. One or two times as
/// many are interleaved.
pub(super) const ROWS: usize = 4;

/// How a block is cut for interleaving: runs of bytes, and the size of the
/// pieces that alternate between the rows in each. Empty for what is not
/// packed.
fn interleaving(encoding: Encoding) -> &'static [(usize, usize)] {
    match encoding {
        Encoding::F32 | Encoding::F16 | Encoding::Bf16 => &[],
        Encoding::Q4_0 => &[(2, 2), (16, 4)],
        Encoding::Q4_1 => &[(20, 4)],
        Encoding::Q5_0 => &[(2, 2), (20, 4)],
        Encoding::Q5_1 => &[(24, 4)],
        Encoding::Q8_0 => &[(34, 2)],
        Encoding::Q4K => &[(144, 4)],
        Encoding::Q5K => &[(176, 4)],
        Encoding::Q6K => &[(208, 4), (2, 2)],
    }
}

/// Interleaves rows of a matrix into `out`, which gets the type `ty` and has
/// their size: rows of `row_bytes` bytes, whole groups of them.
///
/// # Panics
///
/// If the type is not one of interleaved rows, or a size is wrong.
pub fn pack(ty: TensorType, row_bytes: usize, rows: &[u8], out: &mut [u8]) {
    let format = Format::from_type(ty).filter(|format| format.group_rows() > 1);
    let format = format.expect("a type of interleaved rows");
    let group_rows = format.group_rows();
    let (_, block_bytes) = format.block();
    assert!(row_bytes.is_multiple_of(block_bytes) && rows.len() == out.len());
    assert!(rows.len().is_multiple_of(group_rows * row_bytes));
    let groups =
        rows.chunks_exact(group_rows * row_bytes).zip(out.chunks_exact_mut(group_rows * row_bytes));
    for (rows, out) in groups {
        let mut to = 0;
        for block in (0..row_bytes).step_by(block_bytes) {
            let mut at = block;
            for &(len, piece) in interleaving(format.encoding) {
                for at in (at..at + len).step_by(piece) {
                    for row in 0..group_rows {
                        let from = &rows[row * row_bytes + at..][..piece];
                        out[to..to + piece].copy_from_slice(from);
                        to += piece;
                    }
                }
                at += len;
            }
        }
    }
}

/// Takes row `row` out of a group of interleaved ones into `out`.
pub(super) fn unpack_row(format: Format, group: &[u8], row: usize, out: &mut [u8]) {
    let (_, block_bytes) = format.block();
    let rows = format.group_rows();
    assert!(rows > 1 && row < rows && group.len() == rows * out.len());
    for (group, out) in
        group.chunks_exact(rows * block_bytes).zip(out.chunks_exact_mut(block_bytes))
    {
        let mut at = 0;
        for &(len, piece) in interleaving(format.encoding) {
            for at in (at..at + len).step_by(piece) {
                out[at..at + piece].copy_from_slice(&group[rows * at + row * piece..][..piece]);
            }
            at += len;
        }
    }
}

/// The blocks of four rows, group `.1` of the `N` that are interleaved.
#[derive(Clone, Copy)]
pub(super) struct PackedRows<const N: usize>(pub *const u8, pub usize);

impl<const N: usize> Headers for PackedRows<N> {
    #[inline(always)]
    unsafe fn behind(self, offset: usize) -> Self {
        // SAFETY: the caller vouches for the blocks there.
        Self(unsafe { self.0.add(4 * N * offset) }, self.1)
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
}

impl<const N: usize> FourRows for PackedRows<N> {
    #[inline(always)]
    unsafe fn unpack<Q: Narrow>(self, unit: usize, i: usize, mut put: impl FnMut(usize, V)) {
        let pieces = Q::SUB_BLOCK / 16;
        for piece in 0..pieces {
            for c in 0..4 {
                // SAFETY: the caller vouches for the blocks.
                put(4 * piece + c, unsafe { Q::quants(self.piece(c), unit, i * pieces + piece) });
            }
        }
    }

    #[inline(always)]
    unsafe fn unpack_bytes(self, offset: usize, mut put: impl FnMut(usize, V)) {
        for i in 0..16 {
            // SAFETY: the caller vouches for the bytes.
            put(i, unsafe { self.wide_bytes(offset, i) });
        }
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
        unsafe { self.0.add(4 * N * offset).add(4 * PIECE * self.1) }
    }

    /// Four bytes of each block, of what is read of it.
    #[inline(always)]
    pub fn piece(self, c: usize) -> PackedBlock<N> {
        PackedBlock(self, c)
    }

    /// Two of the signed bytes from `offset` of each block, number `2 * i` on,
    /// as i16.
    ///
    /// # Safety
    /// The bytes must lie in the blocks.
    #[inline(always)]
    pub unsafe fn wide_bytes(self, offset: usize, i: usize) -> V {
        // SAFETY: the caller vouches for the bytes.
        unsafe { V::load_i8x8(self.at::<2>(offset + 2 * i)) }
    }
}

/// Piece `.1` of what is read of a block: four bytes of each row.
#[derive(Clone, Copy)]
pub(super) struct PackedBlock<const N: usize>(PackedRows<N>, usize);

impl<const N: usize> Block for PackedBlock<N> {
    #[inline(always)]
    unsafe fn bytes(self, offset: usize) -> V {
        // SAFETY: the caller vouches for the bytes.
        unsafe { self.0.words(offset + 4 * self.1) }
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
