//! The error type of this crate.

use std::fmt;

/// What kind of error it is, for a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// A file could not be opened or read.
    Source,
    /// The file is damaged, or is no GGUF file.
    Invalid,
    /// The file is sound, and has something that is not known here.
    Unsupported,
    /// There is not enough memory.
    OutOfMemory,
}

/// The most characters in a message: names out of a file may be longer.
const MESSAGE_LEN_MAX: usize = 1000;

/// An error: its kind, and a sentence that names the thing and the way out.
#[derive(Debug, Clone)]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of this kind with this message, which becomes [one line](one_line).
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: one_line(message.into()) }
    }

    /// A damaged file.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// Something that is not known here.
    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
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

/// The message as one line of limited length without control characters, whatever
/// names it quotes.
pub fn one_line(mut message: String) -> String {
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
    message
}

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
        // Quoted by another error, it does not change.
        assert_eq!(one_line(message.clone()), message);
        assert_eq!(Error::invalid("caf\u{e9}: gone").to_string(), "caf\u{e9}: gone");
    }
}
