//! As many experts as real models have: none is copied, and there are mappings to spare.

use std::path::Path;

use moewe::{Engine, Guest, MemoryOptions, Model, ModelOptions, SessionOptions, WeightStats};
use moewe_tests::runs_alone;
use moewe_tests::tiny::Tiny;

/// The layers and experts of Qwen3-30B-A3B, as narrow as they can be: 75 MB, 18432
/// matrices of experts.
const MANY: Tiny = Tiny { n_layer: 48, n_head: 1, head_dim: 4, n_ctx: 512 };
const N_EXPERT: u32 = 128;
const N_MATRICES: u64 = 48 * 128 * 3;

/// The most mappings of a process whose guests show files as a whole.
const N_WIDE_MAX: usize = 2000;

/// What a session computes, and what it asks of the weights for that; how many mappings
/// the process has then.
fn compute(engine: &Engine, path: &Path, options: ModelOptions) -> (Vec<u32>, WeightStats, usize) {
    let model = Model::open(engine, path, options).unwrap();
    let mut session = model.session(SessionOptions::default()).unwrap();
    // Twice through all experts: some may have made room for others.
    session.feed(&[5, 6, 7]).unwrap();
    session.feed(&[1]).unwrap();
    let logits = session.logits().unwrap().into_iter().map(f32::to_bits).collect();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    (logits, session.stats(), maps.lines().count())
}

#[test]
fn many_experts_are_mapped_and_none_is_copied() {
    if !runs_alone("windows::many_experts_are_mapped_and_none_is_copied") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("many.gguf");
    // Every token uses all of them.
    MANY.write_with_experts(&path, N_EXPERT, N_EXPERT);
    let max = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
    let n_max = max.trim().parse::<usize>().unwrap() / 2;
    let engine = Engine::new().unwrap();
    let mut expected = None;
    for (guest, budget) in [
        (Guest::Bits32, None),
        (Guest::Bits32, Some(4 << 30)),
        (Guest::Bits64, None),
        (Guest::Bits64, Some(4 << 30)),
    ] {
        for threads in [1, 2, 4, 8] {
            let mut options = ModelOptions::default();
            (options.guest, options.threads) = (Some(guest), threads);
            options.memory = budget.map(MemoryOptions::new);
            let (logits, stats, n_mappings) = compute(&engine, &path, options);
            let what = format!("{guest:?}, {budget:?}, {threads} threads");
            println!("{what}: {n_mappings} mappings, {stats:?}");
            assert!(logits == *expected.get_or_insert(logits.clone()), "{what}");
            assert!(logits.iter().any(|&x| x != logits[0]), "{what}");
            assert_eq!(stats.bytes_copied, 0, "{what}");
            if (guest, budget) == (Guest::Bits32, None) {
                assert!(stats.n_attach > N_MATRICES, "{what}: {stats:?}");
            }
            let is_whole = guest == Guest::Bits64 && budget.is_none();
            let n_max = if is_whole { N_WIDE_MAX } else { n_max };
            assert!(n_mappings < n_max, "{what}: {n_mappings} mappings");
        }
    }
}

/// Who wants copies gets them, and they are counted: the weights, and not the header.
#[test]
fn copies_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("few.gguf");
    let few = Tiny { n_layer: 2, ..MANY };
    few.write_with_experts(&path, 4, 4);
    let mut options = ModelOptions::default();
    options.weights = moewe::WeightsMode::Read;
    let model = Model::open(&Engine::new().unwrap(), &path, options).unwrap();
    let mut session = model.session(SessionOptions::default()).unwrap();
    session.feed(&[1, 2, 3]).unwrap();
    let stats = session.stats();
    // Each weight once, as each expert is used.
    let header = moewe_gguf::Gguf::read(&path).unwrap().header;
    let weights: u64 = header.tensors.values().map(|tensor| tensor.size).sum();
    assert_eq!(stats.bytes_copied, weights, "{stats:?}");
    assert!(stats.bytes_read > weights);
    assert_eq!(stats.n_attach, 0);
    assert_eq!(model.stats(), stats);
}
