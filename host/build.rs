//! Finds the guest component that the crate embeds.

use std::env;
use std::fs::File;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=MOEWE_GUEST");
    let manifest_dir = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let guest = match env::var_os("MOEWE_GUEST") {
        Some(path) => PathBuf::from(path),
        None => Path::new(&manifest_dir).join("../target/moewe.wasm"),
    };
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
}
