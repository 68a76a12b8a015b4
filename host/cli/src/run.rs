//! `moewe run`: a text is continued.

use std::io::{self, IsTerminal, Read};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::chat;
use crate::generate::{self, GenerateArgs};
use crate::interrupt::{self, Interrupt};
use crate::memory;
use crate::open::{self, ModelArgs};

/// Continue a text
///
/// The prompt is taken as it is, without a chat template. Names of control
/// tokens in it, such as `<|im_start|>`, are read as those tokens. Without a
/// prompt, the text comes from standard input; at a terminal, a chat begins.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The text to continue
    prompt: Option<String>,
    #[command(flatten)]
    generate: GenerateArgs,
}

/// `start` is when the program started.
pub fn run(args: Args, start: Instant) -> Result<ExitCode> {
    let prompt = match args.prompt {
        Some(prompt) => prompt,
        None if io::stdin().is_terminal() => {
            return chat::run(&chat::Args::new(args.model, args.generate));
        }
        None => read_stdin()?,
    };
    ensure!(!prompt.is_empty(), "the prompt is empty: give a text to continue");

    let load_start = Instant::now();
    let model = open::open(&args.model)?;
    let mut session = model.session(args.generate.session_options())?;
    let load = load_start.elapsed();
    let tokens = session.tokenize(&prompt, true, true)?;
    let interrupt = Interrupt::install(session.cancel_handle())?;
    interrupt.begin();
    let answer = generate::answer(&mut session, &tokens, args.generate.predict, &interrupt)?;
    let interrupted = interrupt.end();
    if args.generate.verbose {
        open::print_file(&model);
        eprintln!("load: {:.0} ms", load.as_secs_f64() * 1e3);
        answer.print_stats(&session, start);
        if let Some(stats) = model.expert_stats() {
            memory::print_stats(&stats, answer.n_tokens());
        }
    }
    model.finish_trace()?;
    Ok(if interrupted { interrupt::EXIT_CODE.into() } else { ExitCode::SUCCESS })
}

/// All of standard input, without the end of its last line.
fn read_stdin() -> Result<String> {
    let mut text = String::new();
    let read = io::stdin().read_to_string(&mut text);
    read.context("standard input cannot be read as a prompt")?;
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}
