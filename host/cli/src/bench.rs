//! `moewe bench`: how fast a model reads and writes.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use moewe::{ExpertStats, Model, ModelInfo, Sampling, Session, SessionOptions};

use crate::memory;
use crate::open::{self, ModelArgs};

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

/// The results of one test.
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
    avg_ns: u64,
    stddev_ns: u64,
    avg_ts: f64,
    stddev_ts: f64,
    samples_ns: Vec<u64>,
    samples_ts: Vec<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    experts: Option<Experts>,
}

/// How the experts of a model within a budget of memory did while the clock ran.
#[derive(serde::Serialize)]
struct Experts {
    n_slots: usize,
    resident_bytes: u64,
    hits: u64,
    misses: u64,
    hit_rate: f64,
    bytes_read: u64,
    stall_ns: u64,
    prefetch_useful: u64,
    prefetch_late: u64,
    prefetch_wasted: u64,
    /// At the end.
    prefetch_on: bool,
}

impl Experts {
    fn new(before: &ExpertStats, after: &ExpertStats) -> Self {
        let since = |count: fn(&ExpertStats) -> u64| count(after) - count(before);
        let (hits, misses) = (since(|stats| stats.hits), since(|stats| stats.misses));
        Self {
            n_slots: after.n_slots,
            resident_bytes: after.resident_bytes,
            hits,
            misses,
            hit_rate: if hits + misses == 0 { 1.0 } else { hits as f64 / (hits + misses) as f64 },
            bytes_read: since(|stats| stats.bytes_read),
            stall_ns: since(|stats| stats.stall.as_nanos() as u64),
            prefetch_useful: since(|stats| stats.prefetch_useful),
            prefetch_late: since(|stats| stats.prefetch_late),
            prefetch_wasted: since(|stats| stats.prefetch_wasted),
            prefetch_on: after.prefetch_on,
        }
    }
}

pub fn run(args: &Args) -> Result<ExitCode> {
    if args.n_prompt == 0 && args.n_gen == 0 {
        bail!("-p 0 and -n 0 leave nothing to measure");
    }
    let model = open::open(&args.model)?;
    let mut options = SessionOptions::default();
    options.n_ctx = Some(args.n_prompt.max(args.n_gen.saturating_add(1)));
    options.sampling = Sampling::greedy();
    let mut bench = Bench::new(&model, model.session(options)?)?;

    let path = open::resolve(&args.model.model)?.to_string_lossy().into_owned();
    let mut rows = Vec::new();
    for (n_prompt, n_gen) in [(args.n_prompt, 0), (0, args.n_gen)] {
        if n_prompt + n_gen == 0 {
            continue;
        }
        let (times, experts) = bench.measure(n_prompt, n_gen, args.repetitions)?;
        let test = Test { n_threads: args.model.threads(), n_prompt, n_gen };
        rows.push(Row { experts, ..Row::new(path.clone(), model.info(), test, &times) });
    }
    if let Some(stats) = model.expert_stats() {
        let n_runs = u64::from(args.repetitions) + 1;
        memory::print_stats(&stats, n_runs * u64::from(args.n_prompt + args.n_gen));
    }
    model.finish_trace()?;
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &rows)?;
        writeln!(out)?;
    } else {
        print(&mut out, &rows)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What was measured.
struct Test {
    n_threads: usize,
    n_prompt: u32,
    n_gen: u32,
}

struct Bench<'a> {
    model: &'a Model,
    session: Session,
    /// What a text begins with.
    bos: Vec<u32>,
    /// Equal in every run: the same tokens for all who compare.
    random: fastrand::Rng,
}

impl<'a> Bench<'a> {
    fn new(model: &'a Model, mut session: Session) -> Result<Self> {
        let bos = session.tokenize("", true, false)?;
        Ok(Self { model, session, bos, random: fastrand::Rng::with_seed(0) })
    }

    fn random_token(&mut self) -> u32 {
        // The number is the guest's: an empty vocabulary refuses the token.
        self.random.u32(0..self.session.info().n_vocab.max(1))
    }

