//! Q8_0: blocks of 32 signed bytes, multiplied in 16 bits.

use super::activations::Vector;
use super::blocks::{Block, Blocks, Quants, Rows};
use crate::simd::V;

pub(super) struct Bytes;

impl Blocks for Bytes {
    const BYTES: usize = 34;
    const SUB_BLOCKS: usize = 1;

    /// The scales.
    type Header = V;

    #[inline(always)]
    unsafe fn header(rows: impl Rows) -> V {
        // SAFETY: a block begins with an f16.
        unsafe { rows.halves(0) }
    }

    #[inline(always)]
    fn scales(scales: V, _: usize) -> V {
        scales
    }
}

/// Columns `8 * i` to `8 * i + 7` of a block, as i16.
///
/// # Safety
/// The block must be whole.
#[inline(always)]
unsafe fn quants(block: impl Block, i: usize) -> V {
    // SAFETY: 32 bytes follow the scale.
    unsafe { block.wide_bytes(2 + 8 * i) }
}

impl Quants for Bytes {
    const UNPACKED: usize = 2;

    #[inline(always)]
    unsafe fn dots(rows: [impl Block; 4], x: Vector, _: usize) -> V {
        // SAFETY: the caller vouches for the blocks and their part of the
        // vector.
        unsafe {
            let x: [V; 4] = std::array::from_fn(|i| V::load(x.q16.add(16 * i)));
            V::sums_i32(rows.map(|row| {
                let dot = |i: usize| quants(row, i).dot_i16(x[i]);
                dot(0).add_i32(dot(1)).add_i32(dot(2).add_i32(dot(3)))
            }))
        }
    }

    #[inline(always)]
    unsafe fn unpack(rows: [impl Block; 4], _: usize, out: *mut u8) {
        for i in 0..4 {
            // SAFETY: the caller vouches for the blocks, and for room at `out`.
            unsafe {
                let q = rows.map(|row| quants(row, i));
                for (j, q) in V::transpose_32(q).into_iter().enumerate() {
                    q.store(out.add(64 * i + 16 * j));
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn dots_unpacked<const N: usize, const T: usize>(
        rows: [*const u8; N],
        x: [Vector; T],
    ) -> [[V; N]; T] {
        let mut dots = [[V::splat_i32(0); N]; T];
        // Two columns at a time.
        for c in 0..Self::SUB_BLOCK / 2 {
            // SAFETY: the caller vouches for a sub-block in the rows and in
            // the vectors; it has column `2 * c`.
            unsafe {
                let rows = rows.map(|row| V::load(row.add(16 * c)));
                for (x, dots) in x.iter().zip(&mut dots) {
                    let x = V::load_splat_32(x.q16.add(4 * c));
                    for (row, dot) in rows.iter().zip(dots) {
                        *dot = dot.add_i32(row.dot_i16(x));
                    }
                }
            }
        }
        dots
    }
}
