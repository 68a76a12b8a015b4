//! `moewe pack`: a copy of a model that is read faster.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use moewe_models::Bar;
use moewe_models::pack::{Error, check, check_source, copy_path, pack};
use moewe_packed::Stamp;

use crate::{interrupt, open};

/// Write a copy of a model that runs faster
///
/// The copy holds the same numbers, in the order in which they are used, and
/// computes the same to the bit. Where NAME.packed.gguf lies beside NAME.gguf,
/// it is used whenever NAME.gguf is asked for, as long as that is neither changed
/// nor moved.
#[derive(clap::Args)]
pub struct Args {
    /// A GGUF file (of a split model, the first), or the name of a known model
    model: PathBuf,
    /// The file to write [default: NAME.packed.gguf beside NAME.gguf]
    #[arg(short, long, value_name = "FILE.gguf")]
    out: Option<PathBuf>,
    /// Replace the file if it is there
    #[arg(short, long)]
    force: bool,
    /// Compare a packed file with its checksums; if MODEL is the original, that as
    /// well. A pair that was moved is used again then
    #[arg(long, conflicts_with_all = ["out", "force"])]
    check: bool,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let path = open::resolve(&args.model)?;
    let mut out = io::stdout();
    if args.check {
        let is_packed = Stamp::read(&path).is_ok_and(|stamp| stamp.is_some());
        let packed = if is_packed { path.clone() } else { copy_path(&path) };
        let check = if is_packed { check } else { check_source };
        let n_tensors = check(&path, &mut Bar::new())?;
        writeln!(out, "{}: all of {n_tensors} tensors are sound", packed.display())?;
        if !is_packed {
            writeln!(out, "{}: is what it was made from", path.display())?;
        }
    } else {
        let packed = args.out.clone().unwrap_or_else(|| copy_path(&path));
        let mut bar = Bar::with_stop(interrupt::stop_flag()?);
        match pack(&path, &packed, args.force, &mut bar) {
            Err(Error::Stopped) => return Ok(interrupt::EXIT_CODE.into()),
            packed => packed?,
        }
        writeln!(out, "{}", packed.display())?;
    }
    Ok(ExitCode::SUCCESS)
}
