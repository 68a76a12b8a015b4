//! `moewe bench`: how fast a model reads and writes.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Result, bail};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use moewe::ModelInfo;
use moewe_workshop::bench::{Bench, Measurement, Test};

use crate::context;
use crate::memory;
use crate::open::{self, ModelArgs};
use crate::print;

/// Measure prefill and decode
///
/// Each test starts with an empty context, is run once to warm up, and then as
/// often as asked. The rows and names are those of llama-bench.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens of the prompt (prefill); 0 skips the test
    #[arg(short = 'p', long, value_name = "N", default_value_t = 512)]
    n_prompt: u32,
    /// Tokens to generate (decode); 0 skips the test
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128)]
    n_gen: u32,
    /// How often each test is run
    #[arg(short = 'r', long, value_name = "N", default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(1..=10_000))]
    repetitions: u32,
    /// Print JSON, with the names that llama-bench uses
    #[arg(long)]
    json: bool,
}

/// The results of one test, as llama-bench prints them.
#[derive(serde::Serialize)]
struct Row {
    backends: &'static str,
    model_filename: String,
    model_type: String,
    model_size: u64,
    model_n_params: u64,
    n_threads: usize,
    n_prompt: u32,
    n_gen: u32,
    #[serde(skip)]
    test: Test,
    #[serde(flatten)]
    measurement: Measurement,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    if args.n_prompt == 0 && args.n_gen == 0 {
        bail!("-p 0 and -n 0 leave nothing to measure");
    }
    let model = open::open(&args.model)?;
    context::warn_if_long(&model, Some(args.n_prompt.max(args.n_gen)));
    let tests = [Test::Prefill(args.n_prompt), Test::Decode(args.n_gen)];
    let tests: Vec<_> = tests.into_iter().filter(|test| test.n_tokens() > 0).collect();
    let mut bench = Bench::new(&model, &tests)?;
    let path = open::resolve(&args.model.model)?.to_string_lossy().into_owned();
    let mut rows = Vec::new();
    for test in tests {
        let bar = run_bar(test, args.repetitions)?;
        let measurement = bench.measure(test, args.repetitions, &mut || bar.inc(1))?;
        bar.finish_and_clear();
        rows.push(Row::new(path.clone(), model.info(), args.model.threads(), test, measurement));
    }
    if let Some(stats) = model.expert_stats() {
        let n_runs = u64::from(args.repetitions) + 1;
        memory::print_stats(&stats, n_runs * u64::from(args.n_prompt + args.n_gen));
    }
    open::warn_of_copies(&model, &args.model);
    model.finish_trace()?;
    let mut out = io::stdout().lock();
    if args.json {
        print::json(&mut out, &rows)?;
    } else {
        print_table(&mut out, &rows)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A bar on stderr.
fn run_bar(test: Test, repetitions: u32) -> Result<ProgressBar> {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} runs, ETA {eta}")?;
    let bar = ProgressBar::new(u64::from(repetitions) + 1).with_style(style);
    bar.set_message(test.to_string());
    bar.tick();
    Ok(bar)
}

impl Row {
    fn new(
        path: String,
        info: &ModelInfo,
        n_threads: usize,
        test: Test,
        measurement: Measurement,
    ) -> Self {
        let (n_prompt, n_gen) = match test {
            Test::Prefill(n) => (n, 0),
            Test::Decode(n) => (0, n),
        };
        Self {
            backends: "Wasmtime",
            model_filename: path,
            model_type: format!(
                "{} {} {}",
                info.architecture,
                params(info.n_params, 0).replace(' ', ""),
                info.quantization
            ),
            model_size: info.weight_bytes,
            model_n_params: info.n_params,
            n_threads,
            n_prompt,
            n_gen,
            test,
            measurement,
        }
    }
}

fn print_table(out: &mut impl Write, rows: &[Row]) -> Result<()> {
    writeln!(
        out,
        "| {:<30} | {:>10} | {:>10} | {:<10} | {:>7} | {:>15} | {:>20} |",
        "model", "size", "params", "backend", "threads", "test", "t/s"
    )?;
    writeln!(
        out,
        "| {:-<30} | {:->9}: | {:->9}: | {:-<10} | {:->6}: | {:->14}: | {:->19}: |",
        "", "", "", "", "", "", ""
    )?;
    for row in rows {
        writeln!(
            out,
            "| {:<30} | {:>10} | {:>10} | {:<10} | {:>7} | {:>15} | {:>20} |",
            row.model_type,
            HumanBytes(row.model_size).to_string(),
            params(row.model_n_params, 2),
            row.backends,
            row.n_threads,
            row.test.to_string(),
            format!("{:.2} ± {:.2}", row.measurement.avg_ts, row.measurement.stddev_ts)
        )?;
    }
    Ok(())
}

fn params(n: u64, digits: usize) -> String {
    match n as f64 {
        n if n >= 1e9 => format!("{:.digits$} B", n / 1e9),
        n => format!("{:.digits$} M", n / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_people_know_them() {
        assert_eq!(params(134_515_008, 2), "134.52 M");
        assert_eq!(params(30_532_122_624, 2), "30.53 B");
    }
}
