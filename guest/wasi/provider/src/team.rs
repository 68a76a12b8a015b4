//! `moewe:inference/team` for a single instance.

use crate::Provider;
use crate::bindings::exports::moewe::inference::team::{ErrorCode, Guest};

impl Guest for Provider {
    fn rank() -> u32 {
        0
    }

    fn size() -> u32 {
        1
    }

    fn barrier() -> Result<(), ErrorCode> {
        Ok(())
    }

    fn share(_address: u64, _length: u64) -> Result<(), ErrorCode> {
        Err(ErrorCode::Unsupported)
    }
}
