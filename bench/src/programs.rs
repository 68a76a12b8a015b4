//! The programs that are measured, and how.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Deserialize;

use crate::arguments::Arguments;
use crate::contender::{Contender, Lane};
use crate::llama_cpp::LlamaCpp;
use crate::models::Model;
use crate::process::{self, json};
use crate::results::{NotMeant, Test};
use crate::start;
use crate::wllama::Wllama;

/// The programs that are measured; for those that cannot be had, why.
pub struct Programs {
    pub llama_cpp: Result<LlamaCpp, String>,
    pub wllama: Result<Wllama, String>,
}

impl Programs {
    /// Builds and fetches what the contenders need. Without llama.cpp among
    /// them, a build that is there serves to make models.
    pub fn find(arguments: &Arguments, contenders: &[Contender]) -> Self {
        let folder = arguments.target.join("bench");
        let llama_cpp = match &arguments.llama_cpp {
            Some(folder) => LlamaCpp::in_folder(folder),
            None if contenders.contains(&Contender::LlamaCpp) => LlamaCpp::build(&folder),
            None => LlamaCpp::in_folder(&folder.join("llama.cpp")),
        };
        let wllama = match contenders.contains(&Contender::Wllama) {
            true => Wllama::find(&folder),
            false => Err(anyhow!("not asked for")),
        };
        let reason = |error: anyhow::Error| format!("{error:#}");
        Self { llama_cpp: llama_cpp.map_err(reason), wllama: wllama.map_err(reason) }
    }

    /// One sample, in the test's unit.
    pub fn measure(
        &self,
        lane: Lane,
        model: &Model,
        test: Test,
        arguments: &Arguments,
    ) -> Result<f64> {
        let path = &self.file(lane.contender, model, arguments)?;
        // There are machines that drop from the page cache what nobody has mapped for
        // a minute.
        io::copy(&mut File::open(path)?, &mut io::sink())?;
        let (n_prompt, n_gen) = match test {
            Test::Prefill => (arguments.n_prompt, 0),
            Test::Decode => (0, arguments.n_gen),
            Test::Start => return self.measure_start(lane, path, arguments),
            Test::Memory | Test::Prefetch => bail!(NotMeant),
        };
        let threads = lane.threads.to_string();
        let (n_prompt_text, n_gen_text) = (n_prompt.to_string(), n_gen.to_string());
        let mut command;
        match lane.contender {
            Contender::Moewe | Contender::MoewePacked => {
                command = Command::new(&arguments.moewe);
                command.args(["bench", "--json", "-r", "1"]).arg(path);
                command.args(moewe_threads(&arguments.moewe, "bench", lane.threads)?);
            }
            Contender::LlamaCpp => {
                command = self.llama_cpp()?.command("llama-bench");
                command.args(["-o", "json", "-r", "1", "-t", &threads, "-m"]).arg(path);
            }
            Contender::Native | Contender::NativeAvx2 => {
                command = Command::new(match lane.contender {
                    Contender::NativeAvx2 => &arguments.native_avx2,
                    _ => &arguments.native,
                });
                // The command opens the packed copy, if there is one.
                command.arg(moewe_packed::file_to_open(path));
                command.args([&n_prompt_text, &n_gen_text, "1"]);
                if lane.threads > 1 {
                    command.arg(threads);
                }
                let speeds: NativeSpeeds = json(&mut command)?;
                let samples = if n_gen > 0 { speeds.decode } else { speeds.prefill };
                return samples.first().copied().context("the native benchmark measured nothing");
            }
            Contender::Wllama => {
                let wllama = self.wllama.as_ref().map_err(|reason| anyhow!("{reason}"))?;
                return wllama.measure(path, lane.threads, n_prompt, n_gen);
            }
        }
        let rows: Vec<Row> = json(command.args(["-p", &n_prompt_text, "-n", &n_gen_text]))?;
        speed(&rows, n_prompt, n_gen)
    }

