//! How rows may lie, as a format sees it.

use super::shape::ROWS;
use crate::simd::V;

/// Blocks of four rows, as they lie in memory.
pub(super) trait FourRows: Copy {
    /// See [`parts`](Self::parts).
    type Part: Block;

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

    /// The four blocks; or of all, the first quarter of each 16 or 8 bytes that
    /// are read, the second, the third and the fourth.
    fn parts(self) -> [Self::Part; ROWS];

    /// What was read of the parts, a quarter of each row's in a vector, a row in
    /// each lane.
    fn in_lanes(parts: [V; ROWS]) -> [V; ROWS];
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
