//! A model split into two files computes what the whole one does.

use std::path::{Path, PathBuf};

use moewe::{Engine, ErrorKind, Model, ModelOptions, SessionOptions, WeightsMode};
use moewe_gguf::{Gguf, SplitNames, Writer};
use moewe_models::Bar;
use moewe_models::pack::{copy_path, pack};

/// Writes a model as two files, every second tensor in each; answers their
/// paths.
fn split(path: &Path, folder: &Path) -> [PathBuf; 2] {
    let bytes = std::fs::read(path).unwrap();
    let header = Gguf::read(path).unwrap().header;
    let names = SplitNames { stem: "model", n_files: 2 };
    let paths = [0, 1].map(|file| folder.join(names.name(file)));
    for (no, path) in paths.iter().enumerate() {
        let mut writer = Writer::default();
        if no == 0 {
            let pairs = header.pairs.iter().map(|(_, at)| at.start as usize..at.end as usize);
            pairs.for_each(|at| writer.pair(&bytes[at]));
        }
        writer.u16("split.no", no as u16);
        writer.u16("split.count", 2);
        let mut data = Vec::new();
        for t in header.tensors.values().skip(no).step_by(2) {
            let size = writer.tensor(&t.name, &t.dims, t.ty);
            let end = data.len() + size as usize;
            data.extend(&bytes[t.offset as usize..][..t.size as usize]);
            data.resize(end, 0);
        }
        std::fs::write(path, [writer.padded(), data].concat()).unwrap();
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
