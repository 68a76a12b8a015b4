//! The one error type of the engine.

use std::fmt;

use crate::gguf;

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
    /// There are as many windows on the weights as there may be; some must be given back.
    TooManyWindows,
    /// Another member of the team failed.
    Team,
    /// The caller wanted it to end early; nothing has changed.
    Stopped,
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
    /// An error of this kind with this message. It becomes one line of limited
    /// length without control characters, whatever names it quotes.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: gguf::one_line(message.into()) }
    }

    /// A damaged file.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidModel, message)
    }

    /// Weights that compute infinities or NaNs; `what` says where.
    pub(crate) fn not_finite(what: impl fmt::Display) -> Self {
        Self::invalid(format!(
            "{what} is not finite; the weights are damaged (download the model again), or the \
             model overflows"
        ))
    }

    /// The same error, whose message goes on like this.
    pub(crate) fn and(self, more: &str) -> Self {
        Self::new(self.kind, self.message + more)
    }

    /// A tensor that must be there.
    pub(crate) fn missing_tensor(name: &str) -> Self {
        Self::invalid(format!(
            "tensor {name} is missing; the file is incomplete: get the model from another source"
        ))
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

impl From<gguf::Error> for Error {
    fn from(error: gguf::Error) -> Self {
        let kind = match error.kind() {
            gguf::ErrorKind::Source => ErrorKind::Weights,
            gguf::ErrorKind::Invalid => ErrorKind::InvalidModel,
            gguf::ErrorKind::Unsupported => ErrorKind::Unsupported,
            gguf::ErrorKind::OutOfMemory => ErrorKind::OutOfMemory,
        };
        Self::new(kind, error.to_string())
    }
}

/// Of a source, which a GGUF header is read from.
impl From<Error> for gguf::Error {
    fn from(error: Error) -> Self {
        let kind = match error.kind() {
            ErrorKind::InvalidModel => gguf::ErrorKind::Invalid,
            ErrorKind::Unsupported => gguf::ErrorKind::Unsupported,
            ErrorKind::OutOfMemory => gguf::ErrorKind::OutOfMemory,
            _ => gguf::ErrorKind::Source,
        };
        Self::new(kind, error.to_string())
    }
}
