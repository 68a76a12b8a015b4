//! Matrix times vector.
//!
//! A block's products are summed as integers, exactly, sub-blocks times their
//! scales; so are the activations, for offsets and minima. What the blocks give
//! in f32 is added from the first to the last, and what common minima give apart
//! from it. All kernels keep this order, and so agree to the bit.

use super::activations::{ActivationBlock, BLOCK};
use super::blocks::{Blocks, Counts};
use super::packed::PackedRows;
use super::raw::RawBlock;
use super::rows::FourRows;
use crate::simd::{V, steps};

/// Columns of raw rows that are multiplied before their sums are scaled.
const RUN: usize = 2048;

/// Blocks of a run at most, and one more: pointers to a row's lane pass the last.
const RUN_BLOCKS: usize = RUN / BLOCK + 1;

/// What [`dot_raw`] knows of four rows' runs.
pub(super) struct Run {
    /// Of each block the four rows' [`Blocks::partials`], and so many more for the sums
    /// of the activations if there are scales.
    partials: [[V; 4]; RUN_BLOCKS],
    /// The words with the blocks' factors.
    factors: [[u32; 4]; RUN_BLOCKS],
}

impl Run {
    pub fn new() -> Self {
        Self { partials: [[V::splat_i32(0); 4]; _], factors: [[0; 4]; _] }
    }
}

/// The products of `N` times four interleaved rows with the activations `x`.
///
/// # Safety
/// `x` must be whole blocks of the format, and each row must hold as many
/// numbers. `counts` must be those of the format.
#[inline(never)]
pub(super) unsafe fn dot_packed<B: Blocks, const N: usize>(
    rows: *const u8,
    x: &[ActivationBlock],
    counts: Counts,
) -> [V; N] {
    let mut sums = Sums::new();
    let mut rows: [PackedRows<N>; N] = std::array::from_fn(|group| PackedRows(rows, group));
    for x in x.chunks(B::LEN / BLOCK) {
        // SAFETY: the caller vouches for the rows, which have a block for each of `x`;
        // behind the last, nothing is read.
        unsafe {
            let block_sums = B::packed_sums::<B, N>(rows, x, counts);
            let factors = rows.map(|rows| B::read_factors(rows));
            let [products, weighted] = [0, 1].map(|i| block_sums.map(|sums| sums[i]));
            sums.add::<B>(factors, products, weighted, &x[0]);
            rows = rows.map(|rows| rows.behind(B::BYTES));
        }
    }
    sums.total::<B>()
}

/// The products of four raw rows with the activations `x`. Memory is read from
/// one row after another, in long runs, as processors expect it.
///
/// # Safety
/// As for [`dot_packed`].
#[inline(never)]
pub(super) unsafe fn dot_raw<B: Blocks>(
    rows: [*const u8; 4],
    x: &[ActivationBlock],
    counts: Counts,
    room: &mut Run,
) -> V {
    let mut sums = Sums::new();
    let run_blocks = RUN / B::LEN;
    for (run, x) in x.chunks(RUN / BLOCK).enumerate() {
        for (r, row) in rows.into_iter().enumerate() {
            // SAFETY: the caller vouches for the rows, which the run is part of.
            unsafe {
                let row = row.add(run * run_blocks * B::BYTES);
                partial_sums::<B>(row, x, counts.units, r, room);
            }
        }
        // SAFETY: the run has been filled.
        unsafe { sums.add_run::<B>(room, x) };
    }
    let [total] = sums.total::<B>();
    total
}

/// Vectors of four rows that [`partial_sums`] writes for a block.
const fn n_partials<B: Blocks>() -> usize {
    if B::IS_SCALED { 2 } else { 1 }
}

/// Blocks that are taken together, so that loops cost less.
const fn together<B: Blocks>() -> usize {
    if B::IS_SCALED { 1 } else { 8 }
}

/// What row `r` brings to a run: its products with `x`, partly summed, and the factors
/// of its blocks.
///
/// # Safety
/// As for [`dot_packed`]; `x` must fit into the run, and `r` be less than 4.
#[inline(always)]
unsafe fn partial_sums<B: Blocks>(
    row: *const u8,
    x: &[ActivationBlock],
    units: usize,
    r: usize,
    room: &mut Run,
) {
    let n = x.len() / (B::LEN / BLOCK);
    let mut at = RunRow {
        row,
        x: x.as_ptr(),
        partials: room.partials.as_mut_ptr().cast::<V>().wrapping_add(r),
        factors: room.factors.as_mut_ptr().cast::<u32>().wrapping_add(r),
    };
    // SAFETY: the caller vouches for the row, `x` and the room: each step takes blocks
    // of theirs.
    unsafe {
        for _ in 0..n / together::<B>() {
            if B::IS_SCALED {
                at.take::<B, 1>(units);
            } else {
                at.take::<B, 8>(units);
            }
        }
        for _ in 0..n % together::<B>() {
            at.take::<B, 1>(units);
        }
    }
}

