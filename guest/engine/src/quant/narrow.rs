//! Whole numbers of 2 to 6 bits, multiplied as bytes.

use super::activations::{ActivationBlock, BLOCK};
use super::blocks::{Blocks, Counts, Quants, weighted};
use super::packed::PackedRows;
use super::raw::RawBlock;
use super::rows::{Block, FourRows};
use super::shape::{GROUPS, Products, load_step};
use crate::simd::{V, steps};

/// A format of few bits, whose numbers are not negative.
pub(super) trait Narrow {
    /// Bits of a number: 2 to 6.
    const BITS: u32;
    /// Numbers in a sub-block: 32 or 16.
    const SUB_BLOCK: usize = BLOCK;

    /// Pieces `i` and `i + HIGH` of a unit share bytes; there are twice as many.
    const HIGH: usize;

    /// Columns `16 * i` to `16 * i + 15` of a unit of a block, as bytes, or
    /// what the block gives of them.
    ///
    /// # Safety
    /// The block must be whole.
    unsafe fn quants(block: impl Block, unit: usize, i: usize) -> V;
}

/// Two bits of each of 16 bytes, the lowest ones for 0.
#[inline(always)]
pub(super) fn crumbs(v: V, i: usize) -> V {
    v.shr_u16(2 * i as u32).and(V::splat_u8(3))
}

/// The low (`i` is 0) or the high (1) nibbles of 16 bytes.
#[inline(always)]
pub(super) fn nibbles(v: V, i: usize) -> V {
    v.shr_u16(4 * i as u32).and(V::splat_u8(0x0f))
}

/// How many products of a byte from -127 to 127 with a number of 0 to `max` can be
/// summed in 16 bits: a power of two, and 16 at most.
pub(super) const fn products_max(max: usize) -> usize {
    let mut n = 16;
    while n * 127 * max > i16::MAX as usize {
        n /= 2;
    }
    n
}

/// As many products of numbers of so many bits.
const fn products_of_bits(bits: u32) -> usize {
    products_max((1 << bits) - 1)
}

/// The smaller one.
pub(super) const fn min(a: usize, b: usize) -> usize {
    if a < b { a } else { b }
}

impl<Q: Narrow> Quants for Q {
    const SUB_BLOCK: usize = Q::SUB_BLOCK;
    const UNPACKED: usize = 1;
    // A step adds two products to a lane of two sub-blocks, or four to one's.
    const PACKED_STEPS: usize = min(
        products_of_bits(Q::BITS) / if 16 * Q::HIGH < Q::SUB_BLOCK { 4 } else { 2 },
        Q::SUB_BLOCK / 4,
    );

    #[inline(always)]
    unsafe fn packed_sums<B: Blocks, const N: usize>(
        rows: [PackedRows<N>; N],
        x: &[ActivationBlock],
        counts: Counts,
    ) -> [[V; 2]; N] {
        let unit_len = B::SUB_BLOCKS * B::SUB_BLOCK / BLOCK;
        // SAFETY: the caller vouches for the rows, and for `x`, which has something for
        // each unit.
        unsafe {
            let scales = rows.map(|rows| B::scales(rows));
            let mut products = [V::splat_i32(0); N];
            steps!(B::UNITS, counts.units, |unit| {
                let x = x.as_ptr().add(unit * unit_len);
                let unit = packed_dots::<Q, B, N>(rows, scales, unit, x, counts.steps);
                for (products, unit) in products.iter_mut().zip(unit) {
                    *products = products.add_i32(unit);
                }
            });
            std::array::from_fn(|g| [products[g], weighted::<B>(scales[g], x)])
        }
    }

    #[inline(always)]
    unsafe fn unpack(rows: impl FourRows, unit: usize, mut put: impl FnMut(usize, V)) {
        steps!(Q::HIGH, |piece| {
            let four = |piece: usize| -> [V; 4] {
                // SAFETY: the caller vouches for the blocks.
                std::array::from_fn(|c| unsafe { Q::quants(rows.quarter(c), unit, piece) })
            };
            let (low, high) = (four(piece), four(piece + Q::HIGH));
            for c in 0..4 {
                put(4 * piece + c, low[c]);
                put(4 * (piece + Q::HIGH) + c, high[c]);
            }
        });
    }

    // A step is four columns, two of them in a lane of 16 bits.
    const STEPS: usize = min(products_of_bits(Q::BITS) / 2, Q::SUB_BLOCK / 4);

    #[inline(always)]
    unsafe fn dots_unpacked<const T: usize>(
        rows: *const u8,
        x: *const u8,
        scale_pairs: [V; GROUPS],
        n_steps: usize,
        products: &mut Products<T>,
    ) {
        // SAFETY: the caller vouches for the same.
        unsafe { byte_dots::<Q, T>(rows, x, scale_pairs, n_steps, products) }
    }
}

