//! Matrix times vector.
//!
//! Each sub-block's products are summed as integers, exactly; then the scaled
//! sums are added up from the first sub-block to the last, and the minima
//! apart from them. All kernels keep this order, and so agree to the bit.

use std::hint::black_box;

use super::activations::{ActivationBlock, BLOCK};
use super::blocks::{Blocks, FourRows, UnitDots};
use super::packed::PackedRows;
use super::raw::{RawBlock, RawRows};
use crate::simd::{V, steps};

/// Columns of raw rows that are multiplied before their sums are scaled.
const RUN: usize = 2048;
/// Sub-blocks of four rows' runs: room that [`dot_raw`] needs.
pub(super) const PARTIALS: usize = 4 * RUN / 16;

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
                partial_sums::<B>(row, x, counts.units, partials[r..].as_mut_ptr());
            }
            sums.add::<B, _>([RawRows(rows)], x, counts, &RawDots(partials));
        }
    }
    let [total] = sums.total::<B>();
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
    /// What is known of a unit.
    type Unit;

    /// The products of a unit of the rows' blocks number `b`, which are `rows`,
    /// with the activations that belong to the unit.
    ///
    /// # Safety
    /// The rows must hold whole blocks, and `x` the numbers of a unit.
    unsafe fn unit(
        &self,
        rows: [Self::Rows; N],
        b: usize,
        unit: usize,
        x: *const ActivationBlock,
    ) -> Self::Unit;

    /// Those of sub-block `i` in a group of rows.
    fn dot(unit: &Self::Unit, group: usize, i: usize) -> V;
}

struct PackedDots(Counts);

impl<B: Blocks, const N: usize> Dots<B, N> for PackedDots {
    type Rows = PackedRows<N>;
    type Unit = [UnitDots; N];

    #[inline(always)]
    unsafe fn unit(
        &self,
        rows: [PackedRows<N>; N],
        _b: usize,
        unit: usize,
        x: *const ActivationBlock,
    ) -> [UnitDots; N] {
        // SAFETY: the caller vouches for the same.
        unsafe { B::dots(rows, unit, x, self.0.steps) }
    }

    #[inline(always)]
    fn dot(unit: &[UnitDots; N], group: usize, i: usize) -> V {
        unit[group][i]
    }
}

/// With what [`partial_sums`] has computed.
struct RawDots<'a>(&'a [V; PARTIALS]);

impl<'a, B: Blocks> Dots<B, 1> for RawDots<'a> {
    type Rows = RawRows;
    /// They are summed when they are wanted: all at once take too many registers.
    type Unit = &'a [[V; 4]];

    #[inline(always)]
    unsafe fn unit(
        &self,
        _rows: [RawRows; 1],
        b: usize,
        unit: usize,
        _x: *const ActivationBlock,
    ) -> &'a [[V; 4]] {
        let at = 4 * (b * B::UNITS + unit) * B::SUB_BLOCKS;
        &self.0[at..].as_chunks().0[..B::SUB_BLOCKS]
    }

    #[inline(always)]
    fn dot(unit: &&'a [[V; 4]], _group: usize, i: usize) -> V {
        B::sums(unit[i])
    }
}

/// The sums of `N` times four rows: scaled products, and what the minima add.
struct Sums<const N: usize> {
    products: [V; N],
    mins: [V; N],
}

impl<const N: usize> Sums<N> {
    fn new() -> Self {
        Self { products: [V::splat_f32(0.0); N], mins: [V::splat_f32(0.0); N] }
    }

    fn total<B: Blocks>(&self) -> [V; N] {
        match B::MIN {
            true => std::array::from_fn(|g| self.products[g].add_f32(self.mins[g])),
            false => self.products,
        }
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
        for (b, x) in x.chunks_exact(B::UNITS * unit_len).enumerate() {
            // SAFETY: the caller vouches for the rows; block `b` is one of theirs.
            let rows = rows.map(|rows| unsafe { rows.behind(b * B::BYTES) });
            // SAFETY: as above.
            let headers = rows.map(|rows| unsafe { B::header(rows) });
            // Each step with its constants: shifts by a variable are slow.
            macro_rules! sub_blocks {
                ($n:expr, $i:ident, $body:block) => {
                    sub_blocks!(@ $n, $i, $body, 0 1 2 3 4 5 6 7)
                };
                (@ $n:expr, $i:ident, $body:block, $($j:literal)*) => { $(
                    if $j < $n {
                        let $i = $j;
                        $body
                    }
                )* };
            }
            steps!(B::UNITS, counts.units, |unit| {
                let x = &x[unit * unit_len..][..unit_len];
                // SAFETY: the block is whole, and so is the unit.
                let unit_dots = unsafe { dots.unit(rows, b, unit, x.as_ptr()) };
                sub_blocks!(B::SUB_BLOCKS, i, {
                    let x = &x[i * B::SUB_BLOCK / BLOCK];
                    let whole = match B::SUB_BLOCK {
                        BLOCK => x.whole_sum,
                        _ => x.whole_half_sums[i % 2],
                    };
                    let offset = V::splat_i32(B::OFFSET * whole);
                    let scale = V::splat_f32(x.scale);
                    for (g, (products, header)) in self.products.iter_mut().zip(headers).enumerate()
                    {
                        let mut dots = D::dot(&unit_dots, g, i);
                        if B::OFFSET != 0 {
                            dots = dots.sub_i32(offset);
                        }
                        let scales = B::scales(header, unit * B::SUB_BLOCKS + i).mul_f32(scale);
                        *products = products.madd_f32(dots.to_f32x4(), scales);
                    }
                });
            });
            if B::MIN {
                sub_blocks!(B::UNITS * B::SUB_BLOCKS, i, {
                    let sum = V::splat_f32(x[i].sum);
                    for (mins, header) in self.mins.iter_mut().zip(headers) {
                        *mins = mins.madd_f32(B::mins(header, i), sum);
                    }
                });
            }
        }
    }
}
