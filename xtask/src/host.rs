//! Building the host.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::toolchain::active_cargo;
use crate::{guest, output, process, root};

/// Runs the active cargo in the project's root.
pub fn cargo<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut cargo = Command::new(active_cargo());
    cargo.current_dir(root()).args(arguments);
    cargo
}

/// Builds all programs, and with `--tests` the tests too, and returns the path
/// of `moewe`.
///
/// Always the whole workspace: cargo then chooses the same features of the
/// dependencies every time, and Wasmtime is compiled once.
pub fn build(tests: bool) -> Result<PathBuf> {
    let mut build = workspace_build();
    build.arg("--bins");
    match tests {
        true => build.arg("--tests"),
        false => build.args(["--exclude", "moewe-fuzz"]),
    };
    process::run(&mut build)?;
    Ok(binary())
}

/// Builds the driver of the fuzz targets, and returns its path.
pub fn build_fuzz() -> Result<PathBuf> {
    process::run(workspace_build().args(["--bin", "moewe-fuzz"]))?;
    Ok(binary().with_file_name("moewe-fuzz"))
}

fn workspace_build() -> Command {
    let guests = guest::PACKAGES.iter().flat_map(|package| ["--exclude", package]);
    let mut build = cargo(["build", "--workspace"]);
    build.args(guests);
    build
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

/// Where cargo puts `moewe`.
fn binary() -> PathBuf {
    let target = match env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => root().join(folder),
        None => output(""),
    };
    target.join("debug/moewe")
}
