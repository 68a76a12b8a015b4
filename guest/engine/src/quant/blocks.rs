//! What the kernels need to know of a quantised format.

use super::activations::{ActivationBlock, BLOCK};
use super::gemm::{GROUPS, Products};
use super::narrow::Narrow;
use super::packed::PackedRows;
use super::raw::RawBlock;
use crate::simd::V;

/// A format whose rows are blocks of bytes. A block is made of like units, a
/// unit of sub-blocks, and a sub-block's numbers are `scale * q` times a factor
/// of the block, with whole numbers `q` and `scale`; the same is added to all,
/// or something to each sub-block's.
///
/// Four rows are taken together: vectors have a lane for each.
pub(super) trait Blocks: Quants {
    /// Bytes of a block.
    const BYTES: usize;
    /// Units in a block.
    const UNITS: usize = 1;
    /// Sub-blocks in a unit: at most 8. They are whole blocks of activations.
    const SUB_BLOCKS: usize = 1;
    const N_SUB_BLOCKS: usize = Self::UNITS * Self::SUB_BLOCKS;
    /// Numbers in a block. As many activations share a scale.
    const LEN: usize = Self::N_SUB_BLOCKS * Self::SUB_BLOCK;
    /// Whether sub-blocks have scales; else these are 1.
    const IS_SCALED: bool = Self::N_SUB_BLOCKS > 1;
    /// Pairs of activations' sums that [`sum_weights`](Self::sum_weights) has
    /// something for: at most 8. Without, there is but the sum of the block.
    const SUM_PAIRS: usize = 0;
    /// Whether there are two factors.
    const MIN: bool = false;
    /// Whether the second one is the minimum of all: it is multiplied with the sum
    /// of the activations then, apart from the rest.
    const IS_MIN_COMMON: bool = Self::MIN && Self::SUM_PAIRS == 0;

    /// Where in a block there is what [`header`](Self::header) reads: one u32; or
    /// four, and behind them perhaps an f16.
    const HEADER: usize = 0;

    /// What the sub-blocks of four rows' blocks share.
    type Header: Copy;

    /// Reads the headers of four rows' blocks.
    ///
    /// # Safety
    /// The rows must hold whole blocks.
    unsafe fn header(rows: impl Headers) -> Self::Header;

    /// The factors of the block, as f32.
    fn factors(header: Self::Header) -> [V; 2];

    /// The scales of sub-block `i` of the block, each twice, as i16.
    fn scale_pairs(_header: Self::Header, _i: usize) -> V {
        V::splat_i32(0x0001_0001)
    }

    /// What pair `p` of the activations' sums is multiplied with, as i16.
    fn sum_weights(_header: Self::Header, _p: usize) -> V {
        V::splat_i32(0)
    }

    /// Pair `p` of the sums of a block's activations.
    fn sum_pair(_x: &[ActivationBlock], _p: usize) -> [i16; 2] {
        [0; 2]
    }

    /// What a block adds to a row, but for the activations' scale: from its
    /// factors, the products times their scales, and the activations' sums times
    /// their weights. A common minimum is no part of it.
    fn total(factors: [V; 2], products: V, sums: V) -> V;
}

/// The whole numbers of a format.
pub(super) trait Quants {
    /// Numbers in a sub-block: 32 or 16.
    const SUB_BLOCK: usize = BLOCK;
    /// Bytes that an unpacked number takes.
    const UNPACKED: usize;

    /// The products of sub-block `i` of a unit of one row's block with the
    /// activations that belong to the unit, partly summed.
    ///
    /// # Safety
    /// The block must be whole, and `x` the numbers of a unit.
    unsafe fn partial(block: RawBlock, unit: usize, i: usize, x: *const ActivationBlock) -> V;

    /// The sums of four partial ones times their rows' scales, as i32.
    fn sums(partials: [V; 4], scale_pairs: V) -> V;

    /// Steps through a unit of packed rows that may be done together.
    const PACKED_STEPS: usize;

    /// The products of a unit of packed rows' blocks with the activations that
    /// belong to the unit, times the scales, as i32. `n_steps` must be
    /// `PACKED_STEPS`.
    ///
    /// # Safety
    /// The rows must hold whole blocks, and `x` the numbers of a unit.
    unsafe fn dots<B: Blocks, const N: usize>(
        rows: [PackedRows<N>; N],
        headers: [B::Header; N],
        unit: usize,
        x: *const ActivationBlock,
        n_steps: usize,
    ) -> [V; N];

    /// Unpacks the numbers of sub-block `i` of a unit of four rows' blocks:
    /// `put(step, numbers)` gets 16 bytes at a time, four bytes of each row.
    ///
    /// # Safety
    /// The rows must hold whole blocks.
    unsafe fn unpack(rows: impl FourRows, unit: usize, i: usize, put: impl FnMut(usize, V));

    /// Steps through a tile, 16 bytes of each group, before sums must be
    /// widened.
    const STEPS: usize;

    /// Adds the products of an unpacked sub-block of a tile with that of a
    /// panel, times the scales. `n_steps` must be `STEPS`.
    ///
    /// # Safety
    /// The pointers must be to whole sub-blocks.
    unsafe fn dots_unpacked(
        rows: *const u8,
        x: *const u8,
        scale_pairs: [V; GROUPS],
        n_steps: usize,
        products: &mut Products,
    );
}

/// The headers of four rows' blocks.
pub(super) trait Headers: Copy {
    /// Those of the blocks that lie `offset` bytes behind these in each row.
    ///
    /// # Safety
    /// They must lie in the rows.
    unsafe fn behind(self, offset: usize) -> Self;

    /// The u32 at `offset` of each block.
    ///
    /// # Safety
    /// They must lie in the blocks' headers.
    unsafe fn words(self, offset: usize) -> V;

    /// The f16 at `offset` of each block, as f32.
    ///
    /// # Safety
    /// They must lie in the blocks' headers.
    unsafe fn halves(self, offset: usize) -> V;
}

/// Blocks of four rows, as they lie in memory.
pub(super) trait FourRows: Headers {
    /// [`Quants::unpack`] of a format of few bits.
    ///
    /// # Safety
    /// As for that.
    unsafe fn unpack<Q: Narrow>(self, unit: usize, i: usize, put: impl FnMut(usize, V));

    /// Unpacks the 32 signed bytes at `offset` of each block, as i16.
    ///
    /// # Safety
    /// The bytes must lie in the blocks.
    unsafe fn unpack_bytes(self, offset: usize, put: impl FnMut(usize, V));
}

/// Part of a block, as [`Narrow::quants`] reads it.
pub(super) trait Block: Copy {
    /// 16 bytes: those from `offset`, or four from there of each of four rows.
    ///
    /// # Safety
    /// They must lie in the block.
    unsafe fn bytes(self, offset: usize) -> V;

    /// As many bits of the u32 at `offset`, from bit `16 * i`, as 0x10 or 0 in
    /// a byte each.
    ///
    /// # Safety
    /// The u32 must lie in the block.
    unsafe fn fifth_bits(self, offset: usize, i: usize) -> V;
}

/// The f16 in the low halves of the words, as f32. See `scalar::f16_bits`.
#[inline(always)]
pub(super) fn low_f16(words: V) -> V {
    high_f16(words.shl_i32(16))
}

/// The f16 in the high halves of the words, as f32.
#[inline(always)]
pub(super) fn high_f16(words: V) -> V {
    let wide = words.shr_i32(3).and(V::splat_i32(0x8fff_e000_u32 as i32));
    wide.mul_f32(V::splat_f32(f32::from_bits(0x7780_0000)))
}
