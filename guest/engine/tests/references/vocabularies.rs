//! Real vocabularies, with texts and what llama.cpp makes of them.

use std::fs;
use std::path::{Path, PathBuf};

use moewe_engine::ErrorKind;
use moewe_engine::tokenizer::Tokenizer;
use moewe_fixtures::llama_cpp;
use moewe_gguf::Gguf;

/// Vocabularies whose kind of tokenizer is of no use here: those of BERT.
const OF_ENCODERS: [&str; 2] = ["bert-bge", "nomic-bert-moe"];

fn vocabularies(llama_cpp: &Path) -> Vec<(String, PathBuf)> {
    let files = llama_cpp.join("models").read_dir().unwrap();
    let mut all: Vec<_> = files
        .filter_map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name()?.to_str()?.strip_prefix("ggml-vocab-")?;
            Some((name.strip_suffix(".gguf")?.to_owned(), path))
        })
        .collect();
    all.sort();
    all
}

/// Texts beside a vocabulary, and their tokens; nothing if there are none.
fn cases(path: &Path) -> Vec<(String, Vec<u32>)> {
    let beside = |suffix| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        fs::read_to_string(name)
    };
    let (Ok(texts), Ok(lines)) = (beside(".inp"), beside(".out")) else { return Vec::new() };
    let texts = texts.split_terminator("\n__ggml_vocab_test__\n");
    let tokens = lines.lines().map(|line| {
        line.split_whitespace().map(|token| token.parse().unwrap()).collect::<Vec<u32>>()
    });
    let cases: Vec<_> = texts.map(String::from).zip(tokens).collect();
    assert_eq!(cases.len(), lines.lines().count(), "{}", path.display());
    cases
}

#[test]
fn vocabularies_give_the_tokens_of_llama_cpp() {
    let Some(llama_cpp) = llama_cpp() else { return };
    let (mut n, mut failures) = (0, Vec::new());
    for (name, path) in vocabularies(&llama_cpp) {
        let metadata = Gguf::read(&path).unwrap().header.metadata;
        let tokenizer = match Tokenizer::from_metadata(&metadata) {
            Err(error) if OF_ENCODERS.contains(&name.as_str()) => {
                assert_eq!(error.kind(), ErrorKind::Unsupported, "{name}: {error}");
                continue;
            }
            tokenizer => tokenizer.unwrap_or_else(|e| panic!("{name}: {e}")).unwrap(),
        };
        for (text, expected) in cases(&path) {
            let tokens = tokenizer.encode(&text, false, false).unwrap();
            n += 1;
            if tokens != expected {
                failures.push(format!("{name}: {text:?}\n {tokens:?}\n {expected:?}"));
            }
        }
    }
    println!("{} of {n} texts", n - failures.len());
    assert!(failures.is_empty(), "{} of {n}:\n{}", failures.len(), failures.join("\n"));
    assert!(n >= 600, "only {n} texts");
}
