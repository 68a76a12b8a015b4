//! Whole numbers of 4, 5 or 6 bits, multiplied as bytes.

use super::activations::{BLOCK, Vector};
use super::blocks::{Block, Quants};
use crate::simd::V;

/// A format of few bits, whose numbers are not negative.
pub(super) trait Narrow {
    /// Bits of a number: 4, 5 or 6.
    const BITS: u32;
    /// Numbers in a sub-block: 32 or 16.
    const SUB_BLOCK: usize = BLOCK;

    /// Columns `16 * i` to `16 * i + 15` of a block, as bytes.
    ///
    /// # Safety
    /// The block must be whole.
    unsafe fn quants(block: impl Block, i: usize) -> V;
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

    #[inline(always)]
    unsafe fn dots(rows: [impl Block; 4], x: Vector, i: usize) -> V {
        let pieces = Q::SUB_BLOCK / 16;
        let mut sums = [V::splat_i32(0); 4];
        for piece in i * pieces..(i + 1) * pieces {
            // SAFETY: the caller vouches for the blocks' part of the vector.
            let x = unsafe { V::load(x.q8.add(16 * piece)) };
            for (sums, row) in sums.iter_mut().zip(rows) {
                // SAFETY: the caller vouches for the block.
                let q = unsafe { Q::quants(row, piece) };
                *sums = sums.add_i16(V::dot_i8_u7(x, q));
            }
        }
        // A lane holds two products for each piece.
        if products_max(Q::BITS) / (2 * pieces) >= 4 {
            V::sums_i16::<4>(sums)
        } else {
            V::sums_i16::<2>(sums)
        }
    }

    #[inline(always)]
    unsafe fn unpack(rows: [impl Block; 4], i: usize, out: *mut u8) {
        let pieces = Q::SUB_BLOCK / 16;
        for piece in 0..pieces {
            // SAFETY: the caller vouches for the blocks, and for room at `out`.
            unsafe {
                let q = rows.map(|row| Q::quants(row, i * pieces + piece));
                for (j, q) in V::transpose_32(q).into_iter().enumerate() {
                    q.store(out.add(64 * piece + 16 * j));
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn dots_unpacked<const N: usize, const T: usize>(
        rows: [*const u8; N],
        x: [Vector; T],
    ) -> [[V; N]; T] {
        // Four columns at a time, two of them in a lane of 16 bits.
        let steps = products_max(Q::BITS) / 2;
        let mut dots = [[V::splat_i32(0); N]; T];
        for first in (0..Q::SUB_BLOCK / 4).step_by(steps) {
            let mut sums = [[V::splat_i32(0); N]; T];
            for c in first..first + steps {
                // SAFETY: the caller vouches for a sub-block in the rows and
                // in the vectors; it has column `4 * c`.
                unsafe {
                    let rows = rows.map(|row| V::load(row.add(16 * c)));
                    for (x, sums) in x.iter().zip(&mut sums) {
                        let x = V::load_splat_32(x.q8.add(4 * c));
                        for (row, sum) in rows.iter().zip(sums) {
                            *sum = sum.add_i16(V::dot_i8_u7(x, *row));
                        }
                    }
                }
            }
            for (dots, sums) in dots.iter_mut().zip(sums) {
                for (dot, sum) in dots.iter_mut().zip(sums) {
                    *dot = dot.add_i32(sum.sum_pairs_i16());
                }
            }
        }
        dots
    }
}
