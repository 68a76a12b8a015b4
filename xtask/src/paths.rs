//! Where things are.

use std::path::{Path, PathBuf};

/// The project's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the project")
}

/// Where what we build lies, whatever `CARGO_TARGET_DIR` says: others look for
/// it there.
pub fn output(name: &str) -> PathBuf {
    root().join("target").join(name)
}
