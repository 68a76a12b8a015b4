//! Q8_0: blocks of 32 signed bytes, multiplied in 16 bits.

use crate::quant::activations::ActivationBlock;
use crate::quant::blocks::{Blocks, Counts, Quants, weighted};
use crate::quant::f16;
use crate::quant::packed::PackedRows;
use crate::quant::raw::RawBlock;
use crate::quant::rows::{Block, FourRows};
use crate::quant::shape::{GROUPS, Products};
use crate::quant::wide::wide_dots;
use crate::simd::{V, steps};

pub(in crate::quant) struct Q8_0;

impl Blocks for Q8_0 {
    const BYTES: usize = 34;
    const INTERLEAVING: &'static [(usize, usize)] = &[(34, 2)];

    type Scales = ();

    #[inline(always)]
    fn factors(words: V) -> [V; 2] {
        [f16::low(words), V::splat_f32(0.0)]
    }

    #[inline(always)]
    unsafe fn scales(_rows: impl FourRows) {}

    #[inline(always)]
    unsafe fn partials(block: RawBlock, x: *const ActivationBlock, _units: usize) -> [V; 2] {
        // SAFETY: 32 bytes follow the scale; the caller vouches for the rest.
        let dot = |i: usize| unsafe { block.wide_bytes(2 + 8 * i).dot_i16((*x).load_q16(i)) };
        [dot(0).add_i32(dot(1)).add_i32(dot(2).add_i32(dot(3))), V::splat_i32(0)]
    }

    #[inline(always)]
    fn total([scale, _]: [V; 2], products: V, _sums: V) -> V {
        products.to_f32x4().mul_f32(scale)
    }

    fn dequantize(block: &[u8], out: &mut [f32]) {
        let d = f16::first(block);
        out.iter_mut().zip(&block[2..]).for_each(|(out, &q)| *out = d * f32::from(q as i8));
    }
}

impl Quants for Q8_0 {
    const UNPACKED: usize = 2;
    const PACKED_STEPS: usize = Self::SUB_BLOCK / 2;

    #[inline(always)]
    unsafe fn packed_sums<B: Blocks, const N: usize>(
        rows: [PackedRows<N>; N],
        x: &[ActivationBlock],
        counts: Counts,
    ) -> [[V; 2]; N] {
        let mut dots = [V::splat_i32(0); N];
        let block = &x[0];
        steps!(Self::PACKED_STEPS, counts.steps, |step| {
            let x = block.load_q16(step / 4).splat_lane(step % 4);
            for (dots, rows) in dots.iter_mut().zip(rows) {
                // SAFETY: 32 bytes follow the scale.
                *dots = dots.add_i32(
                    unsafe { rows.quarter(step % 4).wide_bytes(2 + 8 * (step / 4)) }.dot_i16(x),
                );
            }
        });
        // SAFETY: the caller vouches for the rows.
        std::array::from_fn(|g| [dots[g], weighted::<B>(unsafe { B::scales(rows[g]) }, x)])
    }

    #[inline(always)]
    unsafe fn unpack(rows: impl FourRows, _unit: usize, mut put: impl FnMut(usize, V)) {
        steps!(4, |i| {
            let quarters: [V; 4] =
                // SAFETY: as above.
                std::array::from_fn(|c| unsafe { rows.quarter(c).wide_bytes(2 + 8 * i) });
            for (c, q) in quarters.into_iter().enumerate() {
                put(4 * i + c, q);
            }
        });
    }

    // A step is two columns.
    const STEPS: usize = Self::SUB_BLOCK / 2;

    #[inline(always)]
    unsafe fn dots_unpacked<const T: usize>(
        rows: *const u8,
        x: *const u8,
        _scale_pairs: [V; GROUPS],
        n_steps: usize,
        products: &mut Products<T>,
    ) {
        // SAFETY: the caller vouches for the same.
        unsafe { wide_dots::<Self, T>(rows, x, n_steps, products) }
    }
}
