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

    fn is_stopped() -> bool {
        // A member that is called on the only thread there is cannot be told.
        false
    }

    fn barrier() -> Result<(), ErrorCode> {
        Ok(())
    }

    fn share(_address: u64, _length: u64) -> Result<(), ErrorCode> {
        Err(ErrorCode::Unsupported)
    }
}
