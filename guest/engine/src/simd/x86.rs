//! The instructions of x86-64 with SSE4.1.

use core::arch::x86_64::*;

macro_rules! sse {
    ($e:expr) => {
        // SAFETY: this module exists only in builds for machines that have
        // SSE4.1.
        unsafe { $e }
    };
}

/// 128 bits.
#[derive(Clone, Copy)]
pub(crate) struct V(__m128i);

impl V {
    #[inline(always)]
    fn ps(self) -> __m128 {
        sse!(_mm_castsi128_ps(self.0))
    }

    /// 16 bytes from `p`, of any alignment.
    ///
    /// # Safety
    /// 16 bytes must be readable at `p`.
    #[inline(always)]
    pub unsafe fn load(p: *const u8) -> V {
        // SAFETY: the caller vouches for 16 readable bytes; the load is unaligned.
        V(unsafe { _mm_loadu_si128(p.cast()) })
    }

    /// 8 bytes from `p`, sign-extended to i16.
    ///
    /// # Safety
    /// 8 bytes must be readable at `p`.
    #[inline(always)]
    pub unsafe fn load_i8x8(p: *const u8) -> V {
        // SAFETY: the caller vouches for 8 readable bytes.
        V(unsafe { _mm_cvtepi8_epi16(_mm_loadl_epi64(p.cast())) })
    }

    /// 4 little-endian u16 from `p`, as u32.
    ///
    /// # Safety
    /// 8 bytes must be readable at `p`.
    #[inline(always)]
    pub unsafe fn load_u16x4(p: *const u8) -> V {
        // SAFETY: the caller vouches for 8 readable bytes.
        V(unsafe { _mm_cvtepu16_epi32(_mm_loadl_epi64(p.cast())) })
    }

    /// 4 bytes from `p`, as u32.
    ///
    /// # Safety
    /// 4 bytes must be readable at `p`.
    #[inline(always)]
    pub unsafe fn load_u8x4(p: *const u8) -> V {
        // SAFETY: the caller vouches for 4 readable bytes.
        let bytes = unsafe { p.cast::<i32>().read_unaligned() };
        V(sse!(_mm_cvtepu8_epi32(_mm_cvtsi32_si128(bytes))))
    }

    /// 16 times `x`.
    #[inline(always)]
    pub fn splat_u8(x: u8) -> V {
        V(sse!(_mm_set1_epi8(x as i8)))
    }

    /// 4 times `x`.
    #[inline(always)]
    pub fn splat_i32(x: i32) -> V {
        V(sse!(_mm_set1_epi32(x)))
    }

    /// 4 times `x`.
    #[inline(always)]
    pub fn splat_f32(x: f32) -> V {
        V(sse!(_mm_castps_si128(_mm_set1_ps(x))))
    }

    /// The 16 bytes of two u64.
    #[inline(always)]
    pub fn from_u64(low: u64, high: u64) -> V {
        V(sse!(_mm_set_epi64x(high as i64, low as i64)))
    }

    /// 4 bytes from `p`, 4 times.
    ///
    /// # Safety
    /// 4 bytes must be readable at `p`.
    #[inline(always)]
    pub unsafe fn load_splat_32(p: *const u8) -> V {
        // SAFETY: the caller vouches for 4 readable bytes; the read has no alignment.
        V::splat_i32(unsafe { p.cast::<i32>().read_unaligned() })
    }

    /// Writes the 16 bytes to `p`, of any alignment.
    ///
    /// # Safety
    /// 16 bytes must be writable at `p`.
    #[inline(always)]
    pub unsafe fn store(self, p: *mut u8) {
        // SAFETY: the caller vouches for 16 writable bytes; the store is unaligned.
        unsafe { _mm_storeu_si128(p.cast(), self.0) }
    }

    /// The four numbers.
    #[inline(always)]
    pub fn from_i32x4([a, b, c, d]: [i32; 4]) -> V {
        V(sse!(_mm_setr_epi32(a, b, c, d)))
    }

    /// 4 times lane `i` of 32 bits; `i` should be known when this is compiled.
    #[inline(always)]
    pub fn splat_lane(self, i: usize) -> V {
        V(match i {
            0 => sse!(_mm_shuffle_epi32::<0x00>(self.0)),
            1 => sse!(_mm_shuffle_epi32::<0x55>(self.0)),
            2 => sse!(_mm_shuffle_epi32::<0xaa>(self.0)),
            _ => sse!(_mm_shuffle_epi32::<0xff>(self.0)),
        })
    }

    /// 8 times each of the two bytes of u16 number `i`, 0 or 1.
    #[inline(always)]
    pub fn spread_u16(self, i: usize) -> V {
        let byte = 0x0202_0202_0202_0202 * i as i64;
        V(sse!(_mm_shuffle_epi8(self.0, _mm_set_epi64x(byte + 0x0101_0101_0101_0101, byte))))
    }

