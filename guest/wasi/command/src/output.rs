//! The standard streams.

use std::io::Write;

/// Writes `text` so that it is seen at once.
pub fn write(output: &mut impl Write, text: &[u8]) -> Result<(), String> {
    output
        .write_all(text)
        .and_then(|()| output.flush())
        .map_err(|error| format!("the output stream: {error}"))
}
