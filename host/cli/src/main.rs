//! The moewe command.

mod bench;
mod chat;
mod context;
mod generate;
mod input;
mod inspect;
mod interrupt;
mod logits;
mod memory;
mod models;
mod open;
mod pack;
mod plan;
mod print;
mod rm;
mod run;
mod simulate;
mod tokenize;

use std::io;
use std::panic::resume_unwind;
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use print::printable;

/// Run mixture-of-experts language models in a WebAssembly sandbox.
#[derive(Parser)]
#[command(name = "moewe", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(run::Args),
    Chat(chat::Args),
    Pull(models::PullArgs),
    List(models::ListArgs),
    Rm(rm::Args),
    Inspect(inspect::Args),
    Pack(pack::Args),
    Tokenize(tokenize::Args),
    Logits(logits::Args),
    Bench(bench::Args),
    Simulate(simulate::Args),
    Plan(plan::Args),
}

/// What everything is done with, whatever `ulimit -s` gives the first thread: a
/// guest may take 512 KiB.
const STACK_BYTES: usize = 8 << 20;

fn main() -> ExitCode {
    let start = Instant::now();
    let thread = thread::Builder::new().name("moewe".to_owned()).stack_size(STACK_BYTES);
    match thread.spawn(move || run(start)) {
        Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
        Err(error) => fail(&format!("no thread can be started: {error}; check `ulimit -a`")),
    }
}

/// `start` is when the program started.
fn run(start: Instant) -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let result = match cli.command {
        Command::Run(args) => run::run(args, start),
        Command::Chat(args) => chat::run(&args),
        Command::Pull(args) => models::pull(&args),
        Command::List(args) => models::list(&args),
        Command::Rm(args) => rm::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Pack(args) => pack::run(&args),
        Command::Tokenize(args) => tokenize::run(&args),
        Command::Logits(args) => logits::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Simulate(args) => simulate::run(&args),
        Command::Plan(args) => plan::run(&args),
    };
    match result {
        Ok(code) => code,
        // Whoever reads our output has enough of it.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("{error:#}")),
    }
}

/// Help goes to stdout as it is; a mistake becomes one line.
fn usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // Nobody is left to hear of a failure.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            fail("what shall I do? see `moewe --help`")
        }
        _ => {
            let text = error.to_string();
            let text = text.split("\nUsage:").next().unwrap_or(&text);
            let text = text.split("\nFor more information").next().unwrap_or(text);
            let text = text.strip_prefix("error:").unwrap_or(text);
            fail(&format!("{text}; see `moewe --help`"))
        }
    }
}

fn fail(message: &str) -> ExitCode {
    let words: Vec<_> = message.split_whitespace().map(printable).collect();
    eprintln!("error: {}", words.join(" ").replace(" ; see", "; see"));
    ExitCode::FAILURE
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|e| e.downcast_ref::<io::Error>())
        .any(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
