//! What `run` and `chat` have in common: options, prefill with a progress bar,
//! text as it comes, numbers at the end.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use moewe::{ErrorKind, Sampling, Session, SessionOptions, StopReason};

use crate::interrupt::Interrupt;

/// How text is generated.
#[derive(clap::Args)]
#[command(allow_negative_numbers = true)]
pub struct GenerateArgs {
    /// Generate at most N tokens [default: until the model stops]
    #[arg(short = 'n', long, value_name = "N")]
    pub predict: Option<u64>,
    /// The most tokens of prompt and answer together [default: what the model
    /// was trained for, or as scaled]
    #[arg(short = 'c', long, value_name = "N")]
    pub ctx_size: Option<u32>,
    /// Temperature; 0 always takes the most probable token
    #[arg(long, value_name = "X", default_value_t = 0.8)]
    pub temp: f32,
    /// Choose among the K most probable tokens; 0 for all
    #[arg(long, value_name = "K", default_value_t = 40)]
    pub top_k: u32,
    /// Choose among the fewest tokens whose probabilities add up to P; 1 for
    /// all
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    pub top_p: f32,
    /// Choose among tokens at least P times as probable as the best; 0 for all
    #[arg(long, value_name = "P", default_value_t = 0.05)]
    pub min_p: f32,
    /// Make recent tokens less probable; 1 for no change
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    pub repeat_penalty: f32,
    /// How many tokens are recent
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub repeat_last_n: u32,
    /// Equal seeds give equal text [default: random]
    #[arg(long, value_name = "SEED")]
    pub seed: Option<u64>,
    /// Print times, speeds and use of the weights to stderr
    #[arg(long)]
    pub verbose: bool,
}

impl GenerateArgs {
    pub fn session_options(&self) -> SessionOptions {
        let mut sampling = Sampling::default();
        sampling.temperature = self.temp;
        sampling.top_k = self.top_k;
        sampling.top_p = self.top_p;
        sampling.min_p = self.min_p;
        sampling.repeat_penalty = self.repeat_penalty;
        sampling.repeat_last_n = self.repeat_last_n;
        sampling.seed = self.seed.unwrap_or_else(|| fastrand::u64(..));
        let mut options = SessionOptions::default();
        options.n_ctx = self.ctx_size;
        options.sampling = sampling;
        options
    }
}

/// An answer, and what it took.
pub struct Answer {
    pub text: String,
    pub tokens: Vec<u32>,
    pub stop: StopReason,
    n_prompt: usize,
    prefill: Duration,
    decode: Duration,
    first_token: Option<Instant>,
}

impl Answer {
    /// Tokens of prompt and answer together.
    pub fn n_tokens(&self) -> u64 {
        (self.n_prompt + self.tokens.len()) as u64
    }

    /// Prints what it took to stderr; `start` is when the user began to wait.
    pub fn print_stats(&self, session: &Session, start: Instant) {
        let speed = |n: usize, time: Duration| n as f64 / time.as_secs_f64().max(1e-9);
        if let Some(first_token) = self.first_token {
            let time = first_token.duration_since(start);
            eprintln!("time to first token: {:.0} ms", time.as_secs_f64() * 1e3);
        }
        eprintln!(
            "prefill: {} tokens in {:.0} ms, {:.1} tok/s",
            self.n_prompt,
            self.prefill.as_secs_f64() * 1e3,
            speed(self.n_prompt, self.prefill)
        );
        eprintln!(
            "decode: {} tokens in {:.0} ms, {:.1} tok/s",
            self.tokens.len(),
            self.decode.as_secs_f64() * 1e3,
            speed(self.tokens.len(), self.decode)
        );
        let stats = session.stats();
        eprintln!(
            "weights: attached {} in {} windows ({} given back), read {} in {} reads, copied {}, \
             prefetched {}",
            HumanBytes(stats.bytes_attached),
            stats.n_attach,
            stats.n_detach,
            HumanBytes(stats.bytes_read),
            stats.n_read,
            HumanBytes(stats.bytes_copied),
            HumanBytes(stats.bytes_prefetched)
        );
    }
}

/// Feeds the prompt and prints the answer as it comes, and the end of its line.
pub fn answer(
    session: &mut Session,
    prompt: &[u32],
    max_tokens: Option<u64>,
    interrupt: &Interrupt,
) -> Result<Answer> {
    if !interrupt.is_pressed() {
        // One that came too late for the last answer is not meant for this one.
        drop(session.generate(&[], None));
    }
    let start = Instant::now();
    let mut answer = Answer {
        text: String::new(),
        tokens: Vec::new(),
        stop: StopReason::Cancelled,
        n_prompt: 0,
        prefill: Duration::ZERO,
        decode: Duration::ZERO,
        first_token: None,
    };
    answer.n_prompt = prefill(session, prompt, interrupt)?;
    answer.prefill = start.elapsed();
    if interrupt.is_pressed() {
        return Ok(answer);
    }

    let start = Instant::now();
    let mut out = io::stdout().lock();
    for step in session.generate(&[], max_tokens) {
        let step = step?;
        out.write_all(step.text.as_bytes())?;
        out.flush()?;
        answer.first_token.get_or_insert_with(Instant::now);
        answer.text.push_str(&step.text);
        answer.tokens.extend(step.token);
        if let Some(stop) = step.stop {
            answer.stop = stop;
        }
        if interrupt.is_pressed() {
            break;
        }
    }
    answer.decode = start.elapsed();
    writeln!(out)?;
    if answer.stop == StopReason::ContextFull {
        eprintln!("the context is full: start again, with a larger --ctx-size if you can");
    }
    Ok(answer)
}

/// Feeds the prompt until Ctrl-C; answers how many tokens were fed.
fn prefill(session: &mut Session, prompt: &[u32], interrupt: &Interrupt) -> Result<usize> {
    ensure!(
        !prompt.is_empty(),
        "the prompt has no tokens: the model's vocabulary knows nothing of it; give another text"
    );
    session.ensure_room(prompt.len())?;
    let bar = token_bar("reading the prompt", prompt.len());
    let mut n_fed = 0;
    for part in prompt.chunks(Session::FEED_LEN) {
        if interrupt.is_pressed() {
            break;
        }
        match session.feed(part) {
            Err(error) if error.kind() == ErrorKind::Stopped => break,
            fed => fed?,
        }
        n_fed += part.len();
        bar.inc(part.len() as u64);
    }
    bar.finish_and_clear();
    Ok(n_fed)
}

/// A bar on stderr for work that is counted in tokens; none is drawn if the
/// work is short or stderr is no terminal.
pub fn token_bar(what: &'static str, n_tokens: usize) -> ProgressBar {
    if n_tokens <= Session::FEED_LEN {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} tokens, {per_sec}, ETA {eta}")
            .expect("the template is sound");
    ProgressBar::new(n_tokens as u64).with_style(style).with_message(what)
}
