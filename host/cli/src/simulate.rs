//! `moewe simulate`: what a trace would have hit.

use std::fs::File;
use std::io::{self, BufReader, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use bytesize::ByteSize;
use moewe_residency::simulate::{self, Capacity, Chooser};
use moewe_residency::timing::{self, Costs, Prefetch};
use moewe_residency::trace::{Header, Reader, Record};
use serde_json::json;

use crate::memory::Budget;

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

/// What is simulated at a time.
struct Case {
    label: String,
    capacity: Capacity,
    n_slots: usize,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let shown = args.trace.display();
    let read = || -> Result<(Header, Vec<Record>)> {
        let reader = Reader::new(BufReader::new(File::open(&args.trace)?))?;
        let header = reader.header().clone();
        Ok((header, reader.collect::<Result<_, _>>()?))
    };
    let (header, records) = read().with_context(|| format!("{shown}: cannot be replayed"))?;
    let cases = cases(args, &header, &records)?;
    let mut out = io::stdout().lock();
    let mut reports = Vec::new();
    for case in &cases {
        let mut counts = simulate::compare(&header, &records, case.capacity);
        counts.sort_by_key(|(chooser, _)| *chooser == Chooser::Belady);
        let times = args.read_ms.zip(args.compute_ms).map(|(read, compute)| {
            let costs = Costs { read: read / 1e3, compute: compute / 1e3 };
            [("off", Prefetch::Off), ("on", Prefetch::On), ("auto", Prefetch::Switched)].map(
                |(name, prefetch)| {
                    let options = header.options.clone();
                    (
                        name,
                        timing::replay(&header, &records, options, case.n_slots, costs, prefetch),
                    )
                },
            )
        });
        if args.json {
            let policies = counts.iter().map(|(chooser, counts)| {
                json!({ "policy": chooser.to_string(), "hits": counts.hits,
                    "misses": counts.misses, "hit_rate": counts.hit_rate() })
            });
            let prefetch = times.iter().flatten().map(|(name, t)| {
                json!({ "prefetch": name, "seconds": t.total, "stall_seconds": t.stall,
                    "passes": t.n_pass, "useful": t.useful(), "late": t.late(),
                    "wasted": t.wasted(),
                    "on_at_end": t.switch.map(|switch| switch.is_preferred) })
            });
            reports.push(json!({ "memory": case.label, "n_slots": case.n_slots,
                "policies": policies.collect::<Vec<_>>(),
                "prefetch": prefetch.collect::<Vec<_>>() }));
            continue;
        }
        writeln!(out, "{}: {} slots", case.label, case.n_slots)?;
        writeln!(out, "| policy    |     hits |   misses | hit rate |")?;
        writeln!(out, "|-----------|---------:|---------:|---------:|")?;
        for (chooser, counts) in &counts {
            let recorded = Chooser::Policy(header.options.policy) == *chooser;
            writeln!(
                out,
                "| {:<9} | {:>8} | {:>8} | {:>6.1} % |{}",
                chooser.to_string(),
                counts.hits,
                counts.misses,
                counts.hit_rate() * 100.0,
                if recorded { " the trace's own" } else { "" }
            )?;
        }
        if let Some(times) = &times {
            writeln!(out, "| prefetch | tokens/s | stalled | useful | late | wasted |")?;
            writeln!(out, "|----------|---------:|--------:|-------:|-----:|-------:|")?;
            for (name, t) in times {
                writeln!(
                    out,
                    "| {name:<8} | {:>8.2} | {:>5.1} % | {:>6} | {:>4} | {:>6} |{}",
                    t.n_pass as f64 / t.total,
                    t.stall / t.total * 100.0,
                    t.useful(),
                    t.late(),
                    t.wasted(),
                    match t.switch {
                        Some(switch) if switch.is_preferred => " on at the end",
                        Some(_) => " off at the end",
                        None => "",
                    }
                )?;
            }
        }
    }
    if args.json {
        serde_json::to_writer_pretty(&mut out, &reports)?;
        writeln!(out)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn cases(args: &Args, header: &Header, records: &[Record]) -> Result<Vec<Case>> {
    if args.memory.is_empty() {
        let mut slots = records.iter().filter_map(|record| match record {
            Record::Capacity { n_slots } => Some(*n_slots),
            _ => None,
        });
        // The last is that of the run; before it, the model was loaded.
        let n_slots = slots.next_back().unwrap_or(0);
        let label = format!("{}, as recorded", header.model);
        return Ok(vec![Case { label, capacity: Capacity::Recorded, n_slots }]);
    }
    let case = |budget: &Budget| {
        let bytes = budget.bytes()?;
        let floor = header.other_bytes + header.slot_bytes * header.n_expert_used as u64;
        ensure!(
            bytes >= floor,
            "{bytes} bytes do not suffice for {}: {floor} are the least",
            header.model
        );
        let n_slots = (bytes - header.other_bytes) / header.slot_bytes.max(1);
        let n_slots = n_slots.min((header.n_layer * header.n_expert) as u64) as usize;
        let label = ByteSize(bytes).to_string();
        Ok(Case { label, capacity: Capacity::Slots(n_slots), n_slots })
    };
    args.memory.iter().map(case).collect()
}