/// Where [`partial_sums`] is.
struct RunRow {
    row: *const u8,
    x: *const ActivationBlock,
    /// Its lane of the run's.
    partials: *mut V,
    factors: *mut u32,
}

impl RunRow {
    /// [`partial_sums`] of the next `N` blocks.
    ///
    /// # Safety
    /// There must be so many.
    #[inline(always)]
    unsafe fn take<B: Blocks, const N: usize>(&mut self, units: usize) {
        let block_len = B::LEN / BLOCK;
        // SAFETY: the caller vouches for the blocks, which the row, `x` and the run have.
        unsafe {
            steps!(N, |i| {
                let block = RawBlock(self.row.add(i * B::BYTES));
                let [products, weighted] = B::partials(block, self.x.add(i * block_len), units);
                let partials = self.partials.add(4 * n_partials::<B>() * i);
                *partials = products;
                if B::IS_SCALED {
                    *partials.add(4) = weighted;
                }
                *self.factors.add(4 * i) = B::factor_word(block);
            });
            self.row = self.row.add(N * B::BYTES);
            self.x = self.x.add(N * block_len);
            self.partials = self.partials.add(4 * n_partials::<B>() * N);
            self.factors = self.factors.add(4 * N);
        }
    }
}

/// The sums of `N` times four rows.
struct Sums<const N: usize> {
    sums: [V; N],
    /// Of common minima.
    mins: [V; N],
}

impl<const N: usize> Sums<N> {
    fn new() -> Self {
        let zeros = [V::splat_f32(0.0); N];
        Self { sums: zeros, mins: zeros }
    }

    #[inline(always)]
    fn total<B: Blocks>(self) -> [V; N] {
        match B::IS_MIN_COMMON {
            true => std::array::from_fn(|g| self.sums[g].add_f32(self.mins[g])),
            false => self.sums,
        }
    }

    /// Adds what blocks give, from their factors, their products and the weighted sums
    /// of the activations, of which `x` is the first block.
    #[inline(always)]
    fn add<B: Blocks>(
        &mut self,
        factors: [[V; 2]; N],
        products: [V; N],
        weighted: [V; N],
        x: &ActivationBlock,
    ) {
        let [scale, _, sum] = x.load_scale_and_sums();
        if B::IS_MIN_COMMON {
            for (mins, [_, min]) in self.mins.iter_mut().zip(factors) {
                *mins = mins.madd_f32(min, sum);
            }
        }
        for g in 0..N {
            let total = B::total(factors[g], products[g], weighted[g]);
            self.sums[g] = self.sums[g].madd_f32(total, scale);
        }
    }
}

impl Sums<1> {
    /// Adds the products of a run with `x`.
    ///
    /// # Safety
    /// The run must have been filled for `x`, which are whole blocks.
    #[inline(always)]
    unsafe fn add_run<B: Blocks>(&mut self, run: &Run, x: &[ActivationBlock]) {
        let block_len = B::LEN / BLOCK;
        let (mut partials, mut factors) = (run.partials.as_ptr(), run.factors.as_ptr());
        for some in x.chunks(together::<B>() * block_len) {
            let n = some.len() / block_len;
            steps!(together::<B>(), n, |i| {
                // SAFETY: the caller vouches for the run, which has something for each
                // block of `x`; behind the last, nothing is read.
                unsafe {
                    let x = some.get_unchecked(i * block_len);
                    let partials = partials.add(n_partials::<B>() * i);
                    let (products, weighted) = if B::IS_SCALED {
                        (V::sums_i32(*partials), V::sums_i32(*partials.add(1)))
                    } else {
                        (B::sums(*partials), x.load_scale_and_sums()[1])
                    };
                    let words = V::load(factors.add(i).cast());
                    self.add::<B>([B::factors(words)], [products], [weighted], x);
                }
            });
            // Not at every step: what ends a step must not differ between them.
            partials = partials.wrapping_add(n_partials::<B>() * n);
            factors = factors.wrapping_add(n);
        }
    }
}