    /// The file that a contender is given.
    pub fn file(
        &self,
        contender: Contender,
        model: &Model,
        arguments: &Arguments,
    ) -> Result<PathBuf> {
        match contender {
            Contender::Moewe => model.raw(&arguments.target),
            Contender::MoewePacked => model.packed(&arguments.moewe, &arguments.target),
            _ => model.path().cloned(),
        }
    }

    /// The build of llama.cpp, or why there is none.
    pub fn llama_cpp(&self) -> Result<&LlamaCpp> {
        self.llama_cpp.as_ref().map_err(|reason| anyhow!("{reason}"))
    }

    /// Milliseconds from the start of the process to the first token.
    fn measure_start(&self, lane: Lane, model: &Path, arguments: &Arguments) -> Result<f64> {
        let mut command = match lane.contender {
            Contender::Moewe | Contender::MoewePacked => {
                let mut command = Command::new(&arguments.moewe);
                command.args(["run", "--temp", "0", "-n", "1"]);
                command.args(moewe_threads(&arguments.moewe, "run", lane.threads)?);
                command.arg("--").arg(model).arg(start::prompt(model)?);
                command
            }
            Contender::LlamaCpp => {
                let mut command = self.llama_cpp()?.command("llama-completion");
                // All that its start can do without: fitting the model into
                // memory, a warm-up, another layout of the weights, and a
                // KV cache for the whole context.
                command.args(["--temp", "0", "-n", "1", "-c", "256", "-fit", "off"]);
                command.args(["--no-warmup", "--no-repack", "--no-perf"]);
                command.args(["--no-conversation", "--no-display-prompt", "--no-escape"]);
                command.args(["-t", &lane.threads.to_string(), "-m"]).arg(model);
                command.arg("-p").arg(start::prompt(model)?);
                command
            }
            Contender::Native | Contender::NativeAvx2 | Contender::Wllama => bail!(NotMeant),
        };
        Ok(start::first_byte(&mut command)?.as_secs_f64() * 1e3)
    }
}

/// The options that make `moewe` use so many threads.
fn moewe_threads(moewe: &Path, subcommand: &str, threads: u32) -> Result<Vec<String>> {
    let help = process::output(Command::new(moewe).args([subcommand, "--help"]))?;
    if String::from_utf8_lossy(&help).contains("--threads") {
        return Ok(vec!["--threads".to_owned(), threads.to_string()]);
    }
    ensure!(threads == 1, "this `moewe {subcommand}` has no `--threads`");
    Ok(Vec::new())
}

/// What the engine's own benchmark prints, in tokens per second.
#[derive(Deserialize)]
struct NativeSpeeds {
    prefill: Vec<f64>,
    decode: Vec<f64>,
}

/// What `llama-bench` and `moewe bench` print for each test.
#[derive(Deserialize)]
pub struct Row {
    n_prompt: u32,
    n_gen: u32,
    avg_ts: f64,
}

/// Tokens per second of a test.
pub fn speed(rows: &[Row], n_prompt: u32, n_gen: u32) -> Result<f64> {
    let row = rows.iter().find(|row| (row.n_prompt, row.n_gen) == (n_prompt, n_gen));
    Ok(row.context("the benchmark left out the test")?.avg_ts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_found_among_the_rows_of_a_benchmark() {
        let rows: Vec<Row> = serde_json::from_str(
            r#"[{"build_commit": "0c1e570", "n_prompt": 512, "n_gen": 0, "avg_ts": 167.5},
                {"build_commit": "0c1e570", "n_prompt": 0, "n_gen": 128, "avg_ts": 59.25}]"#,
        )
        .unwrap();
        assert_eq!(speed(&rows, 512, 0).unwrap(), 167.5);
        assert_eq!(speed(&rows, 0, 128).unwrap(), 59.25);
        assert!(speed(&rows, 0, 64).is_err());
    }

    #[test]
    fn native_speeds_are_read() {
        let line = r#"{"instructions": "x86-64 AVX-VNNI", "prefill": [175.2], "decode": []}"#;
        let speeds: NativeSpeeds = serde_json::from_str(line).unwrap();
        assert_eq!((speeds.prefill, speeds.decode), (vec![175.2], vec![]));
    }
}
