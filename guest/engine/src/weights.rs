//! Where the bytes of a model come from, as the engine sees it.
//!
//! The guest implements these traits with the imports of its component, a
//! native program with [`crate::native`]. The engine never learns which.

use crate::error::Result;

/// Opens the files of a model.
pub trait Weights {
    /// Opens a file by its name, without any folder.
    fn open(&self, name: &str) -> Result<Box<dyn Source>>;
}

/// One file of a model.
pub trait Source {
    /// The size in bytes.
    fn size(&self) -> u64;

    /// Copies exactly `out.len()` bytes from `offset`.
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()>;

    /// Makes `length` bytes from `offset` addressable, without copying where
    /// the platform can.
    fn window(&self, offset: u64, length: usize) -> Result<Box<dyn Window>>;

    /// Says that these bytes will be wanted soon.
    fn prefetch(&self, offset: u64, length: u64);
}

/// Bytes of a file that are addressable as long as the window lives.
pub trait Window {
    /// The bytes.
    fn bytes(&self) -> &[u8];
}
