//! `moewe pack`, and models that are opened by way of their packed copies.

use std::path::{Path, PathBuf};
use std::process::Command;

use moewe::{Engine, Model, ModelOptions, SessionOptions, WeightsMode};
use moewe_tests::{moewe, moewe_ok, program, smollm2};
use tempfile::TempDir;

const TOKENS: [u32; 6] = [1, 504, 275, 337, 302, 273];

/// A copy of a model in a folder of its own.
fn copy(model: &Path) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    // Not `copy`: the original may be read-only.
    std::fs::write(&path, std::fs::read(model).unwrap()).unwrap();
    (folder, path)
}

/// The file that is used when `path` is opened, and the bits of the logits
/// behind a batch and behind a token.
fn open(path: &Path, weights: WeightsMode, threads: usize) -> (PathBuf, Vec<u32>) {
    let mut options = ModelOptions::default();
    (options.weights, options.threads) = (weights, threads);
    let model = Model::open(&Engine::new().unwrap(), path, options).unwrap();
    let mut session = model.session(SessionOptions::default()).unwrap();
    let mut bits = Vec::new();
    for tokens in [&TOKENS[..5], &TOKENS[5..]] {
        session.feed(tokens).unwrap();
        bits.extend(session.logits().unwrap().into_iter().map(f32::to_bits));
    }
    (model.path().to_owned(), bits)
}

#[test]
fn a_packed_copy_is_used_and_computes_the_same() {
    for model in ["mixtral-q8_0", "qwen2moe-q4_k_m"] {
        let (folder, path) = copy(&moewe_tests::model(model));
        let (used, expected) = open(&path, WeightsMode::Attach, 1);
        assert_eq!(used, path);
        let printed = moewe_ok(["pack".as_ref(), path.as_os_str()]);
        let packed = folder.path().join("model.packed.gguf");
        assert_eq!(Path::new(printed.trim_end()), packed);
        for (weights, threads) in
            [(WeightsMode::Attach, 1), (WeightsMode::Attach, 3), (WeightsMode::Read, 2)]
        {
            for name in [&path, &packed] {
                let (used, got) = open(name, weights, threads);
                assert_eq!(used, packed);
                assert!(got == expected, "{model}, {weights:?}, {threads} threads");
            }
        }
        // The last byte of the weights.
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(open(&path, WeightsMode::Attach, 1).0, path);
        let inspected = moewe_ok(["inspect".as_ref(), path.as_os_str()]);
        assert!(inspected.contains("model.packed.gguf was made from another file"), "{inspected}");
    }
}

#[test]
fn greedy_text_is_the_same_from_a_packed_copy() {
    let Some(model) = smollm2() else { return };
    let folder = tempfile::tempdir().unwrap();
    let packed = folder.path().join("packed.gguf");
    moewe_ok(["pack".as_ref(), model.as_os_str(), "-o".as_ref(), packed.as_os_str()]);
    let run = |model: &Path| {
        let prompt = "The capital of France is";
        let given = ["run".as_ref(), model.as_os_str(), prompt.as_ref()];
        let more = ["--temp", "0", "-n", "24", "-t", "2"].map(str::as_ref);
        moewe_ok(given.iter().chain(&more))
    };
    assert_eq!(run(&packed), run(&model));
    let inspected = moewe_ok(["inspect".as_ref(), packed.as_os_str()]);
    assert!(inspected.contains("packed: ") && inspected.contains("Q8_0x8"), "{inspected}");
}

#[test]
fn a_damaged_packed_file_is_found() {
    let (folder, path) = copy(&moewe_tests::model("olmoe-q4_k_m"));
    moewe_ok(["pack".as_ref(), path.as_os_str()]);
    let packed = folder.path().join("model.packed.gguf");
    let check = || moewe(["pack".as_ref(), "--check".as_ref(), packed.as_os_str()]);
    assert!(check().status.success());
    let mut bytes = std::fs::read(&packed).unwrap();
    // The last expert ends within the last page.
    let at = bytes.len() - 4096;
    bytes[at] ^= 1;
    std::fs::write(&packed, bytes).unwrap();
    let output = check();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(message.contains("tensor blk.1.ffn_down.7.weight is damaged"), "{message}");
    // The header is looked at whenever the file is opened.
    let mut bytes = std::fs::read(&packed).unwrap();
    let at = bytes.windows(5).position(|text| text == b"olmoe").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&packed, bytes).unwrap();
    let output = moewe(["run".as_ref(), packed.as_os_str(), "Hello".as_ref()]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(message.contains("model.packed.gguf: its header is damaged"), "{message}");
}

#[test]
fn a_model_is_removed_with_its_copy() {
    let (folder, path) = copy(&moewe_tests::model("olmoe-q4_k_m"));
    moewe_ok(["pack".as_ref(), path.as_os_str()]);
    let size = |path: &Path| path.metadata().unwrap().len();
    let bytes = size(&path) + size(&folder.path().join("model.packed.gguf"));
    let printed = moewe_ok(["rm".as_ref(), path.as_os_str()]);
    let [copy, model, free] = printed.lines().collect::<Vec<_>>()[..] else { panic!("{printed}") };
    assert!(copy.starts_with("removed ") && copy.ends_with("/model.packed.gguf"), "{printed}");
    assert!(model.starts_with("removed ") && model.ends_with("/model.gguf"), "{printed}");
    let expected = format!("{:.2} MB are free", bytes as f64 / 1e6);
    assert_eq!(free, expected);
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);

    // By its name, in the folder of models.
    std::fs::write(folder.path().join("mine.gguf"), "GGUF").unwrap();
    let remove = || {
        let mut command = Command::new(program("moewe"));
        command.env("MOEWE_MODELS", folder.path()).args(["rm", "mine.gguf"]).output().unwrap()
    };
    assert!(remove().status.success());
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    let output = remove();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "error: no such file: mine.gguf\n");
}
