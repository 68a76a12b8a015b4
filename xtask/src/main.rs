//! Builds, runs and tests moewe: `cargo xtask --help`.

mod component;
mod debian;
mod guest;
mod host;
mod models;
mod paths;
mod process;
mod python;
mod tasks;
mod toolchain;
mod two_memories;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(bin_name = "cargo xtask", about = "Builds, runs and tests moewe")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the guests: target/moewe.wasm, the engine, and target/moewe-wasi.wasm, a
    /// program for any WASI 0.2 runtime; both once more as -wide.wasm, with 64-bit
    /// addresses
    Guest,
    /// Build the command, fetch the default model, and let it continue a prompt
    Run {
        #[arg(default_value = "The capital of France is")]
        prompt: String,
        /// More arguments for `moewe run`
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Build everything, fetch the default model, and run all tests
    Test,
    /// Measure moewe against the same engine built natively, llama.cpp, and
    /// wllama; `--help` says what can be chosen
    #[command(disable_help_flag = true)]
    Bench {
        /// Arguments for the benchmark
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Feed the readers of strangers' files with mutations, and check what they make
    /// of them; `--help` says what can be chosen
    #[command(disable_help_flag = true)]
    Fuzz {
        /// Arguments for the driver
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Check format, lints and documentation, run all tests, then fuzz for a minute
    Ci,
}

fn main() -> ExitCode {
    if let Err(error) = run(Arguments::parse().task) {
        eprintln!("error: {error:#}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Guest => guest::build(),
        Task::Run { prompt, arguments } => tasks::run(&prompt, &arguments),
        Task::Test => tasks::test(),
        Task::Bench { arguments } => tasks::bench(&arguments),
        Task::Fuzz { arguments } => tasks::fuzz(&arguments),
        Task::Ci => tasks::ci(),
    }
}
