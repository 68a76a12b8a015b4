//! Models larger than memory: what is a share of the model's size, who decodes
//! within it, and how fast.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;

use crate::arguments::Arguments;
use crate::contender::{Contender, Lane};
use crate::group::Group;
use crate::models::Model;
use crate::process;
use crate::programs::{self, Programs};
use crate::report::{self, NOTHING};
use crate::results::{Results, Test};

/// Tokens to generate. llama.cpp takes seconds for each.
pub const N_GEN: u32 = 32;
const N_GEN_LLAMA_CPP: u32 = 4;
/// No measurement takes longer.
const TIME_MAX: Duration = Duration::from_secs(600);
/// Who can run a model that is larger than memory at all.
const CONTENDERS: [Contender; 3] = [Contender::Moewe, Contender::MoewePacked, Contender::LlamaCpp];

/// A model and the share of its size that is there for it.
pub struct Budget<'a> {
    pub model: &'a Model,
    /// Both, for the tables.
    pub name: String,
    pub bytes: u64,
}

impl<'a> Budget<'a> {
    /// All models with all shares. A model that cannot be had takes none.
    pub fn all(models: &'a [Model], shares: &[u32]) -> Vec<Self> {
        let budget = |model: &'a Model, share: u32| {
            let size = model.path().ok().and_then(|path| path.metadata().ok());
            Self {
                model,
                name: format!("{}, 1/{share}", model.name),
                bytes: size.map_or(0, |size| size.len()) / u64::from(share),
            }
        };
        models.iter().flat_map(|model| shares.iter().map(move |&n| budget(model, n))).collect()
    }
}

/// Those of the contenders that can be measured.
pub fn lanes(contenders: &[Contender], threads: u32) -> Vec<Lane> {
    let able = CONTENDERS.into_iter().filter(|contender| contenders.contains(contender));
    able.map(|contender| Lane { contender, threads }).collect()
}

/// What a contender did within a group.
struct Within {
    /// Tokens per second.
    speed: f64,
    peak: u64,
}

/// Everybody in control groups of the same kind, in turn; tables.
pub fn measure(
    programs: &Programs,
    budgets: &[Budget],
    contenders: &[Contender],
    arguments: &Arguments,
    bar: &ProgressBar,
) -> String {
    let threads = arguments.threads.iter().max().copied().unwrap_or(1);
    let lanes = lanes(contenders, threads);
    let mut results = Results::default();
    for round in 0..arguments.rounds {
        for (budget, &lane) in budgets.iter().flat_map(|b| lanes.iter().map(move |lane| (b, lane)))
        {
            bar.set_message(format!("round {}: {}, {lane}", round + 1, budget.name));
            if !results.is_missing(&budget.name, lane, Test::Memory) {
                let measured = within(programs, lane, budget, arguments);
                results.add(&budget.name, lane, Test::Memory, measured);
            }
            bar.inc(1);
        }
    }

    let rows: Vec<Model> = budgets
        .iter()
        .map(|budget| Model { name: budget.name.clone(), path: budget.model.path.clone() })
        .collect();
    let speeds = results.map(|within| within.speed);
    let mut text = format!(
        "\n### Decode within a share of the file's size, tokens per second\n\n{}\n",
        report::absolute(&speeds, &rows, &lanes, Test::Memory)
    );
    if let Some(ratios) = report::ratios(&speeds, &rows, &lanes, Test::Memory) {
        text.push_str(&format!("\n{}\n\n{ratios}\n", report::RATIOS));
    }
    text.push_str(&format!(
        "\nThe most memory that the group had, in MB as the kernel counts, all rounds:\n\n{}\n",
        peaks(&results, budgets, &lanes)
    ));
    text + &report::missing(&results)
}

/// One sample: a contender in a new group that may have the budget.
fn within(
    programs: &Programs,
    lane: Lane,
    budget: &Budget,
    arguments: &Arguments,
) -> Result<Within> {
    let path = programs.file(lane.contender, budget.model, arguments)?;
    let threads = lane.threads.to_string();
    let (mut command, n_gen) = match lane.contender {
        Contender::LlamaCpp => {
            let mut command = programs.llama_cpp()?.command("llama-bench");
            // Weights in another layout would be a copy without a file behind
            // it. Loading fills the memory, so nothing has to warm up.
            command.args(["-lm", "mmap", "--repack", "0", "--no-warmup", "-o", "json", "-m"]);
            (command, N_GEN_LLAMA_CPP)
        }
        Contender::Moewe | Contender::MoewePacked => {
            let mut command = Command::new(&arguments.moewe);
            command.args(["bench", "--json", "--memory", &budget.bytes.to_string()]);
            (command, N_GEN)
        }
        Contender::Native | Contender::NativeAvx2 | Contender::Wllama => {
            bail!("needs the whole model in memory")
        }
    };
    command.arg(&path).args(["-r", "1", "-t", &threads, "-p", "0", "-n", &n_gen.to_string()]);
    // Pages that somebody else has read would be used without being counted.
    let file = format!("if={}", path.display());
    process::output(Command::new("dd").arg(file).args(["iflag=nocache", "count=0"]))?;
    let group = Group::new(budget.bytes)?;
    let rows: Vec<programs::Row> = process::json(&mut group.command(&command, TIME_MAX))
        .with_context(|| format!("{} bytes, {TIME_MAX:?} at most", budget.bytes))?;
    Ok(Within { speed: programs::speed(&rows, 0, n_gen)?, peak: group.peak()? })
}

/// A row for each budget, a column for each lane.
fn peaks(results: &Results<Within>, budgets: &[Budget], lanes: &[Lane]) -> String {
    let megabytes = |bytes: u64| format!("{:.1}", bytes as f64 / 1e6);
    let columns = ["limit".to_owned()].into_iter().chain(lanes.iter().map(Lane::to_string));
    let mut rows = vec![report::header(columns)];
    for budget in budgets {
        let peaks = lanes.iter().map(|&lane| {
            let samples = results.samples(&budget.name, lane, Test::Memory);
            let peak = samples.iter().map(|within| within.peak).max();
            peak.map_or(NOTHING.to_owned(), megabytes)
        });
        let cells = [budget.name.clone(), megabytes(budget.bytes)].into_iter().chain(peaks);
        rows.push(cells.collect());
    }
    report::table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_shares_of_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(800).unwrap();
        let models = [
            Model { name: "a".to_owned(), path: Ok(file.path().to_owned()) },
            Model { name: "b".to_owned(), path: Err("none".to_owned()) },
        ];
        let budgets = Budget::all(&models, &[4, 2]);
        let budgets: Vec<_> = budgets.iter().map(|b| (&*b.name, b.bytes)).collect();
        assert_eq!(budgets, [("a, 1/4", 200), ("a, 1/2", 400), ("b, 1/4", 0), ("b, 1/2", 0)]);
    }

    #[test]
    fn the_greatest_peak_counts() {
        let models = [Model { name: "a".to_owned(), path: Err("none".to_owned()) }];
        let mut budgets = Budget::all(&models, &[4]);
        budgets[0].bytes = 2_000_000;
        let lane = Lane { contender: Contender::Moewe, threads: 2 };
        let mut results = Results::default();
        for peak in [1_000_000, 1_900_000, 1_500_000] {
            results.add("a, 1/4", lane, Test::Memory, Ok(Within { speed: 1.0, peak }));
        }
        assert_eq!(
            peaks(&results, &budgets, &[lane]),
            "| model  | limit | moewe ×2 |\n\
             | ------ | ----: | -------: |\n\
             | a, 1/4 |   2.0 |      1.9 |"
        );
    }
}
