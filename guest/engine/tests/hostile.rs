//! Damaged and hostile files: whatever their bytes, loading and running them
//! ends in an error of one line, and takes memory in proportion to the file.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};

use moewe_engine::chat::Message;
use moewe_engine::language_model::LanguageModel;
use moewe_engine::sampler::Sampling;
use moewe_engine::tokenizer::Tokenizer;
use moewe_engine::weights::{Source, Weights, Window};
use moewe_engine::{Error, ErrorKind, LoadOptions, Result};
use moewe_gguf::{ALIGNMENT, Gguf, TensorType, Value, Writer};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

const FAMILIES: [&str; 5] = ["mixtral", "qwen2moe", "qwen3moe", "olmoe", "granitemoe"];
/// What is added to the number of a tensor type for rows that are interleaved.
const PACKED: u32 = TensorType::Q4_0X4.id() - TensorType::Q4_0.id();
/// Mutations of each model.
const N_MUTATIONS: u64 = 250;
/// The largest single allocation that a file of 2 to 4 MiB may cause.
const ALLOCATION_BYTES_MAX: usize = 64 << 20;

/// The system's allocator, which remembers the largest request.
struct Watched;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Watched = Watched;

// SAFETY: all requests go to the system's allocator as they are.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(old, layout) }
    }
}

/// A file in memory.
#[derive(Clone)]
struct File(Rc<[u8]>);

struct Slice(Rc<[u8]>, Range<usize>);

impl Window for Slice {
    fn bytes(&self) -> &[u8] {
        &self.0[self.1.clone()]
    }
}

impl File {
    fn range(&self, offset: u64, length: usize) -> Result<Range<usize>> {
        let end = offset.checked_add(length as u64).filter(|&end| end <= self.size());
        let end = end.ok_or_else(|| Error::new(ErrorKind::Weights, "past the end"))?;
        Ok(offset as usize..end as usize)
    }
}

impl Weights for File {
    fn open(&self, name: &str) -> Result<Box<dyn Source>> {
        match name {
            "model.gguf" => Ok(Box::new(self.clone())),
            _ => Err(Error::new(ErrorKind::Weights, "there is one file only")),
        }
    }
}

impl Source for File {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        out.copy_from_slice(&self.0[self.range(offset, out.len())?]);
        Ok(())
    }

    fn window(&self, offset: u64, length: usize) -> Result<Box<dyn Window>> {
        Ok(Box::new(Slice(self.0.clone(), self.range(offset, length)?)))
    }

    fn prefetch(&self, _offset: u64, _length: u64) {}
}

/// A tensor as a header describes it.
#[derive(Clone)]
struct Tensor {
    name: String,
    dims: Vec<u64>,
    ty: u32,
    offset: u64,
}

/// A header taken apart, and the tensors' bytes.
#[derive(Clone)]
struct Parts {
    pairs: Vec<(String, Value)>,
    tensors: Vec<Tensor>,
    data: Rc<[u8]>,
}

impl Parts {
    fn of(file: &[u8]) -> Self {
        let gguf = Gguf::open("model.gguf", |_| Ok::<_, Error>(file)).unwrap();
        let data = gguf.header.header_bytes[0].next_multiple_of(ALIGNMENT);
        let tensors = gguf.header.tensors.values().map(|t| Tensor {
            name: t.name.clone(),
            dims: t.dims.to_vec(),
            ty: t.ty.id(),
            offset: t.offset - data,
        });
        Self {
            pairs: gguf.header.metadata.iter().map(|(k, v)| (k.to_owned(), v.clone())).collect(),
            tensors: tensors.collect(),
            data: file[data as usize..].into(),
        }
    }

    /// The header.
    fn header(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        self.pairs.iter().for_each(|(key, value)| writer.value(key, value));
        for Tensor { name, dims, ty, offset } in &self.tensors {
            writer.raw.tensor(name.as_bytes(), dims, *ty, *offset);
        }
        writer.padded()
    }

    fn file(&self) -> Vec<u8> {
        let mut out = self.header();
        out.extend_from_slice(&self.data);
        out
    }

