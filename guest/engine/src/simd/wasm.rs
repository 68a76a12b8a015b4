//! The instructions of WebAssembly.

#[cfg(target_arch = "wasm32")]
use core::arch::wasm32::*;
#[cfg(target_arch = "wasm64")]
use core::arch::wasm64::*;

/// 128 bits.
#[derive(Clone, Copy)]
pub(crate) struct V(v128);

impl V {
    /// 16 bytes from `p`, of any alignment.
    ///
    /// # Safety
    /// 16 bytes must be readable at `p`.
    #[inline(always)]
    pub unsafe fn load(p: *const u8) -> V {
        // SAFETY: the caller vouches for 16 readable bytes; the load has no alignment.
        V(unsafe { v128_load(p.cast()) })
    }

    /// 8 bytes from `p`, sign-extended to i16.
    ///
    /// # Safety
    /// 8 bytes must be readable at `p`.
    #[inline(always)]
    pub unsafe fn load_i8x8(p: *const u8) -> V {
        // SAFETY: the caller vouches for 8 readable bytes.
        V(unsafe { i16x8_load_extend_i8x8(p.cast()) })
    }

    /// 4 little-endian u16 from `p`, as u32.
    ///
    /// # Safety
    /// 8 bytes must be readable at `p`.
    #[inline(always)]
    pub unsafe fn load_u16x4(p: *const u8) -> V {
        // SAFETY: the caller vouches for 8 readable bytes.
        V(unsafe { u32x4_load_extend_u16x4(p.cast()) })
    }

    /// 4 bytes from `p`, as u32.
    ///
    /// # Safety
    /// 4 bytes must be readable at `p`.
    #[inline(always)]
    pub unsafe fn load_u8x4(p: *const u8) -> V {
        // SAFETY: the caller vouches for 4 readable bytes; the load has no alignment.
        let bytes = unsafe { v128_load32_zero(p.cast()) };
        V(u32x4_extend_low_u16x8(u16x8_extend_low_u8x16(bytes)))
    }

    /// 16 times `x`.
    #[inline(always)]
    pub fn splat_u8(x: u8) -> V {
        V(u8x16_splat(x))
    }

    /// 4 times `x`.
    #[inline(always)]
    pub fn splat_i32(x: i32) -> V {
        V(i32x4_splat(x))
    }

    /// 4 times `x`.
    #[inline(always)]
    pub fn splat_f32(x: f32) -> V {
        V(f32x4_splat(x))
    }

    /// The 16 bytes of two u64.
    #[inline(always)]
    pub fn from_u64(low: u64, high: u64) -> V {
        V(u64x2(low, high))
    }

    /// 4 bytes from `p`, 4 times.
    ///
    /// # Safety
    /// 4 bytes must be readable at `p`.
    #[inline(always)]
    pub unsafe fn load_splat_32(p: *const u8) -> V {
        // SAFETY: the caller vouches for 4 readable bytes; the load has no alignment.
        V(unsafe { v128_load32_splat(p.cast()) })
    }

    /// Writes the 16 bytes to `p`, of any alignment.
    ///
    /// # Safety
    /// 16 bytes must be writable at `p`.
    #[inline(always)]
    pub unsafe fn store(self, p: *mut u8) {
        // SAFETY: the caller vouches for 16 writable bytes; the store has no alignment.
        unsafe { v128_store(p.cast(), self.0) }
    }

    /// The four numbers.
    #[inline(always)]
    pub fn from_i32x4([a, b, c, d]: [i32; 4]) -> V {
        V(i32x4(a, b, c, d))
    }

    /// 4 times lane `i` of 32 bits; `i` should be known when this is compiled.
    #[inline(always)]
    pub fn splat_lane(self, i: usize) -> V {
        V(match i {
            0 => i32x4_shuffle::<0, 0, 0, 0>(self.0, self.0),
            1 => i32x4_shuffle::<1, 1, 1, 1>(self.0, self.0),
            2 => i32x4_shuffle::<2, 2, 2, 2>(self.0, self.0),
            _ => i32x4_shuffle::<3, 3, 3, 3>(self.0, self.0),
        })
    }

    /// 8 times each of the two bytes of u16 number `i`, 0 or 1.
    #[inline(always)]
    pub fn spread_u16(self, i: usize) -> V {
        V(if i == 0 {
            i8x16_shuffle::<0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1>(self.0, self.0)
        } else {
            i8x16_shuffle::<2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3>(self.0, self.0)
        })
    }

