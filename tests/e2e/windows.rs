//! As many experts as real models have: none is copied, and there are mappings to spare.

use std::path::Path;

use moewe::{Engine, MemoryOptions, Model, ModelOptions, SessionOptions, WeightStats};
use moewe_tests::runs_alone;
use moewe_tests::tiny::{N_VOCAB, Tiny};

/// The layers and experts of Qwen3-30B-A3B, as narrow as they can be: 75 MB, 18432
/// matrices of experts.
const MANY: Tiny = Tiny { n_layer: 48, n_head: 1, head_dim: 4, n_ctx: 512 };
const N_EXPERT: u32 = 128;
const N_USED: u32 = 8;
/// Tokens after which each expert was used.
const N_TOKENS: u32 = 300;

/// What a session computes, and what it asks of the weights for that; how many mappings
/// the process has then.
fn compute(
    path: &Path,
    threads: usize,
    memory: Option<MemoryOptions>,
) -> (Vec<u32>, WeightStats, usize) {
    let mut options = ModelOptions::default();
    (options.threads, options.memory) = (threads, memory);
    let model = Model::open(&Engine::new().unwrap(), path, options).unwrap();
    let mut session = model.session(SessionOptions::default()).unwrap();
    let prompt: Vec<_> = (0..N_TOKENS).map(|i| i * 37 % N_VOCAB).collect();
    session.feed(&prompt).unwrap();
    // Once more, as some experts had to make room for others.
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
    MANY.write_with_experts(&path, N_EXPERT, N_USED);
    let max = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
    let n_max = max.trim().parse::<usize>().unwrap() / 2;
    let all = MemoryOptions::new(4 << 30);
    let mut expected = None;
    for memory in [None, Some(all)] {
        for threads in [1, 2, 4, 8] {
            let (logits, stats, n_mappings) = compute(&path, threads, memory.clone());
            println!("{threads} threads: {n_mappings} mappings, {stats:?}");
            assert!(logits == *expected.get_or_insert(logits.clone()), "{threads} threads");
            assert!(logits.iter().any(|&x| x != logits[0]));
            assert_eq!(stats.bytes_copied, 0, "{threads} threads");
            assert!(n_mappings < n_max, "{n_mappings} mappings, {threads} threads");
            if memory.is_none() {
                // All experts are shown, in turns if they must.
                assert!(stats.bytes_attached >= 3 * 4096 * 48 * 128, "{stats:?}");
            }
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