    fn set(&mut self, key: &str, value: Value) {
        self.pairs.retain(|(k, _)| k != key);
        self.pairs.push((key.to_owned(), value));
    }

    fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|t| t.name == name).unwrap()
    }
}

/// What a file with these bytes comes to; a panic is passed on.
fn outcome(file: Vec<u8>) -> Result<()> {
    let model =
        LanguageModel::load(&File(file.into()), "model.gguf", 1 << 30, &LoadOptions::default())?;
    let sampling = Sampling {
        temperature: 0.8,
        top_k: 40,
        top_p: 0.95,
        min_p: 0.05,
        repeat_penalty: 1.1,
        repeat_last_n: 64,
        seed: 1,
    };
    let mut session = model.start(None, sampling)?;
    let mut tokens = vec![1];
    if let Ok(tokenizer) = model.tokenizer() {
        let ids = tokenizer.encode("Once upon a time <s> \u{e9}\n", true, true)?;
        tokenizer.decode(&ids, true)?;
        tokens.extend(ids.iter().take(2));
    }
    let message = Message { role: "user".to_owned(), content: "Hi!".to_owned() };
    // Without a template this is an error, and one that is expected.
    let _ = model.apply_chat_template(&[message], true);
    session.feed(&tokens)?;
    for _ in 0..3 {
        session.next()?;
    }
    Ok(())
}

/// The outcome, after checks that it is a decent one.
fn run(what: &str, file: Vec<u8>) -> Result<()> {
    LARGEST.store(0, Ordering::Relaxed);
    let outcome = catch_unwind(AssertUnwindSafe(|| outcome(file)));
    let outcome = outcome.unwrap_or_else(|_| panic!("{what}: panicked"));
    let largest = LARGEST.load(Ordering::Relaxed);
    assert!(largest <= ALLOCATION_BYTES_MAX, "{what}: {largest} bytes allocated at once");
    if let Err(e) = &outcome {
        let message = e.to_string();
        assert!((1..1100).contains(&message.chars().count()), "{what}: {message}");
        assert!(!message.contains(char::is_control), "{what}: {message:?}");
    }
    outcome
}

