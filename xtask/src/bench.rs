//! What the sandbox costs: `moewe bench` beside the engine built natively.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::host::cargo;
use crate::{output, process};

#[derive(clap::Args)]
pub struct Options {
    /// Tokens of the prompt
    #[arg(short = 'p', long, default_value_t = 128)]
    n_prompt: u32,
    /// Tokens to generate
    #[arg(short = 'n', long, default_value_t = 64)]
    n_gen: u32,
    /// Rounds; in each, both are measured once
    #[arg(short, long, default_value_t = 5)]
    rounds: u32,
    /// Threads that compute together
    #[arg(short, long, default_value_t = 1)]
    threads: u32,
}

/// Builds the engine's own benchmark for this machine's processor, with the
/// settings that the guest is built with.
pub fn build_native() -> Result<PathBuf> {
    let target = output("native");
    let mut build =
        cargo(["build", "--release", "--package", "moewe-engine", "--example", "bench"]);
    process::run(build.env("CARGO_TARGET_DIR", &target).env("RUSTFLAGS", "-C target-cpu=native"))?;
    Ok(target.join("release/examples/bench"))
}

/// Measures both in turn and prints medians and the ratio.
pub fn compare(moewe: &Path, native: &Path, model: &Path, options: &Options) -> Result<()> {
    let (n_prompt, n_gen) = (options.n_prompt.to_string(), options.n_gen.to_string());
    let n_threads = options.threads.to_string();
    let mut samples: [[Vec<f64>; 2]; 2] = Default::default();
    let mut instructions = String::new();
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        let guest = json(
            Command::new(moewe)
                .arg("bench")
                .arg(model)
                .args(["-p", &n_prompt, "-n", &n_gen, "-r", "1", "--json", "-t", &n_threads]),
        )?;
        for row in guest.as_array().context("`moewe bench` printed no array")? {
            let decode = row["n_gen"].as_u64() > Some(0);
            samples[usize::from(decode)][0].push(row["avg_ts"].as_f64().context("no avg_ts")?);
        }
        let native =
            json(Command::new(native).arg(model).args([&n_prompt, &n_gen, "1", &n_threads]))?;
        for (i, phase) in ["prefill", "decode"].into_iter().enumerate() {
            samples[i][1]
                .extend(native[phase].as_array().into_iter().flatten().flat_map(Value::as_f64));
        }
        instructions = native["instructions"].as_str().unwrap_or_default().to_owned();
    }
    let plural = if options.threads == 1 { "" } else { "s" };
    println!(
        "tok/s with {n_threads} thread{plural}, medians of {} rounds; native: {instructions}",
        options.rounds
    );
    println!("| test    | component |  native | ratio |");
    println!("| ------- | --------: | ------: | ----: |");
    for (name, n, [guest, native]) in
        ["pp", "tg"].iter().zip([&n_prompt, &n_gen]).zip(samples).map(|((a, b), c)| (a, b, c))
    {
        if let (Some(guest), Some(native)) = (median(guest), median(native)) {
            let test = format!("{name}{n}");
            println!("| {test:<7} | {guest:9.1} | {native:7.1} | {:5.2} |", guest / native);
        }
    }
    Ok(())
}

fn json(command: &mut Command) -> Result<Value> {
    let output = command.output().with_context(|| format!("{command:?} cannot be run"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    serde_json::from_slice(&output.stdout).with_context(|| format!("{command:?} printed no JSON"))
}

fn median(mut samples: Vec<f64>) -> Option<f64> {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied()
}
