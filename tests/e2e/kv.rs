//! Formats of keys and values, and contexts longer than trained.

use std::path::{Path, PathBuf};
use std::rc::Rc;

#[cfg(target_os = "linux")]
use moewe::MemoryOptions;
use moewe::{Engine, ErrorKind, Guest, KvFormat, Model, ModelOptions, RopeScaling, SessionOptions};
use moewe_engine::native::Folder;
use moewe_models::Silent;
use moewe_models::generate::{Family, Quantization, generate_small};
use moewe_tests::moewe;
use moewe_tests::tiny::Tiny;

/// More than a chunk of the cache.
fn tokens() -> Vec<u32> {
    (0..75).map(|i| i * 37 % 500).collect()
}

/// The bits of the logits behind a batch, and behind each of a few tokens more.
fn bits(engine: &Engine, path: &Path, options: ModelOptions) -> Vec<u32> {
    let model = Model::open(engine, path, options).unwrap();
    let mut session = model.session(SessionOptions::default()).unwrap();
    let tokens = tokens();
    let (prompt, rest) = tokens.split_at(70);
    let mut bits = Vec::new();
    for tokens in std::iter::once(prompt).chain(rest.chunks(1)) {
        session.feed(tokens).unwrap();
        bits.extend(session.logits().unwrap().into_iter().map(f32::to_bits));
    }
    bits
}

/// The same of the engine, built natively, token by token.
fn native_bits(path: &Path, kv_format: moewe_engine::KvFormat) -> Vec<u32> {
    let (folder, name) = Folder::of(path).unwrap();
    let options = moewe_engine::LoadOptions { kv_format, ..Default::default() };
    let model = moewe_engine::Model::load(&folder, &name, u64::MAX, &options).unwrap();
    let mut context = moewe_engine::Context::new(Rc::new(model), None).unwrap();
    let mut bits = Vec::new();
    for (i, token) in tokens().into_iter().enumerate() {
        context.feed(&[token]).unwrap();
        if i >= 69 {
            bits.extend(context.logits().unwrap().iter().map(|x| x.to_bits()));
        }
    }
    bits
}

fn small_model() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    generate_small(&path, Family::Qwen3Moe, Quantization::Q4KM, 1, &mut Silent).unwrap();
    (folder, path)
}

/// Whatever the format, in any guest, with any threads, within a budget and without.
#[test]
fn a_format_gives_the_same_bits_everywhere() {
    let (_folder, path) = small_model();
    let engine = Engine::new().unwrap();
    let mut of_formats = Vec::new();
    for (format, native) in [
        (KvFormat::F32, moewe_engine::KvFormat::F32),
        (KvFormat::F16, moewe_engine::KvFormat::F16),
        (KvFormat::Q8_0, moewe_engine::KvFormat::Q8_0),
    ] {
        let expected = native_bits(&path, native);
        for guest in [Guest::Bits32, Guest::Bits64] {
            for threads in if cfg!(target_os = "linux") { &[1, 3][..] } else { &[1] } {
                let mut options = ModelOptions::default();
                (options.guest, options.threads) = (Some(guest), *threads);
                options.kv_format = format;
                let got = bits(&engine, &path, options.clone());
                assert!(got == expected, "{format:?}, {guest:?}, {threads} threads");
                #[cfg(target_os = "linux")]
                {
                    options.memory = Some(MemoryOptions::new(4 << 30));
                    let got = bits(&engine, &path, options);
                    assert!(got == expected, "{format:?}, {guest:?}, {threads}, within a budget");
                }
            }
        }
        of_formats.push(expected);
    }
    assert!(of_formats[0] != of_formats[1] && of_formats[1] != of_formats[2]);
}

