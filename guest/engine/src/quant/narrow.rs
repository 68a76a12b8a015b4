//! Whole numbers of 4, 5 or 6 bits, multiplied as bytes.

use super::activations::{ActivationBlock, BLOCK};
use super::blocks::{Blocks, Quants};
use super::packed::PackedRows;
use super::raw::RawBlock;
use super::rows::{Block, FourRows};
use super::shape::{GROUPS, Products, load_step};
use crate::simd::{V, steps};

/// A format of few bits, whose numbers are not negative.
pub(super) trait Narrow {
    /// Bits of a number: 4, 5 or 6.
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

/// The low (`i` is 0) or the high (1) nibbles of 16 bytes.
#[inline(always)]
pub(super) fn nibbles(v: V, i: usize) -> V {
    v.shr_u16(4 * i as u32).and(V::splat_u8(0x0f))
}

/// How many products of a byte from -127 to 127 with a number of so many bits
/// can be summed in 16 bits.
const fn products_max(bits: u32) -> usize {
    match bits {
        4 => 16,
        5 => 8,
        _ => 4,
    }
}

impl<Q: Narrow> Quants for Q {
    const SUB_BLOCK: usize = Q::SUB_BLOCK;
    const UNPACKED: usize = 1;
    // A step adds two products to a lane of two sub-blocks, or four to one's.
    const PACKED_STEPS: usize =
        products_max(Q::BITS) / if 16 * Q::HIGH < Q::SUB_BLOCK { 4 } else { 2 };

    #[inline(always)]
    unsafe fn partial(block: RawBlock, unit: usize, i: usize, x: *const ActivationBlock) -> V {
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

    #[inline(always)]
    fn sums(partials: [V; 4]) -> V {
        // A lane holds two products for each 16 columns.
        if products_max(Q::BITS) / (Q::SUB_BLOCK / 8) >= 4 {
            V::sums_i16::<4>(partials)
        } else {
            V::sums_i16::<2>(partials)
        }
    }

    #[inline(always)]
    unsafe fn dots<B: Blocks, const N: usize>(
        rows: [PackedRows<N>; N],
        scales: [B::Scales; N],
        unit: usize,
        x: *const ActivationBlock,
        n_steps: usize,
    ) -> [V; N] {
        let mut dots = [V::splat_i32(0); N];
        // The pieces of a run are of the same two sub-blocks, or of one.
        steps!(4 * Q::HIGH / Self::PACKED_STEPS, |run| {
            let mut low = [V::splat_i32(0); N];
            let mut high = [V::splat_i32(0); N];
            steps!(Self::PACKED_STEPS, n_steps, |step| {
                let step = run * Self::PACKED_STEPS + step;
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
            let piece = run * Self::PACKED_STEPS / 4;
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
    const STEPS: usize = products_max(Q::BITS) / 2;

    #[inline(always)]
    unsafe fn dots_unpacked<const T: usize>(
        rows: *const u8,
        x: *const u8,
        scale_pairs: [V; GROUPS],
        n_steps: usize,
        products: &mut Products<T>,
    ) {
        for first in (0..Q::SUB_BLOCK / 4).step_by(Self::STEPS) {
            let mut sums = [[V::splat_i32(0); GROUPS]; T];
            steps!(Self::STEPS, n_steps, |step| {
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
}
