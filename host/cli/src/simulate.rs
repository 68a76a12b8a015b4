//! `moewe simulate`: what a trace would have hit.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use moewe_workshop::Trace;
use moewe_workshop::comparison::Comparison;
use moewe_workshop::timing::Costs;

use crate::memory::Budget;
use crate::print;

/// Replay a trace through every policy, and compare with the optimum
///
/// The trace is one that `--trace` wrote. Belady's optimum evicts what is wanted
/// last: no policy can do better without reading ahead. With `--read-ms` and
/// `--compute-ms` the times with and without prefetching are compared as well.
#[derive(clap::Args)]
pub struct Args {
    /// The trace
    trace: PathBuf,
    /// Budgets of memory to try [default: that of the trace, with the same counts
    /// as then if nothing was prefetched]
    #[arg(long, value_name = "BYTES", num_args = 1.., value_delimiter = ',')]
    memory: Vec<Budget>,
    /// Milliseconds that reading an expert takes
    #[arg(long, value_name = "MS", requires = "compute_ms")]
    read_ms: Option<f64>,
    /// Milliseconds that computing a layer takes
    #[arg(long, value_name = "MS", requires = "read_ms")]
    compute_ms: Option<f64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let failed = || format!("{}: cannot be replayed", args.trace.display());
    let trace = Trace::read(&args.trace).with_context(failed)?;
    let costs = args.read_ms.zip(args.compute_ms);
    let costs = costs.map(|(read, compute)| Costs { read: read / 1e3, compute: compute / 1e3 });
    let mut budgets = vec![None];
    if !args.memory.is_empty() {
        budgets = args.memory.iter().map(|b| b.bytes().map(Some)).collect::<Result<_>>()?;
    }
    let compare = |budget| Comparison::new(&trace, budget, costs);
    let comparisons = budgets.into_iter().map(compare).collect::<Result<Vec<_>, _>>()?;

    let mut out = io::stdout().lock();
    if args.json {
        print::json(&mut out, &serde_json::to_value(comparisons)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let recorded = trace.header.options.policy.to_string();
    comparisons.iter().try_for_each(|found| print(&mut out, found, &recorded))?;
    Ok(ExitCode::SUCCESS)
}

/// `recorded` is the policy of the run.
fn print(out: &mut impl Write, found: &Comparison, recorded: &str) -> Result<()> {
    writeln!(out, "{}: {} slots", found.memory, found.n_slots)?;
    writeln!(out, "| policy    |     hits |   misses | hit rate |")?;
    writeln!(out, "|-----------|---------:|---------:|---------:|")?;
    for counts in &found.policies {
        writeln!(
            out,
            "| {:<9} | {:>8} | {:>8} | {:>6.1} % |{}",
            counts.policy,
            counts.hits,
            counts.misses,
            counts.hit_rate * 100.0,
            if counts.policy == recorded { " the trace's own" } else { "" }
        )?;
    }
    if !found.prefetch.is_empty() {
        writeln!(out, "| prefetch | tokens/s | stalled | useful | late | wasted |")?;
        writeln!(out, "|----------|---------:|--------:|-------:|-----:|-------:|")?;
    }
    for times in &found.prefetch {
        writeln!(
            out,
            "| {:<8} | {:>8.2} | {:>5.1} % | {:>6} | {:>4} | {:>6} |{}",
            times.prefetch,
            times.passes as f64 / times.seconds,
            times.stall_seconds / times.seconds * 100.0,
            times.useful,
            times.late,
            times.wasted,
            match times.on_at_end {
                Some(true) => " on at the end",
                Some(false) => " off at the end",
                None => "",
            }
        )?;
    }
    Ok(())
}
