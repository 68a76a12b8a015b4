//! `moewe logits` against reference logits of Hugging Face and llama.cpp.

use std::path::Path;
use std::rc::Rc;

use moewe_engine::native::Folder;
use moewe_engine::{Context, KvFormat, LoadOptions, Model};
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
        // As the references were made.
        "--kv".as_ref(),
        "f32".as_ref(),
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
    let options = LoadOptions { kv_format: KvFormat::F32, ..LoadOptions::default() };
    let native = Rc::new(Model::load(&folder, &name, u64::MAX, &options).unwrap());
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
    check_from(name, quantizations, |quant| format!("lcpp-{quant}"));
}

/// Also in these quantisations, as close as that to the reference that `of` names.
fn check_from(name: &str, quantizations: &[(&str, f64)], of: impl Fn(&str) -> String) {
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
        let kl = mean_kl(&reference(&of(quant)), &got);
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
fn dsv3() {
    check("dsv3");
}

/// llama.cpp does not read how its YaRN is to be done.
#[test]
fn kimik2() {
    check_from("kimik2", &[("q8_0", 1e-1), ("q4_k_m", 1e-1)], |_| "hf".to_owned());
}

#[test]
fn deepseekv2() {
    check_quantized("deepseekv2", &[("q8_0", 5e-3), ("q4_k_m", 5e-2)]);
}

#[test]
fn glm4moelite() {
    check_quantized("glm4moelite", &[("q8_0", 5e-3), ("q4_k_m", 5e-2)]);
}

#[test]
fn glm4moe() {
    check_quantized("glm4moe", &[("q8_0", 5e-3), ("q4_k_m", 5e-2)]);
}

#[test]
fn dots1() {
    check_quantized("dots1", &[]);
}

#[test]
fn minimaxm2() {
    check_quantized("minimaxm2", &[("q4_k_m", 5e-2)]);
}

#[test]
fn ernie45moe() {
    check_quantized("ernie45moe", &[("q4_k_m", 5e-2)]);
}

#[test]
fn bailing2() {
    check_quantized("bailing2", &[]);
}

#[test]
fn hunyuanmoe() {
    check_quantized("hunyuanmoe", &[]);
}

#[test]
fn phimoe() {
    check_quantized("phimoe", &[]);
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

/// llama.cpp computes its quantised files otherwise than Hugging Face.
#[test]
fn gptoss() {
    check_from("gptoss", &[("q8_0", 1e-1), ("q4_k_m", 1e-1)], |_| "hf".to_owned());
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
