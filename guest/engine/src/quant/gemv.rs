//! Matrix times vector.
//!
//! A block's products are summed as integers, exactly, sub-blocks times their
//! scales; so are the activations, for offsets and minima. What the blocks give
//! in f32 is added from the first to the last. All kernels keep this order, and
//! so agree to the bit.

use std::hint::black_box;

use super::activations::{ActivationBlock, BLOCK};
use super::blocks::{Blocks, FourRows};
use super::packed::PackedRows;
use super::raw::{RawBlock, RawRows};
use crate::simd::{V, steps};

/// Columns of raw rows that are multiplied before their sums are scaled.
const RUN: usize = 2048;
/// Sub-blocks of four rows' runs: room that [`dot_raw`] needs.
pub(super) const PARTIALS: usize = 4 * RUN / 16;

/// Does `$body` for `$i` from 0 to `$n` less one, at most eight times, each time
/// with its constants: shifts by a variable are slow.
macro_rules! eight_times {
    ($n:expr, $i:ident, $body:block) => { eight_times!(@ $n, $i, $body, 0 1 2 3 4 5 6 7) };
    (@ $n:expr, $i:ident, $body:block, $($j:literal)*) => { $(
        if $j < $n {
            let $i = $j;
            $body
        }
    )* };
}

/// How often loops are done, in a way that the compiler cannot see; see
/// [`steps`].
#[derive(Clone, Copy)]
pub(super) struct Counts {
    units: usize,
    steps: usize,
}

impl Counts {
    pub fn of<B: Blocks>() -> Self {
        Self { units: black_box(B::UNITS), steps: black_box(B::PACKED_STEPS) }
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
    let rows = std::array::from_fn(|group| PackedRows(rows, group));
    // SAFETY: the caller vouches for the same.
    unsafe { sums.add::<B, _>(rows, x, counts, &PackedDots(counts)) };
    sums.0
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
    partials: &mut [V; PARTIALS],
) -> V {
    let mut sums = Sums::new();
    let run_blocks = RUN / B::LEN;
    for (run, x) in x.chunks(RUN / BLOCK).enumerate() {
        // SAFETY: the caller vouches for the rows, which the run is part of.
        unsafe {
            let rows = rows.map(|row| row.add(run * run_blocks * B::BYTES));
            for (r, row) in rows.into_iter().enumerate() {
                partial_sums::<B>(row, x, counts.units, partials[r..].as_mut_ptr());
            }
            sums.add::<B, _>([RawRows(rows)], x, counts, &RawDots(partials));
        }
    }
    let [total] = sums.0;
    total
}

/// The products of a row with `x`, partly summed: every fourth from `out` on.
///
/// # Safety
/// As for [`dot_packed`], and there must be room for the partial sums.
#[inline(always)]
unsafe fn partial_sums<B: Blocks>(
    row: *const u8,
    x: &[ActivationBlock],
    units: usize,
    out: *mut V,
) {
    let unit_len = B::SUB_BLOCKS * B::SUB_BLOCK / BLOCK;
    // Blocks of one sub-block are taken four at a time.
    let together = if B::UNITS * B::SUB_BLOCKS == 1 { 4 } else { 1 };
    let n = x.len() / (B::UNITS * unit_len);
    let (mut row, mut x, mut out) = (row, x.as_ptr(), out);
    // SAFETY: the caller vouches for the row, `x` and `out`: each step takes a
    // block of theirs.
    unsafe {
        for _ in 0..n / together {
            if together == 4 {
                macro_rules! blocks {
                    ($($i:literal)*) => { $(
                        *out.add(4 * $i) = B::partial(RawBlock(row.add($i * B::BYTES)), 0, 0, x.add($i));
                    )* };
                }
                blocks!(0 1 2 3);
                out = out.add(16);
            } else {
                for unit in 0..units {
                    let x = x.add(unit * unit_len);
                    macro_rules! sub_blocks {
                        ($($i:literal)*) => { $(
                            if $i < B::SUB_BLOCKS {
                                *out.add(4 * $i) = B::partial(RawBlock(row), unit, $i, x);
                            }
                        )* };
                    }
                    sub_blocks!(0 1 2 3 4 5 6 7);
                    out = out.add(4 * B::SUB_BLOCKS);
                }
            }
            row = row.add(together * B::BYTES);
            x = x.add(together * B::UNITS * unit_len);
        }
        for _ in 0..n % together {
            *out = B::partial(RawBlock(row), 0, 0, x);
            out = out.add(4);
            row = row.add(B::BYTES);
            x = x.add(1);
        }
    }
}

/// The integer products of groups of four rows with a vector. A trait, because
/// a closure would not always be inlined.
trait Dots<B: Blocks, const N: usize> {
    type Rows: FourRows;

