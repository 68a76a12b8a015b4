//! Finds the guest components that the crate embeds: the one with 32-bit addresses, and
//! where it could be built the one with 64-bit addresses.

use std::env;
use std::fs::File;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rustc-check-cfg=cfg(has_wide_guest)");
    let guest = path("MOEWE_GUEST", "moewe.wasm");
    let wide = path("MOEWE_GUEST_WIDE", "moewe-wide.wasm");
    // Whoever is building the guest holds a lock. What changes in it concerns the crate
    // alone, which includes it.
    // Where there are no locks, nobody builds it meanwhile.
    if let Ok(lock) = File::open(guest.with_extension("wasm.lock")) {
        let _ = lock.lock_shared();
    }
    match guest.canonicalize() {
        Ok(path) => println!("cargo::rustc-env=MOEWE_GUEST_COMPONENT={}", path.display()),
        Err(e) => println!(
            "cargo::error=the guest component {} is missing ({e}); run: cargo xtask guest",
            guest.display()
        ),
    }
    // Whether it is there decides what is compiled, so it is looked at again when it comes,
    // changes or goes.
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={}", wide.display());
    if let Ok(path) = wide.canonicalize() {
        println!("cargo::rustc-env=MOEWE_GUEST_WIDE_COMPONENT={}", path.display());
        println!("cargo::rustc-cfg=has_wide_guest");
    }
}

/// What an environment variable says, or else a file of the target folder.
fn path(variable: &str, name: &str) -> PathBuf {
    println!("cargo::rerun-if-env-changed={variable}");
    let manifest_dir = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    match env::var_os(variable) {
        Some(path) => PathBuf::from(path),
        None => Path::new(&manifest_dir).join("../target").join(name),
    }
}
