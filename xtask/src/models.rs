//! The model that is used unless told otherwise.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;

/// Its name, as `moewe pull` knows it. File names begin with it, in whatever
/// case.
pub const DEFAULT: &str = "smollm2-135m-instruct";

/// The default model's file in `folder`, fetched with `moewe` if it is
/// missing.
pub fn fetch(moewe: &Path, folder: &Path) -> Result<PathBuf> {
    if let Some(model) = find(folder) {
        return Ok(model);
    }
    process::run(Command::new(moewe).args(["pull", DEFAULT]).env("MOEWE_MODELS", folder))?;
    find(folder)
        .with_context(|| format!("`moewe pull` left no {DEFAULT}*.gguf in {}", folder.display()))
}

fn find(folder: &Path) -> Option<PathBuf> {
    let files = fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    files.into_iter().find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        name.starts_with(DEFAULT) && name.ends_with(".gguf")
    })
}
