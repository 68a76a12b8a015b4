//! The one error type of the engine.

use std::fmt;

/// What kind of error it is, for a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The weights could not be opened or read.
    Weights,
    /// The file is damaged, or is no GGUF file.
    InvalidModel,
    /// The file is sound, and asks for something that the engine lacks.
    Unsupported,
    /// The caller's arguments make no sense.
    InvalidInput,
    /// More tokens than the session's context holds.
    ContextFull,
    /// There is not enough memory.
    OutOfMemory,
    /// Another member of the team failed.
    Team,
}

/// An error: its kind, and a sentence that names the thing and the way out.
#[derive(Debug, Clone)]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

/// A result of the engine.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of this kind with this message.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// A damaged file.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidModel, message)
    }

    /// Something that the engine lacks.
    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// A mistake of the caller.
    pub(crate) fn input(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidInput, message)
    }

    /// The error's kind.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