    /// Lanes 0 of `a` and `b`, then lanes 1, of 32 bits.
    #[inline(always)]
    pub fn low_32(a: V, b: V) -> V {
        V(i32x4_shuffle::<0, 4, 1, 5>(a.0, b.0))
    }

    /// Lanes 2 of `a` and `b`, then lanes 3, of 32 bits.
    #[inline(always)]
    pub fn high_32(a: V, b: V) -> V {
        V(i32x4_shuffle::<2, 6, 3, 7>(a.0, b.0))
    }

    /// The low halves of `a` and `b`.
    #[inline(always)]
    pub fn low_64(a: V, b: V) -> V {
        V(i64x2_shuffle::<0, 2>(a.0, b.0))
    }

    /// The high halves of `a` and `b`.
    #[inline(always)]
    pub fn high_64(a: V, b: V) -> V {
        V(i64x2_shuffle::<1, 3>(a.0, b.0))
    }

    /// Bitwise and.
    #[inline(always)]
    pub fn and(self, b: V) -> V {
        V(v128_and(self.0, b.0))
    }

    /// Bitwise or.
    #[inline(always)]
    pub fn or(self, b: V) -> V {
        V(v128_or(self.0, b.0))
    }

    /// Bitwise exclusive or.
    #[inline(always)]
    pub fn xor(self, b: V) -> V {
        V(v128_xor(self.0, b.0))
    }

    /// Byte `i` of the table for each byte `i` of these, which must be below 16.
    #[inline(always)]
    pub fn lookup(self, table: V) -> V {
        V(i8x16_relaxed_swizzle(table.0, self.0))
    }

    /// 0xff where the bytes are equal, else 0.
    #[inline(always)]
    pub fn eq_u8(self, b: V) -> V {
        V(u8x16_eq(self.0, b.0))
    }

    /// 0xff where a signed byte is greater than that of `b`, else 0.
    #[inline(always)]
    pub fn gt_i8(self, b: V) -> V {
        V(i8x16_gt(self.0, b.0))
    }

    /// Each u16 shifted right by `n`, which should be known when this is
    /// compiled.
    #[inline(always)]
    pub fn shr_u16(self, n: u32) -> V {
        V(u16x8_shr(self.0, n))
    }

    /// Each u16 shifted left.
    #[inline(always)]
    pub fn shl_u16(self, n: u32) -> V {
        V(i16x8_shl(self.0, n))
    }

    /// Each u32 shifted right.
    #[inline(always)]
    pub fn shr_u32(self, n: u32) -> V {
        V(u32x4_shr(self.0, n))
    }

    /// Each i32 shifted right, its sign kept.
    #[inline(always)]
    pub fn shr_i32(self, n: u32) -> V {
        V(i32x4_shr(self.0, n))
    }

    /// Each i16 shifted right, its sign kept.
    #[inline(always)]
    pub fn shr_i16(self, n: u32) -> V {
        V(i16x8_shr(self.0, n))
    }

    /// Of each pair of i16, number `i` twice; `i` should be known when this is
    /// compiled.
    #[inline(always)]
    pub fn pairs_of(self, i: usize) -> V {
        V(if i == 0 {
            i16x8_shuffle::<0, 0, 2, 2, 4, 4, 6, 6>(self.0, self.0)
        } else {
            i16x8_shuffle::<1, 1, 3, 3, 5, 5, 7, 7>(self.0, self.0)
        })
    }

    /// 8 times i16 number `i`, which should be known when this is compiled.
    #[inline(always)]
    pub fn splat_lane_i16(self, i: usize) -> V {
        macro_rules! splat {
            ($($i:literal)*) => {
                match i {
                    $($i => i16x8_shuffle::<$i, $i, $i, $i, $i, $i, $i, $i>(self.0, self.0),)*
                    _ => unreachable!(),
                }
            };
        }
        V(splat!(0 1 2 3 4 5 6 7))
    }

    /// The i16 with numbers 1 and 2, and 5 and 6, exchanged.
    #[inline(always)]
    pub fn swap_inner_i16(self) -> V {
        V(i16x8_shuffle::<0, 2, 1, 3, 4, 6, 5, 7>(self.0, self.0))
    }

    /// The 8 bytes of `x` as i16.
    #[inline(always)]
    pub fn widen_u8(x: u64) -> V {
        V(u16x8_extend_low_u8x16(u64x2_splat(x)))
    }

    /// Each i32 shifted left.
    #[inline(always)]
    pub fn shl_i32(self, n: u32) -> V {
        V(i32x4_shl(self.0, n))
    }

