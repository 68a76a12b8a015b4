//! What the kernels need to know of a quantised format.

use std::hint::black_box;

use super::activations::{ActivationBlock, BLOCK};
use super::packed::PackedRows;
use super::raw::RawBlock;
use super::rows::FourRows;
use super::scalar::{u16_at, u32_at};
use super::shape::{GROUPS, Products};
use crate::simd::{V, steps};

/// How often loops are done, in a way that the compiler cannot see; see
/// [`steps`].
#[derive(Clone, Copy)]
pub(super) struct Counts {
    pub units: usize,
    pub steps: usize,
}

impl Counts {
    pub fn of<B: Blocks>() -> Self {
        Self { units: black_box(B::UNITS), steps: black_box(B::PACKED_STEPS) }
    }
}

/// A format whose rows are blocks of bytes. A block is made of like units, a
/// unit of sub-blocks, and a sub-block's numbers are `scale * q` times a factor
/// of the block, with whole numbers `q` and `scale`; the same is added to all,
/// or something to each sub-block's.
///
/// Four rows are taken together: vectors have a lane for each.
pub(super) trait Blocks: Quants {
    /// Bytes of a block.
    const BYTES: usize;
    /// How a block is cut for interleaving: runs of bytes, and the size of the
    /// pieces that alternate between the rows in each.
    const INTERLEAVING: &'static [(usize, usize)];
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
    /// something for: 4 or 8. Without, there is but the sum of the block.
    const SUM_PAIRS: usize = 0;
    /// Which block of the activations has the first four pairs.
    const SUMS_AT: usize = 0;
    /// Whether there are two factors.
    const MIN: bool = false;
    /// Whether the second one is the minimum of all: it is multiplied with the sum
    /// of the activations then, apart from the rest.
    const IS_MIN_COMMON: bool = Self::MIN && Self::SUM_PAIRS == 0;

    /// Where the factors are in a block: one f16, or two.
    const FACTORS: usize = 0;

    /// The factors of four rows' blocks, as f32, from words that hold them.
    fn factors(words: V) -> [V; 2];

    /// The factors of four rows' blocks, as f32.
    ///
    /// # Safety
    /// The rows must hold whole blocks.
    #[inline(always)]
    unsafe fn read_factors(rows: impl FourRows) -> [V; 2] {
        let at = Self::FACTORS;
        // SAFETY: the caller vouches for the blocks, which have factors there.
        Self::factors(unsafe { if Self::MIN { rows.words(at) } else { rows.halves(at) } })
    }

    /// The word that holds the factors of a row's block.
    ///
    /// # Safety
    /// The block must be whole.
    #[inline(always)]
    unsafe fn factor_word(block: RawBlock) -> u32 {
        // SAFETY: the caller vouches for the block, which has factors there.
        unsafe {
            let word = block.0.add(Self::FACTORS);
            if Self::MIN { u32_at(word) } else { u16_at(word).into() }
        }
    }

    /// What else the sub-blocks of four rows' blocks share.
    type Scales: Copy;

    /// Reads the scales of four rows' blocks.
    ///
    /// # Safety
    /// The rows must hold whole blocks.
    unsafe fn scales(rows: impl FourRows) -> Self::Scales;

    /// The scales of sub-block `i` of the block, each twice, as i16.
    fn scale_pairs(_scales: Self::Scales, _i: usize) -> V {
        V::splat_i32(0x0001_0001)
    }

    /// What pair `p` of the activations' sums is multiplied with, as i16.
    fn sum_weights(_scales: Self::Scales, _p: usize) -> V {
        V::splat_i32(0)
    }

    /// The products of one row's block with `x`, and if there are scales, times
    /// these, and the sums of `x` times their weights; all partly summed. `units`
    /// must be `UNITS`.
    ///
    /// # Safety
    /// The block must be whole, and `x` as many numbers.
    unsafe fn partials(block: RawBlock, x: *const ActivationBlock, units: usize) -> [V; 2];

    /// The sums of four rows' products without scales, as i32.
    #[inline(always)]
    fn sums(partials: [V; 4]) -> V {
        V::sums_i32(partials)
    }

    /// What a block adds to a row, but for the activations' scale: from its
    /// factors, the products times their scales, and the activations' sums times
    /// their weights. A common minimum is no part of it.
    fn total(factors: [V; 2], products: V, sums: V) -> V;

    /// Writes a block as floats.
    fn dequantize(block: &[u8], out: &mut [f32]);
}

/// The whole numbers of a format.
pub(super) trait Quants {
    /// Numbers in a sub-block: 32 or 16.
    const SUB_BLOCK: usize = BLOCK;
    /// Bytes that an unpacked number takes.
    const UNPACKED: usize;

    /// Steps through a unit of packed rows that may be done together.
    const PACKED_STEPS: usize = 1;

    /// The products of packed rows' blocks with `x`, times the scales, and the sums of
    /// `x` times their weights, as i32. `counts` must be those of the format.
    ///
    /// # Safety
    /// The rows must hold whole blocks, and `x` must be as many numbers.
    unsafe fn packed_sums<B: Blocks, const N: usize>(
        rows: [PackedRows<N>; N],
        x: &[ActivationBlock],
        counts: Counts,
    ) -> [[V; 2]; N];

    /// Unpacks the numbers of a unit of four rows' blocks: `put(step, numbers)` gets 16
    /// bytes at a time, four bytes of each row.
    ///
    /// # Safety
    /// The rows must hold whole blocks.
    unsafe fn unpack(rows: impl FourRows, unit: usize, put: impl FnMut(usize, V));

    /// Steps through a tile, 16 bytes of each group, before sums must be
    /// widened.
    const STEPS: usize;

    /// Adds the products of an unpacked sub-block of a tile with that of a
    /// panel, times the scales. `n_steps` must be `STEPS`.
    ///
    /// # Safety
    /// The pointers must be to whole sub-blocks.
    unsafe fn dots_unpacked<const T: usize>(
        rows: *const u8,
        x: *const u8,
        scale_pairs: [V; GROUPS],
        n_steps: usize,
        products: &mut Products<T>,
    );
}

/// The sums of a block's activations, times their weights.
#[inline(always)]
pub(super) fn weighted<B: Blocks>(scales: B::Scales, x: &[ActivationBlock]) -> V {
    if B::SUM_PAIRS == 0 {
        return x[0].load_scale_and_sums()[1];
    }
    let mut sums = V::splat_i32(0);
    steps!(B::SUM_PAIRS, |p| {
        let pair = x[B::SUMS_AT + p / 4].load_pairs().splat_lane(p % 4);
        sums = sums.add_i32(B::sum_weights(scales, p).dot_i16(pair));
    });
    sums
}