    /// Runs a test once to warm up, and then `n` times.
    fn measure(
        &mut self,
        n_prompt: u32,
        n_gen: u32,
        n: u32,
    ) -> Result<(Vec<Duration>, Option<Experts>)> {
        let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} runs, ETA {eta}")?;
        let bar = ProgressBar::new(u64::from(n) + 1).with_style(style);
        bar.set_message(test_name(n_prompt, n_gen));
        bar.tick();
        self.measure_once(n_prompt, n_gen)?;
        bar.inc(1);
        let before = self.model.expert_stats();
        let mut times = Vec::new();
        for _ in 0..n {
            times.push(self.measure_once(n_prompt, n_gen)?);
            bar.inc(1);
        }
        bar.finish_and_clear();
        let after = self.model.expert_stats();
        let experts = before.zip(after).map(|(before, after)| Experts::new(&before, &after));
        Ok((times, experts))
    }

    fn measure_once(&mut self, n_prompt: u32, n_gen: u32) -> Result<Duration> {
        self.session.rewind(0)?;
        let mut prompt = self.bos.clone();
        while prompt.len() < n_prompt.max(1) as usize {
            prompt.push(self.random_token());
        }
        prompt.truncate(n_prompt.max(1) as usize);
        if n_gen == 0 {
            let start = Instant::now();
            self.session.feed(&prompt)?;
            return Ok(start.elapsed());
        }
        self.session.feed(&prompt)?;
        let start = Instant::now();
        // As llama-bench does it: whatever comes, one token after another. What
        // the model would choose repeats itself, and could be guessed.
        for _ in 0..n_gen {
            let token = self.random_token();
            self.session.feed(&[token])?;
        }
        Ok(start.elapsed())
    }
}

impl Row {
    fn new(path: String, info: &ModelInfo, test: Test, times: &[Duration]) -> Self {
        let Test { n_threads, n_prompt, n_gen } = test;
        let n_tokens = f64::from(n_prompt + n_gen);
        let ns: Vec<f64> = times.iter().map(|t| (t.as_nanos() as f64).max(1.0)).collect();
        let ts: Vec<f64> = ns.iter().map(|ns| 1e9 * n_tokens / ns).collect();
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
            avg_ns: mean(&ns) as u64,
            stddev_ns: stddev(&ns) as u64,
            avg_ts: mean(&ts),
            stddev_ts: stddev(&ts),
            samples_ns: ns.iter().map(|&ns| ns as u64).collect(),
            samples_ts: ts,
            experts: None,
        }
    }
}

fn print(out: &mut impl Write, rows: &[Row]) -> Result<()> {
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
            test_name(row.n_prompt, row.n_gen),
            format!("{:.2} ± {:.2}", row.avg_ts, row.stddev_ts)
        )?;
    }
    Ok(())
}

fn test_name(n_prompt: u32, n_gen: u32) -> String {
    if n_gen == 0 { format!("pp{n_prompt}") } else { format!("tg{n_gen}") }
}

fn params(n: u64, digits: usize) -> String {
    match n as f64 {
        n if n >= 1e9 => format!("{:.digits$} B", n / 1e9),
        n => format!("{:.digits$} M", n / 1e6),
    }
}

fn mean(samples: &[f64]) -> f64 {
    samples.iter().sum::<f64>() / samples.len() as f64
}

/// The standard deviation of a sample; 0 for a single one.
fn stddev(samples: &[f64]) -> f64 {
    if samples.len() < 2 {
        return 0.0;
    }
    let mean = mean(samples);
    let squares: f64 = samples.iter().map(|x| (x - mean) * (x - mean)).sum();
    (squares / (samples.len() - 1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_deviation() {
        assert_eq!(mean(&[1.0, 2.0, 6.0]), 3.0);
        assert_eq!(stddev(&[1.0, 2.0, 6.0]), 7f64.sqrt());
        assert_eq!(stddev(&[5.0]), 0.0);
    }

    #[test]
    fn numbers_are_written_as_people_know_them() {
        assert_eq!(params(134_515_008, 2), "134.52 M");
        assert_eq!(params(30_532_122_624, 2), "30.53 B");
        assert_eq!(test_name(512, 0), "pp512");
        assert_eq!(test_name(0, 128), "tg128");
    }
}
