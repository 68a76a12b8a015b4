//! How rows may lie, as a format sees it.

use crate::simd::V;

/// Blocks of four rows, as they lie in memory.
pub(super) trait FourRows: Copy {
    /// One of four parts of what is read of the blocks: see [`read`](Self::read).
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

    /// Reads 16 or 8 bytes of each block: `read` gets parts, each a block or a quarter of
    /// those bytes of all blocks; `put(i, numbers)` gets quarter `i`, a row in each lane.
    fn read(self, read: impl Fn(Self::Part) -> V, put: impl FnMut(usize, V));
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
