//! `moewe run`: a text is continued.

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::chat;
use crate::context;
use crate::generate::{self, GenerateArgs};
use crate::input;
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
    if args.prompt.is_none() && io::stdin().is_terminal() {
        return chat::run(&chat::Args::new(args.model, args.generate));
    }
    let empty = "the prompt is empty: give a text to continue";
    ensure!(args.prompt.as_ref().is_none_or(|prompt| !prompt.is_empty()), empty);

    let load_start = Instant::now();
    let model = open::open(&args.model)?;
    context::warn_if_long(&model, args.generate.ctx_size);
    let mut session = model.session(args.generate.session_options())?;
    let load = load_start.elapsed();
    // The model says how much of it can be used.
    let prompt = args.prompt.map_or_else(|| input::all(&session), Ok)?;
    ensure!(!prompt.is_empty(), empty);
    let tokens = session.tokenize(&prompt, true, true)?;
    let interrupt = Interrupt::install(session.cancel_handle())?;
    interrupt.begin();
    let answer = generate::answer(&mut session, &tokens, args.generate.predict, &interrupt)?;
    let interrupted = interrupt.end();
    if args.generate.verbose {
        open::print_file(&model, &session);
        eprintln!("load: {:.0} ms", load.as_secs_f64() * 1e3);
        answer.print_stats(&session, start);
        if let Some(stats) = model.expert_stats() {
            memory::print_stats(&stats, answer.n_tokens());
        }
    }
    open::warn_of_copies(&model, &args.model);
    model.finish_trace()?;
    Ok(if interrupted { interrupt::EXIT_CODE.into() } else { ExitCode::SUCCESS })
}
