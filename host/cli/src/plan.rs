//! `moewe plan`: what to expect of a model within a budget of memory.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use bytesize::ByteSize;
use moewe_workshop::plan::{Conditions, plan};

use crate::memory::Budget;
use crate::open::{self, ModelArgs};
use crate::print;

/// Tell what will fit, and how fast it will be, before a model is loaded
///
/// Only the header is read. The disk's speed is measured with reads of single
/// experts from the model's file; the speed of computing with a small random
/// model of the same shape, both at the same time. Experts are taken to be used
/// equally often, which is the worst case for those that are kept in memory; until
/// memory is full of them, more is read. With prefetching, disk and
/// processor work at the same time. A context that fits does so with a prompt of
/// any length.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens of context to have room for
    #[arg(short = 'c', long, value_name = "N", default_value_t = 512)]
    ctx_size: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let memory_bytes = args.model.memory.memory.unwrap_or(Budget::Percent(100.0)).bytes()?;
    let path = moewe_packed::file_to_open(&open::resolve(&args.model.model)?);
    let (n_ctx, n_threads) = (args.ctx_size, args.model.threads());
    let conditions = Conditions {
        memory_bytes,
        n_ctx,
        n_threads,
        guest: args.model.guest,
        kv_format: args.model.context.kv,
        rope_scaling: args.model.context.rope_scaling()?,
        prefetch: args.model.memory.prefetch,
    };
    let plan = plan(&open::engine()?, &path, conditions)?;

    let mut out = io::stdout().lock();
    if args.json {
        print::json(&mut out, &serde_json::to_value(plan)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let size = |bytes: u64| ByteSize(bytes).to_string();
    writeln!(out, "memory                     {:>12}", size(plan.memory_bytes))?;
    writeln!(out, "  the least that works     {:>12}", size(plan.floor_bytes))?;
    writeln!(out, "  weights for every token  {:>12}", size(plan.dense_bytes))?;
    writeln!(out, "  KV cache, {n_ctx:<6} tokens  {:>12}", size(plan.kv_bytes))?;
    writeln!(
        out,
        "  experts                  {:>12} ({} of {}, {} each)",
        size(plan.n_slots * plan.expert_bytes),
        plan.n_slots,
        plan.n_experts,
        size(plan.expert_bytes)
    )?;
    writeln!(out, "experts found in memory    {:>10.0} %", plan.hit_rate * 100.0)?;
    if let Some(disk_speed) = plan.disk_bytes_per_second {
        let read = size(plan.disk_bytes_per_token);
        let rate = size(disk_speed as u64);
        writeln!(out, "read for each token        {read:>12} at {rate} a second")?;
    }
    let rate = size(plan.compute_bytes_per_second as u64);
    writeln!(out, "weights computed with      {rate:>12} a second, {n_threads} threads")?;
    let speed = plan.tokens_per_second;
    writeln!(out, "expected speed of decode   {speed:>12.1} tokens a second")?;
    Ok(ExitCode::SUCCESS)
}
