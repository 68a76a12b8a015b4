//! Building the guest.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::host::{self, GUESTS};
use crate::paths::output;
use crate::toolchain::Toolchain;
use crate::{component, process};

/// The end of a component's name, beside its module.
const COMPONENT: &str = "component.wasm";

/// Where the engine lies, for the host to embed.
pub fn engine() -> PathBuf {
    output("moewe.wasm")
}

/// Has the host's build script wait for the engine, until the answer is dropped; `None`
/// if it may have run already, so that it would not, or if there are no locks here.
pub fn first_lock() -> Result<Option<File>> {
    let path = engine().with_extension("wasm.lock");
    if engine().exists() || path.exists() {
        return Ok(None);
    }
    let shown = || format!("{} cannot be locked", path.display());
    fs::create_dir_all(output("")).with_context(shown)?;
    let file = File::create(&path).with_context(shown)?;
    match file.lock() {
        Err(error) if error.kind() == ErrorKind::Unsupported => Ok(None),
        locked => locked.map(|()| Some(file)).with_context(shown),
    }
}

/// Builds the engine.
pub fn build_engine(toolchain: &Toolchain) -> Result<()> {
    let [package, ..] = GUESTS;
    let [module] = modules(toolchain, [package])?;
    let bytes = component::encode(&module)?;
    component::check(&bytes, "moewe:inference/", "moewe:inference/inference@")
        .context("the engine")?;
    write(&engine(), &bytes)
}

/// Builds the engine and the program for WASI runtimes.
pub fn build() -> Result<()> {
    let toolchain = Toolchain::find()?;
    build_engine(&toolchain)?;
    let [_, packages @ ..] = GUESTS;
    let [provider, command] = modules(&toolchain, packages)?;
    for module in [&provider, &command] {
        let path = module.with_extension(COMPONENT);
        let written = fs::write(&path, component::encode(module)?);
        written.with_context(|| format!("{} cannot be written", path.display()))?;
    }
    let program = output("guest/moewe-wasi.wasm");
    let mut compose = Command::new(host::build(&["moewe-compose"])?.join("moewe-compose"));
    compose.args([&provider.with_extension(COMPONENT), &engine()]);
    process::run(compose.args([&command.with_extension(COMPONENT), &program]))?;
    let bytes = fs::read(&program).with_context(|| format!("{}", program.display()))?;
    component::check(&bytes, "wasi:", "wasi:cli/run@").context("the WASI program")?;
    write(&output("moewe-wasi.wasm"), &bytes)
}

/// Builds packages for wasm32, and returns the files of their modules.
fn modules<const N: usize>(toolchain: &Toolchain, packages: [&str; N]) -> Result<[PathBuf; N]> {
    let folder = toolchain.build(&packages, &output("guest"))?;
    Ok(packages.map(|name| folder.join(name.replace('-', "_")).with_extension("wasm")))
}

/// Writes `bytes` to the file, unless it has them already: what depends on it is then
/// not built again.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    replace(path, bytes).with_context(|| format!("{} cannot be written", path.display()))?;
    eprintln!("{} ({} KiB)", path.display(), bytes.len().div_ceil(1024));
    Ok(())
}

/// Nobody ever sees half a file.
fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let part = path.with_extension("wasm.part");
    fs::write(&part, bytes)?;
    fs::rename(part, path)
}
