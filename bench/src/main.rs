//! Measures moewe against the engine built natively, llama.cpp and wllama, in
//! turn, round after round, so that whatever else the machine does concerns
//! all alike. `cargo xtask bench` builds what it needs and runs it.

mod arguments;
mod contender;
mod group;
mod llama_cpp;
mod memory;
mod models;
mod prefetch;
mod process;
mod programs;
mod report;
mod results;
mod start;
mod wllama;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};

use arguments::Arguments;
use contender::{Contender, Lane};
use models::{Known, Model};
use programs::Programs;
use results::{Results, Test};

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut arguments: Arguments) -> Result<()> {
    let all = |given: &[Contender]| match given {
        [] => Contender::ALL.to_vec(),
        given => given.to_vec(),
    };
    let contenders = all(&arguments.contenders);
    if arguments.tests.is_empty() {
        arguments.tests = Test::USUAL.to_vec();
    }
    let is_usual = arguments.tests.iter().any(|test| test.is_usual());
    let needed = match arguments.tests.contains(&Test::Memory) {
        _ if is_usual => contenders.clone(),
        true => memory::lanes(&contenders, 1).iter().map(|lane| lane.contender).collect(),
        false => Vec::new(),
    };
    if arguments.models.is_empty() {
        let usual = Known::ALL.iter().filter(|known| known.is_usual);
        let known = usual.filter(|known| is_usual || known.has_experts());
        arguments.models = known.map(|known| known.name.into()).collect();
    }
    let programs = Programs::find(&arguments, &needed);
    let models: Vec<Model> = arguments
        .models
        .iter()
        .map(|model| Model::find(model, &arguments.target, programs.llama_cpp.as_ref()))
        .collect::<Result<_>>()?;
    let lanes = match is_usual {
        true => Lane::all(&contenders, &arguments.threads),
        false => Vec::new(),
    };
    let budgets = memory::Budget::all(&models, &arguments.shares);
    let asked = |test| arguments.tests.contains(&test);

    let mut results = Results::default();
    let per_round = models.len() * lanes.len()
        + usize::from(asked(Test::Memory)) * budgets.len() * memory::lanes(&contenders, 1).len()
        + usize::from(asked(Test::Prefetch)) * budgets.len();
    let steps = u64::from(arguments.rounds) * per_round as u64;
    let bar = ProgressBar::new(steps).with_style(ProgressStyle::with_template(
        "{wide_msg} {bar:20} {pos}/{len}, {elapsed}, ETA {eta}",
    )?);
    bar.enable_steady_tick(std::time::Duration::from_millis(200));
    for round in 0..arguments.rounds {
        for model in &models {
            for &lane in &lanes {
                bar.set_message(format!("round {}: {}, {lane}", round + 1, model.name));
                for &test in arguments.tests.iter().filter(|test| test.is_usual()) {
                    if results.is_missing(&model.name, lane, test) {
                        continue;
                    }
                    let measured = programs.measure(lane, model, test, &arguments);
                    results.add(&model.name, lane, test, measured);
                }
                bar.inc(1);
            }
        }
    }
    let mut text = report::report(&results, &models, &lanes, &arguments, &programs);
    if asked(Test::Memory) {
        text += &memory::measure(&programs, &budgets, &contenders, &arguments, &bar);
    }
    if asked(Test::Prefetch) {
        text += &prefetch::measure(&programs, &budgets, &arguments, &bar);
    }
    bar.finish_and_clear();
    print!("{text}");
    Ok(())
}
