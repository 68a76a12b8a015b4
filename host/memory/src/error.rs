//! Why something could not be mapped.

/// The most windows in one memory, those given back included: each costs the
/// kernel two mappings of the 65530 that a process has by default.
pub const N_WINDOWS_MAX: usize = 1 << 13;

/// Why a window could not be attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The window is none that there could be.
    #[error("address {address:#x} and {length} bytes are not made of whole pages of the memory")]
    Range {
        /// Where it was to begin.
        address: u64,
        /// Its bytes.
        length: u64,
    },
    /// What was to be given back is not attached, or not as a whole.
    #[error("{length} bytes from address {address:#x} are not attached")]
    NotAttached {
        /// Where it begins.
        address: u64,
        /// Its bytes.
        length: u64,
    },
    /// There are too many windows already.
    #[error("a sandbox can have at most {N_WINDOWS_MAX} windows")]
    TooMany,
    /// The system refuses.
    #[error("cannot be mapped: {0}")]
    Map(#[from] std::io::Error),
}
