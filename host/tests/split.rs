//! A model split into two files computes what the whole one does.

use std::path::{Path, PathBuf};

use moewe::{Engine, ErrorKind, Model, ModelOptions, SessionOptions, WeightsMode};
use moewe_engine::gguf::{Gguf, TensorInfo};
use moewe_engine::native::Folder;
use moewe_models::Bar;
use moewe_models::pack::{copy_path, pack};

const ALIGNMENT: usize = 32;
/// The number of the type `u16` in metadata.
const U16: u32 = 2;

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// Writes a model as two files, every second tensor in each; answers their
/// paths.
fn split(path: &Path, folder: &Path) -> [PathBuf; 2] {
    let bytes = std::fs::read(path).unwrap();
    let (weights, name) = Folder::of(path).unwrap();
    let tensors = Gguf::open(&weights, &name).unwrap().header.tensors;
    let tensors: Vec<&TensorInfo> = tensors.values().collect();

    // The metadata lies between 24 bytes of numbers and the first tensor's
    // name.
    let find = |part: &[u8]| bytes.windows(part.len()).position(|w| w == part).unwrap();
    let metadata_end = tensors.iter().map(|t| find(&string(&t.name))).min().unwrap();
    let n_pairs = u64::from_le_bytes(bytes[16..24].try_into().unwrap());

    let paths = [1, 2].map(|i| folder.join(format!("model-{i:05}-of-00002.gguf")));
    for (no, path) in paths.iter().enumerate() {
        let mine: Vec<_> = tensors.iter().skip(no).step_by(2).collect();
        let (n_pairs, metadata) =
            if no == 0 { (n_pairs + 2, &bytes[24..metadata_end]) } else { (2, &[][..]) };
        let mut out = bytes[..8].to_vec();
        out.extend((mine.len() as u64).to_le_bytes());
        out.extend(n_pairs.to_le_bytes());
        out.extend(metadata);
        for (key, value) in [("split.no", no as u16), ("split.count", 2)] {
            out.extend(string(key));
            out.extend(U16.to_le_bytes());
            out.extend(value.to_le_bytes());
        }
        let mut data = Vec::new();
        for t in mine {
            out.extend(string(&t.name));
            out.extend((t.dims.len() as u32).to_le_bytes());
            out.extend(t.dims.iter().flat_map(|d| d.to_le_bytes()));
            out.extend(t.ty.id().to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            data.extend(&bytes[t.offset as usize..][..t.size as usize]);
            data.resize(data.len().next_multiple_of(ALIGNMENT), 0);
        }
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        std::fs::write(path, [out, data].concat()).unwrap();
    }
    paths
}

#[test]
fn a_split_model_computes_the_same() {
    let whole = moewe_fixtures::model("mixtral-q8_0");
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = split(&whole, folder.path());
    let engine = Engine::new().unwrap();
    let logits = |path: &Path, weights| {
        let mut options = ModelOptions::default();
        options.weights = weights;
        let model = Model::open(&engine, path, options)?;
        let mut session = model.session(SessionOptions::default())?;
        session.feed(&[504, 275, 337, 302, 273])?;
        let logits = session.logits()?;
        let bits = logits.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        Ok((model.path().to_owned(), bits))
    };
    let (_, expected) = logits(&whole, WeightsMode::Attach).unwrap();
    for weights in [WeightsMode::Attach, WeightsMode::Read] {
        assert!(
            logits(&first, weights).unwrap() == (first.clone(), expected.clone()),
            "{weights:?}"
        );
    }

    let error: moewe::Error = logits(&second, WeightsMode::Attach).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidModel);
    assert!(error.to_string().contains("-00001-of-00002.gguf"), "{error}");

    // All its files in one.
    let packed = copy_path(&first);
    assert_eq!(packed, folder.path().join("model.packed.gguf"));
    pack(&first, &packed, false, &mut Bar::new()).unwrap();
    assert!(logits(&first, WeightsMode::Attach).unwrap() == (packed.clone(), expected));
    let mut bytes = std::fs::read(&second).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&second, bytes).unwrap();
    assert_eq!(logits(&first, WeightsMode::Attach).unwrap().0, first);
    std::fs::remove_file(&packed).unwrap();

    std::fs::remove_file(&second).unwrap();
    let error = logits(&first, WeightsMode::Attach).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Weights);
    assert!(error.to_string().contains("model-00002-of-00002.gguf: there is no such file"));
}
