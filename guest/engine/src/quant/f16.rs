//! Numbers of 16 bits, with 5 bits of exponent, as f32.
//!
//! The sign goes to bit 31, exponent and fraction to bits 13 to 27; a product then
//! corrects the exponent's bias, for subnormals too. Infinities and NaNs, which no
//! sound model holds, become large finite numbers.

use crate::simd::V;

const MASK: u32 = 0x8fff_e000;
/// 2^112: what the exponents' biases differ by.
const BIAS: f32 = f32::from_bits(0x7780_0000);
/// 2^-14: the smallest f16 that is not subnormal.
const NORMAL_MIN: f32 = f32::from_bits(0x3880_0000);

/// The largest number.
pub(crate) const MAX: f32 = 65504.0;

/// The bits of the f16 that is nearest to `x`, of two the even one; of the largest one
/// if there is none so large.
#[inline]
pub(crate) fn to_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    let x = f32::from_bits(bits & 0x7fff_ffff).min(MAX);
    let bits = if x < NORMAL_MIN {
        // The sum is rounded to a multiple of the smallest f16.
        (x + 0.5).to_bits() - 0.5f32.to_bits()
    } else {
        let bits = x.to_bits() - (112 << 23);
        (bits + 0xfff + (bits >> 13 & 1)) >> 13
    };
    sign | bits as u16
}

/// The f16 with these bits.
#[inline(always)]
pub(crate) fn from_bits(bits: u16) -> f32 {
    let wide = ((bits as i16 as i32) << 13) as u32 & MASK;
    f32::from_bits(wide) * BIAS
}

/// The f16 that `bytes` begin with.
pub(super) fn first(bytes: &[u8]) -> f32 {
    from_bits(u16::from_le_bytes([bytes[0], bytes[1]]))
}

/// The f16 in the low halves of the words.
#[inline(always)]
pub(crate) fn low(words: V) -> V {
    high(words.shl_i32(16))
}

/// The f16 in the high halves of the words.
#[inline(always)]
pub(crate) fn high(words: V) -> V {
    let wide = words.shr_i32(3).and(V::splat_i32(MASK as i32));
    wide.mul_f32(V::splat_f32(BIAS))
}

/// The f16 that words hold and nothing else: as [`low`], and a twentieth faster where
/// rows are made of them.
#[inline(always)]
pub(crate) fn alone(words: V) -> V {
    let sign = words.shl_i32(16).and(V::splat_i32(i32::MIN));
    let rest = words.and(V::splat_i32(0x7fff)).shl_i32(13);
    sign.or(rest).mul_f32(V::splat_f32(BIAS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f16_is_exact() {
        for (bits, want) in [
            (0x0000, 0.0),
            (0x3c00, 1.0),
            (0xbc00, -1.0),
            (0x7bff, 65504.0),
            (0x0001, 5.960_464_5e-8),
            (0x83ff, -6.097_555e-5),
            (0x3555, 0.333_251_95),
        ] {
            assert_eq!(from_bits(bits), want, "{bits:04x}");
        }
        assert!(from_bits(0x8000).is_sign_negative());
    }

    /// Every number becomes what it was; what lies between two goes to the nearer one, or
    /// the even one.
    #[test]
    fn rounding_is_to_the_nearest() {
        for bits in 0..0x7bffu16 {
            let (x, next) = (from_bits(bits), from_bits(bits + 1));
            let middle = (x + next) / 2.0;
            let even = bits + bits % 2;
            let (below, above) = (middle.next_down(), middle.next_up());
            let wants = [(x, bits), (below, bits), (middle, even), (above, bits + 1)];
            for (x, want) in wants {
                assert_eq!(to_bits(x), want, "{x}");
                assert_eq!(to_bits(-x), want | 0x8000, "{x}");
            }
        }
        for x in [65504.0, 65519.0, 65520.0, 1e30, f32::INFINITY] {
            assert_eq!(to_bits(x), 0x7bff);
        }
    }

    #[test]
    fn vectors_agree_with_single_numbers() {
        for bits in 0..=u16::MAX {
            // What stands in the other half must not matter.
            let words = V::splat_i32(i32::from(bits) | i32::from(!bits) << 16);
            let word = V::splat_i32(i32::from(bits));
            for (got, bits) in [(low(words), bits), (high(words), !bits), (alone(word), bits)] {
                let want = from_bits(bits).to_bits();
                assert_eq!(got.to_f32().map(f32::to_bits), [want; 4], "{bits:04x}");
            }
        }
    }
}
