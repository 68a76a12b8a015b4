//! Building the host.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::paths::{output, root};
use crate::process;
use crate::toolchain::active_cargo;

/// The engine, what feeds it over WASI, and what uses it there: built for wasm32 only,
/// because no native linker takes the names of a component's exports.
pub const GUESTS: [&str; 3] = ["moewe-component", "moewe-wasi-provider", "moewe-wasi-command"];
/// The engine with 64-bit addresses, which is a part of a component only.
pub const WIDE: &str = "moewe-wide";

/// Runs the active cargo in the project's root.
pub fn cargo<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut cargo = Command::new(active_cargo());
    cargo.current_dir(root()).args(arguments);
    // What cargo says of this program, which build scripts take for a change.
    for (name, _) in env::vars_os() {
        let shown = name.to_string_lossy();
        if shown.starts_with("CARGO_PKG_") || shown.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&name);
        }
    }
    cargo
}

/// Builds programs of the workspace, and returns the folder in which they are.
///
/// Always with the whole workspace in view: cargo then chooses the same features of the
/// dependencies every time, and Wasmtime is compiled once.
pub fn build(programs: &[&str]) -> Result<PathBuf> {
    process::run(workspace("build").args(programs.iter().flat_map(|name| ["--bin", name])))?;
    Ok(folder())
}

/// Builds all programs and tests, and what tests need of the examples, and returns the
/// folder in which the programs are.
pub fn build_all() -> Result<PathBuf> {
    process::run(workspace("build").args(["--bins", "--tests", "--example", "tokenize"]))?;
    Ok(folder())
}

/// A command of cargo for the workspace but for the guests, which have other features of
/// what they share with the host.
pub fn workspace(command: &str) -> Command {
    let mut cargo = cargo([command, "--workspace"]);
    cargo.args(GUESTS.iter().chain([&WIDE]).flat_map(|package| ["--exclude", package]));
    cargo
}

/// Runs the guests' own tests, natively.
pub fn test_guests() -> Command {
    let mut test = cargo(["test"]);
    test.args(GUESTS.iter().flat_map(|package| ["--package", package]));
    test
}

/// Builds the engine's own benchmark for a processor, `native` for this machine's,
/// with the settings that the guest is built with, and returns its path.
pub fn build_native_bench(cpu: &str) -> Result<PathBuf> {
    let target = output(&format!("native/{cpu}"));
    let mut build =
        cargo(["build", "--release", "--package", "moewe-engine", "--example", "bench"]);
    let flags = format!("-C target-cpu={cpu}");
    process::run(build.env("CARGO_TARGET_DIR", &target).env("RUSTFLAGS", flags))?;
    Ok(target.join("release/examples/bench"))
}

/// Where cargo puts programs.
fn folder() -> PathBuf {
    let target = match env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => root().join(folder),
        None => output(""),
    };
    target.join("debug")
}
