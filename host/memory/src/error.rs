//! Why something could not be mapped.

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
    /// There are as many windows already as there may be.
    #[error(
        "there are no mappings left for a window; compute with fewer threads, end other \
         sessions, or raise the system's limit (`sysctl vm.max_map_count`)"
    )]
    TooMany,
    /// The system has no memory, or no addresses.
    #[error(
        "there is no memory or there are no addresses for a window; see `ulimit -v`, and \
         `sysctl vm.overcommit_memory`"
    )]
    NoMemory,
    /// The system refuses.
    #[error("cannot be mapped: {0}")]
    Map(#[from] std::io::Error),
}