/// The products of sub-block `i` of a unit of one row's block with the activations that
/// belong to the unit, partly summed.
///
/// # Safety
/// The block must be whole, and `x` the numbers of a unit.
#[inline(always)]
pub(super) unsafe fn partial<Q: Narrow>(
    block: RawBlock,
    unit: usize,
    i: usize,
    x: *const ActivationBlock,
) -> V {
    let mut sums = V::splat_i32(0);
    for piece in i * Q::SUB_BLOCK / 16..(i + 1) * Q::SUB_BLOCK / 16 {
        // SAFETY: the caller vouches for the block and its activations.
        unsafe {
            let x = (*x.add(piece / 2)).load_q8(piece % 2);
            sums = sums.add_i16(V::dot_i8_u7(x, Q::quants(block, unit, piece)));
        }
    }
    sums
}

/// The sums of four [`partial`] ones, as i32.
#[inline(always)]
pub(super) fn sums<Q: Narrow>(partials: [V; 4]) -> V {
    // A lane holds two products for each 16 columns.
    if products_of_bits(Q::BITS) / (Q::SUB_BLOCK / 8) >= 4 {
        V::sums_i16::<4>(partials)
    } else {
        V::sums_i16::<2>(partials)
    }
}

/// The products of a unit of packed rows' blocks with the activations that belong to the
/// unit, times the scales. `n_steps` must be `PACKED_STEPS`.
///
/// # Safety
/// The rows must hold whole blocks, and `x` the numbers of a unit.
#[inline(always)]
unsafe fn packed_dots<Q: Narrow, B: Blocks, const N: usize>(
    rows: [PackedRows<N>; N],
    scales: [B::Scales; N],
    unit: usize,
    x: *const ActivationBlock,
    n_steps: usize,
) -> [V; N] {
    let mut dots = [V::splat_i32(0); N];
    // The pieces of a run are of the same two sub-blocks, or of one.
    steps!(4 * Q::HIGH / <Q as Quants>::PACKED_STEPS, |run| {
        let mut low = [V::splat_i32(0); N];
        let mut high = [V::splat_i32(0); N];
        steps!(<Q as Quants>::PACKED_STEPS, n_steps, |step| {
            let step = run * <Q as Quants>::PACKED_STEPS + step;
            let (piece, c) = (step / 4, step % 4);
            // SAFETY: the caller vouches for the blocks and the
            // activations.
            unsafe {
                let x = |piece: usize| (*x.add(piece / 2)).load_q8(piece % 2).splat_lane(c);
                let (x_low, x_high) = (x(piece), x(piece + Q::HIGH));
                for g in 0..N {
                    let q = Q::quants(rows[g].quarter(c), unit, piece);
                    low[g] = low[g].add_i16(V::dot_i8_u7(x_low, q));
                    let q = Q::quants(rows[g].quarter(c), unit, piece + Q::HIGH);
                    high[g] = high[g].add_i16(V::dot_i8_u7(x_high, q));
                }
            }
        });
        let piece = run * <Q as Quants>::PACKED_STEPS / 4;
        let sub_block = |piece| unit * B::SUB_BLOCKS + piece * 16 / Q::SUB_BLOCK;
        let (i, j) = (sub_block(piece), sub_block(piece + Q::HIGH));
        for (g, dots) in dots.iter_mut().enumerate() {
            let mut low = low[g];
            if i == j {
                low = low.add_i16(high[g]);
            } else {
                let pairs = B::scale_pairs(scales[g], j);
                *dots = dots.add_i32(high[g].dot_i16(pairs));
            }
            *dots = dots.add_i32(low.dot_i16(B::scale_pairs(scales[g], i)));
        }
    });
    dots
}

/// [`Quants::dots_unpacked`] of numbers that were unpacked to bytes, `STEPS` of which
/// can be summed in 16 bits.
///
/// # Safety
/// As there.
#[inline(always)]
pub(super) unsafe fn byte_dots<Q: Quants, const T: usize>(
    rows: *const u8,
    x: *const u8,
    scale_pairs: [V; GROUPS],
    n_steps: usize,
    products: &mut Products<T>,
) {
    for first in (0..Q::SUB_BLOCK / 4).step_by(Q::STEPS) {
        let mut sums = [[V::splat_i32(0); GROUPS]; T];
        steps!(Q::STEPS, n_steps, |step| {
            // SAFETY: the caller vouches for sub-blocks.
            let (w, x) = unsafe { load_step(rows, x, first + step) };
            for (t, sums) in sums.iter_mut().enumerate() {
                let x = x.splat_lane(t);
                for (sum, w) in sums.iter_mut().zip(w) {
                    *sum = sum.add_i16(V::dot_i8_u7(x, w));
                }
            }
        });
        for (products, sums) in products.iter_mut().zip(sums) {
            for ((product, sum), pairs) in products.iter_mut().zip(sums).zip(scale_pairs) {
                *product = product.add_i32(sum.dot_i16(pairs));
            }
        }
    }
}
