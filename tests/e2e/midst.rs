//! What happens to the command in the midst of its work: Ctrl-C, and files that change.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use moewe_models::Silent;
use moewe_models::generate::{Shape, generate};
use moewe_tests::program;

/// 115 MB; its prompts take a while.
const SHAPE: Shape = Shape {
    n_layer: 6,
    n_embd: 1024,
    n_head: 16,
    kv_heads: 2,
    head_dim: 64,
    n_expert: 16,
    n_expert_used: 4,
    n_ff_expert: 512,
    n_vocab: 400,
    n_ctx: 16384,
};

fn model() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    generate(&path, &SHAPE, 1, &mut Silent).unwrap();
    (folder, path)
}

/// Starts `moewe run` with a text that repeats itself, and so does not end.
fn run(path: &Path, prompt: &str, more: &[&str]) -> Child {
    let mut command = Command::new(program("moewe"));
    command.arg("run").arg(path).arg(prompt);
    command.args(["--temp", "0", "--repeat-penalty", "0.5", "-t", "2"]).args(more);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Changes the file when an answer has begun; what the program says then.
fn change_during_an_answer(change: impl Fn(&File), more: &[&str]) {
    let (_folder, path) = model();
    let mut process = run(&path, "Once upon a time", &[&["-n", "2000"], more].concat());
    let mut first = [0; 8];
    process.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    change(&File::options().write(true).open(&path).unwrap());
    let Output { status, stderr, .. } = process.wait_with_output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(1), "{status}: {stderr:?}");
    assert_eq!(stderr.lines().count(), 1, "{stderr:?}");
    let named = format!("error: {}: changed while it was in use; load", path.display());
    assert!(stderr.starts_with(&named), "{stderr:?}");
}

#[test]
fn a_file_that_is_cut_short() {
    change_during_an_answer(|file| file.set_len(5000).unwrap(), &[]);
}

#[test]
fn a_file_that_is_written_to() {
    for more in [&[][..], &["--memory", "1GiB"]] {
        let change = |file: &File| file.write_all_at(&[0x5a; 8 << 20], 8 << 20).unwrap();
        change_during_an_answer(change, more);
    }
}

/// Whether a process handles Ctrl-C, and does not just end.
fn listens(process: &Child) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    u64::from_str_radix(caught.trim(), 16).unwrap() & 1 << 1 != 0
}

/// The first Ctrl-C ends the prompt within one of its parts, and is answered at once.
#[test]
fn ctrl_c_during_a_prompt() {
    let (_folder, path) = model();
    let text = "some words that are not the same ".repeat(60);
    for more in [&[][..], &["--memory", "1GiB"]] {
        let process = run(&path, &text, &[&["-n", "1", "--verbose"], more].concat());
        while !listens(&process) {
            thread::sleep(Duration::from_millis(1));
        }
        // The prompt follows within microseconds.
        thread::sleep(Duration::from_millis(100));
        let process_id = process.id().to_string();
        assert!(Command::new("kill").args(["-INT", &process_id]).status().unwrap().success());
        let Output { status, stdout, stderr } = process.wait_with_output().unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(130), "{stderr:?}");
        assert!(stdout.is_empty(), "{stdout:?}");
        assert!(stderr.starts_with("stopping; "), "{stderr:?}");
        assert!(stderr.contains("prefill: 0 tokens"), "{stderr:?}");
    }
}
