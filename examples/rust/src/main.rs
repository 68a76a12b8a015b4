//! Two tenants, each in a sandbox of its own, over one copy of a model's
//! weights: what they say, and what memory this process has then.
//!
//! `cargo run -p moewe-example-tenants -- MODEL`

use anyhow::{Context, Result};
use moewe::{Engine, Model, ModelOptions, Sampling, Session, SessionOptions};

const PROMPTS: [&str; 2] = ["The capital of France is", "Once upon a time"];
const N_PREDICT: u64 = 16;

fn main() -> Result<()> {
    let path = std::env::args().nth(1).context("usage: tenants MODEL")?;
    let engine = Engine::new()?;
    let model = Model::open(&engine, path, ModelOptions::default())?;

    let mut tenants: Vec<Session> = Vec::new();
    for prompt in PROMPTS {
        let mut options = SessionOptions::default();
        options.sampling = Sampling::greedy();
        let mut tenant = model.session(options)?;
        let tokens = tenant.tokenize(prompt, true, false)?;
        print!("{prompt}");
        for step in tenant.generate(&tokens, Some(N_PREDICT)) {
            print!("{}", step?.text.replace('\n', " "));
        }
        println!();
        tenants.push(tenant);
        println!("memory: {} kB", pss_kb()?);
    }
    Ok(())
}

/// The proportional set size of this process: its memory, where pages that
/// several processes map are shared out among them.
fn pss_kb() -> Result<u64> {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup")?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(number.context("no Pss in /proc/self/smaps_rollup")?.trim().parse()?)
}