    /// The products of a unit of the rows' blocks number `b`, which are `rows`,
    /// with the activations that belong to the unit, times the scales.
    ///
    /// # Safety
    /// The rows must hold whole blocks, and `x` the numbers of a unit.
    unsafe fn unit(
        &self,
        rows: [Self::Rows; N],
        headers: [B::Header; N],
        b: usize,
        unit: usize,
        x: *const ActivationBlock,
    ) -> [V; N];
}

struct PackedDots(Counts);

impl<B: Blocks, const N: usize> Dots<B, N> for PackedDots {
    type Rows = PackedRows<N>;

    #[inline(always)]
    unsafe fn unit(
        &self,
        rows: [PackedRows<N>; N],
        headers: [B::Header; N],
        _b: usize,
        unit: usize,
        x: *const ActivationBlock,
    ) -> [V; N] {
        // SAFETY: the caller vouches for the same.
        unsafe { B::dots::<B, N>(rows, headers, unit, x, self.0.steps) }
    }
}

/// With what [`partial_sums`] has computed.
struct RawDots<'a>(&'a [V; PARTIALS]);

impl<B: Blocks> Dots<B, 1> for RawDots<'_> {
    type Rows = RawRows;

    #[inline(always)]
    unsafe fn unit(
        &self,
        _rows: [RawRows; 1],
        [header]: [B::Header; 1],
        b: usize,
        unit: usize,
        _x: *const ActivationBlock,
    ) -> [V; 1] {
        let at = 4 * (b * B::UNITS + unit) * B::SUB_BLOCKS;
        let partials = &self.0[at..].as_chunks().0[..B::SUB_BLOCKS];
        let mut dots = V::splat_i32(0);
        eight_times!(B::SUB_BLOCKS, i, {
            let scales = B::scale_pairs(header, unit * B::SUB_BLOCKS + i);
            dots = dots.add_i32(B::sums(partials[i], scales));
        });
        [dots]
    }
}

/// The sums of `N` times four rows.
struct Sums<const N: usize>([V; N]);

impl<const N: usize> Sums<N> {
    fn new() -> Self {
        Self([V::splat_f32(0.0); N])
    }

    /// Adds the products of the rows with `x`.
    ///
    /// # Safety
    /// As for [`dot_packed`].
    #[inline(always)]
    unsafe fn add<B: Blocks, D: Dots<B, N>>(
        &mut self,
        rows: [D::Rows; N],
        x: &[ActivationBlock],
        counts: Counts,
        dots: &D,
    ) {
        let unit_len = B::SUB_BLOCKS * B::SUB_BLOCK / BLOCK;
        let mut rows = rows;
        for (b, x) in x.chunks_exact(B::LEN / BLOCK).enumerate() {
            // SAFETY: the caller vouches for the rows, which have a block here.
            let headers = rows.map(|rows| unsafe { B::header(rows) });
            let mut products = [V::splat_i32(0); N];
            steps!(B::UNITS, counts.units, |unit| {
                let x = &x[unit * unit_len..][..unit_len];
                // SAFETY: the block is whole, and so is the unit.
                let unit = unsafe { dots.unit(rows, headers, b, unit, x.as_ptr()) };
                for (products, unit) in products.iter_mut().zip(unit) {
                    *products = products.add_i32(unit);
                }
            });
            let scale = V::splat_f32(x[0].scale);
            for ((sum, header), products) in self.0.iter_mut().zip(headers).zip(products) {
                let total = B::total(B::factors(header), products, weighted::<B>(header, x));
                *sum = sum.madd_f32(total, scale);
            }
            // SAFETY: as above; behind the last block, nothing is read.
            rows = rows.map(|rows| unsafe { rows.behind(B::BYTES) });
        }
    }
}

/// The sums of a block's activations, times their weights.
#[inline(always)]
fn weighted<B: Blocks>(header: B::Header, x: &[ActivationBlock]) -> V {
    if B::SUM_PAIRS == 0 {
        return V::splat_i32(x[0].sum);
    }
    let mut sums = V::splat_i32(0);
    eight_times!(B::SUM_PAIRS, p, {
        let pair = V::splat_i32(bytemuck::cast(B::sum_pair(x, p)));
        sums = sums.add_i32(B::sum_weights(header, p).dot_i16(pair));
    });
    sums
}
