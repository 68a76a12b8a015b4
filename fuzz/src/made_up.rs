//! What is chosen for things that are made up, sound or nearly so.

use arbitrary::{Arbitrary, Result, Unstructured};

/// A number that programs stumble over.
pub fn number(u: &mut Unstructured<'_>) -> Result<u64> {
    Ok(match u.int_in_range(0..=3)? {
        0 => u.int_in_range(0..=300)?,
        1 => 1u64 << u.int_in_range(0..=63)?,
        2 => u64::arbitrary(u)?,
        _ => (1u64 << u.int_in_range(0..=63)?).wrapping_sub(1),
    })
}

/// Whether something is to be unsound: seldom, and never when the bytes have ended.
pub fn is_odd(u: &mut Unstructured<'_>) -> Result<bool> {
    Ok(u8::arbitrary(u)? >= 244)
}
