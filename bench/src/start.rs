//! From the start of a process to its first token.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use moewe_engine::tokenizer::Tokenizer;
use moewe_gguf::Gguf;

use crate::process;

/// Tokens of the prompt.
pub const N_PROMPT: usize = 16;

const TEXT: &str = "The capital of France is a city that people from all over the world visit \
                    for its museums and its food, and it lies on the banks of the";

/// A part of the text that makes [`N_PROMPT`] tokens of the model's vocabulary.
pub fn prompt(model: &Path) -> Result<&'static str> {
    let gguf = Gguf::read(model)?;
    let tokenizer =
        Tokenizer::from_metadata(&gguf.header.metadata)?.context("the model has no tokenizer")?;
    // Where words begin; ends are anywhere but behind a space.
    let starts = TEXT.char_indices().filter(|&(at, _)| at == 0 || TEXT[..at].ends_with(' '));
    for (start, _) in starts {
        let ends = (start + 1..=TEXT.len()).rev();
        for text in ends.map(|end| &TEXT[start..end]).filter(|text| !text.ends_with(' ')) {
            if tokenizer.encode(text, true, true)?.len() == N_PROMPT {
                return Ok(text);
            }
        }
    }
    bail!("no part of the prompt's text has {N_PROMPT} tokens")
}

/// The time until `command` prints the first byte that is no white space.
pub fn first_byte(command: &mut Command) -> Result<Duration> {
    let line = process::line(command);
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("{line} does not start"))?;
    let mut stdout = child.stdout.take().context("standard output is a pipe")?;
    let mut byte = [b' '];
    let mut time = None;
    while time.is_none() && stdout.read(&mut byte)? == 1 {
        time = (!byte[0].is_ascii_whitespace()).then(|| start.elapsed());
    }
    std::io::copy(&mut stdout, &mut std::io::sink())?;
    let status = child.wait()?;
    match time {
        Some(time) if status.success() => Ok(time),
        Some(_) => bail!("{line} failed ({status})"),
        None => bail!("{line} printed no token ({status})"),
    }
}

#[cfg(test)]
mod tests {
    use moewe_models::generate::{Shape, generate};

    use super::*;

    #[test]
    fn a_prompt_is_found_for_a_vocabulary_of_letters() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let shape =
            Shape { n_layer: 1, n_embd: 256, n_expert: 8, n_ff_expert: 256, ..Shape::MOE_7_7B };
        generate(file.path(), &shape, 1, &mut moewe_models::Bar::new()).unwrap();
        assert_eq!(prompt(file.path()).unwrap(), "capital of France is a ci");
    }

    #[test]
    fn the_first_byte_is_waited_for() {
        let shell = |script: &str| {
            let mut shell = Command::new("sh");
            shell.args(["-c", script]);
            shell
        };
        let time = first_byte(&mut shell("echo; sleep 0.2; echo token"));
        assert!(time.is_ok_and(|time| time >= Duration::from_millis(200)));
        let error = first_byte(&mut shell("echo; echo")).unwrap_err().to_string();
        assert!(error.contains("printed no token"), "{error}");
        let error = first_byte(&mut shell("echo x; exit 3")).unwrap_err().to_string();
        assert!(error.contains("failed (exit status: 3)"), "{error}");
    }
}
