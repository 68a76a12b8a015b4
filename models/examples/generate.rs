//! Writes a model of random weights, one of [`Shape::NAMED`]: the same bytes for the
//! same seed.
//!
//! ```sh
//! cargo run --release -p moewe-models --example generate -- OUT.gguf --seed 1
//! cargo run --release -p moewe-models --example generate -- OUT.gguf --shape moe-30b
//! ```

use std::path::PathBuf;

use clap::Parser;
use clap::builder::PossibleValuesParser;
use moewe_models::generate::{Shape, generate};
use moewe_models::{Bar, Error};

/// Write a model of random weights
#[derive(Parser)]
struct Arguments {
    /// The GGUF file to write
    out: PathBuf,
    /// Which one: 0.7, 4.35, 16.9 and 4.86 GB
    #[arg(long, default_value = "moe-7.7b",
        value_parser = PossibleValuesParser::new(Shape::NAMED.map(|(name, _)| name)))]
    shape: String,
    /// Equal seeds give equal files
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> Result<(), Error> {
    let Arguments { out, shape, seed } = Arguments::parse();
    let (_, shape) = Shape::NAMED
        .into_iter()
        .find(|(name, _)| *name == shape)
        .expect("the parser takes these names only");
    generate(&out, &shape, seed, &mut Bar::new())
}
