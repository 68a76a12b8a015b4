//! The inner loops of attention: vectors times a panel.

use crate::kv_cache::PANEL;
use crate::ops::load;
use crate::simd::V;

/// Vectors that the kernel takes at a time.
pub(super) const KERNEL: usize = 4;
/// Rows of a panel that it takes at a time.
const STEP: usize = 4;

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
///
/// The sums are in memory, and a step of the panel in registers: Wasmtime looks
/// at every turn of a loop whether the guest shall stop, and puts all vectors
/// that the next turn wants into memory meanwhile. For the same reason this is
/// a small function.
#[inline(never)]
fn kernel<const N: usize, const W: usize>(
    x: &[f32],
    panel: &[[[f32; 4]; W]],
    places: [(usize, usize); N],
    out: &mut [f32],
) {
    for (from, to) in places {
        assert!(from + panel.len() <= x.len() && to + 4 * W <= out.len());
    }
    let (x, out) = (x.as_ptr(), out.as_mut_ptr());
    let (steps, rest) = panel.as_chunks::<STEP>();
    for (step, rows) in steps.iter().enumerate() {
        let rows = rows.each_ref().map(|row| row.each_ref().map(load));
        for (from, to) in places {
            // SAFETY: the vector has as many numbers as the panel has rows,
            // `STEP` for each step.
            let x = unsafe { V::load(x.add(from + STEP * step).cast()) };
            let x: [V; 4] = std::array::from_fn(|i| x.splat_lane(i));
            for j in 0..W {
                // SAFETY: there are `4 * W` numbers, and nobody else has them.
                let out = unsafe { &mut *out.add(to + 4 * j).cast::<[f32; 4]>() };
                let sum = rows.iter().zip(x).fold(load(out), |sum, (y, x)| sum.madd_f32(x, y[j]));
                sum.store_f32(out);
            }
        }
    }
    for (k, row) in (STEP * steps.len()..).zip(rest) {
        for (from, to) in places {
            // SAFETY: as above.
            let x = V::splat_f32(unsafe { *x.add(from + k) });
            for (j, y) in row.iter().enumerate() {
                // SAFETY: as above.
                let out = unsafe { &mut *out.add(to + 4 * j).cast::<[f32; 4]>() };
                load(out).madd_f32(x, load(y)).store_f32(out);
            }
        }
    }
}
