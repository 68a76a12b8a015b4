//! How rows may lie, as a format sees it.

use super::shape::ROWS;
use crate::simd::V;

/// Blocks of four rows, as they lie in memory.
pub(super) trait FourRows: Copy {
    /// Whether each row lies by itself, one behind the other, and not among the others.
    const ARE_APART: bool;

    /// A quarter of what is read of the blocks.
    type Quarter: Block;

    /// The blocks that lie `offset` bytes behind these in each row.
    ///
    /// # Safety
    /// They must lie in the rows.
    unsafe fn behind(self, offset: usize) -> Self;

    /// The u32 at `offset` of each block.
    ///
    /// # Safety
    /// They must lie in the blocks.
    unsafe fn words(self, offset: usize) -> V;

    /// The u16 at `offset` of each block, as u32.
    ///
    /// # Safety
    /// They must lie in the blocks.
    unsafe fn halves(self, offset: usize) -> V;

    /// The byte at `offset` of each block, as u32.
    ///
    /// # Safety
    /// They must lie in the blocks.
    unsafe fn octets(self, offset: usize) -> V;

    /// Where each block of so many bytes lies, if blocks lie whole.
    fn whole(self, bytes: usize) -> [*const u8; ROWS];

    /// Quarter `i` of what is read of each block, of every 16 or 8 bytes: a row in each
    /// lane. All four should be read of the same bytes before anything is written: where
    /// the rows lie apart, that reads them once.
    fn quarter(self, i: usize) -> Self::Quarter;
}

/// One row's block, or a quarter of what is read of four.
pub(super) trait Block: Copy {
    /// 16 bytes: those from `offset`, or four from there of each of four rows.
    ///
    /// # Safety
    /// They must lie in the block.
    unsafe fn bytes(self, offset: usize) -> V;

    /// Eight signed bytes, widened to i16: those from `offset`, or two from there of
    /// each of four rows.
    ///
    /// # Safety
    /// They must lie in the block.
    unsafe fn wide_bytes(self, offset: usize) -> V;

    /// As many bits of the u32 at `offset` as there are [`bytes`](Self::bytes), from
    /// bit `16 * i`, as 0x10 or 0 in a byte each.
    ///
    /// # Safety
    /// The u32 must lie in the block.
    unsafe fn fifth_bits(self, offset: usize, i: usize) -> V;
}