struct Random(Xoshiro256PlusPlus);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        (self.0.next_u64() % n as u64) as usize
    }

    fn one<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// A number that programs stumble over.
    fn number(&mut self) -> u64 {
        match self.below(4) {
            0 => self.0.next_u64() >> self.below(64),
            1 => (1u64 << self.below(64)).wrapping_sub(self.below(2) as u64),
            2 => self.below(600) as u64,
            _ => self.one(&[0, 1, 2, 3, 4, 8, 31, 32, 33, 64, 256, 512, u64::MAX, 1 << 31]),
        }
    }

    fn float(&mut self) -> f64 {
        let f32s = [1e-45, 3e38, 1e30, -1e30, 1e-30, 0.5, 1.0, 1.000_001, -1.0, 0.0, -0.0];
        match self.below(4) {
            0 => self.one(&[f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300, 1e-300]),
            1 => f64::from_bits(self.0.next_u64()),
            _ => self.one(&f32s),
        }
    }

    fn value(&mut self) -> Value {
        match self.below(9) {
            0 => Value::Bool(self.below(2) == 0),
            1 => Value::String(self.one(&["", "none", "yarn", "\u{1b}[2J\n", "gpt2"]).to_owned()),
            2 => Value::Ints((0..self.below(5)).map(|_| self.number() as i64).collect()),
            3 => Value::Floats((0..self.below(5)).map(|_| self.float() as f32).collect()),
            4 => Value::Float(self.float()),
            5 => Value::Int(self.number() as i64),
            _ => Value::Uint(self.number()),
        }
    }

    /// Another value of about the same kind.
    fn like(&mut self, value: &Value) -> Value {
        match value {
            Value::Uint(_) | Value::Int(_) => Value::Uint(self.number()),
            Value::Float(_) => Value::Float(self.float()),
            Value::Bool(b) => Value::Bool(!b),
            Value::Ints(a) if !a.is_empty() => {
                let mut a = a.clone();
                let at = self.below(a.len());
                match self.below(3) {
                    0 => a.truncate(at),
                    1 => a.iter_mut().for_each(|n| *n = at as i64 % 8),
                    _ => a[at] = self.number() as i64,
                }
                Value::Ints(a)
            }
            Value::Floats(a) if !a.is_empty() => {
                let mut a = a.clone();
                let at = self.below(a.len());
                a[at] = self.float() as f32;
                Value::Floats(a)
            }
            Value::String(s) => {
                let at = s.char_indices().nth(self.below(s.len() + 1)).map_or(0, |(i, _)| i);
                Value::String(s[..at].to_owned())
            }
            _ => self.value(),
        }
    }

    /// A file with a few faults.
    fn mutate(&mut self, parts: &Parts) -> Vec<u8> {
        let mut parts = parts.clone();
        let structural = self.below(4);
        for _ in 0..structural {
            let pair = self.below(parts.pairs.len());
            let tensor = self.below(parts.tensors.len());
            match self.below(15) {
                0 => drop(parts.pairs.remove(pair)),
                1 => parts.pairs[pair].1 = self.value(),
                2..=6 => parts.pairs[pair].1 = self.like(&parts.pairs[pair].1.clone()),
                7 => {
                    let from = self.below(parts.pairs.len());
                    parts.pairs[pair].0 = parts.pairs[from].0.clone();
                }
                8 => {
                    let architecture = parts.pairs.iter().find_map(|(k, v)| match v {
                        Value::String(s) if k == "general.architecture" => Some(s.clone()),
                        _ => None,
                    });
                    let key = self.one(&[
                        "rope.dimension_count",
                        "rope.freq_base",
                        "rope.scaling.factor",
                        "rope.scaling.attn_factor",
                        "rope.scaling.type",
                        "rope.scaling.original_context_length",
                        "attention.key_length",
                        "attention.head_count_kv",
                        "expert_weights_scale",
                        "expert_shared_feed_forward_length",
                    ]);
                    let key = format!("{}.{key}", architecture.unwrap_or_default());
                    let value = self.value();
                    parts.set(&key, value);
                }
                9 => {
                    let n = parts.pairs.iter().find_map(|(k, v)| match v {
                        Value::Strings(tokens) if k == "tokenizer.ggml.tokens" => {
                            Some(tokens.len())
                        }
                        _ => None,
                    });
                    let scores = (0..n.unwrap_or(1)).map(|_| self.below(100) as f32).collect();
                    let model = self.one(&["llama", "gemma4", "gpt2"]).to_owned();
                    parts.set("tokenizer.ggml.scores", Value::Floats(scores));
                    parts.set("tokenizer.ggml.model", Value::String(model));
                }
                10 => drop(parts.tensors.remove(tensor)),
                11 => {
                    let packed = self.one(&[0, PACKED]);
                    parts.tensors[tensor].ty = packed | self.below(40) as u32;
                }
                12 => {
                    let dim = self.below(4);
                    parts.tensors[tensor].dims[dim] = self.number();
                }
                13 => parts.tensors[tensor].offset = self.number() & !31,
                _ => {
                    let from = self.below(parts.tensors.len());
                    parts.tensors[tensor].name = parts.tensors[from].name.clone();
                }
            }
            if parts.pairs.is_empty() || parts.tensors.is_empty() {
                break;
            }
        }
        let header = parts.header().len();
        let mut file = parts.file();
        match self.below(6) {
            // Weights.
            0 => {
                for _ in 0..1 + self.below(20) {
                    let at = header + self.below(file.len() - header);
                    let end = file.len().min(at + 1 + self.below(300));
                    let byte = self.one(&[0, 0x7f, 0xff, 0x80, 0x7b, 1]);
                    file[at..end].fill(byte);
                }
            }
            // The header, bytewise.
            1 if structural == 0 => {
                for _ in 0..1 + self.below(3) {
                    let at = self.below(header);
                    file[at] = self.0.next_u64() as u8;
                }
            }
            2 if structural == 0 => {
                let at = self.below(header - 8);
                let number = self.number().to_le_bytes();
                file[at..at + 8].copy_from_slice(&number);
            }
            3 => {
                let past = if self.below(2) == 0 { header } else { file.len() };
                file.truncate(self.below(past));
            }
            _ => {}
        }
        file
    }
}

