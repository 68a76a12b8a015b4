//! What can go wrong with packing.

use std::io;
use std::path::{Path, PathBuf};

use indicatif::DecimalBytes;

/// A [`std::result::Result`] with this module's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with packing. Each message is one line that names the way
/// out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model cannot be read, or not be run.
    #[error(transparent)]
    Model(#[from] moewe_engine::Error),
    /// The file is the outcome of an earlier pack.
    #[error("{} is packed already: name the original, or run it as it is", .0.display())]
    AlreadyPacked(PathBuf),
    /// No matrix can be packed.
    #[error(
        "{} has nothing to pack: its matrices are not quantised, or have no multiple of 4 rows; \
         run it as it is",
        .0.display()
    )]
    NothingToPack(PathBuf),
    /// The packed file could not be read.
    #[error(
        "{} cannot be packed: with a tensor for each expert's matrix, it would have {n_tensors}, \
         more than {}; run it as it is",
        path.display(), moewe_gguf::N_TENSORS_MAX
    )]
    TooManyTensors {
        /// The original.
        path: PathBuf,
        /// Tensors that the packed file would have.
        n_tensors: usize,
    },
    /// There is a file where the packed one shall be.
    #[error(
        "{} exists: add --force to replace it, or name another file with --out",
        .0.display()
    )]
    Exists(PathBuf),
    /// The packed file cannot be where it shall be.
    #[error(transparent)]
    Output(#[from] moewe_output::Error),
    /// Another program is at it.
    #[error("{} is being written by another program: wait for it", .0.display())]
    Busy(PathBuf),
    /// A packed file shall be written to, and others have it open.
    #[error("{} is in use by another program: try again when that has ended", .0.display())]
    InUse(PathBuf),
    /// [`Progress::is_stopped`](crate::Progress::is_stopped) has said so.
    #[error("packing was stopped")]
    Stopped,
    /// The original is not what it was a moment ago.
    #[error("{} was written to while it was read: try again when that has ended", .0.display())]
    Changed(PathBuf),
    /// The disk is too small.
    #[error(
        "no space for {}: it takes {}, {} are free; free some, or name a file on another disk \
         with --out",
        path.display(), DecimalBytes(*bytes_needed), DecimalBytes(*bytes_free)
    )]
    NoSpace {
        /// The file to write.
        path: PathBuf,
        /// What it takes.
        bytes_needed: u64,
        /// What is free.
        bytes_free: u64,
    },
    /// The disk became full.
    #[error(
        "no space left for {}: free some, or name a file on another disk with --out",
        .0.display()
    )]
    DiskFull(PathBuf),
    /// The packed copy is one of another model.
    #[error(
        "{} was made from another file than {}, or that has changed: pack the model again with \
         --force",
        copy.display(), source_path.display()
    )]
    OtherSource {
        /// The packed file.
        copy: PathBuf,
        /// The model beside it.
        source_path: PathBuf,
    },
    /// The file has no checksums, or those of another layout.
    #[error(
        "{} is not packed, or by another version of moewe: name the .packed.gguf file, or pack \
         the model again",
        .0.display()
    )]
    NotPacked(PathBuf),
    /// The file is not what was written.
    #[error("{}: {what} is damaged; pack the original model again with --force", path.display())]
    Damaged {
        /// The packed file.
        path: PathBuf,
        /// The part that is damaged.
        what: String,
    },
    /// A file or folder cannot be read or written.
    #[error("cannot {action} {}: {reason}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file or folder.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
}

impl From<moewe_gguf::Error> for Error {
    fn from(error: moewe_gguf::Error) -> Self {
        Self::Model(error.into())
    }
}

impl Error {
    /// Turns a failure to read all of the original at `path` into an error.
    pub(super) fn source(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |reason| match reason.kind() {
            io::ErrorKind::ResourceBusy => Self::Changed(path),
            // The system's own are tried again.
            io::ErrorKind::Interrupted => Self::Stopped,
            _ => Self::io("read", &path)(reason),
        }
    }

    /// Turns a failure to `action` the file at `path` into an error.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |reason| match reason.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull(path),
            _ => Self::Io { action, path, reason },
        }
    }
}
