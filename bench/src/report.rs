//! The tables.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::Command;

use crate::arguments::Arguments;
use crate::contender::{Contender, Lane};
use crate::models::Model;
use crate::process;
use crate::programs::Programs;
use crate::results::{Results, Summary, Test};
use crate::start::N_PROMPT;

/// What stands where there is nothing.
pub const NOTHING: &str = "–";
/// What stands above a table of ratios.
pub const RATIOS: &str = "moewe / other, as many threads each, median (min–max) of the rounds; \
                          more is better:";

/// All tables, as Markdown.
pub fn report(
    results: &Results,
    models: &[Model],
    lanes: &[Lane],
    arguments: &Arguments,
    programs: &Programs,
) -> String {
    let mut text = format!("{}\n", machine(arguments, programs));
    for &test in &arguments.tests {
        let title = match test {
            Test::Prefill => format!("Prefill {}, tokens per second", arguments.n_prompt),
            Test::Decode => format!("Decode {}, tokens per second", arguments.n_gen),
            Test::Start => {
                format!("Process start to first token, prompt of {N_PROMPT} tokens, milliseconds")
            }
            // These have tables of their own.
            Test::Memory | Test::Prefetch => continue,
        };
        let lanes: Vec<Lane> = lanes
            .iter()
            .copied()
            .filter(|&lane| test != Test::Start || lane.contender.can_start())
            .collect();
        let _ = writeln!(text, "\n### {title}\n\n{}", absolute(results, models, &lanes, test));
        let caption = match test {
            Test::Start => RATIOS.replace("more", "less"),
            _ => RATIOS.to_owned(),
        };
        if let Some(ratios) = ratios(results, models, &lanes, test) {
            let _ = writeln!(text, "\n{caption}\n\n{ratios}");
        }
    }
    text.push_str(&missing(results));
    text
}

/// Who was not measured, and why.
pub fn missing<T>(results: &Results<T>) -> String {
    let mut text = String::new();
    let reasons = results.reasons();
    if !reasons.is_empty() {
        text.push_str("\nMissing:\n\n");
    }
    for (reason, keys) in reasons {
        let who: BTreeSet<String> =
            keys.iter().map(|(model, lane, _)| format!("{lane} with {model}")).collect();
        let who: Vec<String> = who.into_iter().collect();
        let _ = writeln!(text, "- {}: {reason}", who.join(", "));
    }
    text
}

/// Medians: a row for each model, a column for each lane.
pub fn absolute(results: &Results, models: &[Model], lanes: &[Lane], test: Test) -> String {
    let mut rows = vec![header(lanes.iter().map(Lane::to_string))];
    for model in models {
        let cells = lanes.iter().map(|&lane| {
            let samples = results.samples(&model.name, lane, test).iter().copied();
            let median = Summary::of(samples).map(|summary| summary.median);
            median.map_or(NOTHING.to_owned(), number)
        });
        rows.push([model.name.clone()].into_iter().chain(cells).collect());
    }
    table(&rows)
}

/// moewe's samples in units of the others', and with more threads in units of
/// its own with the fewest: a row for each model as it is and packed. `None` if
/// there is nothing to compare.
pub fn ratios(results: &Results, models: &[Model], lanes: &[Lane], test: Test) -> Option<String> {
    let fewest = lanes.iter().map(|lane| lane.threads).min()?;
    let ours: Vec<Contender> = (Contender::OURS.into_iter())
        .filter(|&contender| lanes.iter().any(|lane| lane.contender == contender))
        .collect();
    let has = |threads| lanes.iter().any(|l| ours.contains(&l.contender) && l.threads == threads);
    let others: Vec<Lane> = (lanes.iter().copied())
        .filter(|lane| !ours.contains(&lane.contender) && has(lane.threads))
        .collect();
    let mut more: Vec<u32> = lanes.iter().map(|lane| lane.threads).collect();
    more.retain(|&threads| threads > fewest && has(threads) && has(fewest));
    more.sort();
    more.dedup();
    if others.is_empty() && more.is_empty() {
        return None;
    }
    let columns = others.iter().map(Lane::to_string);
    let columns = columns.chain(more.iter().map(|n| format!("itself ×{fewest} for ×{n}")));
    let mut rows = vec![header(columns)];
    for (model, &contender) in models.iter().flat_map(|m| ours.iter().map(move |c| (m, c))) {
        let samples = |lane| results.samples(&model.name, lane, test);
        let me = |threads| samples(Lane { contender, threads });
        let against = others.iter().map(|&other| (me(other.threads), samples(other)));
        let itself = more.iter().map(|&threads| (me(threads), me(fewest)));
        let cells = against.chain(itself).map(|(a, b)| ratio(a, b));
        let packed = if contender == Contender::MoewePacked { ", packed" } else { "" };
        rows.push([format!("{}{packed}", model.name)].into_iter().chain(cells).collect());
    }
    Some(table(&rows))
}