/// A sound file.
fn sound(family: &str) -> Vec<u8> {
    std::fs::read(moewe_fixtures::model(&format!("{family}-q4_k_m"))).unwrap()
}

#[test]
fn every_mutation_is_survived() {
    for name in FAMILIES {
        let parts = Parts::of(&sound(name));
        run(name, parts.file()).unwrap_or_else(|e| panic!("{name}, taken apart: {e}"));
        let mut sound = 0;
        for seed in 0..N_MUTATIONS {
            let mut random = Random(Xoshiro256PlusPlus::seed_from_u64(seed));
            let file = random.mutate(&parts);
            sound += u64::from(run(&format!("{name}, seed {seed}"), file).is_ok());
        }
        println!("{name}: {sound} of {N_MUTATIONS} mutations ran nevertheless");
        assert!((1..N_MUTATIONS).contains(&sound), "{name}: the mutations reach nothing");
    }
}

/// The error of the first model after a change.
fn error_after(change: impl FnOnce(&mut Parts)) -> Error {
    let mut parts = Parts::of(&sound("mixtral"));
    change(&mut parts);
    run("changed", parts.file()).expect_err("the model is not sound")
}

#[test]
fn products_past_32_bits_are_refused() {
    let error = error_after(|parts| {
        parts.set("llama.attention.head_count", Value::Uint(1 << 16));
        parts.set("llama.attention.head_count_kv", Value::Uint(1 << 16));
        parts.set("llama.attention.key_length", Value::Uint(1 << 16));
        parts.set("llama.attention.value_length", Value::Uint(1 << 16));
    });
    assert!(error.to_string().contains("65536 heads of 65536 numbers"), "{error}");
}

#[test]
fn too_many_layers_are_refused() {
    let error = error_after(|parts| parts.set("llama.block_count", Value::Uint(1025)));
    assert!(error.to_string().contains("`llama.block_count` is 1025"), "{error}");
}

#[test]
fn tensors_that_share_bytes_are_refused() {
    let error = error_after(|parts| {
        let offset = parts.tensor("blk.0.attn_norm.weight").offset;
        parts.tensor("blk.0.ffn_norm.weight").offset = offset;
    });
    assert!(error.to_string().contains("overlap"), "{error}");
}

#[test]
fn tensors_off_the_alignment_are_refused() {
    let error = error_after(|parts| parts.tensor("output.weight").offset += 1);
    assert!(error.to_string().contains("not at a multiple of 32"), "{error}");
}

#[test]
fn packed_tensors_that_cannot_be_are_refused() {
    let refused = |change: &dyn Fn(&mut Parts), words: &str| {
        let error = error_after(change);
        assert!(error.to_string().contains(words), "{error}");
    };
    refused(
        &|parts| {
            let embedding = parts.tensor("token_embd.weight");
            embedding.dims = vec![256, 510];
            embedding.ty |= PACKED;
        },
        "token_embd.weight of type Q4_Kx4 has 510 rows, not a multiple of 4; pack the original",
    );
    refused(
        &|parts| parts.tensor("blk.0.attn_norm.weight").ty = PACKED | TensorType::Q8_0.id(),
        "blk.0.attn_norm.weight of type Q8_0x4 has 1 rows, not a multiple of 4",
    );
    refused(
        &|parts| parts.tensor("blk.0.attn_q.weight").ty = PACKED | TensorType::F16.id(),
        "blk.0.attn_q.weight has type 1835991041, which is not known",
    );
    refused(
        &|parts| parts.set("moewe.packed.version", Value::Uint(1)),
        "is packed in layout 1, not 3; pack the original model again",
    );
}

#[test]
fn a_vocabulary_beyond_measure_is_refused() {
    let error = error_after(|parts| {
        parts.tensors.retain(|t| t.name == "token_embd.weight");
        parts.tensors[0].dims = vec![1, (1 << 21) + 1];
        parts.tensors[0].ty = TensorType::F16.id();
        parts.tensors[0].offset = 0;
        parts.data = vec![0; 5 << 20].into();
    });
    assert!(error.to_string().contains("a vocabulary of 2097153"), "{error}");
}

