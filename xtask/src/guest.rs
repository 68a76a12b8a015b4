//! Building the guest.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::host::{self, GUESTS, WIDE};
use crate::paths::output;
use crate::toolchain::{Target, Toolchain};
use crate::{component, process};

/// The end of a component's name, beside its module.
const COMPONENT: &str = "component.wasm";

/// Where the engine lies, for the host to embed.
fn engine() -> PathBuf {
    output("moewe.wasm")
}

/// Where the engine with 64-bit addresses lies, if it could be built.
fn wide_engine() -> PathBuf {
    output("moewe-wide.wasm")
}

/// Where the program for WASI runtimes with an engine for `target` lies.
fn program(target: Target) -> &'static str {
    match target {
        Target::Wasm32 => "moewe-wasi.wasm",
        Target::Wasm64 => "moewe-wasi-wide.wasm",
    }
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

/// Builds the engine, with 32-bit addresses and with 64-bit ones.
pub fn build_engine(toolchain: &Toolchain) -> Result<()> {
    let [package, ..] = GUESTS;
    let [module] = modules(toolchain, [package], &output("guest"), &[])?;
    write_engine(&engine(), Target::Wasm32, &component::encode(&read(&module)?)?)?;
    match Toolchain::find(Target::Wasm64) {
        Ok(for_wide) => build_wide_engine(toolchain, &for_wide),
        Err(error) => {
            eprintln!("without the engine for models that need 64-bit addresses: {error:#}");
            // Those of an earlier build do not fit any more.
            remove(&wide_engine())?;
            remove(&output(program(Target::Wasm64)))
        }
    }
}

/// Builds the engine with 64-bit addresses, of two modules and what is between them.
fn build_wide_engine(toolchain: &Toolchain, for_wide: &Toolchain) -> Result<()> {
    let [package, ..] = GUESTS;
    // In a folder of its own: in the other one, either build of the package would replace
    // the other, and both were built every time.
    let [face] = modules(toolchain, [package], &output("guest-face"), &["--no-default-features"])?;
    let [wide] = modules(for_wide, [WIDE], &output("guest"), &[])?;
    let bytes = component::encode_wide(&read(&face)?, &read(&wide)?)?;
    write_engine(&wide_engine(), Target::Wasm64, &bytes)
}

fn write_engine(path: &Path, target: Target, bytes: &[u8]) -> Result<()> {
    component::check(bytes, target, "moewe:inference/", "moewe:inference/inference@")
        .with_context(|| format!("the engine {}", path.display()))?;
    write(path, bytes)
}

/// Builds the engine and the programs for WASI runtimes.
pub fn build() -> Result<()> {
    let toolchain = Toolchain::find(Target::Wasm32)?;
    build_engine(&toolchain)?;
    let [_, packages @ ..] = GUESTS;
    let [provider, command] = modules(&toolchain, packages, &output("guest"), &[])?;
    for module in [&provider, &command] {
        let path = module.with_extension(COMPONENT);
        let written = fs::write(&path, component::encode(&read(module)?)?);
        written.with_context(|| format!("{} cannot be written", path.display()))?;
    }
    let [provider, command] = [provider, command].map(|path| path.with_extension(COMPONENT));
    let compose = host::build(&["moewe-compose"])?.join("moewe-compose");
    let engines = [(engine(), Target::Wasm32), (wide_engine(), Target::Wasm64)];
    for (engine, target) in engines.into_iter().filter(|(engine, _)| engine.exists()) {
        let name = program(target);
        let program = output("guest").join(name);
        process::run(Command::new(&compose).args([&provider, &engine, &command, &program]))?;
        let bytes = read(&program)?;
        component::check(&bytes, target, "wasi:", "wasi:cli/run@")
            .with_context(|| format!("the WASI program {name}"))?;
        write(&output(name), &bytes)?;
    }
    Ok(())
}

/// Builds packages into a folder, and returns the files of their modules.
fn modules<const N: usize>(
    toolchain: &Toolchain,
    packages: [&str; N],
    target_dir: &Path,
    arguments: &[&str],
) -> Result<[PathBuf; N]> {
    let folder = toolchain.build(&packages, target_dir, arguments)?;
    Ok(packages.map(|name| folder.join(name.replace('-', "_")).with_extension("wasm")))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("{} cannot be read", path.display()))
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

/// Removes a file, if it is there.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{} cannot be removed", path.display()))
        }
        _ => Ok(()),
    }
}

/// Nobody ever sees half a file.
fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let part = path.with_extension("wasm.part");
    fs::write(&part, bytes)?;
    fs::rename(part, path)
}
