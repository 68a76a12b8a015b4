//! Tokenizers, chat templates and the sampler against references, and on
//! vocabularies made by hand.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use moewe_engine::gguf::{Gguf, Metadata};
use moewe_engine::tokenizer::{TEXT_BYTES_MAX, TextStream, Tokenizer};
use moewe_engine::weights::{Source, Weights, Window};
use moewe_engine::{Error, ErrorKind, Result};

/// Files of a folder.
struct Folder(PathBuf);

struct FileSource(File, u64);

/// A file in memory.
struct Bytes(Vec<u8>);

fn io_error(e: std::io::Error) -> Error {
    Error::new(ErrorKind::Weights, e.to_string())
}

impl Weights for Folder {
    fn open(&self, name: &str) -> Result<Box<dyn Source>> {
        let file = File::open(self.0.join(name)).map_err(io_error)?;
        let size = file.metadata().map_err(io_error)?.len();
        Ok(Box::new(FileSource(file, size)))
    }
}

impl Source for FileSource {
    fn size(&self) -> u64 {
        self.1
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.0.read_exact_at(out, offset).map_err(io_error)
    }

    fn window(&self, _: u64, _: usize) -> Result<Box<dyn Window>> {
        unreachable!("headers are read")
    }

    fn prefetch(&self, _: u64, _: u64) {}
}

impl Weights for Bytes {
    fn open(&self, _: &str) -> Result<Box<dyn Source>> {
        Ok(Box::new(Bytes(self.0.clone())))
    }
}

impl Source for Bytes {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        out.copy_from_slice(&self.0[offset as usize..][..out.len()]);
        Ok(())
    }

    fn window(&self, _: u64, _: usize) -> Result<Box<dyn Window>> {
        unreachable!("headers are read")
    }

    fn prefetch(&self, _: u64, _: u64) {}
}

/// Metadata made by hand, as bytes of GGUF.
#[derive(Default)]
struct Pairs {
    n: u64,
    bytes: Vec<u8>,
}

impl Pairs {
    fn key(mut self, key: &str, type_id: u32) -> Self {
        self.n += 1;
        self.string(key);
        self.bytes.extend(type_id.to_le_bytes());
        self
    }

    fn string(&mut self, s: &str) {
        self.bytes.extend((s.len() as u64).to_le_bytes());
        self.bytes.extend(s.as_bytes());
    }

    fn str(self, key: &str, value: &str) -> Self {
        let mut pairs = self.key(key, 8);
        pairs.string(value);
        pairs
    }

    fn u32(self, key: &str, value: u32) -> Self {
        let mut pairs = self.key(key, 4);
        pairs.bytes.extend(value.to_le_bytes());
        pairs
    }

    fn bool(self, key: &str, value: bool) -> Self {
        let mut pairs = self.key(key, 7);
        pairs.bytes.push(value.into());
        pairs
    }

    fn array(self, key: &str, type_id: u32, n: usize) -> Self {
        let mut pairs = self.key(key, 9);
        pairs.bytes.extend(type_id.to_le_bytes());
        pairs.bytes.extend((n as u64).to_le_bytes());
        pairs
    }

    fn strs<S: AsRef<str>>(self, key: &str, values: &[S]) -> Self {
        let mut pairs = self.array(key, 8, values.len());
        for value in values {
            pairs.string(value.as_ref());
        }
        pairs
    }

    fn i32s(self, key: &str, values: &[i32]) -> Self {
        let mut pairs = self.array(key, 5, values.len());
        pairs.bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        pairs
    }

    fn f32s(self, key: &str, values: &[f32]) -> Self {
        let mut pairs = self.array(key, 6, values.len());
        pairs.bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        pairs
    }

