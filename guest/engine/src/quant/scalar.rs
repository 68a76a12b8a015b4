//! Single numbers out of blocks.

/// The f16 with these bits as f32. Infinities and NaNs, which no sound model
/// holds, become large finite numbers.
#[inline(always)]
pub(super) fn f16_bits(bits: u16) -> f32 {
    // The sign goes to bit 31, exponent and fraction to bits 13 to 27; the
    // product corrects the exponent's bias, for subnormals too.
    let wide = ((bits as i16 as i32) << 13) as u32 & 0x8fff_e000;
    f32::from_bits(wide) * f32::from_bits(0x7780_0000)
}

/// The f16 at `p`.
///
/// # Safety
/// Two bytes must be readable at `p`.
#[inline(always)]
pub(super) unsafe fn f16_at(p: *const u8) -> f32 {
    // SAFETY: the caller vouches for the bytes.
    f16_bits(unsafe { u16_at(p) })
}

/// The u16 at `p`.
///
/// # Safety
/// Two bytes must be readable at `p`.
#[inline(always)]
pub(super) unsafe fn u16_at(p: *const u8) -> u16 {
    // SAFETY: the caller vouches for the bytes.
    u16::from_le_bytes(unsafe { p.cast::<[u8; 2]>().read() })
}

/// The u32 at `p`.
///
/// # Safety
/// Four bytes must be readable at `p`.
#[inline(always)]
pub(super) unsafe fn u32_at(p: *const u8) -> u32 {
    // SAFETY: the caller vouches for the bytes.
    u32::from_le_bytes(unsafe { p.cast::<[u8; 4]>().read() })
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
            assert_eq!(f16_bits(bits), want, "{bits:04x}");
        }
        assert!(f16_bits(0x8000).is_sign_negative());
    }
}