/// Of samples of the same rounds, the median and the limits.
pub fn ratio(ours: &[f64], theirs: &[f64]) -> String {
    match Summary::of_ratios(ours, theirs) {
        Some(Summary { median, min, max }) => format!("{median:.2} ({min:.2}–{max:.2})"),
        None => NOTHING.to_owned(),
    }
}

/// Three digits of a number.
pub fn number(n: f64) -> String {
    format!("{n:.*}", usize::from(n < 100.0) + usize::from(n < 10.0))
}

pub fn header(columns: impl Iterator<Item = String>) -> Vec<String> {
    ["model".to_owned()].into_iter().chain(columns).collect()
}

/// A Markdown table, of which the first row is the header. All columns but the
/// first are aligned to the right.
pub fn table(rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0).max(3)
    };
    let mut text = String::new();
    for (i, row) in rows.iter().enumerate() {
        let mut line = String::from("|");
        let mut rule = String::from("|");
        for (column, cell) in row.iter().enumerate() {
            let width = width(column);
            if column == 0 {
                let _ = write!(line, " {cell:<width$} |");
                let _ = write!(rule, " {:-<width$} |", "");
            } else {
                let _ = write!(line, " {cell:>width$} |");
                let _ = write!(rule, " {:->width$} |", ":");
            }
        }
        text.push_str(&line);
        text.push('\n');
        if i == 0 {
            text.push_str(&rule);
            text.push('\n');
        }
    }
    text.pop();
    text
}

/// What measured, and who was measured.
fn machine(arguments: &Arguments, programs: &Programs) -> String {
    let version = |command: &mut Command| {
        let output = process::output(command).unwrap_or_default();
        String::from_utf8_lossy(&output).lines().next().unwrap_or_default().trim().to_owned()
    };
    let mut parts = vec![
        processor(),
        format!("rounds: {}", arguments.rounds),
        version(Command::new(&arguments.moewe).arg("--version")),
    ];
    if programs.llama_cpp.is_ok() && arguments.llama_cpp.is_none() {
        parts.push(format!("llama.cpp of {}", crate::llama_cpp::VERSION));
    }
    if programs.wllama.is_ok() {
        parts.push(crate::wllama::PACKAGE.trim_start_matches('@').to_owned());
        parts.push(version(Command::new(crate::wllama::CHROMIUM).arg("--version")));
    }
    parts.join("; ")
}

/// The processor's name, and how many cores of it there are.
fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or(std::env::consts::ARCH, |(_, name)| name.trim());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{name}, {cores} cores")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_medians_and_ratios() {
        let lane = |contender, threads| Lane { contender, threads };
        let lanes =
            [lane(Contender::Moewe, 1), lane(Contender::Native, 1), lane(Contender::LlamaCpp, 2)];
        let models = ["a", "b"].map(|name| Model { name: name.to_owned(), path: Ok("".into()) });
        let mut results = Results::default();
        for (ours, theirs) in [(50.0, 100.0), (60.0, 80.0), (40.0, 160.0)] {
            results.add("a", lanes[0], Test::Decode, Ok(ours));
            results.add("a", lanes[1], Test::Decode, Ok(theirs));
        }
        results.add("b", lanes[1], Test::Decode, Ok(7.0));
        let text = absolute(&results, &models, &lanes, Test::Decode);
        assert_eq!(
            text,
            "| model | moewe ×1 | native ×1 | llama.cpp ×2 |\n\
             | ----- | -------: | --------: | -----------: |\n\
             | a     |     50.0 |       100 |            – |\n\
             | b     |        – |      7.00 |            – |"
        );
        // There is no moewe with two threads to compare with.
        let text = ratios(&results, &models, &lanes, Test::Decode).unwrap();
        assert_eq!(
            text,
            "| model |        native ×1 |\n\
             | ----- | ---------------: |\n\
             | a     | 0.50 (0.25–0.75) |\n\
             | b     |                – |"
        );
        assert!(ratios(&results, &models, &lanes[..1], Test::Decode).is_none());
    }

    #[test]
    fn packed_models_and_threads_are_compared() {
        let lanes =
            [(Contender::Moewe, 1), (Contender::MoewePacked, 1), (Contender::MoewePacked, 2)]
                .map(|(contender, threads)| Lane { contender, threads });
        let models = [Model { name: "a".to_owned(), path: Ok("".into()) }];
        let mut results = Results::default();
        for (lane, sample) in lanes.into_iter().zip([3.0, 4.0, 7.0]) {
            results.add("a", lane, Test::Decode, Ok(sample));
        }
        assert_eq!(
            ratios(&results, &models, &lanes, Test::Decode).unwrap(),
            "| model     | itself ×1 for ×2 |\n\
             | --------- | ---------------: |\n\
             | a         |                – |\n\
             | a, packed | 1.75 (1.75–1.75) |"
        );
    }
}
