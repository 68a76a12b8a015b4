//! Building the guest.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::toolchain::Toolchain;
use crate::{component, compose, output};

/// The engine, what feeds it, and what uses it: built for wasm32 only, because
/// no native linker takes the names of a component's exports.
pub const PACKAGES: [&str; 3] = ["moewe-component", "moewe-wasi-provider", "moewe-wasi-command"];

/// Builds the engine and the program for WASI runtimes.
pub fn build() -> Result<()> {
    let modules = Toolchain::find()?.build(&PACKAGES, &output("guest"))?;
    let encode = |package: &str| {
        component::encode(&modules.join(package.replace('-', "_")).with_extension("wasm"))
    };
    let [engine, provider, command] = PACKAGES.map(encode);
    let engine = engine?;
    component::check(&engine, "moewe:inference/", "moewe:inference/inference@")
        .context("the engine")?;
    write("moewe.wasm", &engine)?;
    let program = compose::chain(provider?, engine, command?)?;
    component::check(&program, "wasi:", "wasi:cli/run@").context("the WASI program")?;
    write("moewe-wasi.wasm", &program)
}

/// Writes `bytes` to target/`name`, unless it has them already: what depends
/// on the file is then not built again.
fn write(name: &str, bytes: &[u8]) -> Result<()> {
    let path = output(name);
    if fs::read(&path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    replace(&path, bytes).with_context(|| format!("{} cannot be written", path.display()))?;
    eprintln!("{} ({} KiB)", path.display(), bytes.len().div_ceil(1024));
    Ok(())
}

/// Nobody ever sees half a file.
fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let part = path.with_extension("wasm.part");
    fs::write(&part, bytes)?;
    fs::rename(part, path)
}
