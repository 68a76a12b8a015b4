//! Guest memory, and the mapping of files into it where the platform can.

#[cfg(target_os = "linux")]
mod fault;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub(crate) use fault::catch_faults;
#[cfg(target_os = "linux")]
pub(crate) use linux::{Region, capture, configure, page_size, shared_memory};
#[cfg(target_os = "linux")]
pub(crate) use moewe_disk::Mapping;

#[cfg(not(target_os = "linux"))]
mod portable;
#[cfg(not(target_os = "linux"))]
pub(crate) use portable::{
    Mapping, Region, capture, catch_faults, configure, page_size, shared_memory,
};

/// The most windows in one memory, those given back included: each costs the
/// kernel two mappings of the 65530 that a process has by default.
pub(crate) const N_WINDOWS_MAX: usize = 1 << 13;

/// Why a window could not be attached or detached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MapError {
    #[error("address {address:#x} and {length} bytes are not made of whole pages of the memory")]
    Range { address: u64, length: u64 },
    #[error("{length} bytes from address {address:#x} are not attached")]
    NotAttached { address: u64, length: u64 },
    #[error("a sandbox can have at most {N_WINDOWS_MAX} windows")]
    TooMany,
    #[error("cannot be mapped: {0}")]
    Map(#[from] std::io::Error),
}

#[cfg(all(test, target_os = "linux"))]
mod tests;
