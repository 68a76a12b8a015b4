//! The tasks that need the whole project.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use anyhow::Result;

use crate::host::cargo;
use crate::paths::output;
use crate::python::Python;
use crate::toolchain::{Target, Toolchain};
use crate::{guest, host, models, process};

/// Builds the command, and lets the default model continue `prompt`.
pub fn run(prompt: &str, arguments: &[String]) -> Result<()> {
    let moewe = build(&["moewe"])?.join("moewe");
    process::run(Command::new(&moewe).args(["pull", models::DEFAULT]))?;
    process::run(Command::new(&moewe).args(["run", models::DEFAULT, prompt]).args(arguments))
}

/// Builds the engine and programs of the host, and returns the folder in which these are.
fn build(programs: &[&str]) -> Result<PathBuf> {
    // Before anything takes minutes.
    let toolchain = Toolchain::find(Target::Wasm32)?;
    let Some(lock) = guest::first_lock()? else {
        guest::build_engine(&toolchain)?;
        return host::build(programs);
    };
    // Side by side: both take minutes the first time.
    thread::scope(|scope| {
        let host = scope.spawn(|| host::build(programs));
        let engine = guest::build_engine(&toolchain);
        drop(lock);
        let host = host.join().expect("it does not panic");
        engine.and(host)
    })
}

/// Runs all tests.
pub fn test() -> Result<()> {
    guest::build()?;
    let programs = host::build_all()?;
    let (moewe, tokenize) = (programs.join("moewe"), programs.join("examples/tokenize"));
    let folder = output("models");
    let model = models::fetch(&moewe, &folder)?;
    let python = Python::new()?;
    let llama_cpp = python.llama_cpp()?;
    let mut tests = host::workspace("test");
    tests.env("MOEWE_MODELS", &folder).env("MOEWE_SMOLLM2", &model);
    process::run(tests.env("MOEWE_LLAMA_CPP", &llama_cpp))?;
    process::run(&mut host::test_guests())?;
    python.test("wasi", &[("MOEWE_SMOLLM2", model.as_ref()), ("MOEWE", moewe.as_ref())])?;
    let llama_cpp = ("MOEWE_LLAMA_CPP", llama_cpp.as_ref());
    python.test("tokenizers", &[llama_cpp, ("MOEWE_TOKENIZE", tokenize.as_ref())])
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
    let driver = host::build(&["moewe-fuzz"])?.join("moewe-fuzz");
    process::run(Command::new(driver).args(arguments))
}

/// Builds what the benchmark measures, then runs it.
pub fn bench(arguments: &[OsString]) -> Result<()> {
    let programs = build(&["moewe", "moewe-bench"])?;
    let native = host::build_native_bench("native")?;
    let native_avx2 = host::build_native_bench("x86-64-v3")?;
    process::run(
        Command::new(programs.join("moewe-bench"))
            .arg("--moewe")
            .arg(programs.join("moewe"))
            .arg("--native")
            .arg(native)
            .arg("--native-avx2")
            .arg(native_avx2)
            .arg("--target")
            .arg(output(""))
            .args(arguments),
    )
}
