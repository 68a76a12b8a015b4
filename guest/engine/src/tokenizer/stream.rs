//! From the bytes of tokens to text, token by token.

/// Turns bytes that come in pieces into text. A character may be spread over
/// several tokens; its bytes are kept until it is complete.
///
/// ```
/// # use moewe_engine::tokenizer::TextStream;
/// let mut stream = TextStream::default();
/// assert_eq!(stream.push(b"caf\xc3"), "caf");
/// assert_eq!(stream.push(b"\xa9!"), "\u{e9}!");
/// assert_eq!(stream.finish(), "");
/// ```
#[derive(Debug, Clone, Default)]
pub struct TextStream {
    /// The start of a character: at most three bytes.
    pending: Vec<u8>,
}

impl TextStream {
    /// Adds bytes and returns the text that is complete with them. Bytes that
    /// are not UTF-8 become U+FFFD.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut done = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            done += chunk.valid().len();
            let rest = chunk.invalid();
            let unfinished = done + rest.len() == self.pending.len() && may_go_on(rest);
            if !rest.is_empty() && !unfinished {
                text.push(char::REPLACEMENT_CHARACTER);
                done += rest.len();
            }
        }
        self.pending.drain(..done);
        text
    }

    /// Returns what is left: U+FFFD if a character was never completed.
    pub fn finish(&mut self) -> String {
        if self.pending.is_empty() {
            return String::new();
        }
        self.pending.clear();
        char::REPLACEMENT_CHARACTER.to_string()
    }
}

/// Whether bytes that are not UTF-8 could become a character with more bytes.
fn may_go_on(bytes: &[u8]) -> bool {
    matches!(std::str::from_utf8(bytes), Err(e) if e.error_len().is_none())
}
