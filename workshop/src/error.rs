//! What can go wrong.

use std::io;
use std::path::PathBuf;

use bytesize::ByteSize;

/// A [`std::result::Result`] with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong. Each message is one line that names the thing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model cannot be opened or run.
    #[error(transparent)]
    Model(#[from] moewe::Error),
    /// The model's file cannot be read.
    #[error(transparent)]
    File(#[from] moewe_gguf::Error),
    /// A small model cannot be made.
    #[error(transparent)]
    Generate(#[from] moewe_models::Error),
    /// A small model cannot be packed.
    #[error(transparent)]
    Pack(#[from] moewe_models::pack::Error),
    /// A small model cannot be put anywhere.
    #[error("there is no room for a small model: {0}")]
    NoRoom(io::Error),
    /// The model cannot run within the budget.
    #[error(
        "{}: {} do not suffice for {n_ctx} tokens of context: {} are the least",
        path.display(), ByteSize(*bytes), ByteSize(*least_bytes)
    )]
    TooLittleMemory {
        /// The model's file.
        path: PathBuf,
        /// The budget.
        bytes: u64,
        /// Tokens of context.
        n_ctx: u64,
        /// The least that works.
        least_bytes: u64,
    },
    /// No run of a trace's model could have had so little memory.
    #[error("{bytes} bytes do not suffice for {model}: {least_bytes} are the least")]
    TooLittleToReplay {
        /// The trace's model.
        model: String,
        /// The budget.
        bytes: u64,
        /// The least that works.
        least_bytes: u64,
    },
    /// The disk cannot be measured.
    #[error("{}: the disk cannot be measured", path.display())]
    Disk {
        /// A file on it.
        path: PathBuf,
        /// What failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
