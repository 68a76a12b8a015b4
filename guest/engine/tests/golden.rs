//! The engine, natively, against reference logits of Hugging Face and
//! llama.cpp.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use moewe_engine::native::Folder;
use moewe_engine::{Context, Model};

const N_POSITIONS: usize = 32;
const N_VOCAB: usize = 512;

/// The reference models, unless they are absent.
fn golden() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/golden");
    if !path.is_dir() {
        eprintln!("SKIPPED: the reference models are not there: {}", path.display());
        return None;
    }
    Some(path)
}

fn load(path: &Path, window_bytes_max: u64) -> Rc<Model> {
    let (folder, name) = Folder::of(path).unwrap();
    Rc::new(Model::load(&folder, &name, window_bytes_max).unwrap_or_else(|e| panic!("{e}")))
}

fn tokens(golden: &Path) -> Vec<u32> {
    let text = std::fs::read_to_string(golden.join("tokens.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn logits(model: Rc<Model>, tokens: &[u32]) -> Vec<Vec<f32>> {
    let mut context = Context::new(model, None).unwrap();
    let step = |&token: &u32| {
        context.feed(&[token]).unwrap();
        context.logits().unwrap().to_vec()
    };
    tokens.iter().map(step).collect()
}

fn reference(path: &Path) -> Vec<Vec<f32>> {
    let bytes = std::fs::read(path).unwrap();
    let data = npyz::NpyFile::new(&bytes[..]).unwrap().into_vec::<f32>().unwrap();
    assert_eq!(data.len(), N_POSITIONS * N_VOCAB);
    data.chunks(N_VOCAB).map(<[f32]>::to_vec).collect()
}

fn argmax(x: &[f32]) -> usize {
    (0..x.len()).max_by(|&a, &b| x[a].total_cmp(&x[b])).unwrap()
}

fn log_softmax(x: &[f32]) -> Vec<f64> {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = x.iter().map(|x| f64::from(x - max).exp()).sum();
    x.iter().map(|x| f64::from(x - max) - sum.ln()).collect()
}

/// Mean Kullback-Leibler divergence of `got` from `want`, in nats.
fn mean_kl(want: &[Vec<f32>], got: &[Vec<f32>]) -> f64 {
    let kl = |(want, got): (&Vec<f32>, &Vec<f32>)| -> f64 {
        let (p, q) = (log_softmax(want), log_softmax(got));
        p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum()
    };
    want.iter().zip(got).map(kl).sum::<f64>() / want.len() as f64
}

fn check(name: &str) {
    let Some(golden) = golden() else { return };
    let tokens = tokens(&golden);
    let path = |suffix: &str| golden.join(format!("{name}{suffix}"));

    let want = reference(&path(".logits.hf.npy"));
    let got = logits(load(&path("-f16.gguf"), u64::MAX), &tokens);
    let mut worst = 0.0f32;
    for (position, (want, got)) in want.iter().zip(&got).enumerate() {
        assert_eq!(argmax(want), argmax(got), "{name} F16: argmax at position {position}");
        worst = want.iter().zip(got).map(|(a, b)| (a - b).abs()).fold(worst, f32::max);
    }
    println!("{name} F16: largest difference {worst:.2e}");
    assert!(worst < 1e-2, "{name} F16: off by {worst}");

    for (quant, limit) in [("q8_0", 5e-3), ("q4_k_m", 2e-2)] {
        let want = reference(&path(&format!(".logits.lcpp-{quant}.npy")));
        let got = logits(load(&path(&format!("-{quant}.gguf")), u64::MAX), &tokens);
        let kl = mean_kl(&want, &got);
        println!("{name} {quant}: mean KL {kl:.2e}");
        assert!(kl < limit, "{name} {quant}: mean KL {kl}");
    }
}

#[test]
fn mixtral() {
    check("mixtral");
}

#[test]
fn qwen2moe() {
    check("qwen2moe");
}

#[test]
fn qwen3moe() {
    check("qwen3moe");
}

#[test]
fn olmoe() {
    check("olmoe");
}

#[test]
fn a_batch_gives_the_bits_of_single_tokens() {
    let Some(golden) = golden() else { return };
    let tokens = tokens(&golden);
    for name in ["mixtral-q4_k_m", "qwen2moe-q8_0", "olmoe-f16"] {
        let model = load(&golden.join(format!("{name}.gguf")), u64::MAX);
        let single = logits(model.clone(), &tokens);
        let mut context = Context::new(model, None).unwrap();
        context.feed(&tokens).unwrap();
        assert_eq!(context.logits().unwrap(), single.last().unwrap(), "{name}");
    }
}

#[test]
fn experts_that_take_turns_give_the_same_bits() {
    let Some(golden) = golden() else { return };
    let tokens = tokens(&golden);
    let path = golden.join("mixtral-q8_0.gguf");
    let all = logits(load(&path, u64::MAX), &tokens);
    // Room for the dense weights and about two experts.
    let few = logits(load(&path, 1_700_000), &tokens);
    assert_eq!(all, few);
}

#[test]
fn rewinding_forgets() {
    let Some(golden) = golden() else { return };
    let tokens = tokens(&golden);
    let model = load(&golden.join("qwen3moe-q4_k_m.gguf"), u64::MAX);
    let straight = logits(model.clone(), &tokens);
    let mut context = Context::new(model, None).unwrap();
    context.feed(&[7; 90]).unwrap();
    context.rewind(0).unwrap();
    assert!(context.logits().is_err());
    context.feed(&tokens).unwrap();
    assert_eq!(context.logits().unwrap(), straight.last().unwrap());
}