    /// Lanes 0 of `a` and `b`, then lanes 1, of 32 bits.
    #[inline(always)]
    pub fn low_32(a: V, b: V) -> V {
        V(sse!(_mm_unpacklo_epi32(a.0, b.0)))
    }

    /// Lanes 2 of `a` and `b`, then lanes 3, of 32 bits.
    #[inline(always)]
    pub fn high_32(a: V, b: V) -> V {
        V(sse!(_mm_unpackhi_epi32(a.0, b.0)))
    }

    /// The low halves of `a` and `b`.
    #[inline(always)]
    pub fn low_64(a: V, b: V) -> V {
        V(sse!(_mm_unpacklo_epi64(a.0, b.0)))
    }

    /// The high halves of `a` and `b`.
    #[inline(always)]
    pub fn high_64(a: V, b: V) -> V {
        V(sse!(_mm_unpackhi_epi64(a.0, b.0)))
    }

    /// Bitwise and.
    #[inline(always)]
    pub fn and(self, b: V) -> V {
        V(sse!(_mm_and_si128(self.0, b.0)))
    }

    /// Bitwise or.
    #[inline(always)]
    pub fn or(self, b: V) -> V {
        V(sse!(_mm_or_si128(self.0, b.0)))
    }

    /// Bitwise exclusive or.
    #[inline(always)]
    pub fn xor(self, b: V) -> V {
        V(sse!(_mm_xor_si128(self.0, b.0)))
    }

    /// Byte `i` of the table for each byte `i` of these, which must be below 16.
    #[inline(always)]
    pub fn lookup(self, table: V) -> V {
        V(sse!(_mm_shuffle_epi8(table.0, self.0)))
    }

    /// 0xff where the bytes are equal, else 0.
    #[inline(always)]
    pub fn eq_u8(self, b: V) -> V {
        V(sse!(_mm_cmpeq_epi8(self.0, b.0)))
    }

    /// 0xff where a signed byte is greater than that of `b`, else 0.
    #[inline(always)]
    pub fn gt_i8(self, b: V) -> V {
        V(sse!(_mm_cmpgt_epi8(self.0, b.0)))
    }

    /// Each u16 shifted right by `n`, which should be known when this is
    /// compiled.
    #[inline(always)]
    pub fn shr_u16(self, n: u32) -> V {
        V(sse!(_mm_srl_epi16(self.0, _mm_cvtsi32_si128(n as i32))))
    }

    /// Each u16 shifted left.
    #[inline(always)]
    pub fn shl_u16(self, n: u32) -> V {
        V(sse!(_mm_sll_epi16(self.0, _mm_cvtsi32_si128(n as i32))))
    }

    /// Each u32 shifted right.
    #[inline(always)]
    pub fn shr_u32(self, n: u32) -> V {
        V(sse!(_mm_srl_epi32(self.0, _mm_cvtsi32_si128(n as i32))))
    }

    /// Each i32 shifted right, its sign kept.
    #[inline(always)]
    pub fn shr_i32(self, n: u32) -> V {
        V(sse!(_mm_sra_epi32(self.0, _mm_cvtsi32_si128(n as i32))))
    }

    /// Each i16 shifted right, its sign kept.
    #[inline(always)]
    pub fn shr_i16(self, n: u32) -> V {
        V(sse!(_mm_sra_epi16(self.0, _mm_cvtsi32_si128(n as i32))))
    }

    /// Of each pair of i16, number `i` twice; `i` should be known when this is
    /// compiled.
    #[inline(always)]
    pub fn pairs_of(self, i: usize) -> V {
        V(sse!(if i == 0 {
            _mm_shufflehi_epi16::<0b10_10_00_00>(_mm_shufflelo_epi16::<0b10_10_00_00>(self.0))
        } else {
            _mm_shufflehi_epi16::<0b11_11_01_01>(_mm_shufflelo_epi16::<0b11_11_01_01>(self.0))
        }))
    }

    /// 8 times i16 number `i`, which should be known when this is compiled.
    #[inline(always)]
    pub fn splat_lane_i16(self, i: usize) -> V {
        let bytes = 0x0101 * (2 * i as i16) + 0x0100;
        V(sse!(_mm_shuffle_epi8(self.0, _mm_set1_epi16(bytes))))
    }

    /// The i16 with numbers 1 and 2, and 5 and 6, exchanged.
    #[inline(always)]
    pub fn swap_inner_i16(self) -> V {
        let low = sse!(_mm_shufflelo_epi16::<0b11_01_10_00>(self.0));
        V(sse!(_mm_shufflehi_epi16::<0b11_01_10_00>(low)))
    }

    /// The 8 bytes of `x` as i16.
    #[inline(always)]
    pub fn widen_u8(x: u64) -> V {
        V(sse!(_mm_cvtepu8_epi16(_mm_cvtsi64_si128(x as i64))))
    }

