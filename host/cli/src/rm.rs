//! `moewe rm`: models are removed.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use indicatif::DecimalBytes;
use moewe_models::Library;

/// Remove models
///
/// With a model go all files that it is split into, its packed copy, and what is left
/// of packing and fetching it. Links are removed, what they point to stays.
#[derive(clap::Args)]
pub struct Args {
    /// GGUF files, or the names of known models
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<PathBuf>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let mut out = io::stdout().lock();
    let mut written = Ok(());
    let mut bytes_free = 0;
    let mut removed = |path: &Path, bytes: u64| {
        bytes_free += bytes;
        // What was begun is done, whoever reads of it.
        if written.is_ok() {
            written = writeln!(out, "removed {}", path.display());
        }
    };
    Library::from_env()?.remove(&args.models, &mut removed)?;
    written?;
    writeln!(out, "{} are free", DecimalBytes(bytes_free))?;
    Ok(ExitCode::SUCCESS)
}
