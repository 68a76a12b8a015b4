//! The one error type of the crate.

use std::fmt;

/// What kind of error it is, for a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The weights could not be opened or read, or changed while in use.
    Weights,
    /// The file is damaged, or is no GGUF file.
    InvalidModel,
    /// The file is sound, and asks for something that the engine lacks: an
    /// architecture, a quantisation, a tokenizer; time or memory that a chat
    /// template may not take.
    Unsupported,
    /// The caller's arguments make no sense: an empty prompt, a token outside
    /// the vocabulary, a chat template that refuses the messages.
    InvalidInput,
    /// More tokens than the session's context holds.
    ContextFull,
    /// The sandbox may not have, or could not get, the memory it needs.
    OutOfMemory,
    /// The threads of a session lost one another.
    Team,
    /// A call took longer than [`ModelOptions::time_max`](crate::ModelOptions::time_max).
    TimeLimit,
    /// [`CancelHandle::stop`](crate::CancelHandle::stop) ended the call. It changed
    /// nothing, and can be made again.
    Stopped,
    /// [`CancelHandle::cancel`](crate::CancelHandle::cancel) ended the call.
    Cancelled,
    /// The sandbox of this session is gone after an earlier error.
    Ended,
    /// Anything that should not happen: a bug in the engine or the host.
    Internal,
}

/// An error: its kind, and one line that names the thing and the way out.
#[derive(Debug, Clone)]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The message is made one line: parts of it may come from the guest.
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let message: String = message.into();
        let message = if message.contains(char::is_control) {
            message.split(char::is_control).filter(|s| !s.is_empty()).collect::<Vec<_>>().join(" ")
        } else {
            message
        };
        Self { kind, message }
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
