//! The Rust toolchain that builds the guest.
//!
//! The active one, if it has the target wasm32-unknown-unknown. If not,
//! Debian's, which has no standard library for the target, but its sources: it
//! builds that too.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::paths::root;
use crate::{debian, process};

const TARGET: &str = "wasm32-unknown-unknown";
/// Loop strength reduction turns the offsets of loads, which cost nothing in
/// WebAssembly, into additions.
const RUSTFLAGS: [&str; 2] =
    ["-Ctarget-feature=+simd128,+relaxed-simd", "-Cllvm-args=-disable-lsr"];

/// Debian's packages, all four of the same Rust and LLVM.
const DEBIAN_PACKAGES: [&str; 4] = ["rustc-web", "cargo-web", "rust-web-src", "lld-22"];
const DEBIAN_LINKER: &str = "wasm-ld-22";

/// A toolchain that can build for wasm32-unknown-unknown.
pub enum Toolchain {
    /// The one that built this program.
    Active,
    /// Debian's packages.
    Debian,
}

impl Toolchain {
    /// Finds a toolchain, and installs Debian's if there is none and it can.
    pub fn find() -> Result<Self> {
        if active_has_target()? {
            return Ok(Self::Active);
        }
        debian::require(&DEBIAN_PACKAGES).with_context(|| {
            format!(
                "the Rust toolchain lacks the target {TARGET} \
                 (`rustup target add {TARGET}` installs it)"
            )
        })?;
        Ok(Self::Debian)
    }

    /// Builds `packages` of the workspace in release mode into `target_dir`,
    /// and returns the folder in which the modules are.
    pub fn build(&self, packages: &[&str], target_dir: &Path) -> Result<PathBuf> {
        let mut cargo = self.cargo();
        cargo.current_dir(root()).args(["build", "--release", "--target", TARGET]);
        cargo.arg("--target-dir").arg(target_dir);
        for package in packages {
            cargo.args(["--package", package]);
        }
        cargo.args(["--config", &format!("target.{TARGET}.rustflags={RUSTFLAGS:?}")]);
        if matches!(self, Self::Debian) {
            cargo.arg("-Zbuild-std=std,panic_abort");
            cargo.args(["--config", &format!("target.{TARGET}.linker='{DEBIAN_LINKER}'")]);
        }
        process::run(&mut cargo)?;
        Ok(target_dir.join(TARGET).join("release"))
    }

    /// Cargo, without the variables that were meant for this program or for
    /// the host's build.
    fn cargo(&self) -> Command {
        let mut cargo = match self {
            Self::Active => Command::new(active_cargo()),
            Self::Debian => Command::new("/usr/bin/cargo"),
        };
        for (name, _) in env::vars_os() {
            if is_cargos_setting(&name) || matches!(self, Self::Debian) && is_toolchains(&name) {
                cargo.env_remove(name);
            }
        }
        if matches!(self, Self::Debian) {
            let path = env::var_os("PATH").unwrap_or_default();
            let paths = [PathBuf::from("/usr/bin")].into_iter().chain(env::split_paths(&path));
            cargo.env("PATH", env::join_paths(paths).expect("they were a PATH before"));
            // The packages are of a stable Rust, and building the standard
            // library is an unstable feature.
            cargo.env("RUSTC_BOOTSTRAP", "1");
        }
        cargo
    }
}

/// The cargo that runs this program.
pub fn active_cargo() -> PathBuf {
    env::var_os("CARGO").unwrap_or("cargo".into()).into()
}

/// Whether a variable tells cargo what to build and how, and not just where
/// the registry is or how to reach it.
fn is_cargos_setting(name: &OsStr) -> bool {
    const KEPT: [&str; 5] =
        ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR", "CARGO_TERM_"];
    let name = name.to_string_lossy();
    let kept = KEPT.iter().any(|kept| name.starts_with(kept));
    name == "RUSTFLAGS" || name == "CARGO" || name.starts_with("CARGO_") && !kept
}

/// Whether a variable belongs to one toolchain and misleads another.
fn is_toolchains(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name.starts_with("RUSTC") || name == "RUSTUP_TOOLCHAIN" || name == "LD_LIBRARY_PATH"
}

fn active_has_target() -> Result<bool> {
    let output = Command::new(env::var_os("RUSTC").unwrap_or("rustc".into()))
        .args(["--print", "target-libdir", "--target", TARGET])
        .current_dir(root())
        .output()
        .context("`rustc` does not start")?;
    let folder = String::from_utf8(output.stdout).context("a path of `rustc`")?;
    Ok(output.status.success() && Path::new(folder.trim()).is_dir())
}
