//! What commands print alike.

use std::io::Write;
use std::path::Path;

use anyhow::Result;
use moewe_packed::Mismatch;
use serde::Serialize;

/// Text from a model or its file without what could control the terminal.
pub fn printable(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

/// JSON for people, on lines of its own.
pub fn json(out: &mut impl Write, value: &impl Serialize) -> Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)?;
    Ok(())
}

/// Why a packed copy of a model is not used.
pub fn stale(model: &Path, copy: &Path, mismatch: Mismatch) -> String {
    let again = "and is not used; pack the model again with --force";
    let (model, copy) = (model.display(), copy.display());
    match mismatch {
        Mismatch::Version => format!("{copy} was made by another version of moewe, {again}"),
        Mismatch::Damaged => format!("{copy} is damaged or cannot be read, {again}"),
        Mismatch::Source => format!("{copy} was made from another file, {again}"),
        Mismatch::Unsure => format!(
            "{copy} was made from another file, or this one was moved or written to, and is not \
             used; `moewe pack --check {model}` finds out, and has it used again if they belong \
             together"
        ),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn nothing_controls_the_terminal() {
        assert_eq!(super::printable("a\u{1b}[2Jä\u{9b}\n"), "a\u{fffd}[2Jä\u{fffd}\u{fffd}");
    }
}
