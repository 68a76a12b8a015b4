//! Writes a model of random weights, one of [`Shape::NAMED`] or [`LatentShape::NAMED`]: the
//! same bytes for the same seed.
//!
//! ```sh
//! cargo run --release -p moewe-models --example generate -- OUT.gguf --seed 1
//! cargo run --release -p moewe-models --example generate -- OUT.gguf --shape moe-30b
//! cargo run --release -p moewe-models --example generate -- OUT.gguf --shape kimi-k2 --holes
//! ```

use std::path::PathBuf;

use clap::Parser;
use clap::builder::PossibleValuesParser;
use moewe_models::generate::{LatentShape, Layers, Shape, generate, generate_latent};
use moewe_models::{Bar, Error};

/// Write a model of random weights
#[derive(Parser)]
struct Arguments {
    /// The GGUF file to write
    out: PathBuf,
    /// Which one: 0.7, 4.35, 16.9, 4.86, 15.1 and 578 GB
    #[arg(long, default_value = "moe-7.7b", value_parser = PossibleValuesParser::new(names()))]
    shape: String,
    /// Leave the matrices of layers out: holes take no room on the disk (latent shapes only)
    #[arg(long)]
    holes: bool,
    /// Equal seeds give equal files
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> Result<(), Error> {
    let Arguments { out, shape, holes, seed } = Arguments::parse();
    let layers = if holes { Layers::Holes } else { Layers::Random };
    let plain = Shape::NAMED.into_iter().find(|(name, _)| *name == shape);
    let latent = LatentShape::NAMED.into_iter().find(|(name, _)| *name == shape);
    match (plain, latent) {
        (Some((_, shape)), _) => generate(&out, &shape, seed, &mut Bar::new()),
        (_, Some((_, shape))) => generate_latent(&out, &shape, layers, seed, &mut Bar::new()),
        _ => unreachable!("the parser takes these names only"),
    }
}

fn names() -> Vec<&'static str> {
    let plain = Shape::NAMED.map(|(name, _)| name).into_iter();
    plain.chain(LatentShape::NAMED.map(|(name, _)| name)).collect()
}
