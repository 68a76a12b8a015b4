//! A command line for the moewe component over plain WASI.
//!
//! A component that imports `moewe:inference/inference` and exports
//! `wasi:cli/run`: it loads a model, feeds it a prompt and writes the text
//! that follows to the standard output as it comes. Composed with the engine
//! and the WASI provider it is a program for any WASI 0.2 runtime:
//!
//! ```text
//! wasmtime run --dir FOLDER moewe-wasi.wasm MODEL PROMPT
//! ```
//!
//! An error is one line on the standard error, and `run` fails.

mod arguments;
mod bindings;
mod generate;
mod output;

use wasip2::cli::environment::get_arguments;
use wasip2::cli::stderr::get_stderr;
use wasip2::cli::stdout::get_stdout;

use arguments::{Arguments, Request};

struct Command;

wasip2::cli::command::export!(Command);

impl wasip2::exports::cli::run::Guest for Command {
    fn run() -> Result<(), ()> {
        std::panic::set_hook(Box::new(|panic| complain(&panic.to_string())));
        run().map_err(|message| complain(&message))
    }
}

fn run() -> Result<(), String> {
    let mut stdout = get_stdout();
    match Arguments::parse(get_arguments().into_iter().skip(1))? {
        Request::Generate(arguments) => generate::generate(&arguments, &mut stdout),
        Request::Help => output::write(&mut stdout, format!("{}\n", arguments::USAGE).as_bytes()),
    }
}

/// Writes one line to the standard error. If even that fails, only the exit
/// status is left to tell.
fn complain(message: &str) {
    let line = format!("moewe: {}\n", message.replace('\n', " "));
    _ = output::write(&mut get_stderr(), line.as_bytes());
}
