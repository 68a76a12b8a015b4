//! 128-bit vectors: the instructions that the kernels need, once for
//! WebAssembly (SIMD and relaxed SIMD), once for x86-64 with SSE4.1, once
//! portably.
//!
//! All three compute the same bits. The relaxed instructions, [`V::dot_i8_u7`]
//! and [`V::lookup`], are used only in the range where the specification leaves
//! no freedom; there is no fused multiply-add. So a model says the same thing
//! on every machine.

#[cfg(all(target_family = "wasm", target_feature = "relaxed-simd"))]
mod wasm;
#[cfg(all(target_family = "wasm", target_feature = "relaxed-simd"))]
pub(crate) use wasm::V;

#[cfg(all(target_arch = "x86_64", target_feature = "sse4.1"))]
mod x86;
#[cfg(all(target_arch = "x86_64", target_feature = "sse4.1"))]
pub(crate) use x86::V;

#[cfg(not(any(
    all(target_family = "wasm", target_feature = "relaxed-simd"),
    all(target_arch = "x86_64", target_feature = "sse4.1")
)))]
mod portable;
#[cfg(not(any(
    all(target_family = "wasm", target_feature = "relaxed-simd"),
    all(target_arch = "x86_64", target_feature = "sse4.1")
)))]
pub(crate) use portable::V;

mod steps;
pub(crate) use steps::steps;

/// What the kernels were compiled for.
pub const INSTRUCTIONS: &str = if cfg!(target_family = "wasm") {
    if cfg!(target_feature = "relaxed-simd") { "wasm relaxed-simd" } else { "portable" }
} else if cfg!(all(target_arch = "x86_64", target_feature = "sse4.1")) {
    "SSE4.1"
} else {
    "portable"
};

/// 1.5 * 2^23: a number of less than 2^22 added to it is rounded to a whole one,
/// which the low bits of the sum hold.
const ROUND: f32 = 12_582_912.0;

impl V {
    /// Four vectors of four 32-bit lanes, rows and columns exchanged.
    #[inline(always)]
    pub fn transpose_32([a, b, c, d]: [V; 4]) -> [V; 4] {
        let (ab, cd) = (V::low_32(a, b), V::low_32(c, d));
        let (ab_high, cd_high) = (V::high_32(a, b), V::high_32(c, d));
        [
            V::low_64(ab, cd),
            V::high_64(ab, cd),
            V::low_64(ab_high, cd_high),
            V::high_64(ab_high, cd_high),
        ]
    }

    /// The sums of the i32 in each of four vectors.
    #[inline(always)]
    pub fn sums_i32([a, b, c, d]: [V; 4]) -> V {
        let ab = V::low_32(a, b).add_i32(V::high_32(a, b));
        let cd = V::low_32(c, d).add_i32(V::high_32(c, d));
        V::low_64(ab, cd).add_i32(V::high_64(ab, cd))
    }

    /// The sums of the i16 in each of four vectors, as i32. `N` is how many lanes of
    /// one parity in a vector can be summed without overflow: 2 or 4.
    #[inline(always)]
    pub fn sums_i16<const N: usize>([a, b, c, d]: [V; 4]) -> V {
        let ones = V::splat_i32(0x0001_0001);
        let ab = V::low_32(a, b).add_i16(V::high_32(a, b));
        let cd = V::low_32(c, d).add_i16(V::high_32(c, d));
        let (low, high) = (V::low_64(ab, cd), V::high_64(ab, cd));
        if N == 4 {
            low.add_i16(high).dot_i16(ones)
        } else {
            low.dot_i16(ones).add_i32(high.dot_i16(ones))
        }
    }

    /// Sum of the four f32 lanes, always in this order.
    #[inline(always)]
    pub fn sum_f32(self) -> f32 {
        let [a, b, c, d] = self.to_f32();
        (a + c) + (b + d)
    }

    /// `self + a * b` in f32, rounded twice.
    #[inline(always)]
    pub fn madd_f32(self, a: V, b: V) -> V {
        self.add_f32(a.mul_f32(b))
    }

