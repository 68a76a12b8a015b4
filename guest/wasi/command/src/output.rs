//! The standard streams.

use std::io::Write;

/// Writes `text` so that it is seen at once.
pub fn write(output: &mut impl Write, text: &str) -> Result<(), String> {
    output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush())
        .map_err(|error| format!("the output stream: {error}"))
}
