//! Q8_0: blocks of 32 signed bytes, multiplied in 16 bits.

use super::activations::ActivationBlock;
use super::blocks::{Blocks, FourRows, Quants, WholeProducts};
use super::gemm::GROUPS;
use super::panels::TOKENS;
use crate::simd::V;

pub(super) struct Bytes;

impl Blocks for Bytes {
    const BYTES: usize = 34;

    /// The scales.
    type Header = V;

    #[inline(always)]
    unsafe fn header(rows: impl FourRows) -> V {
        // SAFETY: a block begins with an f16.
        unsafe { rows.halves(0) }
    }

    #[inline(always)]
    fn scales(scales: V, _: usize) -> V {
        scales
    }
}

impl Quants for Bytes {
    const UNPACKED: usize = 2;

    #[inline(always)]
    unsafe fn dots(rows: impl FourRows, _unit: usize, _i: usize, x: *const ActivationBlock) -> V {
        // SAFETY: 32 bytes follow the scale; the caller vouches for the rest.
        unsafe { rows.dots_bytes(2, x) }
    }

    #[inline(always)]
    unsafe fn unpack(rows: impl FourRows, _unit: usize, _i: usize, put: impl FnMut(usize, V)) {
        // SAFETY: as above.
        unsafe { rows.unpack_bytes(2, put) }
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
