//! `moewe logits` against reference logits of Hugging Face and llama.cpp.

use std::path::Path;
use std::rc::Rc;

use moewe_engine::native::Folder;
use moewe_engine::{Context, LoadOptions, Model};
use moewe_tests::{argmax, golden, mean_kl, moewe_ok, read_npy};

const N_POSITIONS: usize = 32;
const N_VOCAB: usize = 512;

/// The bytes of the NPY file, and the logits in it.
fn logits(golden: &Path, model: &str, weights: &str) -> (Vec<u8>, Vec<Vec<f32>>) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("logits.npy");
    let (model, tokens) = (golden.join(model), golden.join("tokens.json"));
    moewe_ok([
        "logits".as_ref(),
        model.as_os_str(),
        "--tokens".as_ref(),
        tokens.as_os_str(),
        "--out".as_ref(),
        out.as_os_str(),
        "--weights".as_ref(),
        weights.as_ref(),
    ]);
    let logits = read_npy(&out, N_VOCAB);
    assert_eq!(logits.len(), N_POSITIONS);
    (std::fs::read(&out).unwrap(), logits)
}

/// Runs a model both ways and compares with the engine built natively.
fn run(golden: &Path, model: &str) -> Vec<Vec<f32>> {
    let (attached, got) = logits(golden, model, "attach");
    let (read, _) = logits(golden, model, "read");
    assert!(attached == read, "{model}: attached and copied weights give different logits");

    let (folder, name) = Folder::of(&golden.join(model)).unwrap();
    let native = Rc::new(Model::load(&folder, &name, u64::MAX, &LoadOptions::default()).unwrap());
    let mut context = Context::new(native, None).unwrap();
    let text = std::fs::read_to_string(golden.join("tokens.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (id, got) in json["ids"].as_array().unwrap().iter().zip(&got) {
        context.feed(&[id.as_u64().unwrap() as u32]).unwrap();
        assert_eq!(context.logits().unwrap(), got, "{model}: native and sandboxed logits differ");
    }
    got
}

fn check(name: &str) {
    check_quantized(name, &[("q8_0", 5e-3), ("q4_k_m", 2e-2)]);
}

/// Also in these quantisations, as close to llama.cpp as that.
fn check_quantized(name: &str, quantizations: &[(&str, f64)]) {
    let Some(golden) = golden() else { return };
    let reference = |of: &str| read_npy(&golden.join(format!("{name}.logits.{of}.npy")), N_VOCAB);

    let want = reference("hf");
    let got = run(&golden, &format!("{name}-f16.gguf"));
    let mut worst = 0.0f32;
    for (position, (want, got)) in want.iter().zip(&got).enumerate() {
        assert_eq!(argmax(want), argmax(got), "{name} F16: argmax at position {position}");
        worst = want.iter().zip(got).map(|(a, b)| (a - b).abs()).fold(worst, f32::max);
    }
    println!("{name} F16: largest difference {worst:.1e}");
    assert!(worst < 1e-2, "{name} F16: off by {worst}");

    for &(quant, limit) in quantizations {
        let got = run(&golden, &format!("{name}-{quant}.gguf"));
        let kl = mean_kl(&reference(&format!("lcpp-{quant}")), &got);
        println!("{name} {quant}: mean KL {kl:.1e}");
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

/// Its experts are so narrow that quantising them tells more.
#[test]
fn granitemoe() {
    check_quantized("granitemoe", &[("q4_k_m", 5e-2)]);
}

#[test]
fn gemma3() {
    check("gemma3");
}

#[test]
fn gemma4() {
    check_quantized("gemma4", &[("q8_0", 5e-3), ("q4_k_m", 5e-2)]);
}

#[test]
fn llama4() {
    check_quantized("llama4", &[("q4_k_m", 5e-2)]);
}

#[test]
fn olmo2() {
    check_quantized("olmo2", &[]);
}

#[test]
fn llama3() {
    check_quantized("llama3", &[]);
}

#[test]
fn phi3() {
    check_quantized("phi3", &[]);
}
