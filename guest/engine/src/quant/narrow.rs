//! Whole numbers of 4, 5 or 6 bits, multiplied as bytes.

use super::activations::{ActivationBlock, BLOCK};
use super::blocks::{Block, FourRows, Quants, WholeProducts};
use super::gemm::GROUPS;
use super::panels::TOKENS;
use crate::simd::V;

/// A format of few bits, whose numbers are not negative.
pub(super) trait Narrow {
    /// Bits of a number: 4, 5 or 6.
    const BITS: u32;
    /// Numbers in a sub-block: 32 or 16.
    const SUB_BLOCK: usize = BLOCK;

    /// Columns `16 * i` to `16 * i + 15` of a unit of a block, as bytes, or
    /// what the block gives of them.
    ///
    /// # Safety
    /// The block must be whole.
    unsafe fn quants(block: impl Block, unit: usize, i: usize) -> V;
}

/// How many products of a byte from -127 to 127 with a number of so many bits
/// can be summed in 16 bits.
pub(super) const fn products_max(bits: u32) -> usize {
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
    unsafe fn dots(rows: impl FourRows, unit: usize, i: usize, x: *const ActivationBlock) -> V {
        // SAFETY: the caller vouches for the same.
        unsafe { rows.dots::<Q>(unit, i, x) }
    }

    #[inline(always)]
    unsafe fn unpack(rows: impl FourRows, unit: usize, i: usize, put: impl FnMut(usize, V)) {
        // SAFETY: the caller vouches for the same.
        unsafe { rows.unpack::<Q>(unit, i, put) }
    }

    // A step's 16 bytes hold four columns, two of them in a lane of 16 bits.
    const RUN_LEN: usize = 16 * GROUPS * products_max(Q::BITS) / 2;

    #[inline(always)]
    unsafe fn dots_unpacked(
        mut rows: *const u8,
        mut x: *const u8,
        run_len: usize,
    ) -> WholeProducts {
        let mut dots = [[V::splat_i32(0); GROUPS]; TOKENS];
        for _ in 0..4 * Q::SUB_BLOCK * GROUPS / Self::RUN_LEN {
            let mut sums = [[V::splat_i32(0); GROUPS]; TOKENS];
            let end = rows.wrapping_add(run_len);
            while rows < end {
                // SAFETY: the caller vouches for sub-blocks, which are whole
                // runs of steps.
                unsafe {
                    let w: [V; GROUPS] = std::array::from_fn(|g| V::load(rows.add(16 * g)));
                    let v = V::load(x);
                    for (t, sums) in sums.iter_mut().enumerate() {
                        let v = v.splat_lane(t);
                        for (sum, w) in sums.iter_mut().zip(w) {
                            *sum = sum.add_i16(V::dot_i8_u7(v, w));
                        }
                    }
                    rows = rows.add(16 * GROUPS);
                    x = x.add(16);
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