    fn metadata(self) -> Metadata {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(0u64.to_le_bytes());
        file.extend(self.n.to_le_bytes());
        file.extend(self.bytes);
        Gguf::open(&Bytes(file), "made-by-hand.gguf").expect("a sound header").header.metadata
    }
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn open(path: &Path) -> Metadata {
    let folder = Folder(path.parent().expect("a folder").to_owned());
    let name = path.file_name().and_then(|n| n.to_str()).expect("a file's name");
    Gguf::open(&folder, name).unwrap_or_else(|e| panic!("{e}")).header.metadata
}

fn tokenizer(metadata: &Metadata) -> Tokenizer {
    Tokenizer::from_metadata(metadata).unwrap_or_else(|e| panic!("{e}")).expect("a tokenizer")
}

/// A reference file, or a word on stderr that it is absent.
fn golden(name: &str) -> Option<serde_json::Value> {
    let path = root().join("../shared/golden").join(name);
    match std::fs::read(&path) {
        Ok(text) => Some(serde_json::from_slice(&text).expect("JSON")),
        Err(e) => {
            eprintln!("SKIPPED: {}: {e}", path.display());
            None
        }
    }
}

/// The SmolLM2 file, or a word on stderr that it is absent.
fn smollm2() -> Option<Metadata> {
    let path = std::env::var_os("MOEWE_SMOLLM2").map_or_else(
        || root().join("target/models/SmolLM2-135M-Instruct.Q4_1.gguf"),
        PathBuf::from,
    );
    if !path.exists() {
        eprintln!("SKIPPED: {} is absent; set MOEWE_SMOLLM2 to the file", path.display());
        return None;
    }
    Some(open(&path))
}

fn ids(value: &serde_json::Value) -> Vec<u32> {
    value.as_array().expect("ids").iter().map(|v| v.as_u64().expect("an id") as u32).collect()
}

#[test]
fn smollm2_tokens_equal_the_reference() {
    let (Some(metadata), Some(golden)) = (smollm2(), golden("smollm2.json")) else { return };
    let tokenizer = tokenizer(&metadata);
    for case in golden["cases"].as_array().expect("cases") {
        let text = case["text"].as_str().expect("a text");
        let expected = ids(&case["ids"]);
        assert_eq!(tokenizer.encode(text, true, true).unwrap(), expected, "{text:?}");
        assert_eq!(tokenizer.decode(&expected, true).unwrap(), text);
        if let Some(greedy) = case.get("greedy_24") {
            assert_eq!(tokenizer.decode(&ids(greedy), true).unwrap(), case["greedy_text"]);
        }
    }
}

#[test]
fn golden_models_tokenize_their_text() {
    let Some(golden) = golden("tokens.json") else { return };
    let path = root().join("../shared/golden/mixtral-f16.gguf");
    let tokenizer = tokenizer(&open(&path));
    let text = golden["text"].as_str().expect("a text");
    let mut tokens = tokenizer.encode(text, false, false).unwrap();
    tokens.truncate(32);
    assert_eq!(tokens, ids(&golden["ids"]));
}

/// Runs over a folder of vocabularies (`NAME.gguf`) with texts (`NAME.gguf.inp`,
/// separated by a line `__ggml_vocab_test__`) and their tokens
/// (`NAME.gguf.out`, a line for each text), if the environment names one.
#[test]
fn vocabulary_fixtures_match() {
    let Some(folder) = std::env::var_os("MOEWE_VOCAB_FIXTURES") else {
        eprintln!("SKIPPED: MOEWE_VOCAB_FIXTURES names no folder");
        return;
    };
    let mut n_texts = 0;
    let mut failures = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|e| e != "gguf") {
            continue;
        }
        let metadata = open(&path);
        let tokenizer = match Tokenizer::from_metadata(&metadata) {
            Ok(tokenizer) => tokenizer.expect("a tokenizer"),
            Err(e) if e.kind() == ErrorKind::Unsupported => {
                eprintln!("{}: {e}", path.display());
                continue;
            }
            Err(e) => panic!("{}: {e}", path.display()),
        };
        let beside = |suffix| {
            let mut name = path.clone().into_os_string();
            name.push(suffix);
            std::fs::read_to_string(name)
        };
        let (Ok(texts), Ok(lines)) = (beside(".inp"), beside(".out")) else { continue };
        let texts: Vec<&str> = texts.split_terminator("\n__ggml_vocab_test__\n").collect();
        assert_eq!(texts.len(), lines.lines().count());
        for (text, line) in texts.iter().zip(lines.lines()) {
            let expected: Vec<u32> = line.split_whitespace().map(|t| t.parse().unwrap()).collect();
            let tokens = tokenizer.encode(text, false, false).unwrap();
            n_texts += 1;
            if tokens != expected {
                failures.push(format!("{}: {text:?}\n {tokens:?}\n {expected:?}", path.display()));
            }
        }
    }
    assert!(failures.is_empty(), "{} of {n_texts}:\n{}", failures.len(), failures.join("\n"));
    assert!(n_texts > 0, "the folder holds no fixture");
}

#[test]
fn zz_speed() {
    let dir = std::env::var("MOEWE_VOCAB_FIXTURES").unwrap();
    for name in ["gpt-2", "qwen2", "llama-bpe", "llama-spm", "gemma-4", "deepseek-llm"] {
        let m = open(Path::new(&format!("{dir}/ggml-vocab-{name}.gguf")));
        let t0 = std::time::Instant::now();
        let t = tokenizer(&m);
        let load = t0.elapsed();
        for (what, text) in [
            ("prose", "The quick brown fox, 123 jumps over it's lazy dog. ".repeat(20000)),
            ("a", "a".repeat(1 << 20)),
            ("space", " ".repeat(1 << 20)),
            (
                "rand",
                (0..1u32 << 20)
                    .map(|i| char::from(97 + (i.wrapping_mul(2654435761) >> 24) as u8 % 26))
                    .collect(),
            ),
        ] {
            let t1 = std::time::Instant::now();
            let n = t.encode(&text, false, false).unwrap();
            eprintln!("{name} load {load:?} {what}: {:?} {} tokens", t1.elapsed(), n.len());
            assert_eq!(t.decode(&n, false).unwrap(), text);
        }
    }
}
