//! Running other programs.

use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// Runs `command` to its end and returns what it printed; what it says on
/// stderr is shown only if it fails.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let line = line(command);
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).output().with_context(|| format!("{line} does not start"))?;
    if !status.success() {
        let stderr = String::from_utf8_lossy(&stderr);
        bail!("{line} failed ({status}): {}", last_line(&stderr));
    }
    Ok(stdout)
}

/// What `command` prints.
pub fn json<T: serde::de::DeserializeOwned>(command: &mut Command) -> Result<T> {
    let output = output(command)?;
    serde_json::from_slice(&output)
        .with_context(|| format!("{} printed something else than expected", line(command)))
}

/// The program's name, for messages.
pub fn line(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy();
    match command.get_args().next() {
        Some(first) => format!("`{name} {} ...`", first.to_string_lossy()),
        None => format!("`{name}`"),
    }
}

/// The last line that says something.
pub fn last_line(text: &str) -> &str {
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it said nothing")
}