    /// The products of the signed bytes `a` and the bytes `b`, which must be 0
    /// to 127, each i16 lane the sum of two neighbours.
    #[inline(always)]
    pub fn dot_i8_u7(a: V, b: V) -> V {
        V(i16x8_relaxed_dot_i8x16_i7x16(a.0, b.0))
    }

    /// The products of the i16, each i32 lane the sum of two neighbours.
    #[inline(always)]
    pub fn dot_i16(self, b: V) -> V {
        V(i32x4_dot_i16x8(self.0, b.0))
    }

    /// Sum of the bytes, wrapping.
    #[inline(always)]
    pub fn add_u8(self, b: V) -> V {
        V(i8x16_add(self.0, b.0))
    }

    /// Difference of the bytes, wrapping.
    #[inline(always)]
    pub fn sub_u8(self, b: V) -> V {
        V(i8x16_sub(self.0, b.0))
    }

    /// Sum of the i16, wrapping.
    #[inline(always)]
    pub fn add_i16(self, b: V) -> V {
        V(i16x8_add(self.0, b.0))
    }

    /// Sum of the i32, wrapping.
    #[inline(always)]
    pub fn add_i32(self, b: V) -> V {
        V(i32x4_add(self.0, b.0))
    }

    /// Difference of the i32, wrapping.
    #[inline(always)]
    pub fn sub_i32(self, b: V) -> V {
        V(i32x4_sub(self.0, b.0))
    }

    /// Product of the i32, wrapping.
    #[inline(always)]
    pub fn mul_i32(self, b: V) -> V {
        V(i32x4_mul(self.0, b.0))
    }

    /// Each i32 as f32.
    #[inline(always)]
    pub fn to_f32x4(self) -> V {
        V(f32x4_convert_i32x4(self.0))
    }

    /// Sum of the f32.
    #[inline(always)]
    pub fn add_f32(self, b: V) -> V {
        V(f32x4_add(self.0, b.0))
    }

    /// Difference of the f32.
    #[inline(always)]
    pub fn sub_f32(self, b: V) -> V {
        V(f32x4_sub(self.0, b.0))
    }

    /// Product of the f32.
    #[inline(always)]
    pub fn mul_f32(self, b: V) -> V {
        V(f32x4_mul(self.0, b.0))
    }

    /// Quotient of the f32.
    #[inline(always)]
    pub fn div_f32(self, b: V) -> V {
        V(f32x4_div(self.0, b.0))
    }

    /// The smaller of the f32; `b` where the comparison fails.
    #[inline(always)]
    pub fn min_f32(self, b: V) -> V {
        V(f32x4_pmin(b.0, self.0))
    }

    /// The larger of the f32; `b` where the comparison fails.
    #[inline(always)]
    pub fn max_f32(self, b: V) -> V {
        V(f32x4_pmax(b.0, self.0))
    }

    /// Magnitude of the f32.
    #[inline(always)]
    pub fn abs_f32(self) -> V {
        V(f32x4_abs(self.0))
    }

    /// The 8 i32 as i16, which they must fit.
    #[inline(always)]
    pub fn narrow_to_i16(a: V, b: V) -> V {
        V(i16x8_narrow_i32x4(a.0, b.0))
    }

    /// The 16 i32 as bytes; they must fit i8.
    #[inline(always)]
    pub fn narrow_to_i8([a, b, c, d]: [V; 4]) -> V {
        V(i8x16_narrow_i16x8(i16x8_narrow_i32x4(a.0, b.0), i16x8_narrow_i32x4(c.0, d.0)))
    }

    /// The four f32.
    #[inline(always)]
    pub fn to_f32(self) -> [f32; 4] {
        [
            f32x4_extract_lane::<0>(self.0),
            f32x4_extract_lane::<1>(self.0),
            f32x4_extract_lane::<2>(self.0),
            f32x4_extract_lane::<3>(self.0),
        ]
    }

    /// The four i32.
    #[inline(always)]
    pub fn to_i32_lanes(self) -> [i32; 4] {
        [
            i32x4_extract_lane::<0>(self.0),
            i32x4_extract_lane::<1>(self.0),
            i32x4_extract_lane::<2>(self.0),
            i32x4_extract_lane::<3>(self.0),
        ]
    }

    /// Writes the four f32.
    #[inline(always)]
    pub fn store_f32(self, out: &mut [f32; 4]) {
        *out = self.to_f32();
    }
}
