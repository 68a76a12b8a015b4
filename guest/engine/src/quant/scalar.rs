//! Single numbers out of blocks.

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

/// The u64 at `p`.
///
/// # Safety
/// Eight bytes must be readable at `p`.
#[inline(always)]
pub(super) unsafe fn u64_at(p: *const u8) -> u64 {
    // SAFETY: the caller vouches for the bytes.
    u64::from_le_bytes(unsafe { p.cast::<[u8; 8]>().read() })
}
