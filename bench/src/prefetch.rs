//! What prefetching brings to a model larger than memory, and whether `moewe
//! plan` knew the speed.

use std::process::Command;

use anyhow::Result;
use indicatif::ProgressBar;
use serde::Deserialize;

use crate::arguments::Arguments;
use crate::contender::{Contender, Lane};
use crate::memory::{Budget, N_GEN};
use crate::process;
use crate::programs::Programs;
use crate::report::{self, NOTHING};
use crate::results::{Results, Summary, Test};

/// In the order of measuring.
const WAYS: [&str; 3] = ["off", "auto", "on"];
/// What a prediction of hits is compared with: experts on their way count as
/// found.
const OFF: usize = 0;
/// The default.
const AUTO: usize = 1;

/// What `moewe plan` says.
#[derive(Deserialize)]
struct Plan {
    hit_rate: f64,
    tokens_per_second: f64,
}

/// What `moewe bench` says within a budget.
#[derive(Deserialize)]
struct Row {
    avg_ns: f64,
    avg_ts: f64,
    experts: Experts,
}

#[derive(Deserialize)]
struct Experts {
    hit_rate: f64,
    bytes_read: f64,
    stall_ns: f64,
    prefetch_useful: f64,
    prefetch_late: f64,
    prefetch_wasted: f64,
}

/// A round of one budget.
struct Planned {
    /// For `off` and `auto`, as in [`WAYS`].
    plans: [Plan; 2],
    /// As in [`WAYS`].
    rows: Vec<Row>,
}

/// moewe alone, within budgets that it keeps itself: a prediction, then the
/// ways of prefetching, in turn; tables.
pub fn measure(
    programs: &Programs,
    budgets: &[Budget],
    arguments: &Arguments,
    bar: &ProgressBar,
) -> String {
    let threads = arguments.threads.iter().max().copied().unwrap_or(1);
    let lane = Lane { contender: Contender::MoewePacked, threads };
    let mut results = Results::default();
    for round in 0..arguments.rounds {
        for budget in budgets {
            bar.set_message(format!("round {}: {}, {lane}", round + 1, budget.name));
            if !results.is_missing(&budget.name, lane, Test::Prefetch) {
                let measured = planned(programs, lane, budget, arguments);
                results.add(&budget.name, lane, Test::Prefetch, measured);
            }
            bar.inc(1);
        }
    }
    let mut predictions = vec![report::header(
        [
            "in memory, predicted",
            "in memory",
            "off, tok/s predicted",
            "/ measured",
            "auto, tok/s predicted",
            "/ measured",
        ]
        .map(str::to_owned)
        .into_iter(),
    )];
    let mut ways = vec![report::header(
        ["tok/s", "/ off", "waiting", "read, MB", "useful", "late", "wasted"]
            .map(str::to_owned)
            .into_iter(),
    )];
    for budget in budgets {
        let samples = results.samples(&budget.name, lane, Test::Prefetch);
        let of = |f: &dyn Fn(&Planned) -> f64| -> Vec<f64> { samples.iter().map(f).collect() };
        let median = |f: &dyn Fn(&Planned) -> f64, scale: f64, unit: &str| {
            let summary = Summary::of(of(f));
            summary.map_or(NOTHING.to_owned(), |s| report::number(s.median * scale) + unit)
        };
        let predicted = |i: usize| move |planned: &Planned| planned.plans[i].tokens_per_second;
        let speed = |i: usize| move |planned: &Planned| planned.rows[i].avg_ts;
        predictions.push(vec![
            budget.name.clone(),
            median(&|planned| planned.plans[OFF].hit_rate, 100.0, " %"),
            median(&|planned| planned.rows[OFF].experts.hit_rate, 100.0, " %"),
            median(&predicted(OFF), 1.0, ""),
            report::ratio(&of(&predicted(OFF)), &of(&speed(OFF))),
            median(&predicted(AUTO), 1.0, ""),
            report::ratio(&of(&predicted(AUTO)), &of(&speed(AUTO))),
        ]);
        for (i, way) in WAYS.into_iter().enumerate() {
            let token = 1.0 / f64::from(N_GEN);
            let experts = |f: fn(&Experts) -> f64| move |p: &Planned| f(&p.rows[i].experts);
            ways.push(vec![
                format!("{}, {way}", budget.name),
                median(&speed(i), 1.0, ""),
                report::ratio(&of(&speed(i)), &of(&speed(OFF))),
                median(&|p| p.rows[i].experts.stall_ns / p.rows[i].avg_ns, 100.0, " %"),
                median(&experts(|experts| experts.bytes_read), 1e-6 * token, ""),
                median(&experts(|experts| experts.prefetch_useful), token, ""),
                median(&experts(|experts| experts.prefetch_late), token, ""),
                median(&experts(|experts| experts.prefetch_wasted), token, ""),
            ]);
        }
    }
    format!(
        "\n### What `moewe plan` predicts, packed, {threads} threads\n\n{}\n\n### Prefetching, \
         packed, {threads} threads; bytes and experts for each token\n\n{}\n{}",
        report::table(&predictions),
        report::table(&ways),
        report::missing(&results)
    )
}

/// One sample: everything close together, because a disk's speed drifts.
fn planned(
    programs: &Programs,
    lane: Lane,
    budget: &Budget,
    arguments: &Arguments,
) -> Result<Planned> {
    let path = programs.file(lane.contender, budget.model, arguments)?;
    let (bytes, threads) = (budget.bytes.to_string(), lane.threads.to_string());
    let moewe = |subcommand: &str| {
        let mut command = Command::new(&arguments.moewe);
        command.args([subcommand, "--json", "--memory", &bytes, "-t", &threads]).arg(&path);
        command
    };
    let plan = |way: usize| -> Result<Plan> {
        // The first token, and those that follow.
        let n_ctx = (N_GEN + 1).to_string();
        let mut plan = moewe("plan");
        plan.args(["--ctx-size", &n_ctx, "--prefetch", WAYS[way]]);
        process::json(&mut plan)
    };
    let plans = [plan(OFF)?, plan(AUTO)?];
    let mut rows = Vec::new();
    for way in WAYS {
        let mut bench = moewe("bench");
        bench.args(["--prefetch", way, "-r", "1", "-p", "0", "-n", &N_GEN.to_string()]);
        let row: [Row; 1] = process::json(&mut bench)?;
        rows.extend(row);
    }
    Ok(Planned { plans, rows })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_experts_did_is_read() {
        let text = r#"[{"n_gen": 32, "avg_ns": 8000000000, "avg_ts": 4.0, "experts": {
            "n_slots": 300, "hit_rate": 0.25, "bytes_read": 16000, "stall_ns": 4000000000,
            "prefetch_useful": 1, "prefetch_late": 2, "prefetch_wasted": 3, "prefetch_on": true}}]"#;
        let [row]: [Row; 1] = serde_json::from_str(text).unwrap();
        assert_eq!(row.experts.stall_ns / row.avg_ns, 0.5);
    }
}
