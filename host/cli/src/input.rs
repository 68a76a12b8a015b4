//! Text from standard input: no more of it than a session can use.

use std::io::{self, BufRead, Read};

use anyhow::{Context, Result};
use moewe::Session;

/// All of standard input, without the end of its last line. If it is too long for
/// the session, only so much of it that tokenizing it says so.
pub fn all(session: &Session) -> Result<String> {
    read(session, |input, bytes| input.read_to_end(bytes))
}

/// The next line of standard input, without its end, in the same way; `None` at
/// the end of input.
pub fn line(session: &Session) -> Result<Option<String>> {
    let mut n = 0;
    let line = read(session, |input, bytes| {
        n = input.read_until(b'\n', bytes)?;
        Ok(n)
    })?;
    Ok((n > 0).then_some(line))
}

fn read(
    session: &Session,
    read: impl FnOnce(&mut io::Take<io::StdinLock<'_>>, &mut Vec<u8>) -> io::Result<usize>,
) -> Result<String> {
    // The end of the line, and a character that is cut off, may go.
    let n_max = session.text_bytes_max().saturating_add(1 + char::MAX.len_utf8() as u64);
    let mut input = io::stdin().lock().take(n_max);
    let mut bytes = Vec::new();
    let read = read(&mut input, &mut bytes);
    let failed = "standard input cannot be read as a prompt";
    read.context(failed)?;
    if let Err(e) = str::from_utf8(&bytes)
        && e.error_len().is_none()
        && input.limit() == 0
    {
        bytes.truncate(e.valid_up_to());
    }
    let mut text = String::from_utf8(bytes).context(failed)?;
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}
