//! The tasks that need the whole project.

use std::ffi::OsString;
use std::process::Command;

use anyhow::Result;

use crate::host::cargo;
use crate::{guest, host, models, output, process, python};

/// Builds everything, and lets the default model continue `prompt`.
pub fn run(prompt: &str, arguments: &[String]) -> Result<()> {
    guest::build()?;
    let moewe = host::build(false)?;
    process::run(Command::new(&moewe).args(["pull", models::DEFAULT]))?;
    process::run(Command::new(&moewe).args(["run", models::DEFAULT, prompt]).args(arguments))
}

/// Runs all tests.
pub fn test() -> Result<()> {
    guest::build()?;
    let moewe = host::build(true)?;
    let folder = output("models");
    let model = models::fetch(&moewe, &folder)?;
    process::run(
        cargo(["test", "--workspace"]).env("MOEWE_MODELS", &folder).env("MOEWE_SMOLLM2", &model),
    )?;
    python::test_wasi(&moewe, &model)
}

/// Checks format, lints and documentation, and runs all tests.
pub fn ci() -> Result<()> {
    process::run(&mut cargo(["fmt", "--all", "--check"]))?;
    // The host's build script asks for the guest.
    guest::build()?;
    process::run(&mut cargo([
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ]))?;
    process::run(
        cargo(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "--deny warnings"),
    )?;
    test()?;
    fuzz(&["--seconds", "60"].map(OsString::from))
}

/// Runs the fuzz targets.
pub fn fuzz(arguments: &[OsString]) -> Result<()> {
    let driver = host::build_fuzz()?;
    process::run(Command::new(driver).args(arguments))
}

/// Builds what the benchmark measures, then runs it.
pub fn bench(arguments: &[OsString]) -> Result<()> {
    guest::build()?;
    let moewe = host::build(false)?;
    let native = host::build_native_bench("native")?;
    let native_avx2 = host::build_native_bench("x86-64-v3")?;
    process::run(
        Command::new(moewe.with_file_name("moewe-bench"))
            .arg("--moewe")
            .arg(&moewe)
            .arg("--native")
            .arg(native)
            .arg("--native-avx2")
            .arg(native_avx2)
            .arg("--target")
            .arg(output(""))
            .args(arguments),
    )
}
