//! The driver of the fuzz targets; `cargo xtask fuzz --help`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use moewe_fuzz::driver::{Options, quieten_panics, replay, run};
use moewe_fuzz::{TARGETS, Target, memory};

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

/// Feed the readers of strangers' files with mutations, and check what they make of them
#[derive(Parser)]
#[command(bin_name = "cargo xtask fuzz")]
struct Arguments {
    /// Targets; all of them unless named
    #[arg(value_parser = target)]
    targets: Vec<Target>,
    /// How long, all targets together
    #[arg(long, value_name = "N", default_value_t = 60, conflicts_with = "inputs")]
    seconds: u64,
    /// How many inputs instead, all targets together
    #[arg(long, value_name = "N")]
    inputs: Option<u64>,
    /// The same seed makes the same inputs
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Run a target once, on the input in a file
    #[arg(long, value_name = "FILE", requires = "targets")]
    replay: Option<PathBuf>,
}

fn target(name: &str) -> Result<Target, String> {
    let names = || TARGETS.map(|target| target.name).join(", ");
    let found = TARGETS.iter().find(|target| target.name == name);
    found.copied().ok_or_else(|| format!("there is no such target; there are {}", names()))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    quieten_panics();
    match fuzz(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all promises were kept.
fn fuzz(arguments: &Arguments) -> std::io::Result<bool> {
    let targets = match &arguments.targets[..] {
        [] => &TARGETS[..],
        targets => targets,
    };
    let mut is_sound = true;
    if let Some(path) = &arguments.replay {
        for target in targets {
            let broken = replay(target, path)?;
            is_sound &= broken.is_none();
            println!("{}: {}", target.name, broken.as_deref().unwrap_or("nothing happens"));
        }
        return Ok(is_sound);
    }
    println!("seed {}", arguments.seed);
    let mut options = Options::new(Path::new(env!("CARGO_MANIFEST_DIR")));
    options.seed = arguments.seed;
    let n = targets.len();
    match arguments.inputs {
        Some(inputs) => options.n_inputs = Some(inputs.div_ceil(n as u64)),
        None => options.time = Some(Duration::from_secs(arguments.seconds) / n as u32),
    }
    for target in targets {
        let report = run(target, &options)?;
        println!("{report}");
        is_sound &= report.finds.is_empty();
    }
    Ok(is_sound)
}
