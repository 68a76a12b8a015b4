//! Matrix times vector.

use super::activations::Vector;
use super::blocks::Blocks;
use super::raw::{RawBlock, RawRows};
use crate::simd::V;

/// The products of four rows of `cols` numbers with `x`.
///
/// Each sub-block's products are summed as integers, exactly; then the scaled
/// sums are added up from the first sub-block to the last, and the minima
/// apart from them. All kernels keep this order, and so agree to the bit.
///
/// # Safety
/// `cols` must be whole blocks of the format, each row must hold `cols`
/// numbers, and `x` must too.
#[inline(never)]
pub(super) unsafe fn dot_rows<B: Blocks>(rows: [*const u8; 4], x: Vector, cols: usize) -> V {
    let mut sum = V::splat_f32(0.0);
    let mut mins = V::splat_f32(0.0);
    let block_len = B::SUB_BLOCKS * B::SUB_BLOCK;
    for b in 0..cols / block_len {
        // SAFETY: the caller vouches for `cols` numbers in `x` and in each
        // row; block `b` is one of theirs.
        unsafe {
            let blocks = rows.map(|row| row.add(b * B::BYTES));
            let x = x.from(b * block_len);
            let header = B::header(RawRows(blocks));
            // Each step with its constants: shifts by a variable are slow.
            macro_rules! sub_blocks {
                ($($i:literal)*) => { $(
                    if $i < B::SUB_BLOCKS {
                        let mut dots = B::dots(blocks.map(RawBlock), x, $i);
                        if B::OFFSET != 0 {
                            dots = dots.add_i32(x.offset::<B>($i));
                        }
                        let scales = B::scales(header, $i).mul_f32(x.scale::<B>($i));
                        sum = sum.madd_f32(dots.to_f32x4(), scales);
                        if B::MIN {
                            mins = mins.madd_f32(B::mins(header, $i), x.sum($i));
                        }
                    }
                )* };
            }
            sub_blocks!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        }
    }
    if B::MIN { sum.add_f32(mins) } else { sum }
}
