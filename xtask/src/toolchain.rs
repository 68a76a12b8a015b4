//! The Rust toolchain that builds the guest.
//!
//! The active one, if it has the target. If not, Debian's, which has no standard
//! library for WebAssembly, but its sources: it builds that too. For 64-bit addresses
//! no toolchain comes with a standard library, so that is always Debian's.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::paths::root;
use crate::{debian, process};

/// What is compiled for.
#[derive(Clone, Copy)]
pub enum Target {
    /// 32-bit addresses.
    Wasm32,
    /// 64-bit addresses.
    Wasm64,
}

impl Target {
    fn triple(self) -> &'static str {
        match self {
            Self::Wasm32 => "wasm32-unknown-unknown",
            Self::Wasm64 => "wasm64-unknown-unknown",
        }
    }
}

/// Loop strength reduction turns the offsets of loads, which cost nothing in
/// WebAssembly, into additions.
const RUSTFLAGS: [&str; 2] =
    ["-Ctarget-feature=+simd128,+relaxed-simd", "-Cllvm-args=-disable-lsr"];

/// Debian's packages, all four of the same Rust and LLVM.
const DEBIAN_PACKAGES: [&str; 4] = ["rustc-web", "cargo-web", "rust-web-src", "lld-22"];
const DEBIAN_LINKER: &str = "wasm-ld-22";

/// A toolchain that can build for a target.
pub struct Toolchain {
    target: Target,
    provider: Provider,
}

enum Provider {
    /// The one that built this program.
    Active,
    /// Debian's packages.
    Debian,
}

impl Toolchain {
    /// Finds a toolchain, and installs Debian's if there is none and it can.
    pub fn find(target: Target) -> Result<Self> {
        if active_has(target)? {
            return Ok(Self { target, provider: Provider::Active });
        }
        debian::require(&DEBIAN_PACKAGES).with_context(|| {
            let triple = target.triple();
            let way_out = match target {
                Target::Wasm32 => format!(" (`rustup target add {triple}` installs it)"),
                Target::Wasm64 => String::new(),
            };
            format!("the Rust toolchain lacks the target {triple}{way_out}")
        })?;
        Ok(Self { target, provider: Provider::Debian })
    }

    /// Builds `packages` of the workspace in release mode into `target_dir`, with some
    /// arguments more, and returns the folder in which the modules are.
    pub fn build(
        &self,
        packages: &[&str],
        target_dir: &Path,
        arguments: &[&str],
    ) -> Result<PathBuf> {
        let triple = self.target.triple();
        let mut cargo = self.cargo();
        cargo.current_dir(root()).args(["build", "--release", "--target", triple]);
        cargo.args(arguments);
        cargo.arg("--target-dir").arg(target_dir);
        for package in packages {
            cargo.args(["--package", package]);
        }
        cargo.args(["--config", &format!("target.{triple}.rustflags={RUSTFLAGS:?}")]);
        if matches!(self.provider, Provider::Debian) {
            cargo.arg("-Zbuild-std=std,panic_abort");
            cargo.args(["--config", &format!("target.{triple}.linker='{DEBIAN_LINKER}'")]);
        }
        process::run(&mut cargo)?;
        Ok(target_dir.join(triple).join("release"))
    }

    /// Cargo, without the variables that were meant for this program or for
    /// the host's build.
    fn cargo(&self) -> Command {
        let is_debians = matches!(self.provider, Provider::Debian);
        let mut cargo = match self.provider {
            Provider::Active => Command::new(active_cargo()),
            Provider::Debian => Command::new("/usr/bin/cargo"),
        };
        for (name, _) in env::vars_os() {
            if is_cargos_setting(&name) || is_debians && is_toolchains(&name) {
                cargo.env_remove(name);
            }
        }
        if is_debians {
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

fn active_has(target: Target) -> Result<bool> {
    let output = Command::new(env::var_os("RUSTC").unwrap_or("rustc".into()))
        .args(["--print", "target-libdir", "--target", target.triple()])
        .current_dir(root())
        .output()
        .context("`rustc` does not start")?;
    let folder = String::from_utf8(output.stdout).context("a path of `rustc`")?;
    Ok(output.status.success() && Path::new(folder.trim()).is_dir())
}
