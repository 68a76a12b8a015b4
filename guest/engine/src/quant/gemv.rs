//! Matrix times vector.

use super::activations::{ActivationBlock, BLOCK};
use super::blocks::{Blocks, FourRows};
use crate::simd::V;

/// The products of four rows with the activations `x`.
///
/// Each sub-block's products are summed as integers, exactly; then the scaled
/// sums are added up from the first sub-block to the last, and the minima
/// apart from them. All kernels keep this order, and so agree to the bit.
///
/// `units` must be `B::UNITS`. Were it known to the compiler, it would unroll
/// that loop, and need more registers than there are.
///
/// # Safety
/// `x` must be whole blocks of the format, and each row must hold as many
/// numbers.
#[inline(never)]
pub(super) unsafe fn dot_rows<B: Blocks, R: FourRows>(
    rows: R,
    x: &[ActivationBlock],
    units: usize,
) -> V {
    let mut sum = V::splat_f32(0.0);
    let mut mins = V::splat_f32(0.0);
    let unit_len = B::SUB_BLOCKS * B::SUB_BLOCK / BLOCK;
    for (b, x) in x.chunks_exact(B::UNITS * unit_len).enumerate() {
        // SAFETY: the caller vouches for the rows; block `b` is one of theirs.
        unsafe {
            let blocks = rows.behind(b * B::BYTES);
            let header = B::header(blocks);
            let mut scales = [V::splat_f32(0.0); 16];
            // Each step with its constants: shifts by a variable are slow.
            macro_rules! sub_blocks {
                ($($i:literal)*) => { $(
                    if $i < B::UNITS * B::SUB_BLOCKS {
                        scales[$i] = B::scales(header, $i);
                        if B::MIN {
                            let x = V::splat_f32(x[$i].sum);
                            mins = mins.madd_f32(B::mins(header, $i), x);
                        }
                    }
                )* };
            }
            sub_blocks!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
            let units = if B::UNITS == 1 { 1 } else { units };
            for unit in 0..units {
                let x = &x[unit * unit_len..][..unit_len];
                let scales = &scales[unit * B::SUB_BLOCKS..][..B::SUB_BLOCKS];
                macro_rules! sub_blocks {
                    ($($i:literal)*) => { $(
                        if $i < B::SUB_BLOCKS {
                            let mut dots = B::dots(blocks, unit, $i, x.as_ptr());
                            let xs = &x[$i * B::SUB_BLOCK / BLOCK];
                            if B::OFFSET != 0 {
                                let whole = match B::SUB_BLOCK {
                                    BLOCK => xs.whole_sum,
                                    _ => xs.whole_half_sums[$i % 2],
                                };
                                dots = dots.sub_i32(V::splat_i32(B::OFFSET * whole));
                            }
                            let scales = scales[$i].mul_f32(V::splat_f32(xs.scale));
                            sum = sum.madd_f32(dots.to_f32x4(), scales);
                        }
                    )* };
                }
                sub_blocks!(0 1 2 3 4 5 6 7);
            }
        }
    }
    if B::MIN { sum.add_f32(mins) } else { sum }
}
