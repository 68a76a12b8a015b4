//! Matrix times vector.
//!
//! A block's products are summed as integers, exactly, sub-blocks times their
//! scales; so are the activations, for offsets and minima. What the blocks give
//! in f32 is added from the first to the last, and what common minima give apart
//! from it. All kernels keep this order, and so agree to the bit.

use std::hint::black_box;

use super::activations::{ActivationBlock, BLOCK};
use super::blocks::{Blocks, Headers};
use super::packed::PackedRows;
use super::raw::{RawBlock, RawHeaders};
use crate::simd::{V, steps};

/// Columns of raw rows that are multiplied before their sums are scaled.
const RUN: usize = 2048;

/// What [`dot_raw`] knows of four rows' runs.
pub(super) struct Run {
    /// Partial sums of each sub-block.
    partials: [V; 4 * RUN / 16],
    /// See [`RawHeaders`].
    headers: [V; RUN / BLOCK],
}

impl Run {
    pub fn new() -> Self {
        Self { partials: [V::splat_i32(0); _], headers: [V::splat_i32(0); _] }
    }
}

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
        // SAFETY: the caller vouches for the rows, which the run is part of.
        unsafe {
            let rows = rows.map(|row| row.add(run * run_blocks * B::BYTES));
            let (partials, headers) = (room.partials.as_mut_ptr(), room.headers.as_mut_ptr());
            for (r, row) in rows.into_iter().enumerate() {
                partial_sums::<B>(row, x, counts.units, r, partials.add(r), headers);
            }
            sums.add::<B, _>([RawHeaders::new(headers)], x, counts, &RawDots(&room.partials));
        }
    }
    let [total] = sums.total::<B>();
    total
}

/// The products of row `r` with `x`, partly summed: every fourth from `out` on. And
/// the headers of its blocks.
///
/// # Safety
/// As for [`dot_packed`], and there must be room for the partial sums and headers.
#[inline(always)]
unsafe fn partial_sums<B: Blocks>(
    row: *const u8,
    x: &[ActivationBlock],
    units: usize,
    r: usize,
    out: *mut V,
    headers: *mut V,
) {
    let unit_len = B::SUB_BLOCKS * B::SUB_BLOCK / BLOCK;
    // Blocks of one sub-block are taken four at a time.
    let together = if B::UNITS * B::SUB_BLOCKS == 1 { 4 } else { 1 };
    let n = x.len() / (B::UNITS * unit_len);
    let (mut row, mut x, mut out, mut headers) = (row, x.as_ptr(), out, headers);
    // SAFETY: the caller vouches for the row, `x` and the room: each step takes a
    // block of theirs.
    unsafe {
        for _ in 0..n / together {
            if together == 4 {
                macro_rules! blocks {
                    ($($i:literal)*) => { $(
                        let block = row.add($i * B::BYTES);
                        *out.add(4 * $i) = B::partial(RawBlock(block), 0, 0, x.add($i));
                        RawHeaders::<B>::put(headers.add($i), r, block);
                    )* };
                }
                blocks!(0 1 2 3);
                out = out.add(16);
            } else {
                RawHeaders::<B>::put(headers, r, row);
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
            headers = headers.add(together * RawHeaders::<B>::VECTORS);
        }
        for _ in 0..n % together {
            *out = B::partial(RawBlock(row), 0, 0, x);
            RawHeaders::<B>::put(headers, r, row);
            headers = headers.add(1);
            out = out.add(4);
            row = row.add(B::BYTES);
            x = x.add(1);
        }
    }
}

/// The integer products of groups of four rows with a vector. A trait, because
/// a closure would not always be inlined.
trait Dots<B: Blocks, const N: usize> {
    type Rows: Headers;
    /// Blocks that are taken together, so that the loop costs less.
    const TOGETHER: usize;

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
    const TOGETHER: usize = 1;

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
struct RawDots<'a>(&'a [V]);

impl<B: Blocks> Dots<B, 1> for RawDots<'_> {
    type Rows = RawHeaders<B>;
    const TOGETHER: usize = if B::N_SUB_BLOCKS == 1 { 4 } else { 1 };

    #[inline(always)]
    unsafe fn unit(
        &self,
        _rows: [RawHeaders<B>; 1],
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
        let block_len = B::LEN / BLOCK;
        let mut rows = rows;
        for (first, some) in x.chunks(D::TOGETHER * block_len).enumerate() {
            let n = some.len() / block_len;
            steps!(D::TOGETHER, n, |i| {
                // SAFETY: the caller vouches for the rows, which have a block for
                // each of `x`; behind the last, nothing is read.
                unsafe {
                    let x = some.get_unchecked(i * block_len..(i + 1) * block_len);
                    let block = first * D::TOGETHER + i;
                    self.add_block::<B, D>(rows, block, x, counts, dots);
                    rows = rows.map(|rows| rows.behind(B::BYTES));
                }
            });
        }
    }

    /// Adds the products of the rows' blocks number `b`, which are `rows`, with
    /// `x`.
    ///
    /// # Safety
    /// As for [`dot_packed`], with a block of each.
    #[inline(always)]
    unsafe fn add_block<B: Blocks, D: Dots<B, N>>(
        &mut self,
        rows: [D::Rows; N],
        b: usize,
        x: &[ActivationBlock],
        counts: Counts,
        dots: &D,
    ) {
        let unit_len = B::SUB_BLOCKS * B::SUB_BLOCK / BLOCK;
        // SAFETY: the caller vouches for the rows.
        let headers = rows.map(|rows| unsafe { B::header(rows) });
        let mut products = [V::splat_i32(0); N];
        steps!(B::UNITS, counts.units, |unit| {
            // SAFETY: the block is whole, and so is the unit.
            let unit = unsafe {
                let x = x.as_ptr().add(unit * unit_len);
                dots.unit(rows, headers, b, unit, x)
            };
            for (products, unit) in products.iter_mut().zip(unit) {
                *products = products.add_i32(unit);
            }
        });
        let scale = V::splat_f32(x[0].scale);
        if B::IS_MIN_COMMON {
            let sum = V::splat_f32(x[0].scaled_sum);
            for (mins, header) in self.mins.iter_mut().zip(headers) {
                *mins = mins.madd_f32(B::factors(header)[1], sum);
            }
        }
        for ((sum, header), products) in self.sums.iter_mut().zip(headers).zip(products) {
            let total = B::total(B::factors(header), products, weighted::<B>(header, x));
            *sum = sum.madd_f32(total, scale);
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
