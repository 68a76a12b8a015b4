//! Kernels of F32, F16 and BF16, with activations as they are.

use super::scalar::f16_at;
use crate::simd::V;

/// Reads four numbers, or one.
pub(super) trait Float {
    const BYTES: usize;
    /// # Safety
    /// Four numbers must be readable at `p`.
    unsafe fn four(p: *const u8) -> V;
    /// # Safety
    /// One number must be readable at `p`.
    unsafe fn one(p: *const u8) -> f32;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;

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
        // As `scalar::f16_bits`, four at a time.
        // SAFETY: the caller vouches for 8 bytes.
        let bits = unsafe { V::load_u16x4(p) };
        let sign = bits.shl_i32(16).and(V::splat_i32(i32::MIN));
        let rest = bits.and(V::splat_i32(0x7fff)).shl_i32(13);
        sign.or(rest).mul_f32(V::splat_f32(f32::from_bits(0x7780_0000)))
    }
    #[inline(always)]
    unsafe fn one(p: *const u8) -> f32 {
        // SAFETY: the caller vouches for 2 bytes.
        unsafe { f16_at(p) }
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
        let bits = u16::from_le_bytes(unsafe { p.cast::<[u8; 2]>().read() });
        f32::from_bits(u32::from(bits) << 16)
    }
}

/// The products of four rows with `x`.
///
/// # Safety
/// Each row must hold as many numbers as `x`.
#[inline(always)]
pub(super) unsafe fn dot_rows<F: Float>(rows: [*const u8; 4], x: &[f32]) -> [f32; 4] {
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
