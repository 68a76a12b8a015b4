//! The instructions as plain Rust, little-endian on every machine.

/// 128 bits.
#[derive(Clone, Copy)]
pub(crate) struct V([u8; 16]);

fn zip<T: Copy, U: Copy, const N: usize>(a: [T; N], b: [T; N], f: impl Fn(T, T) -> U) -> [U; N] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl V {
    fn lane(self, i: usize) -> [u8; 4] {
        [self.0[4 * i], self.0[4 * i + 1], self.0[4 * i + 2], self.0[4 * i + 3]]
    }

    fn from_i32(x: [i32; 4]) -> V {
        V(std::array::from_fn(|i| x[i / 4].to_le_bytes()[i % 4]))
    }

    fn from_f32(x: [f32; 4]) -> V {
        V(std::array::from_fn(|i| x[i / 4].to_le_bytes()[i % 4]))
    }

    fn from_i16(x: [i16; 8]) -> V {
        V(std::array::from_fn(|i| x[i / 2].to_le_bytes()[i % 2]))
    }

    fn to_i16(self) -> [i16; 8] {
        std::array::from_fn(|i| i16::from_le_bytes([self.0[2 * i], self.0[2 * i + 1]]))
    }

    /// 16 bytes from `p`, of any alignment.
    ///
    /// # Safety
    /// 16 bytes must be readable at `p`.
    #[inline(always)]
    pub unsafe fn load(p: *const u8) -> V {
        // SAFETY: the caller vouches for 16 readable bytes; an array of bytes has alignment 1.
        V(unsafe { p.cast::<[u8; 16]>().read() })
    }

    /// 8 bytes from `p`, sign-extended to i16.
    ///
    /// # Safety
    /// 8 bytes must be readable at `p`.
    #[inline(always)]
    pub unsafe fn load_i8x8(p: *const u8) -> V {
        // SAFETY: the caller vouches for 8 readable bytes.
        let b = unsafe { p.cast::<[i8; 8]>().read() };
        V::from_i16(b.map(i16::from))
    }

    /// 4 little-endian u16 from `p`, as u32.
    ///
    /// # Safety
    /// 8 bytes must be readable at `p`.
    #[inline(always)]
    pub unsafe fn load_u16x4(p: *const u8) -> V {
        // SAFETY: the caller vouches for 8 readable bytes.
        let b = unsafe { p.cast::<[[u8; 2]; 4]>().read() };
        V::from_i32(b.map(|b| u16::from_le_bytes(b).into()))
    }

    /// 4 bytes from `p`, as u32.
    ///
    /// # Safety
    /// 4 bytes must be readable at `p`.
    #[inline(always)]
    pub unsafe fn load_u8x4(p: *const u8) -> V {
        // SAFETY: the caller vouches for 4 readable bytes.
        V::from_i32(unsafe { p.cast::<[u8; 4]>().read() }.map(i32::from))
    }

    /// 16 times `x`.
    #[inline(always)]
    pub fn splat_u8(x: u8) -> V {
        V([x; 16])
    }

    /// 4 times `x`.
    #[inline(always)]
    pub fn splat_i32(x: i32) -> V {
        V::from_i32([x; 4])
    }

    /// 4 times `x`.
    #[inline(always)]
    pub fn splat_f32(x: f32) -> V {
        V::from_f32([x; 4])
    }

    /// The 16 bytes of two u64.
    #[inline(always)]
    pub fn from_u64(low: u64, high: u64) -> V {
        let mut b = [0; 16];
        b[..8].copy_from_slice(&low.to_le_bytes());
        b[8..].copy_from_slice(&high.to_le_bytes());
        V(b)
    }

    /// 4 bytes from `p`, 4 times.
    ///
    /// # Safety
    /// 4 bytes must be readable at `p`.
    #[inline(always)]
    pub unsafe fn load_splat_32(p: *const u8) -> V {
        // SAFETY: the caller vouches for 4 readable bytes; the read has no alignment.
        V::splat_i32(i32::from_le_bytes(unsafe { p.cast::<[u8; 4]>().read() }))
    }

    /// Writes the 16 bytes to `p`, of any alignment.
    ///
    /// # Safety
    /// 16 bytes must be writable at `p`.
    #[inline(always)]
    pub unsafe fn store(self, p: *mut u8) {
        // SAFETY: the caller vouches for 16 writable bytes; an array of bytes has alignment 1.
        unsafe { p.cast::<[u8; 16]>().write(self.0) }
    }

    /// The four numbers.
    #[inline(always)]
    pub fn from_i32x4(x: [i32; 4]) -> V {
        V::from_i32(x)
    }

    /// 4 times lane `i` of 32 bits; `i` should be known when this is compiled.
    #[inline(always)]
    pub fn splat_lane(self, i: usize) -> V {
        V::from_i32([self.to_i32_lanes()[i]; 4])
    }

    /// 8 times each of the two bytes of u16 number `i`, 0 or 1.
    #[inline(always)]
    pub fn spread_u16(self, i: usize) -> V {
        V(std::array::from_fn(|j| self.0[2 * i + j / 8]))
    }

    /// Lanes 0 of `a` and `b`, then lanes 1, of 32 bits.
    #[inline(always)]
    pub fn low_32(a: V, b: V) -> V {
        let (a, b) = (a.to_i32_lanes(), b.to_i32_lanes());
        V::from_i32([a[0], b[0], a[1], b[1]])
    }

    /// Lanes 2 of `a` and `b`, then lanes 3, of 32 bits.
    #[inline(always)]
    pub fn high_32(a: V, b: V) -> V {
        let (a, b) = (a.to_i32_lanes(), b.to_i32_lanes());
        V::from_i32([a[2], b[2], a[3], b[3]])
    }

    /// The low halves of `a` and `b`.
    #[inline(always)]
    pub fn low_64(a: V, b: V) -> V {
        let (a, b) = (a.to_i32_lanes(), b.to_i32_lanes());
        V::from_i32([a[0], a[1], b[0], b[1]])
    }

    /// The high halves of `a` and `b`.
    #[inline(always)]
    pub fn high_64(a: V, b: V) -> V {
        let (a, b) = (a.to_i32_lanes(), b.to_i32_lanes());
        V::from_i32([a[2], a[3], b[2], b[3]])
    }

    /// Bitwise and.
    #[inline(always)]
    pub fn and(self, b: V) -> V {
        V(zip(self.0, b.0, |a, b| a & b))
    }

    /// Bitwise or.
    #[inline(always)]
    pub fn or(self, b: V) -> V {
        V(zip(self.0, b.0, |a, b| a | b))
    }

    /// Bitwise exclusive or.
    #[inline(always)]
    pub fn xor(self, b: V) -> V {
        V(zip(self.0, b.0, |a, b| a ^ b))
    }

    /// Byte `i` of the table for each byte `i` of these, which must be below 16.
    #[inline(always)]
    pub fn lookup(self, table: V) -> V {
        V(self.0.map(|i| table.0[usize::from(i % 16)]))
    }

    /// 0xff where the bytes are equal, else 0.
    #[inline(always)]
    pub fn eq_u8(self, b: V) -> V {
        V(zip(self.0, b.0, |a, b| if a == b { 0xff } else { 0 }))
    }

    /// 0xff where a signed byte is greater than that of `b`, else 0.
    #[inline(always)]
    pub fn gt_i8(self, b: V) -> V {
        V(std::array::from_fn(|i| if self.0[i] as i8 > b.0[i] as i8 { 0xff } else { 0 }))
    }

    /// Each u16 shifted right by `n`, which should be known when this is
    /// compiled.
    #[inline(always)]
    pub fn shr_u16(self, n: u32) -> V {
        V::from_i16(self.to_i16().map(|x| ((x as u16) >> n) as i16))
    }

    /// Each u16 shifted left.
    #[inline(always)]
    pub fn shl_u16(self, n: u32) -> V {
        V::from_i16(self.to_i16().map(|x| x << n))
    }

    /// Each u32 shifted right.
    #[inline(always)]
    pub fn shr_u32(self, n: u32) -> V {
        V::from_i32(self.to_i32_lanes().map(|x| (x as u32 >> n) as i32))
    }

    /// Each i32 shifted right, its sign kept.
    #[inline(always)]
    pub fn shr_i32(self, n: u32) -> V {
        V::from_i32(self.to_i32_lanes().map(|x| x >> n))
    }

    /// Each i16 shifted right, its sign kept.
    #[inline(always)]
    pub fn shr_i16(self, n: u32) -> V {
        V::from_i16(self.to_i16().map(|x| x >> n))
    }

    /// Of each pair of i16, number `i` twice; `i` should be known when this is
    /// compiled.
    #[inline(always)]
    pub fn pairs_of(self, i: usize) -> V {
        let x = self.to_i16();
        V::from_i16(std::array::from_fn(|lane| x[lane / 2 * 2 + i]))
    }

    /// 8 times i16 number `i`, which should be known when this is compiled.
    #[inline(always)]
    pub fn splat_lane_i16(self, i: usize) -> V {
        V::from_i16([self.to_i16()[i]; 8])
    }

    /// The i16 with numbers 1 and 2, and 5 and 6, exchanged.
    #[inline(always)]
    pub fn swap_inner_i16(self) -> V {
        let x = self.to_i16();
        V::from_i16([0, 2, 1, 3, 4, 6, 5, 7].map(|i| x[i]))
    }

    /// The 8 bytes of `x` as i16.
    #[inline(always)]
    pub fn widen_u8(x: u64) -> V {
        V::from_i16(x.to_le_bytes().map(i16::from))
    }

    /// Each i32 shifted left.
    #[inline(always)]
    pub fn shl_i32(self, n: u32) -> V {
        V::from_i32(self.to_i32_lanes().map(|x| x << n))
    }

    /// The products of the signed bytes `a` and the bytes `b`, which must be 0
    /// to 127, each i16 lane the sum of two neighbours.
    #[inline(always)]
    pub fn dot_i8_u7(a: V, b: V) -> V {
        let product = |i: usize| i16::from(a.0[i] as i8) * i16::from(b.0[i]);
        V::from_i16(std::array::from_fn(|i| product(2 * i) + product(2 * i + 1)))
    }

    /// The products of the i16, each i32 lane the sum of two neighbours.
    #[inline(always)]
    pub fn dot_i16(self, b: V) -> V {
        let (a, b) = (self.to_i16().map(i32::from), b.to_i16().map(i32::from));
        V::from_i32(std::array::from_fn(|i| a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1]))
    }

    /// Sum of the bytes, wrapping.
    #[inline(always)]
    pub fn add_u8(self, b: V) -> V {
        V(zip(self.0, b.0, u8::wrapping_add))
    }

    /// Difference of the bytes, wrapping.
    #[inline(always)]
    pub fn sub_u8(self, b: V) -> V {
        V(zip(self.0, b.0, u8::wrapping_sub))
    }

    /// Sum of the i16, wrapping.
    #[inline(always)]
    pub fn add_i16(self, b: V) -> V {
        V::from_i16(zip(self.to_i16(), b.to_i16(), i16::wrapping_add))
    }

    /// Sum of the i32, wrapping.
    #[inline(always)]
    pub fn add_i32(self, b: V) -> V {
        V::from_i32(zip(self.to_i32_lanes(), b.to_i32_lanes(), i32::wrapping_add))
    }

    /// Difference of the i32, wrapping.
    #[inline(always)]
    pub fn sub_i32(self, b: V) -> V {
        V::from_i32(zip(self.to_i32_lanes(), b.to_i32_lanes(), i32::wrapping_sub))
    }

    /// Product of the i32, wrapping.
    #[inline(always)]
    pub fn mul_i32(self, b: V) -> V {
        V::from_i32(zip(self.to_i32_lanes(), b.to_i32_lanes(), i32::wrapping_mul))
    }

    /// Each i32 as f32.
    #[inline(always)]
    pub fn to_f32x4(self) -> V {
        V::from_f32(self.to_i32_lanes().map(|x| x as f32))
    }

    /// Sum of the f32.
    #[inline(always)]
    pub fn add_f32(self, b: V) -> V {
        V::from_f32(zip(self.to_f32(), b.to_f32(), |a, b| a + b))
    }

    /// Difference of the f32.
    #[inline(always)]
    pub fn sub_f32(self, b: V) -> V {
        V::from_f32(zip(self.to_f32(), b.to_f32(), |a, b| a - b))
    }

    /// Product of the f32.
    #[inline(always)]
    pub fn mul_f32(self, b: V) -> V {
        V::from_f32(zip(self.to_f32(), b.to_f32(), |a, b| a * b))
    }

    /// Quotient of the f32.
    #[inline(always)]
    pub fn div_f32(self, b: V) -> V {
        V::from_f32(zip(self.to_f32(), b.to_f32(), |a, b| a / b))
    }

    /// The smaller of the f32; `b` where the comparison fails.
    #[inline(always)]
    pub fn min_f32(self, b: V) -> V {
        V::from_f32(zip(self.to_f32(), b.to_f32(), |a, b| if a < b { a } else { b }))
    }

    /// The larger of the f32; `b` where the comparison fails.
    #[inline(always)]
    pub fn max_f32(self, b: V) -> V {
        V::from_f32(zip(self.to_f32(), b.to_f32(), |a, b| if a > b { a } else { b }))
    }

    /// Magnitude of the f32.
    #[inline(always)]
    pub fn abs_f32(self) -> V {
        V::from_f32(self.to_f32().map(f32::abs))
    }

    /// The 8 i32 as i16, which they must fit.
    #[inline(always)]
    pub fn narrow_to_i16(a: V, b: V) -> V {
        V::from_i16(std::array::from_fn(|i| [a, b][i / 4].to_i32_lanes()[i % 4] as i16))
    }

    /// The 16 i32 as bytes; they must fit i8.
    #[inline(always)]
    pub fn narrow_to_i8(x: [V; 4]) -> V {
        V(std::array::from_fn(|i| x[i / 4].to_i32_lanes()[i % 4] as u8))
    }

    /// The four f32.
    #[inline(always)]
    pub fn to_f32(self) -> [f32; 4] {
        std::array::from_fn(|i| f32::from_le_bytes(self.lane(i)))
    }

    /// The four i32.
    #[inline(always)]
    pub fn to_i32_lanes(self) -> [i32; 4] {
        std::array::from_fn(|i| i32::from_le_bytes(self.lane(i)))
    }

    /// Writes the four f32.
    #[inline(always)]
    pub fn store_f32(self, out: &mut [f32; 4]) {
        *out = self.to_f32();
    }
}