#[test]
fn scaling_that_overflows_is_refused() {
    let error = error_after(|parts| {
        parts.set("llama.rope.scaling.type", Value::String("linear".to_owned()));
        parts.set("llama.rope.scaling.factor", Value::Float(1e-45));
    });
    assert!(error.to_string().contains("RoPE scaling overflows"), "{error}");
}

#[test]
fn names_cannot_write_to_the_terminal() {
    let error = error_after(|parts| {
        parts.tensor("output.weight").name = "\u{1b}[2J\noutput".to_owned();
    });
    assert!(error.to_string().contains(r"\u{1b}[2J\noutput"), "{error}");
}

#[test]
fn activations_that_overflow_are_reported() {
    // The norm's weights are finite; what they make of the hidden state is not.
    let error = error_after(|parts| {
        let offset = parts.tensor("blk.0.ffn_norm.weight").offset as usize;
        let mut data = parts.data.to_vec();
        data[offset..offset + 1024].as_chunks_mut::<4>().0.fill(3e38f32.to_le_bytes());
        parts.data = data.into();
    });
    assert!(error.to_string().contains("the weights are damaged"), "{error}");
}

#[test]
fn little_room_for_weights_is_no_surprise() {
    let file = File(sound("mixtral").into());
    let mut messages = Vec::new();
    for room in (0..30).map(|i| i * 100_000) {
        match LanguageModel::load(&file, "model.gguf", room, &LoadOptions::default()) {
            Ok(_) => messages.push(String::new()),
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::OutOfMemory, "{e}");
                messages.push(e.to_string());
            }
        }
    }
    let starts = ["model.gguf: the weights that every token", "model.gguf: an expert takes", ""];
    for start in starts {
        assert!(messages.iter().any(|m| m.starts_with(start)), "{start}: {messages:?}");
    }
    assert_eq!(messages.last().unwrap(), "");
}

/// 8 MB of spaces are one word of as many symbols.
#[test]
fn a_text_of_one_word_is_tokenized_in_memory_of_its_size() {
    for (model, space) in [("gpt2", '\u{120}'), ("llama", '\u{2581}')] {
        let runs: Vec<String> = [1, 2, 4, 8, 16].map(|n| space.to_string().repeat(n)).to_vec();
        let merges: Vec<String> = runs[..4].iter().map(|run| format!("{run} {run}")).collect();
        let mut writer = Writer::default();
        writer.string("tokenizer.ggml.model", model);
        writer.string("tokenizer.ggml.pre", "gpt-2");
        writer.strings("tokenizer.ggml.tokens", &runs);
        writer.strings("tokenizer.ggml.merges", &merges);
        writer.f32s("tokenizer.ggml.scores", &[0.0, 1.0, 2.0, 3.0, 4.0]);
        writer.bool("tokenizer.ggml.add_space_prefix", false);
        writer.bool("tokenizer.ggml.add_bos_token", false);
        writer.value("tokenizer.ggml.unknown_token_id", &Value::Int(-1));
        let file = writer.bytes();
        let gguf = Gguf::open("model.gguf", |_| Ok::<_, Error>(&file[..])).unwrap();
        let tokenizer = Tokenizer::from_metadata(&gguf.header.metadata).unwrap().unwrap();
        assert_eq!(tokenizer.token_bytes_max(), 16, "{model}");
        let spaces = " ".repeat((8 << 20) - 8);
        LARGEST.store(0, Ordering::Relaxed);
        let tokens = tokenizer.encode(&spaces, false, false).unwrap();
        let largest = LARGEST.load(Ordering::Relaxed);
        // The last run is shorter, wherever it is.
        let n = |token| tokens.iter().filter(|&&t| t == token).count();
        assert_eq!((n(4), n(3), tokens.len()), ((8 << 20) / 16 - 1, 1, (8 << 20) / 16), "{model}");
        assert!(largest <= ALLOCATION_BYTES_MAX, "{model}: {largest} bytes allocated at once");
    }
}
