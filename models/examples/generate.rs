//! Writes a mixture of experts of random weights: 7.7 billion parameters,
//! 4.35 GB, the same bytes for the same seed.
//!
//! ```sh
//! cargo run --release -p moewe-models --example generate -- OUT.gguf --seed 1
//! ```

use std::path::PathBuf;

use clap::Parser;
use moewe_models::generate::{Shape, generate};
use moewe_models::{Bar, Error};

/// Write a mixture of experts of random weights, 4.35 GB
#[derive(Parser)]
struct Arguments {
    /// The GGUF file to write
    out: PathBuf,
    /// Equal seeds give equal files
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> Result<(), Error> {
    let Arguments { out, seed } = Arguments::parse();
    generate(&out, &Shape::MOE_7_7B, seed, &mut Bar::new())
}
