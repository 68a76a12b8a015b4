//! The guest with 64-bit addresses, and the one with 32-bit ones: the same to the bit.

use std::path::Path;

use moewe::{Engine, EngineOptions, Guest, MemoryOptions, Model, ModelOptions, SessionOptions};
use moewe_models::generate::{Family, Quantization, Shape, generate, generate_small};
use moewe_models::{Silent, pack};
use moewe_tests::{moewe_ok, smollm2};

/// How a model is run.
#[derive(Debug, Clone, Copy)]
struct Way {
    guest: Guest,
    threads: usize,
    budget_bytes: Option<u64>,
}

/// The bits of the logits behind a batch and behind some tokens.
fn bits(engine: &Engine, path: &Path, way: Way) -> Vec<u32> {
    let mut options = ModelOptions::default();
    (options.guest, options.threads) = (Some(way.guest), way.threads);
    options.memory = way.budget_bytes.map(MemoryOptions::new);
    let model = Model::open(engine, path, options).unwrap();
    assert_eq!(model.guest().0, way.guest);
    let mut session = model.session(SessionOptions::default()).unwrap();
    assert_eq!(session.guest().0, way.guest);
    let mut bits = Vec::new();
    for tokens in [&[1, 50, 275, 337, 302, 9, 7, 8][..], &[7], &[120]] {
        session.feed(tokens).unwrap();
        bits.extend(session.logits().unwrap().into_iter().map(f32::to_bits));
    }
    if way.guest == Guest::Bits64 && way.budget_bytes.is_none() {
        assert_eq!(model.stats().n_detach, 0, "files stay as a whole: {way:?}");
    }
    bits
}

#[test]
fn both_guests_compute_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, packed) = (folder.path().join("model.gguf"), folder.path().join("packed.gguf"));
    generate_small(&raw, Family::Qwen3Moe, Quantization::Q4KM, 1, &mut Silent).unwrap();
    pack::pack(&raw, &packed, true, &mut Silent).unwrap();
    let engine = Engine::new().unwrap();
    let mut unguarded = EngineOptions::default();
    unguarded.spectre_guard = false;
    let unguarded = Engine::with(unguarded).unwrap();
    let ways = [1, 3].into_iter().flat_map(|threads| {
        [None, Some(4 << 30)].map(|budget_bytes| {
            [Guest::Bits32, Guest::Bits64].map(|guest| Way { guest, threads, budget_bytes })
        })
    });
    let expected =
        bits(&engine, &raw, Way { guest: Guest::Bits32, threads: 1, budget_bytes: None });
    for way in ways.flatten() {
        for path in [&raw, &packed] {
            assert!(bits(&engine, path, way) == expected, "{}: {way:?}", path.display());
        }
        assert!(bits(&unguarded, &raw, way) == expected, "without the guard: {way:?}");
    }
}

#[test]
fn text_is_the_same_in_both_guests() {
    let Some(model) = smollm2() else { return };
    let run = |guest: &str| {
        let given = ["run".as_ref(), model.as_os_str(), "The capital of France is".as_ref()];
        let options = ["--temp", "0", "-n", "24", "-t", "2", "--guest", guest];
        moewe_ok(given.into_iter().chain(options.map(str::as_ref)))
    };
    assert_eq!(run("64"), run("32"));
}

#[test]
fn a_model_gets_the_guest_that_it_needs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    generate_small(&path, Family::Qwen3Moe, Quantization::Q4KM, 1, &mut Silent).unwrap();
    let guest_for = |options: &ModelOptions| Model::guest_for(&path, options).unwrap().0;
    let options = ModelOptions::default();
    assert_eq!(guest_for(&options), Guest::Bits32);
    // A hole behind the weights makes it large.
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(5 << 30).unwrap();
    assert_eq!(guest_for(&options), Guest::Bits64);
    let mut within = options.clone();
    within.memory = Some(MemoryOptions::new(1 << 30));
    assert_eq!(guest_for(&within), Guest::Bits32, "the budget leaves no more to address");
    let mut asked = options;
    asked.guest = Some(Guest::Bits32);
    assert_eq!(guest_for(&asked), Guest::Bits32);
    let printed = moewe_ok(["inspect".as_ref(), path.as_os_str()]);
    assert!(printed.contains("computed in the guest of 64 bits: the weights take"), "{printed}");
}

/// A context that nobody asked for is no reason for the slower guest.
#[test]
fn a_session_gets_the_guest_that_its_context_needs() {
    // 2 KiB of KV cache for a token: 8 GiB for all of them.
    const N_CTX: u32 = 1 << 22;
    let shape = Shape {
        n_layer: 4,
        n_embd: 256,
        n_head: 4,
        kv_heads: 2,
        head_dim: 64,
        n_expert: 4,
        n_expert_used: 2,
        n_ff_expert: 256,
        n_vocab: 400,
        n_ctx: N_CTX,
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("long.gguf");
    generate(&path, &shape, 1, &mut Silent).unwrap();
    let engine = Engine::new().unwrap();
    let logits = |n_ctx, threads| {
        let mut options = ModelOptions::default();
        (options.memory_max, options.threads) = (u64::MAX, threads);
        let model = Model::open(&engine, &path, options).unwrap();
        assert_eq!(model.guest().0, Guest::Bits32);
        assert_eq!(u64::from(N_CTX) * model.info().kv_bytes_per_token, 8 << 30);
        let mut session_options = SessionOptions::default();
        session_options.n_ctx = n_ctx;
        let mut session = model.session(session_options).unwrap();
        session.feed(&[1, 50, 275]).unwrap();
        (session.guest().0, session.logits().unwrap())
    };
    let (guest, expected) = logits(None, 1);
    assert_eq!(guest, Guest::Bits32);
    for (n_ctx, threads, guest) in
        [(N_CTX / 4, 1, Guest::Bits32), (N_CTX, 1, Guest::Bits64), (N_CTX, 4, Guest::Bits32)]
    {
        assert_eq!(logits(Some(n_ctx), threads), (guest, expected.clone()), "{n_ctx}, {threads}");
    }
}
