//! `moewe tokenize`: a text as its tokens.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use moewe::SessionOptions;

use crate::open::{self, ModelArgs};

/// Show the tokens of a text
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The text
    text: String,
    /// Add no BOS token, and read names of control tokens as plain text
    #[arg(long)]
    no_special: bool,
    /// Print JSON: `{"ids": [...], "pieces": [...]}`
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Tokens {
    ids: Vec<u32>,
    pieces: Vec<String>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let model = open::open(&args.model)?;
    let mut session = model.session(SessionOptions::default())?;
    let special = !args.no_special;
    let ids = session.tokenize(&args.text, special, special)?;
    let pieces: Vec<_> =
        ids.iter().map(|&id| session.detokenize(&[id], true)).collect::<Result<_, _>>()?;
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer(&mut out, &Tokens { ids, pieces })?;
        writeln!(out)?;
    } else {
        for (id, piece) in ids.iter().zip(&pieces) {
            writeln!(out, "{id:>8}  {piece:?}")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
