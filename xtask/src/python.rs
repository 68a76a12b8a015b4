//! The tests that are written in Python.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{output, process, root};

/// Runs the WASI program under Python's `wasmtime`, with `model`.
pub fn test_wasi(model: &Path) -> Result<()> {
    let tests = root().join("tests/wasi");
    let environment = output("venv");
    let python = environment.join("bin/python");
    if !python.exists() {
        process::run(Command::new("python3").args(["-m", "venv"]).arg(&environment)).context(
            "the Python tests need Python 3.9 or later with venv \
             (on Debian: `apt-get install python3-venv`)",
        )?;
    }
    process::run(
        Command::new(&python)
            .args(["-m", "pip", "install", "--disable-pip-version-check", "--requirement"])
            .arg(tests.join("requirements.txt")),
    )?;
    process::run(
        Command::new(&python)
            .args(["-m", "unittest", "discover", "--verbose", "--start-directory"])
            .arg(&tests)
            .env("MOEWE_SMOLLM2", model),
    )
}