    /// Each i32 shifted left.
    #[inline(always)]
    pub fn shl_i32(self, n: u32) -> V {
        V(sse!(_mm_sll_epi32(self.0, _mm_cvtsi32_si128(n as i32))))
    }

    /// The products of the signed bytes `a` and the bytes `b`, which must be 0
    /// to 127, each i16 lane the sum of two neighbours.
    #[inline(always)]
    pub fn dot_i8_u7(a: V, b: V) -> V {
        V(sse!(_mm_maddubs_epi16(b.0, a.0)))
    }

    /// The products of the i16, each i32 lane the sum of two neighbours.
    #[inline(always)]
    pub fn dot_i16(self, b: V) -> V {
        V(sse!(_mm_madd_epi16(self.0, b.0)))
    }

    /// Sum of the bytes, wrapping.
    #[inline(always)]
    pub fn add_u8(self, b: V) -> V {
        V(sse!(_mm_add_epi8(self.0, b.0)))
    }

    /// Difference of the bytes, wrapping.
    #[inline(always)]
    pub fn sub_u8(self, b: V) -> V {
        V(sse!(_mm_sub_epi8(self.0, b.0)))
    }

    /// Sum of the i16, wrapping.
    #[inline(always)]
    pub fn add_i16(self, b: V) -> V {
        V(sse!(_mm_add_epi16(self.0, b.0)))
    }

    /// Sum of the i32, wrapping.
    #[inline(always)]
    pub fn add_i32(self, b: V) -> V {
        V(sse!(_mm_add_epi32(self.0, b.0)))
    }

    /// Difference of the i32, wrapping.
    #[inline(always)]
    pub fn sub_i32(self, b: V) -> V {
        V(sse!(_mm_sub_epi32(self.0, b.0)))
    }

    /// Product of the i32, wrapping.
    #[inline(always)]
    pub fn mul_i32(self, b: V) -> V {
        V(sse!(_mm_mullo_epi32(self.0, b.0)))
    }

    /// Each i32 as f32.
    #[inline(always)]
    pub fn to_f32x4(self) -> V {
        V(sse!(_mm_castps_si128(_mm_cvtepi32_ps(self.0))))
    }

    /// Sum of the f32.
    #[inline(always)]
    pub fn add_f32(self, b: V) -> V {
        V(sse!(_mm_castps_si128(_mm_add_ps(self.ps(), b.ps()))))
    }

    /// Difference of the f32.
    #[inline(always)]
    pub fn sub_f32(self, b: V) -> V {
        V(sse!(_mm_castps_si128(_mm_sub_ps(self.ps(), b.ps()))))
    }

    /// Product of the f32.
    #[inline(always)]
    pub fn mul_f32(self, b: V) -> V {
        V(sse!(_mm_castps_si128(_mm_mul_ps(self.ps(), b.ps()))))
    }

    /// Quotient of the f32.
    #[inline(always)]
    pub fn div_f32(self, b: V) -> V {
        V(sse!(_mm_castps_si128(_mm_div_ps(self.ps(), b.ps()))))
    }

    /// The smaller of the f32; `b` where the comparison fails.
    #[inline(always)]
    pub fn min_f32(self, b: V) -> V {
        V(sse!(_mm_castps_si128(_mm_min_ps(self.ps(), b.ps()))))
    }

    /// The larger of the f32; `b` where the comparison fails.
    #[inline(always)]
    pub fn max_f32(self, b: V) -> V {
        V(sse!(_mm_castps_si128(_mm_max_ps(self.ps(), b.ps()))))
    }

    /// Magnitude of the f32.
    #[inline(always)]
    pub fn abs_f32(self) -> V {
        V(sse!(_mm_and_si128(self.0, _mm_set1_epi32(0x7fff_ffff))))
    }

    /// The 8 i32 as i16, which they must fit.
    #[inline(always)]
    pub fn narrow_to_i16(a: V, b: V) -> V {
        V(sse!(_mm_packs_epi32(a.0, b.0)))
    }

    /// The 16 i32 as bytes; they must fit i8.
    #[inline(always)]
    pub fn narrow_to_i8([a, b, c, d]: [V; 4]) -> V {
        V(sse!(_mm_packs_epi16(_mm_packs_epi32(a.0, b.0), _mm_packs_epi32(c.0, d.0))))
    }

    /// The four f32.
    #[inline(always)]
    pub fn to_f32(self) -> [f32; 4] {
        // SAFETY: both types are 16 plain bytes.
        unsafe { std::mem::transmute(self.0) }
    }

    /// The four i32.
    #[inline(always)]
    pub fn to_i32_lanes(self) -> [i32; 4] {
        // SAFETY: both types are 16 plain bytes.
        unsafe { std::mem::transmute(self.0) }
    }

    /// Writes the four f32.
    #[inline(always)]
    pub fn store_f32(self, out: &mut [f32; 4]) {
        *out = self.to_f32();
    }
}
