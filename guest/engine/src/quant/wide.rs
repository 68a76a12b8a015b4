//! Whole numbers of 8 bits, multiplied in 16.

use super::blocks::Quants;
use super::shape::{Products, load_step};
use crate::simd::steps;

/// [`Quants::dots_unpacked`] of numbers that were unpacked to 16 bits, without scales.
///
/// # Safety
/// As there.
#[inline(always)]
pub(super) unsafe fn wide_dots<Q: Quants, const T: usize>(
    rows: *const u8,
    x: *const u8,
    n_steps: usize,
    products: &mut Products<T>,
) {
    steps!(Q::STEPS, n_steps, |step| {
        // SAFETY: the caller vouches for sub-blocks.
        let (w, x) = unsafe { load_step(rows, x, step) };
        for (t, products) in products.iter_mut().enumerate() {
            let x = x.splat_lane(t);
            for (product, w) in products.iter_mut().zip(w) {
                *product = product.add_i32(w.dot_i16(x));
            }
        }
    });
}
