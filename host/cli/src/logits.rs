//! `moewe logits`: what the model thinks of every token that could come next.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use moewe::SessionOptions;
use npyz::WriterBuilder as _;

use crate::generate;
use crate::open::{self, ModelArgs};

/// Write the logits behind every token of a text to a file
///
/// For comparing implementations: the tokens are fed one by one, and the file
/// is a NumPy array of float32 with one row for each token and one column for
/// each entry of the vocabulary.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The tokens: JSON, `{"ids": [1, 2, 3]}`
    #[arg(long, value_name = "FILE.json")]
    tokens: PathBuf,
    /// Where the logits go; replaced only when all are there
    #[arg(long, value_name = "FILE.npy")]
    out: PathBuf,
}

#[derive(serde::Deserialize)]
struct Tokens {
    ids: Vec<u32>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let shown = args.tokens.display();
    let text = std::fs::read_to_string(&args.tokens)
        .with_context(|| format!("{shown}: cannot be read"))?;
    let Tokens { ids } = serde_json::from_str(&text)
        .with_context(|| format!("{shown}: is not JSON like {{\"ids\": [1, 2, 3]}}"))?;
    if ids.is_empty() {
        bail!("{shown}: there is no token in it");
    }

    let model = open::open(&args.model)?;
    let mut session = model.session(SessionOptions::default())?;
    let shape = [ids.len() as u64, model.info().n_vocab.into()];
    let bar = generate::token_bar("computing logits", ids.len());
    write_whole(&args.out, |file| {
        let mut writer =
            npyz::WriteOptions::new().default_dtype().shape(&shape).writer(file).begin_nd()?;
        for id in ids {
            session.feed(&[id])?;
            writer.extend(session.logits()?)?;
            bar.inc(1);
        }
        writer.finish()?;
        Ok(())
    })?;
    bar.finish_and_clear();
    model.finish_trace()?;
    Ok(ExitCode::SUCCESS)
}

/// Writes a file that appears, or replaces another, only when it is complete.
fn write_whole(path: &Path, write: impl FnOnce(&mut BufWriter<&File>) -> Result<()>) -> Result<()> {
    let fail = || format!("{}: cannot be written", path.display());
    if path.is_dir() {
        bail!("{}: is a folder; name the file to write", path.display());
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let file = builder.tempfile_in(folder).with_context(fail)?;
    let mut out = BufWriter::new(file.as_file());
    write(&mut out)?;
    out.flush().with_context(fail)?;
    drop(out);
    file.persist(path).with_context(fail)?;
    Ok(())
}
