//! Kernels of F32, F16 and BF16, with activations as they are.

use crate::quant::f16;
use crate::quant::scalar::u16_at;
use crate::simd::{V, steps};

/// Reads four numbers, or one.
pub(in crate::quant) trait Float {
    const BYTES: usize;
    /// # Safety
    /// Four numbers must be readable at `p`.
    unsafe fn four(p: *const u8) -> V;
    /// # Safety
    /// One number must be readable at `p`.
    unsafe fn one(p: *const u8) -> f32;
}

pub(in crate::quant) struct F32;
pub(in crate::quant) struct F16;
pub(in crate::quant) struct Bf16;

impl Float for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn four(p: *const u8) -> V {
        // SAFETY: the caller vouches for 16 bytes.
        unsafe { V::load(p) }
    }
    #[inline(always)]
    unsafe fn one(p: *const u8) -> f32 {
        // SAFETY: the caller vouches for 4 bytes.
        f32::from_le_bytes(unsafe { p.cast::<[u8; 4]>().read() })
    }
}

impl Float for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn four(p: *const u8) -> V {
        // SAFETY: the caller vouches for 8 bytes.
        f16::alone(unsafe { V::load_u16x4(p) })
    }
    #[inline(always)]
    unsafe fn one(p: *const u8) -> f32 {
        // SAFETY: the caller vouches for 2 bytes.
        f16::from_bits(unsafe { u16_at(p) })
    }
}

impl Float for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn four(p: *const u8) -> V {
        // SAFETY: the caller vouches for 8 bytes.
        unsafe { V::load_u16x4(p) }.shl_i32(16)
    }
    #[inline(always)]
    unsafe fn one(p: *const u8) -> f32 {
        // SAFETY: the caller vouches for 2 bytes.
        f32::from_bits(u32::from(unsafe { u16_at(p) }) << 16)
    }
}

/// Writes a number.
pub(super) fn dequantize<F: Float>(number: &[u8], out: &mut [f32]) {
    // SAFETY: the slice holds a number.
    out[0] = unsafe { F::one(number[..F::BYTES].as_ptr()) };
}

/// The products of four rows with each of the vectors `x`, of one length. What is summed
/// and in which order is the same for any number of vectors.
///
/// # Safety
/// Each row must hold as many numbers as a vector.
#[inline(never)]
pub(in crate::quant) unsafe fn dot_rows<F: Float, const T: usize>(
    rows: [*const u8; 4],
    x: [&[f32]; T],
    out: &mut [[f32; 4]; T],
) {
    let mut sums = [[V::splat_f32(0.0); 4]; T];
    let cols = x[0].len();
    let x = x.map(|x| &x[..cols]);
    let add = |sums: &mut [[V; 4]; T], i: usize| {
        // SAFETY: the caller vouches for `cols` numbers in each row, and there are four
        // from each `i` on.
        let xs = x.map(|x| unsafe { V::load(x.as_ptr().add(i).cast()) });
        for (r, row) in rows.iter().enumerate() {
            // SAFETY: as above.
            let weights = unsafe { F::four(row.add(i * F::BYTES)) };
            for (sums, xs) in sums.iter_mut().zip(xs) {
                sums[r] = sums[r].madd_f32(weights, xs);
            }
        }
    };
    // Sixteen columns in a turn of the loop: see `ops`.
    let (sixteens, fours) = (cols / 16 * 16, cols / 4 * 4);
    for i in (0..sixteens).step_by(16) {
        steps!(4, |step| {
            add(&mut sums, i + 4 * step);
        });
    }
    for i in (sixteens..fours).step_by(4) {
        add(&mut sums, i);
    }
    for ((out, sums), x) in out.iter_mut().zip(sums).zip(x) {
        *out = std::array::from_fn(|r| {
            // SAFETY: as above, for one number.
            let one = |i: usize| unsafe { F::one(rows[r].add(i * F::BYTES)) } * x[i];
            sums[r].sum_f32() + (fours..cols).map(one).sum::<f32>()
        });
    }
}
