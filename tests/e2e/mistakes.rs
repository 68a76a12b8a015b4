//! Whatever a user gives it, `moewe` answers a mistake with one line that
//! names the thing and the way out.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use moewe_gguf::{Gguf, put_text};
use moewe_tests::tiny::Tiny;
use moewe_tests::{model, moewe, program};

/// Runs `moewe` with arguments that are a mistake; what it says must be one
/// line that holds all of `words`.
#[track_caller]
fn refused<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>, words: &[&str]) {
    let output = moewe(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(output.stdout.is_empty(), "{:?}", String::from_utf8_lossy(&output.stdout));
    assert!(stderr.starts_with("error: ") && stderr.lines().count() == 1, "{stderr:?}");
    assert!(!stderr.contains("panicked") && !stderr.contains("trap"), "{stderr:?}");
    for word in words {
        assert!(stderr.contains(word), "no {word:?} in {stderr:?}");
    }
}

/// Writes `bytes` to a file and has every command that reads models refuse it.
#[track_caller]
fn refused_file(bytes: &[u8], words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    let words = [&["model.gguf"], words].concat();
    refused(["run".as_ref(), path.as_os_str(), "Hello".as_ref()], &words);
    refused(
        ["run", path.to_str().unwrap(), "Hello", "--weights", "read"].map(str::to_owned),
        &words,
    );
    refused(["tokenize".as_ref(), path.as_os_str(), "Hello".as_ref()], &words);
}

/// A sound small model.
fn sound() -> Vec<u8> {
    std::fs::read(model("mixtral-q4_k_m")).unwrap()
}

/// The position behind the only occurrence of a length-prefixed text.
fn behind(bytes: &[u8], text: &str) -> usize {
    let mut needle = Vec::new();
    put_text(&mut needle, text.as_bytes());
    let mut found = bytes.windows(needle.len()).enumerate().filter(|(_, w)| *w == needle);
    let (at, _) = found.next().unwrap_or_else(|| panic!("no {text} in the file"));
    at + needle.len()
}

fn with_u64(mut bytes: Vec<u8>, at: usize, value: u64) -> Vec<u8> {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    bytes
}

#[test]
fn truncated_files() {
    let sound = sound();
    refused_file(&[], &[]);
    refused_file(&sound[..3], &["not a GGUF file"]);
    refused_file(&sound[..20], &["truncated", "download it again"]);
    refused_file(&sound[..5000], &["truncated", "download it again"]);
    refused_file(&sound[..sound.len() / 2], &["past the end", "truncated", "download it again"]);
    refused_file(&sound[..sound.len() - 1], &["past the end", "truncated", "download it again"]);
}

#[test]
fn other_files() {
    let mut sound = sound();
    refused_file(b"<!DOCTYPE html><html><body>404</body></html>", &["web page", "download"]);
    sound[3] = b'X';
    refused_file(&sound, &["not a GGUF file", "download"]);
    sound[3] = b'F';
    sound[4] = 9;
    refused_file(&sound, &["version 9", "convert"]);
}

#[test]
fn an_unknown_architecture() {
    let mut sound = sound();
    let value = behind(&sound, "general.architecture") + 12;
    assert_eq!(&sound[value..value + 5], b"llama");
    sound[value..value + 5].copy_from_slice(b"lemma");
    refused_file(&sound, &["`lemma`", "choose", "qwen3moe"]);
}

#[test]
fn a_missing_tensor() {
    let mut sound = sound();
    let end = behind(&sound, "output_norm.weight");
    sound[end - 6..end].copy_from_slice(b"wieght");
    refused_file(&sound, &["output_norm.weight is missing", "another source"]);
}

#[test]
fn counts_of_2_to_the_60() {
    let sound = sound();
    const HUGE: u64 = 1 << 60;
    // Tensors, metadata entries, the first key's length, tokens, a dimension.
    refused_file(&with_u64(sound.clone(), 8, HUGE), &["1152921504606846976 tensors", "damaged"]);
    refused_file(&with_u64(sound.clone(), 16, HUGE), &["1152921504606846976 meta", "damaged"]);
    refused_file(&with_u64(sound.clone(), 24, HUGE), &["1152921504606846976 bytes", "damaged"]);
    let tokens = behind(&sound, "tokenizer.ggml.tokens") + 8;
    refused_file(&with_u64(sound.clone(), tokens, HUGE), &["tokenizer.ggml.tokens", "damaged"]);
    let dims = behind(&sound, "blk.0.attn_q.weight") + 4;
    refused_file(&with_u64(sound.clone(), dims, HUGE), &["blk.0.attn_q.weight"]);
    refused_file(&with_u64(sound, dims + 8, HUGE), &["blk.0.attn_q.weight"]);
}

#[test]
fn a_tensor_past_the_end() {
    let sound = sound();
    let name = "blk.1.ffn_up_exps.weight";
    // Behind the name: 3 dimensions, the type, the offset.
    let offset = behind(&sound, name) + 4 + 3 * 8 + 4;
    let far = with_u64(sound.clone(), offset, 1 << 40);
    refused_file(&far, &[name, "past the end", "download it again"]);
    refused_file(&with_u64(sound, offset, u64::MAX - 31), &[name, "past the end"]);
}

#[test]
fn models_that_are_not_there() {
    let folder = tempfile::tempdir().unwrap();
    refused(["run".as_ref(), folder.path().as_os_str(), "Hello".as_ref()], &["folder", ".gguf"]);
    let missing = folder.path().join("missing.gguf");
    refused(["run".as_ref(), missing.as_os_str(), "Hello".as_ref()], &["no such file"]);
    refused(["run", "no-such-model", "Hello"], &["no model is called `no-such-model`"]);
    refused(["rm"], &["MODEL", "see `moewe --help`"]);
    refused(["rm", "no-such-model"], &["no model is called `no-such-model`"]);
    refused(["rm".as_ref(), folder.path().as_os_str()], &["folder", ".gguf"]);
    let notes = folder.path().join("notes.gguf");
    std::fs::write(&notes, "Dear diary").unwrap();
    refused(["rm".as_ref(), notes.as_os_str()], &["notes.gguf is not a GGUF file"]);
    assert!(notes.exists());
}

#[test]
fn prompts_that_do_not_fit() {
    let model = model("mixtral-q4_k_m");
    let run = |args: &[&str], words: &[&str]| {
        let given = ["run", model.to_str().unwrap()];
        refused(given.iter().chain(args), words);
    };
    run(&[""], &["prompt is empty"]);
    run(&["Hello there, you", "--ctx-size", "2"], &["context of 2", "shorten", "larger context"]);
    run(&[&"word ".repeat(5000)], &["tokens do not fit the 2048", "shorten"]);
    run(&[&"word ".repeat(9000)], &["more than 26624 bytes", "context of 2048", "shorten"]);
    run(&["Hello", "--ctx-size", "99999999"], &["99999999", "2048"]);
    run(&["Hello", "--temp=-1"], &["temperature"]);
}

#[test]
fn token_files_that_are_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let model = model("mixtral-q4_k_m");
    let logits = |tokens: &str, words: &[&str]| {
        let file = folder.path().join("tokens.json");
        let out = folder.path().join("out.npy");
        std::fs::write(&file, tokens).unwrap();
        refused(
            [
                "logits".as_ref(),
                model.as_os_str(),
                "--tokens".as_ref(),
                file.as_os_str(),
                "--out".as_ref(),
                out.as_os_str(),
            ],
            words,
        );
        assert!(!Path::exists(&out), "a refused request left a file");
    };
    logits(r#"{"ids": [1, 512]}"#, &["token 512", "vocabulary of 512"]);
    logits(r#"{"ids": []}"#, &["no token"]);
    logits(r#"{"tokens": [1]}"#, &["ids"]);
    logits("not JSON", &["tokens.json"]);
}

const TINY: Tiny = Tiny { n_layer: 2, n_head: 2, head_dim: 16, n_ctx: 64 };
const TEMPLATE: &str = "{% for m in messages %}{{ m.content }}{% endfor %}";

#[test]
fn a_prompt_without_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    TINY.write_with_template(&path, TEMPLATE);
    refused(["run".as_ref(), path.as_os_str(), "\u{e9}\u{e8}".as_ref()], &["no tokens"]);
}

/// What the context cannot hold is not even read.
#[test]
fn endless_input() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    TINY.write_with_template(&path, TEMPLATE);
    for (command, words) in [
        ("run", &["more than 832 bytes", "context of 64 tokens"][..]),
        ("chat", &["more than the 832 bytes"]),
    ] {
        let mut process = Command::new(program("moewe"))
            .arg(command)
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = process.stdin.take().unwrap();
        let part = [b'a'; 1 << 16];
        let n_parts = (0..1 << 10).take_while(|_| stdin.write_all(&part).is_ok()).count();
        drop(stdin);
        let output = process.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(words.iter().all(|word| stderr.contains(word)), "{stderr}");
        // What fits a pipe, whoever reads it.
        assert!(n_parts < 32, "{command} read {n_parts} parts");
    }
}

/// Weights that compute infinities or NaNs are named by every command, even where
/// a softmax could hide them.
#[test]
fn weights_that_are_not_finite() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    TINY.write_with_template(&path, TEMPLATE);
    let sound = std::fs::read(&path).unwrap();
    let tensors = Gguf::read(&path).unwrap().header.tensors;
    let (tokens, out) = (folder.path().join("tokens.json"), folder.path().join("logits.npy"));
    for (tensor, ids, words) in [
        ("token_embd", "[0]", &["embedding of token 0", "token_embd.weight"][..]),
        ("token_embd", "[5, 6]", &["logit of token 0", "token_embd.weight"]),
        ("blk.1.attn_q", "[5, 6]", &["layer 1", "blk.1.attn"]),
        ("blk.0.attn_k", "[5, 6]", &["layer 0", "blk.0.attn"]),
        ("blk.1.attn_v", "[5, 6]", &["layer 1", "blk.1.attn"]),
        ("blk.0.ffn_gate", "[5, 6]", &["layer 0", "blk.0.ffn"]),
        ("blk.1.ffn_down", "[5, 6]", &["layer 1", "blk.1.ffn"]),
    ] {
        let at = tensors[&format!("{tensor}.weight")].offset as usize;
        std::fs::write(&tokens, format!("{{\"ids\": {ids}}}")).unwrap();
        for number in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut damaged = sound.clone();
            damaged[at..at + 4].copy_from_slice(&number.to_le_bytes());
            std::fs::write(&path, damaged).unwrap();
            let words = [words, &["not finite", "download the model again"]].concat();
            let [path, tokens, out] = [&path, &tokens, &out].map(|path| path.to_str().unwrap());
            refused(["logits", path, "--tokens", tokens, "--out", out], &words);
            assert!(!Path::new(out).exists(), "{tensor}: {number}");
        }
        refused(
            ["bench", path.to_str().unwrap(), "-p", "8", "-n", "4", "-r", "1"],
            &["not finite"],
        );
    }
}
