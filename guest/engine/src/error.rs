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
    /// The caller wanted it to end early; nothing has changed.
    Stopped,
}

/// The most characters in a message: names out of a file may be longer.
const MESSAGE_LEN_MAX: usize = 1000;

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
        let mut message = message.into();
        if message.contains(char::is_control) {
            let escape = |c: char| match c.is_control() {
                true => c.escape_default().to_string(),
                false => c.to_string(),
            };
            message = message.chars().map(escape).collect();
        }
        if let Some((at, _)) = message.char_indices().nth(MESSAGE_LEN_MAX) {
            message.truncate(at);
            message.push_str("...");
        }
        Self { kind, message }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_of_limited_length() {
        let name = format!("a\n\u{1b}[2J\0{}", "\u{e9}".repeat(5000));
        let message = Error::invalid(format!("tensor {name} is missing")).to_string();
        assert!(message.starts_with("tensor a\\n\\u{1b}[2J\\u{0}\u{e9}"), "{message}");
        assert!(!message.contains(char::is_control));
        assert_eq!(message.chars().count(), MESSAGE_LEN_MAX + 3);
        assert_eq!(Error::invalid("caf\u{e9}: gone").to_string(), "caf\u{e9}: gone");
    }
}
