//! How much of a cache goes together.

/// Positions in a chunk. The cache grows by a chunk in every layer, and
/// attention goes through it chunk by chunk.
pub(crate) const CHUNK: usize = 64;

/// Columns of a panel: what the kernel of attention keeps in two vectors.
pub(super) const PANEL: usize = 8;

/// Where column `i` of a panel `width` wide is among the numbers of a row, if these are
/// of 16 bits or less: 0, 4, 1, 5 and so on, so that the halves of four words are
/// columns that follow one another.
#[inline(always)]
pub(super) fn place(i: usize, width: usize) -> usize {
    if width == PANEL { i % 4 * 2 + i / 4 } else { i }
}
