//! Memory that is a file, so that it can be mapped in several places.

use std::fs::File;
use std::io;

use rustix::fs::MemfdFlags;

/// Memory that several sandboxes can map: `length` bytes, zeros at first. The name is
/// for those who look at the process.
///
/// # Errors
///
/// Those of the system, for lack of file descriptors.
pub fn shared_memory(name: &str, length: u64) -> io::Result<File> {
    let file = File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?);
    file.set_len(length)?;
    Ok(file)
}
