//! Kernels of F32, F16 and BF16, with activations as they are.

use crate::quant::f16;
use crate::quant::scalar::u16_at;
use crate::simd::V;

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

/// The products of four rows with `x`.
///
/// # Safety
/// Each row must hold as many numbers as `x`.
#[inline(always)]
pub(in crate::quant) unsafe fn dot_rows<F: Float>(rows: [*const u8; 4], x: &[f32]) -> [f32; 4] {
    let mut acc = [V::splat_f32(0.0); 4];
    let cols = x.len();
    let four = cols / 4 * 4;
    // SAFETY: the caller vouches for `cols` numbers in each row, and every index
    // here is below `cols`.
    unsafe {
        for i in (0..four).step_by(4) {
            let xs = V::load(x.as_ptr().add(i).cast());
            for (acc, row) in acc.iter_mut().zip(rows) {
                *acc = acc.madd_f32(F::four(row.add(i * F::BYTES)), xs);
            }
        }
        std::array::from_fn(|r| {
            let rest = (four..cols).map(|i| F::one(rows[r].add(i * F::BYTES)) * x[i]);
            acc[r].sum_f32() + rest.sum::<f32>()
        })
    }
}
