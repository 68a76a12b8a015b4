//! `moewe logits`: what the model thinks of every token that could come next.

use std::io::{self, BufWriter};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail};
use moewe::SessionOptions;
use moewe_output::{Output, Place};
use moewe_packed::family;
use npyz::WriterBuilder as _;

use crate::context;
use crate::generate;
use crate::interrupt;
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
    /// Where the logits go: a file, which is replaced only when all are there, or
    /// a pipe
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

    let mut inputs = family(&open::resolve(&args.model.model)?);
    inputs.push(args.tokens.clone());
    let place = Place::of(&args.out, &inputs)?;
    let model = open::open(&args.model)?;
    context::warn_if_long(&model, u32::try_from(ids.len()).ok());
    let failed = || format!("{} cannot be written", args.out.display());
    // Until now there is nothing to clear up.
    let stop = interrupt::stop_flag()?;
    let mut out = BufWriter::new(Output::at(place).with_context(failed)?);
    let mut session = model.session(SessionOptions::default())?;
    let shape = [ids.len() as u64, model.info().n_vocab.into()];
    let bar = generate::token_bar("computing logits", ids.len());
    let options = npyz::WriteOptions::new().default_dtype().shape(&shape);
    let mut writer = options.writer(&mut out).begin_nd().with_context(failed)?;
    for id in ids {
        if stop.load(Ordering::Relaxed) {
            return Ok(interrupt::EXIT_CODE.into());
        }
        session.feed(&[id])?;
        writer.extend(session.logits()?).with_context(failed)?;
        bar.inc(1);
    }
    writer.finish().with_context(failed)?;
    let whole = out.into_inner().map_err(io::Error::from).and_then(Output::finish);
    whole.with_context(failed)?;
    bar.finish_and_clear();
    open::warn_of_copies(&model, &args.model);
    model.finish_trace()?;
    Ok(ExitCode::SUCCESS)
}
