//! Matrix times vector.
//!
//! Each sub-block's products are summed as integers, exactly; then the scaled
//! sums are added up from the first sub-block to the last, and the minima
//! apart from them. All kernels keep this order, and so agree to the bit.

use super::activations::{ActivationBlock, BLOCK};
use super::blocks::{Blocks, FourRows};
use super::packed::PackedRows;
use super::raw::{RawBlock, RawRows};
use crate::simd::V;

/// Columns of raw rows that are multiplied before their sums are scaled.
const RUN: usize = 2048;
/// Sub-blocks of four rows' runs: room that [`dot_raw`] needs.
pub(super) const PARTIALS: usize = 4 * RUN / 16;
/// The most sub-blocks in a block.
const SUB_BLOCKS_MAX: usize = 16;

/// The products of four packed rows with the activations `x`.
///
/// `units` must be `B::UNITS`. Were it known to the compiler, it would unroll
/// that loop, and need more registers than there are.
///
/// # Safety
/// `x` must be whole blocks of the format, and each row must hold as many
/// numbers.
#[inline(never)]
pub(super) unsafe fn dot_packed<B: Blocks>(
    rows: PackedRows,
    x: &[ActivationBlock],
    units: usize,
) -> V {
    let mut sums = Sums::new();
    let dots = |rows: PackedRows, _, unit, i, x: &[ActivationBlock]| {
        // SAFETY: `add` passes whole blocks, and their activations.
        unsafe { B::dots(rows, unit, i, x.as_ptr()) }
    };
    // SAFETY: the caller vouches for the same.
    unsafe { sums.add::<B, _>(rows, x, units, dots) };
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
    units: usize,
    partials: &mut [V; PARTIALS],
) -> V {
    let mut sums = Sums::new();
    let block_len = B::UNITS * B::SUB_BLOCKS * B::SUB_BLOCK / BLOCK;
    let run_blocks = RUN / BLOCK / block_len;
    for (run, x) in x.chunks(RUN / BLOCK).enumerate() {
        // SAFETY: the caller vouches for the rows, which the run is part of.
        unsafe {
            let rows = rows.map(|row| row.add(run * run_blocks * B::BYTES));
            for (r, row) in rows.into_iter().enumerate() {
                partial_sums::<B>(row, x, units, partials[r..].as_mut_ptr());
            }
            let dots = |_, b: usize, unit, i, _: &[ActivationBlock]| {
                let at = 4 * ((b * B::UNITS + unit) * B::SUB_BLOCKS + i);
                let four: &[V; 4] = &partials[at..].as_chunks().0[0];
                B::sums(*four)
            };
            sums.add::<B, _>(RawRows(rows), x, units, dots);
        }
    }
    sums.total::<B>()
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

/// The sums of four rows: scaled products, and what the minima add.
struct Sums {
    products: V,
    mins: V,
}

impl Sums {
    fn new() -> Self {
        Self { products: V::splat_f32(0.0), mins: V::splat_f32(0.0) }
    }

    fn total<B: Blocks>(&self) -> V {
        if B::MIN { self.products.add_f32(self.mins) } else { self.products }
    }

    /// Adds the products of four rows with `x`. `dots(blocks, b, unit, i, x)`
    /// gives the integer products of sub-block `i` of a unit of the rows'
    /// blocks number `b`.
    ///
    /// # Safety
    /// As for [`dot_packed`].
    #[inline(always)]
    unsafe fn add<B: Blocks, R: FourRows>(
        &mut self,
        rows: R,
        x: &[ActivationBlock],
        units: usize,
        dots: impl Fn(R, usize, usize, usize, &[ActivationBlock]) -> V,
    ) {
        let unit_len = B::SUB_BLOCKS * B::SUB_BLOCK / BLOCK;
        for (b, x) in x.chunks_exact(B::UNITS * unit_len).enumerate() {
            // SAFETY: the caller vouches for the rows; block `b` is one of theirs.
            let (blocks, header) = unsafe {
                let blocks = rows.behind(b * B::BYTES);
                (blocks, B::header(blocks))
            };
            let mut scales = [V::splat_f32(0.0); SUB_BLOCKS_MAX];
            // Each step with its constants: shifts by a variable are slow.
            macro_rules! sub_blocks {
                ($($i:literal)*) => { $(
                    if $i < B::UNITS * B::SUB_BLOCKS {
                        scales[$i] = B::scales(header, $i);
                        if B::MIN {
                            let x = V::splat_f32(x[$i].sum);
                            self.mins = self.mins.madd_f32(B::mins(header, $i), x);
                        }
                    }
                )* };
            }
            sub_blocks!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
            let units = if B::UNITS == 1 { 1 } else { units };
            for unit in 0..units {
                let x = &x[unit * unit_len..][..unit_len];
                let scales = &scales[unit * B::SUB_BLOCKS..][..B::SUB_BLOCKS];
                macro_rules! sub_blocks {
                    ($($i:literal)*) => { $(
                        if $i < B::SUB_BLOCKS {
                            let mut dots = dots(blocks, b, unit, $i, x);
                            let xs = &x[$i * B::SUB_BLOCK / BLOCK];
                            if B::OFFSET != 0 {
                                let whole = match B::SUB_BLOCK {
                                    BLOCK => xs.whole_sum,
                                    _ => xs.whole_half_sums[$i % 2],
                                };
                                dots = dots.sub_i32(V::splat_i32(B::OFFSET * whole));
                            }
                            let scales = scales[$i].mul_f32(V::splat_f32(xs.scale));
                            self.products = self.products.madd_f32(dots.to_f32x4(), scales);
                        }
                    )* };
                }
                sub_blocks!(0 1 2 3 4 5 6 7);
            }
        }
    }
}
