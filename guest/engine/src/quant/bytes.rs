//! Q8_0: blocks of 32 signed bytes, multiplied in 16 bits.

use super::activations::ActivationBlock;
use super::blocks::{Block, Blocks, Quants, Rows, WholeProducts};
use super::gemm::GROUPS;
use super::panels::TOKENS;
use crate::simd::V;

pub(super) struct Bytes;

impl Blocks for Bytes {
    const BYTES: usize = 34;

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
    unsafe fn dots(rows: [impl Block; 4], _unit: usize, _i: usize, x: *const ActivationBlock) -> V {
        // SAFETY: the caller vouches for the blocks and their activations.
        unsafe {
            let x: [V; 4] = std::array::from_fn(|i| V::load((*x).q16.as_ptr().add(8 * i).cast()));
            V::sums_i32(rows.map(|row| {
                let dot = |i: usize| quants(row, i).dot_i16(x[i]);
                dot(0).add_i32(dot(1)).add_i32(dot(2).add_i32(dot(3)))
            }))
        }
    }

    #[inline(always)]
    unsafe fn unpack(
        rows: [impl Block; 4],
        _unit: usize,
        _i: usize,
        mut put: impl FnMut(usize, V),
    ) {
        for i in 0..Self::SUB_BLOCK / 8 {
            // SAFETY: the caller vouches for the blocks.
            let q = rows.map(|row| unsafe { quants(row, i) });
            for (j, q) in V::transpose_32(q).into_iter().enumerate() {
                put(4 * i + j, q);
            }
        }
    }

    const RUN_LEN: usize = 8 * GROUPS * Self::SUB_BLOCK;

    #[inline(always)]
    unsafe fn dots_unpacked(
        mut rows: *const u8,
        mut x: *const u8,
        run_len: usize,
    ) -> WholeProducts {
        let mut dots = [[V::splat_i32(0); GROUPS]; TOKENS];
        let end = rows.wrapping_add(run_len);
        while rows < end {
            // SAFETY: the caller vouches for sub-blocks, which are whole
            // steps.
            unsafe {
                let w: [V; GROUPS] = std::array::from_fn(|g| V::load(rows.add(16 * g)));
                let v = V::load(x);
                for (t, dots) in dots.iter_mut().enumerate() {
                    let v = v.splat_lane(t);
                    for (dot, w) in dots.iter_mut().zip(w) {
                        *dot = dot.add_i32(w.dot_i16(v));
                    }
                }
                rows = rows.add(16 * GROUPS);
                x = x.add(16);
            }
        }
        dots
    }
}
