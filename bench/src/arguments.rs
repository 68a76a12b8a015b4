//! What the user asks for, and what `cargo xtask bench` adds.

use std::path::PathBuf;

use clap::Parser;

use crate::contender::Contender;
use crate::results::Test;

/// Measure moewe against others
///
/// The tables are Markdown, on standard output. What cannot be measured is
/// listed below them, with the reason.
#[derive(Parser)]
#[command(bin_name = "cargo xtask bench", max_term_width = 100)]
pub struct Arguments {
    /// Models: known ones, or GGUF files [default: SmolLM2 and moe-7.7b; for memory and
    /// prefetch alone, moe-7.7b]
    #[arg(short, long = "model", value_name = "MODEL", value_delimiter = ',')]
    pub models: Vec<PathBuf>,
    /// Who is measured [default: all]
    #[arg(short, long = "contender", value_name = "NAME", value_enum, value_delimiter = ',')]
    pub contenders: Vec<Contender>,
    /// What is measured [default: decode, prefill, start]
    #[arg(long = "test", value_name = "TEST", value_enum, value_delimiter = ',')]
    pub tests: Vec<Test>,
    /// Numbers of threads
    #[arg(short, long, value_name = "N", value_delimiter = ',', default_values_t = [1, 2],
        value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Vec<u32>,
    /// Rounds; in each, everything is measured once
    #[arg(short, long, value_name = "N", default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Tokens of the prompt (prefill)
    #[arg(short = 'p', long, value_name = "N", default_value_t = 512,
        value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub n_prompt: u32,
    /// Tokens to generate (decode)
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128,
        value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub n_gen: u32,
    /// What of the model's size may lie in memory: 4 for a quarter (memory,
    /// prefetch)
    #[arg(long = "share", value_name = "N", value_delimiter = ',', default_values_t = [4],
        value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub shares: Vec<u32>,
    /// A build of llama.cpp: the folder with llama-bench [default: built from
    /// source]
    #[arg(long, value_name = "FOLDER")]
    pub llama_cpp: Option<PathBuf>,
    /// The command `moewe`
    #[arg(long, hide = true)]
    pub moewe: PathBuf,
    /// The engine's own benchmark
    #[arg(long, hide = true)]
    pub native: PathBuf,
    /// The same, built without AVX-512
    #[arg(long, hide = true)]
    pub native_avx2: PathBuf,
    /// Where what we build and fetch is kept
    #[arg(long, hide = true)]
    pub target: PathBuf,
}
