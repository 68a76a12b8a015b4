//! `moewe chat`: a conversation.

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use moewe::{Message, Session};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::generate::{self, GenerateArgs};
use crate::interrupt::Interrupt;
use crate::open::{self, ModelArgs};

/// Talk with a model
///
/// Ctrl-C ends an answer, `/bye` or Ctrl-D ends the conversation.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// What the model shall know or be before the conversation begins
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    generate: GenerateArgs,
}

impl Args {
    pub fn new(model: ModelArgs, generate: GenerateArgs) -> Self {
        Self { model, system: None, generate }
    }
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let start = Instant::now();
    let model = open::open(&args.model)?;
    if !model.info().has_chat_template {
        bail!(
            "{}: has no chat template; continue a text with `moewe run MODEL PROMPT` instead",
            args.model.model.display()
        );
    }
    let mut chat = Chat {
        session: model.session(args.generate.session_options())?,
        messages: args.system.iter().map(|text| Message::new("system", text)).collect(),
        context: Vec::new(),
    };
    if args.generate.verbose {
        open::print_file(&model);
        eprintln!("load: {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
    }
    let interrupt = Interrupt::install(chat.session.cancel_handle())?;
    if io::stdin().is_terminal() {
        let info = model.info();
        let name = info.name.as_deref().unwrap_or(&info.architecture);
        let name = crate::printable(name);
        eprintln!("{name}. Ctrl-C ends an answer, /bye or Ctrl-D the conversation.");
    }

    let mut editor = DefaultEditor::new()?;
    loop {
        let line = match editor.readline("> ") {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error.into()),
        };
        match line.trim() {
            "" => continue,
            "/bye" => break,
            text => {
                // Without a history, only the arrow keys do less.
                let _ = editor.add_history_entry(text);
                chat.turn(text, args, &interrupt)?;
            }
        }
    }
    model.finish_trace()?;
    Ok(ExitCode::SUCCESS)
}

/// A conversation, and the tokens that the session holds of it.
struct Chat {
    session: Session,
    messages: Vec<Message>,
    context: Vec<u32>,
}

impl Chat {
    /// One message and its answer. What the context cannot hold is taken back;
    /// other errors end the conversation.
    fn turn(&mut self, text: &str, args: &Args, interrupt: &Interrupt) -> Result<()> {
        let start = Instant::now();
        self.messages.push(Message::new("user", text));
        // A template writes the special tokens itself, BOS included.
        let prompt = self.session.apply_chat_template(&self.messages, true)?;
        let prompt = self.session.tokenize(&prompt, false, true)?;
        let n_same = self.rewind_to_prefix_of(&prompt)?;

        interrupt.begin();
        let answered = generate::answer(
            &mut self.session,
            &prompt[n_same..],
            args.generate.predict,
            interrupt,
        );
        interrupt.end();
        let answer = match answered {
            Ok(answer) => answer,
            Err(error) => {
                let error = error.downcast::<moewe::Error>()?;
                if error.kind() != moewe::ErrorKind::ContextFull {
                    return Err(error.into());
                }
                eprintln!("error: {error}");
                self.messages.pop();
                return self.forget();
            }
        };
        if args.generate.verbose {
            answer.print_stats(&self.session, start);
        }

        let n_held = self.session.usage()?.context_tokens as usize;
        self.context = prompt;
        self.context.extend(&answer.tokens);
        self.context.truncate(n_held);
        self.messages.push(Message::new("assistant", answer.text));
        Ok(())
    }

    /// Forgets what does not begin the prompt, and answers how many of the
    /// prompt's tokens are left in the context: all but one at most.
    fn rewind_to_prefix_of(&mut self, prompt: &[u32]) -> Result<usize> {
        let same = self.context.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let n_same = same.min(prompt.len().saturating_sub(1));
        if n_same < self.context.len() {
            self.session.rewind(u32::try_from(n_same)?)?;
            self.context.truncate(n_same);
        }
        Ok(n_same)
    }

    fn forget(&mut self) -> Result<()> {
        self.session.rewind(0)?;
        self.context.clear();
        Ok(())
    }
}
