//! A context gives the same bits however its tokens get into it.

use std::path::Path;
use std::rc::Rc;

use moewe_engine::native::Folder;
use moewe_engine::{Context, LoadOptions, Model};
use moewe_fixtures::{TOKENS, model};

fn load(path: &Path, window_bytes_max: u64) -> Rc<Model> {
    let (folder, name) = Folder::of(path).unwrap();
    Rc::new(
        Model::load(&folder, &name, window_bytes_max, &LoadOptions::default())
            .unwrap_or_else(|e| panic!("{e}")),
    )
}

fn logits(model: Rc<Model>, tokens: &[u32]) -> Vec<Vec<f32>> {
    let mut context = Context::new(model, None).unwrap();
    let step = |&token: &u32| {
        context.feed(&[token]).unwrap();
        context.logits().unwrap().to_vec()
    };
    tokens.iter().map(step).collect()
}

#[test]
fn a_batch_gives_the_bits_of_single_tokens() {
    for name in [
        "mixtral-q4_k_m",
        "qwen2moe-q8_0",
        "olmoe-f16",
        "dsv3-q4_k_m",
        "deepseekv2-f16",
        "gptoss-q8_0",
        "gemma3-q4_k_m",
        "gemma4-f16",
        "llama4-q4_k_m",
        "phi3-q8_0",
    ] {
        let model = load(&model(name), u64::MAX);
        let single = logits(model.clone(), &TOKENS);
        let mut context = Context::new(model, None).unwrap();
        context.feed(&TOKENS).unwrap();
        assert_eq!(context.logits().unwrap(), single.last().unwrap(), "{name}");
    }
}

/// Across chunks of the KV cache, and with as many tokens that heads take turns.
#[test]
fn batches_of_any_length_give_the_same_bits() {
    let text: Vec<u32> = (0..300).map(|i| i * 37 % 500).collect();
    for name in ["dsv3-q4_k_m", "deepseekv2-q8_0", "phi3-q4_k_m"] {
        let model = load(&model(name), u64::MAX);
        let behind = |lengths: &[usize]| {
            let mut context = Context::new(model.clone(), None).unwrap();
            let mut rest = &text[..];
            for &n in lengths {
                let (batch, later) = rest.split_at(n);
                context.feed(batch).unwrap();
                rest = later;
            }
            context.logits().unwrap().to_vec()
        };
        let all = behind(&[300]);
        for lengths in [&[150, 150][..], &[299, 1], &[1, 2, 60, 1, 70, 166], &[256, 44]] {
            assert_eq!(behind(lengths), all, "{name}, {lengths:?}");
        }
    }
}

/// So many tokens that windows are full, and what was in them makes room.
#[test]
fn what_has_left_a_window_leaves_no_trace() {
    let text: Vec<u32> = (0..1300).map(|i| i * 37 % 500).collect();
    let other: Vec<u32> = (0..1310).map(|i| i * 53 % 500).collect();
    for name in ["gptoss-q8_0", "gemma4-q4_k_m"] {
        let model = load(&model(name), u64::MAX);
        let straight = |tokens: &[u32]| {
            let mut context = Context::new(model.clone(), None).unwrap();
            context.feed(tokens).unwrap();
            context.logits().unwrap().to_vec()
        };
        let all = straight(&text);
        for lengths in [&[1, 511, 788][..], &[590, 1, 1, 1, 707]] {
            let mut context = Context::new(model.clone(), None).unwrap();
            let mut rest = &text[..];
            for &n in lengths {
                let (batch, later) = rest.split_at(n);
                context.feed(batch).unwrap();
                rest = later;
            }
            assert_eq!(context.logits().unwrap(), all, "{name}, {lengths:?}");
        }
        // Back within what is held, and beyond it.
        for back in [1, 500, 800] {
            let n = text.len() - back;
            let mut context = Context::new(model.clone(), None).unwrap();
            context.feed(&text).unwrap();
            context.rewind(n).unwrap();
            context.feed(&other[n..n + 3]).unwrap();
            let want = straight(&[&text[..n], &other[n..n + 3]].concat());
            assert_eq!(context.logits().unwrap(), want, "{name}, back {back}");
        }
    }
}

/// The cache of a layer with a window does not grow with the context.
#[test]
fn windows_are_all_that_is_held() {
    let model = load(&model("gptoss-q8_0"), u64::MAX);
    let mut context = Context::new(model.clone(), None).unwrap();
    let per_token = model.info().kv_bytes_per_token;
    for (n, held) in [(64, 64), (512, 512), (576, 576), (640, 576), (2048, 576)] {
        let more = n - context.tokens().len();
        context.feed(&vec![7; more]).unwrap();
        // One layer holds all, the other a window of 16 and a batch.
        assert_eq!(context.kv_bytes(), per_token * (n as u64 + held), "{n} tokens");
    }
}

#[test]
fn experts_that_take_turns_give_the_same_bits() {
    let path = model("mixtral-q8_0");
    let all = logits(load(&path, u64::MAX), &TOKENS);
    // Room for the dense weights and about two experts.
    let few = logits(load(&path, 1_700_000), &TOKENS);
    assert_eq!(all, few);
}

#[test]
fn rewinding_forgets() {
    let model = load(&model("qwen3moe-q4_k_m"), u64::MAX);
    let straight = logits(model.clone(), &TOKENS);
    let mut context = Context::new(model, None).unwrap();
    context.feed(&[7; 90]).unwrap();
    context.rewind(0).unwrap();
    assert!(context.logits().is_err());
    context.feed(&TOKENS).unwrap();
    assert_eq!(context.logits().unwrap(), straight.last().unwrap());
}