    /// Each lane of the f32s to the power of e: relative error below 2e-7
    /// between -87 and 88, clamped outside. NaN stays NaN. After Cephes' `expf`.
    #[inline(always)]
    pub fn exp_f32(self) -> V {
        let x = V::splat_f32(-87.0).max_f32(V::splat_f32(88.0).min_f32(self));
        let bits = x.mul_f32(V::splat_f32(std::f32::consts::LOG2_E)).add_f32(V::splat_f32(ROUND));
        let n = bits.sub_f32(V::splat_f32(ROUND));
        // ln 2 in two parts, so that the subtraction is exact.
        let r = x
            .sub_f32(n.mul_f32(V::splat_f32(0.693_359_4)))
            .sub_f32(n.mul_f32(V::splat_f32(-2.121_944_4e-4)));
        let mut p = V::splat_f32(1.987_569_1e-4);
        for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = p.mul_f32(r).add_f32(V::splat_f32(c));
        }
        let y = p.mul_f32(r.mul_f32(r)).add_f32(r).add_f32(V::splat_f32(1.0));
        y.mul_f32(bits.shl_i32(23).add_i32(V::splat_i32(127 << 23)))
    }

    /// Each f32, of less than 2^22, rounded to a whole number, ties to even.
    #[inline(always)]
    pub fn round_to_i32(self) -> V {
        self.add_f32(V::splat_f32(ROUND)).sub_i32(V::splat_i32(ROUND.to_bits() as i32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate() {
        for i in -8600..8700 {
            let x = i as f32 / 100.0;
            let got = V::splat_f32(x).exp_f32().to_f32()[0];
            let want = f64::from(x).exp();
            assert!((f64::from(got) / want - 1.0).abs() < 3e-7, "exp({x}) = {got}, not {want}");
        }
        assert!(V::splat_f32(f32::NEG_INFINITY).exp_f32().to_f32()[0] < 1e-37);
    }

    #[test]
    fn dot_reads_the_second_operand_as_weights() {
        let a: Vec<u8> = (0..16).map(|i| (i * 17) as u8 ^ 0x80).collect();
        let b: Vec<u8> = (0..16).map(|i| i * 8 + 7).collect();
        // SAFETY: both vectors hold 16 bytes.
        let (va, vb) = unsafe { (V::load(a.as_ptr()), V::load(b.as_ptr())) };
        let got: i32 =
            V::dot_i8_u7(va, vb).dot_i16(V::splat_i32(0x0001_0001)).to_i32_lanes().iter().sum();
        let want: i32 = a.iter().zip(&b).map(|(&a, &b)| i32::from(a as i8) * i32::from(b)).sum();
        assert_eq!(got, want);
    }

    #[test]
    fn bytes_are_compared_added_and_looked_up() {
        let a: [u8; 16] = std::array::from_fn(|i| (i * 37 + 5) as u8);
        let b: [u8; 16] = std::array::from_fn(|i| (i * 91 + 200) as u8);
        let indices: [u8; 16] = std::array::from_fn(|i| (i * 7 % 16) as u8);
        // SAFETY: the arrays hold 16 bytes.
        let [va, vb, at] = [a, b, indices].map(|bytes| unsafe { V::load(bytes.as_ptr()) });
        let bytes = |v: V| -> [u8; 16] { bytemuck::cast(v.to_i32_lanes()) };
        let want = |f: &dyn Fn(usize) -> u8| -> [u8; 16] { std::array::from_fn(f) };
        assert_eq!(bytes(va.add_u8(vb)), want(&|i| a[i].wrapping_add(b[i])));
        assert_eq!(bytes(va.sub_u8(vb)), want(&|i| a[i].wrapping_sub(b[i])));
        assert_eq!(bytes(va.gt_i8(vb)), want(&|i| if a[i] as i8 > b[i] as i8 { 255 } else { 0 }));
        assert_eq!(bytes(at.lookup(va)), want(&|i| a[usize::from(indices[i])]));
        // SAFETY: the array holds 4 bytes from 3 on.
        let four = unsafe { V::load_u8x4(a[3..].as_ptr()) };
        assert_eq!(four.to_i32_lanes(), [3, 4, 5, 6].map(|i| i32::from(a[i])));
        let product = va.mul_i32(vb).to_i32_lanes();
        let (a, b) = (va.to_i32_lanes(), vb.to_i32_lanes());
        assert_eq!(product, [0, 1, 2, 3].map(|i| a[i].wrapping_mul(b[i])));
    }
}