/// What a session takes, and what a budget foresees.
#[test]
fn fewer_bits_take_less_memory() {
    let tiny = Tiny { n_layer: 2, n_head: 2, head_dim: 64, n_ctx: 256 };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    tiny.write(&path);
    let engine = Engine::new().unwrap();
    let numbers = 2 * 2 * 2 * 64;
    let expected = [4 * numbers, 2 * numbers, numbers / 32 * 34];
    for (format, bytes_per_token) in KvFormat::ALL.into_iter().zip(expected) {
        let mut options = ModelOptions::default();
        options.kv_format = format;
        #[cfg(target_os = "linux")]
        {
            let needs = Model::memory_needs(&engine, &path, &options).unwrap();
            assert_eq!(needs.kv_bytes(65), 128 * bytes_per_token, "{format:?}");
        }
        let model = Model::open(&engine, &path, options).unwrap();
        assert_eq!(model.info().kv_bytes_per_token, bytes_per_token, "{format:?}");
        let mut session = model.session(SessionOptions::default()).unwrap();
        session.feed(&[1; 65]).unwrap();
        assert_eq!(session.usage().unwrap().kv_bytes, 128 * bytes_per_token, "{format:?}");
    }
}

/// A model that was trained for contexts of 32 tokens.
fn short_model() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    Tiny { n_layer: 1, n_head: 2, head_dim: 32, n_ctx: 32 }.write(&path);
    (folder, path)
}

#[test]
fn contexts_are_as_long_as_positions_are_scaled() {
    let (_folder, path) = short_model();
    let engine = Engine::new().unwrap();
    let open = |rope_scaling| {
        let mut options = ModelOptions::default();
        options.rope_scaling = rope_scaling;
        Model::open(&engine, &path, options)
    };
    let with = |n_ctx| {
        let mut options = SessionOptions::default();
        options.n_ctx = Some(n_ctx);
        options
    };
    let plain = open(None).unwrap();
    assert_eq!((plain.info().n_ctx_train, plain.info().n_ctx_max), (32, 32));
    let error = plain.session(with(64)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("--rope-scaling yarn --rope-factor 2"), "{error}");

    for scaling in [RopeScaling::Yarn { factor: 2.0 }, RopeScaling::Linear { factor: 2.0 }] {
        let scaled = open(Some(scaling)).unwrap();
        assert_eq!((scaled.info().n_ctx_train, scaled.info().n_ctx_max), (32, 64));
        let mut session = scaled.session(with(64)).unwrap();
        session.feed(&[1; 64]).unwrap();
        assert!(scaled.session(with(65)).is_err());
    }
    let error = open(Some(RopeScaling::Yarn { factor: 0.5 })).unwrap_err();
    assert!(error.to_string().contains("must be 1 to 1024"), "{error}");
}

#[test]
fn who_leaves_the_training_behind_is_warned() {
    let (folder, path) = short_model();
    let (tokens, out) = (folder.path().join("t.json"), folder.path().join("l.npy"));
    std::fs::write(&tokens, format!("{{\"ids\": {:?}}}", [1; 40])).unwrap();
    let logits = |more: &[&str]| {
        let given = ["logits".as_ref(), path.as_os_str(), "--tokens".as_ref(), tokens.as_os_str()];
        let given = given.into_iter().chain(["--out".as_ref(), out.as_os_str()]);
        let output = moewe(given.chain(more.iter().map(AsRef::as_ref)));
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let (done, told) = logits(&["--kv", "q8_0", "--rope-scaling", "yarn", "--rope-factor", "2"]);
    assert!(done, "{told}");
    assert!(told.contains("warning: a context of 40 tokens is longer than the 32"), "{told}");
    for (more, words) in [
        (&["--rope-scaling", "yarn"][..], "--rope-scaling yarn needs --rope-factor"),
        (&["--rope-scaling", "none", "--rope-factor", "2"], "takes no --rope-factor"),
        (&["--rope-factor", "2"], "--rope-scaling"),
        (&["--kv", "q4_0"], "q8_0"),
        (&["--rope-scaling", "yarn", "--rope-factor", "0"], "must be 1 to 1024"),
    ] {
        let (done, told) = logits(more);
        assert!(!done && told.contains(words), "{more:?}: {told}");
    }
}
