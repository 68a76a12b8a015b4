//! Memory that is mapped: the address ranges of sandboxes' memories, the windows in
//! them, and memory that several of them map. All `unsafe` that this takes is here.
//!
//! A [`Region`] is what one sandbox can address, a [`Mapping`] what the host and
//! sandboxes have in common. Linux only: elsewhere there is neither of them.

mod error;
#[cfg(target_os = "linux")]
mod fault;
#[cfg(target_os = "linux")]
mod mapping;
#[cfg(target_os = "linux")]
mod mappings;
#[cfg(target_os = "linux")]
mod memfd;
#[cfg(not(target_os = "linux"))]
mod portable;
#[cfg(target_os = "linux")]
mod process;
#[cfg(target_os = "linux")]
mod region;
#[cfg(target_os = "linux")]
mod windows;

pub use error::MapError;
#[cfg(target_os = "linux")]
pub use mapping::Mapping;
#[cfg(target_os = "linux")]
pub use mappings::n_mappings_left;
#[cfg(target_os = "linux")]
pub use memfd::shared_memory;
#[cfg(not(target_os = "linux"))]
pub use portable::{
    Mapping, Region, catch_faults, give_back, make_present, map_large_blocks, n_mappings_left,
    page_size, shared_memory,
};
#[cfg(target_os = "linux")]
pub use process::{give_back, make_present, map_large_blocks};
#[cfg(target_os = "linux")]
pub use region::{Region, catch_faults, page_size};
