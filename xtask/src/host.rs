//! Building the host.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::toolchain::active_cargo;
use crate::{output, process, root};

/// Runs the active cargo in the project's root.
pub fn cargo<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut cargo = Command::new(active_cargo());
    cargo.current_dir(root()).args(arguments);
    cargo
}

/// Builds `moewe` and returns its path.
pub fn build() -> Result<PathBuf> {
    process::run(&mut cargo(["build", "--package", "moewe-cli"]))?;
    Ok(binary())
}

/// Where cargo puts `moewe`.
pub fn binary() -> PathBuf {
    let target = match env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => root().join(folder),
        None => output(""),
    };
    target.join("debug/moewe")
}
