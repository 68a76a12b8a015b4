//! Errors across the boundary: what guests tell becomes this crate's, and what they are
//! told becomes WIT's.

use moewe_memory::MapError;

use super::bindings::exports::moewe::inference::inference as wit;
use super::bindings::moewe::inference::{team, weights};
use crate::error::{Error, ErrorKind};
use crate::files::{WeightError, WeightErrorKind};

impl From<wit::Error> for Error {
    fn from(error: wit::Error) -> Self {
        let kind = match error.code {
            wit::ErrorCode::Weights => ErrorKind::Weights,
            wit::ErrorCode::InvalidModel => ErrorKind::InvalidModel,
            wit::ErrorCode::Unsupported => ErrorKind::Unsupported,
            wit::ErrorCode::InvalidInput => ErrorKind::InvalidInput,
            wit::ErrorCode::ContextFull => ErrorKind::ContextFull,
            wit::ErrorCode::OutOfMemory => ErrorKind::OutOfMemory,
            wit::ErrorCode::Team => ErrorKind::Team,
            wit::ErrorCode::Stopped => ErrorKind::Stopped,
        };
        // A guest that means harm gains nothing by characters that it breaks here.
        Self::new(kind, String::from_utf8_lossy(&error.message))
    }
}

impl From<WeightError> for weights::Error {
    fn from(WeightError { kind, message }: WeightError) -> Self {
        let code = match kind {
            WeightErrorKind::NotFound => weights::ErrorCode::NotFound,
            WeightErrorKind::NotPermitted => weights::ErrorCode::NotPermitted,
            WeightErrorKind::InvalidRange => weights::ErrorCode::InvalidRange,
            WeightErrorKind::Unsupported => weights::ErrorCode::Unsupported,
            WeightErrorKind::Changed => weights::ErrorCode::Changed,
            WeightErrorKind::Io => weights::ErrorCode::Io,
            WeightErrorKind::OutOfMemory => weights::ErrorCode::OutOfMemory,
            WeightErrorKind::TooManyWindows => weights::ErrorCode::TooManyWindows,
        };
        Self { code, message }
    }
}

/// What kind of error it is that a window cannot be mapped.
pub(super) fn map_kind(error: &MapError) -> WeightErrorKind {
    match error {
        MapError::Range { .. } | MapError::NotAttached { .. } => WeightErrorKind::InvalidRange,
        // The file system knows no mappings: the bytes can still be copied.
        MapError::Map(_) => WeightErrorKind::Unsupported,
        MapError::TooMany => WeightErrorKind::TooManyWindows,
        MapError::NoMemory => WeightErrorKind::OutOfMemory,
    }
}

/// The same for a team's region.
pub(super) fn team_code(error: &MapError) -> team::ErrorCode {
    match error {
        MapError::Range { .. } | MapError::NotAttached { .. } => team::ErrorCode::InvalidRange,
        MapError::Map(_) | MapError::TooMany => team::ErrorCode::Unsupported,
        MapError::NoMemory => team::ErrorCode::OutOfMemory,
    }
}
