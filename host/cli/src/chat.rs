//! `moewe chat`: a conversation.

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use moewe::{ErrorKind, Message, Session};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::context;
use crate::generate::{self, GenerateArgs};
use crate::input;
use crate::interrupt::Interrupt;
use crate::open::{self, ModelArgs};
use crate::print;

/// Talk with a model
///
/// Ctrl-C ends an answer, `/bye` or Ctrl-D ends the conversation. Fails if a message
/// got no answer.
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
    context::warn_if_long(&model, args.generate.ctx_size);
    let mut chat = Chat {
        session: model.session(args.generate.session_options())?,
        messages: args.system.iter().map(|text| Message::new("system", text)).collect(),
        context: Vec::new(),
    };
    if args.generate.verbose {
        open::print_file(&model, &chat.session);
        eprintln!("load: {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
    }
    let interrupt = Interrupt::install(chat.session.cancel_handle())?;
    if io::stdin().is_terminal() {
        let info = model.info();
        let name = info.name.as_deref().unwrap_or(&info.architecture);
        let name = print::printable(name);
        eprintln!("{name}. Ctrl-C ends an answer, /bye or Ctrl-D the conversation.");
    }

    let all_answered = chat.converse(args, &interrupt);
    open::warn_of_copies(&model, &args.model);
    // A trace is of what was computed, whatever ended it.
    let traced = model.finish_trace();
    let all_answered = all_answered?;
    traced?;
    Ok(if all_answered { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A conversation, and the tokens that the session holds of it.
struct Chat {
    session: Session,
    messages: Vec<Message>,
    context: Vec<u32>,
}

impl Chat {
    /// Answers one message after another; says whether each got an answer.
    fn converse(&mut self, args: &Args, interrupt: &Interrupt) -> Result<bool> {
        let mut all_answered = true;
        let mut editor = match io::stdin().is_terminal() {
            true => Some(DefaultEditor::new()?),
            false => None,
        };
        loop {
            let line = match &mut editor {
                Some(editor) => match editor.readline("> ") {
                    Ok(line) => line,
                    Err(ReadlineError::Interrupted) => continue,
                    Err(ReadlineError::Eof) => break,
                    Err(error) => return Err(error.into()),
                },
                None => match input::line(&self.session)? {
                    Some(line) => line,
                    None => break,
                },
            };
            let n_max = self.session.text_bytes_max();
            if line.len() as u64 > n_max {
                let error =
                    format!("a message has more than the {n_max} bytes that the context can hold");
                // From a pipe, its rest would be the next message.
                ensure!(editor.is_some(), error);
                eprintln!("error: {error}");
                continue;
            }
            match line.trim() {
                "" => continue,
                "/bye" => break,
                text => {
                    // Without a history, only the arrow keys do less.
                    let _ = editor.as_mut().map(|editor| editor.add_history_entry(text));
                    all_answered &= self.turn(text, args, interrupt)?;
                }
            }
        }
        Ok(all_answered)
    }

    /// One message and its answer; false if there is none. A message that the
    /// template refuses, or the context cannot hold, is taken back; other errors
    /// end the conversation.
    fn turn(&mut self, text: &str, args: &Args, interrupt: &Interrupt) -> Result<bool> {
        let start = Instant::now();
        self.messages.push(Message::new("user", text));
        let prompt = match self.session.apply_chat_template(&self.messages, true) {
            Ok(prompt) => prompt,
            Err(error) => return self.take_back(error),
        };
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
                self.take_back(error.downcast::<moewe::Error>()?)?;
                self.forget()?;
                return Ok(false);
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
        Ok(true)
    }

    /// Says why a message gets no answer, unless the session has ended with it.
    fn take_back(&mut self, error: moewe::Error) -> Result<bool> {
        match error.kind() {
            ErrorKind::InvalidInput | ErrorKind::Unsupported | ErrorKind::ContextFull => {
                eprintln!("error: {}", print::printable(&error.to_string()));
                self.messages.pop();
                Ok(false)
            }
            _ => Err(error.into()),
        }
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
