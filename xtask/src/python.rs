//! The tests that are written in Python.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::paths::{output, root};
use crate::{debian, process};

/// Runs the WASI program under Python's `wasmtime`, with `model`, and compares
/// it with the command `moewe`.
pub fn test_wasi(moewe: &Path, model: &Path) -> Result<()> {
    let tests = root().join("tests/wasi");
    let environment = output("venv");
    // Made last.
    if !environment.join("bin/pip").exists() {
        if !can_make_environments() {
            debian::require(&["python3-venv"])
                .context("the tests need Python 3.9 or later as `python3`, with `venv`")?;
        }
        process::run(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
    }
    let python = environment.join("bin/python");
    process::run(
        Command::new(&python)
            .args(["-m", "pip", "install", "--disable-pip-version-check", "--requirement"])
            .arg(tests.join("requirements.txt")),
    )?;
    process::run(
        Command::new(&python)
            .args(["-B", "-m", "unittest", "discover", "--verbose", "--start-directory"])
            .arg(&tests)
            .env("MOEWE_SMOLLM2", model)
            .env("MOEWE", moewe),
    )
}

fn can_make_environments() -> bool {
    let output = Command::new("python3").args(["-c", "import ensurepip, venv"]).output();
    output.is_ok_and(|output| output.status.success())
}
