//! The inner loops of attention: vectors times a panel.

use super::shape::PANEL;
use crate::ops::load;
use crate::simd::{V, steps};

/// Vectors that the kernel takes at a time.
pub(super) const KERNEL: usize = 4;
/// Rows of a panel that it takes at a time.
const RUN: usize = 16;

/// Adds the products of `n` vectors, at most `KERNEL`, with a panel
/// `[..][width]` to `width` numbers each. `place` says for each vector where it
/// begins in `x`, and where its results begin in `out`.
#[inline(always)]
pub(super) fn add_products(
    x: &[f32],
    panel: &[f32],
    width: usize,
    n: usize,
    place: impl Fn(usize) -> (usize, usize),
    out: &mut [f32],
) {
    let (fours, _) = panel.as_chunks::<4>();
    if width == PANEL {
        let (panel, _) = fours.as_chunks();
        match n {
            1 => kernel::<1, 2>(x, panel, std::array::from_fn(place), out),
            2 => kernel::<2, 2>(x, panel, std::array::from_fn(place), out),
            3 => kernel::<3, 2>(x, panel, std::array::from_fn(place), out),
            _ => kernel::<KERNEL, 2>(x, panel, std::array::from_fn(place), out),
        }
    } else {
        let (panel, _) = fours.as_chunks();
        (0..n).for_each(|i| kernel::<1, 1>(x, panel, [place(i)], out));
    }
}

/// [`add_products`] of `N` vectors with a panel of `4 * W` columns. Each of
/// the results is a sum of its own, in the order of the panel's rows.
#[inline(never)]
fn kernel<const N: usize, const W: usize>(
    x: &[f32],
    panel: &[[[f32; 4]; W]],
    places: [(usize, usize); N],
    out: &mut [f32],
) {
    let x = places.map(|(from, _)| x[from..from + panel.len()].as_ptr());
    let mut sums = places.map(|(_, to)| {
        let (fours, _) = out[to..to + 4 * W].as_chunks::<4>();
        std::array::from_fn::<V, W, _>(|j| load(&fours[j]))
    });
    let (fours, _) = panel.as_chunks::<4>();
    for (run, fours) in fours.chunks(RUN / 4).enumerate() {
        let rows = fours.as_ptr().cast::<[[f32; 4]; W]>();
        // Not even that it is a multiple of four shall be known.
        let n_rows = std::hint::black_box(4 * fours.len());
        steps!(RUN, n_rows, |step| {
            // SAFETY: the run has the row, and each vector four numbers from
            // a multiple of four on.
            let row = unsafe { &*rows.add(step) }.each_ref().map(load);
            for (x, sums) in x.iter().zip(&mut sums) {
                // SAFETY: as above.
                let x = unsafe { V::load(x.add(RUN * run + step / 4 * 4).cast()) };
                let x = x.splat_lane(step % 4);
                for (sum, y) in sums.iter_mut().zip(row) {
                    *sum = sum.madd_f32(x, y);
                }
            }
        });
    }
    for (k, row) in panel.iter().enumerate().skip(4 * fours.len()) {
        for (x, sums) in x.iter().zip(&mut sums) {
            // SAFETY: the vector has as many numbers as the panel has rows.
            let x = V::splat_f32(unsafe { *x.add(k) });
            for (sum, y) in sums.iter_mut().zip(row) {
                *sum = sum.madd_f32(x, load(y));
            }
        }
    }
    for ((_, to), sums) in places.into_iter().zip(sums) {
        let (fours, _) = out[to..to + 4 * W].as_chunks_mut::<4>();
        fours.iter_mut().zip(sums).for_each(|(out, sum)| sum.store_f32(out));
    }
}
