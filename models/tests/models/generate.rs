//! Models of random weights: the same bytes everywhere, and sane numbers.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;

use moewe_engine::native::Folder;
use moewe_engine::tokenizer::Tokenizer;
use moewe_engine::weights::{Source, Weights, Window};
use moewe_engine::{Context, LoadOptions, Model};
use moewe_gguf::{Gguf, TensorType};
use moewe_models::generate::{
    Family, LatentShape, Layers, Quantization, Shape, generate, generate_latent, generate_small,
};
use moewe_models::{Error, Progress, Step};
use sha2::{Digest, Sha256};

const TINY: Shape = Shape {
    n_layer: 3,
    n_embd: 256,
    n_head: 8,
    kv_heads: 2,
    head_dim: 32,
    n_expert: 16,
    n_expert_used: 2,
    n_ff_expert: 256,
    n_vocab: 400,
    n_ctx: 128,
};

const TINY_LATENT: LatentShape = LatentShape {
    n_layer: 2,
    n_dense: 1,
    n_embd: 256,
    n_head: 4,
    rank: 256,
    n_latent: 256,
    plain_dim: 64,
    turned_dim: 32,
    value_dim: 64,
    n_expert: 8,
    n_expert_used: 2,
    n_group: 4,
    n_group_used: 2,
    n_ff_expert: 256,
    n_ff: 512,
    n_vocab: 400,
    n_ctx: 128,
    ..LatentShape::DSV3_16B
};

const DENSE: Shape = Shape { n_expert: 0, n_expert_used: 0, ..TINY };

/// Remembers how far the work came.
#[derive(Default)]
struct Heard {
    total: u64,
    at: u64,
}

impl Progress for Heard {
    fn start(&mut self, step: Step, _: &str, bytes_total: u64) {
        assert_eq!(step, Step::Generate);
        (self.total, self.at) = (bytes_total, 0);
    }

    fn at(&mut self, bytes_done: u64) {
        assert!(bytes_done >= self.at);
        self.at = bytes_done;
    }

    fn note(&mut self, _: &str) {}
}

fn sha256(path: &Path) -> String {
    let hash = Sha256::digest(std::fs::read(path).unwrap());
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_seed_always_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    let mut heard = Heard::default();
    generate(&path, &TINY, 1, &mut heard).unwrap();
    assert_eq!(sha256(&path), "7159d672d4b8bb315725dae6db515510d04b69a4bc373871241be097650bbdc9");
    assert!(heard.total > 0 && heard.at == heard.total);
    assert!(path.metadata().unwrap().len() > heard.total);

    let other = folder.path().join("b.gguf");
    generate(&other, &TINY, 2, &mut Heard::default()).unwrap();
    assert_ne!(sha256(&path), sha256(&other));
    // Only finished files are left.
    assert_eq!(folder.path().read_dir().unwrap().count(), 2);
}

#[test]
fn impossible_shapes_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (shape, complaint) in [
        (Shape { n_layer: 0, ..TINY }, "must be positive"),
        (Shape { n_embd: 128, ..TINY }, "rows of [128, 256, 256] numbers"),
        (Shape { kv_heads: 3, ..TINY }, "8 heads cannot share 3 KV heads"),
        (Shape { n_expert_used: 0, ..TINY }, "must be positive"),
        (Shape { n_expert_used: 17, ..TINY }, "17 of 16 experts"),
        (Shape { n_expert_used: 1, ..DENSE }, "1 of 0 experts"),
        (Shape { n_vocab: 259, ..TINY }, "a vocabulary of 259; 260..=2963 can be"),
    ] {
        let error = generate(&folder.path().join("x"), &shape, 1, &mut Heard::default());
        let error = error.unwrap_err();
        assert!(matches!(error, Error::BadShape(_)));
        assert!(error.to_string().contains(complaint), "{error}");
    }
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
}

/// As large as with random weights, and only what is no hole takes room.
#[test]
fn holes_are_read_as_zeros() {
    let folder = tempfile::tempdir().unwrap();
    let shape = LatentShape { n_layer: 4, n_expert: 32, ..TINY_LATENT };
    let path = |name: &str| folder.path().join(name);
    let mut heard = Heard::default();
    generate_latent(&path("random"), &shape, Layers::Random, 1, &mut heard).unwrap();
    assert!(heard.total > 0 && heard.at == heard.total);
    generate_latent(&path("holes"), &shape, Layers::Holes, 1, &mut heard).unwrap();
    let [random, holes] = ["random", "holes"].map(|name| std::fs::read(path(name)).unwrap());
    assert_eq!(random.len(), holes.len());
    let gguf = Gguf::read(&path("holes")).unwrap();
    for tensor in gguf.header.tensors.values() {
        let bytes = &holes[tensor.offset as usize..][..tensor.size as usize];
        let is_hole = tensor.name.starts_with("blk.") && tensor.ty != TensorType::F32;
        assert_eq!(bytes.iter().all(|&byte| byte == 0), is_hole, "{}", tensor.name);
    }
    let (folder, name) = Folder::of(&path("holes")).unwrap();
    let model = Model::load(&folder, &name, u64::MAX, &LoadOptions::default()).unwrap();
    assert_eq!(model.info().n_expert, 32);
    let mut context = Context::new(Rc::new(model), None).unwrap();
    context.feed(&[1, 300]).unwrap();
    assert!(context.logits().unwrap().iter().any(|&x| x != 0.0));
}

#[test]
fn small_models_of_every_family_compute() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.gguf");
    for family in [
        Family::Mixtral,
        Family::Qwen2Moe,
        Family::Qwen3Moe,
        Family::Olmoe,
        Family::DeepSeekV3,
        Family::DeepSeekV2Lite,
        Family::GptOss,
        Family::Gemma3,
        Family::Gemma4,
        Family::Llama4,
        Family::Phi3,
    ] {
        for (quantization, name) in
            [(Quantization::F16, "F16"), (Quantization::Q8_0, "Q8_0"), (Quantization::Q4KM, "Q4_K")]
        {
            generate_small(&path, family, quantization, 1, &mut Heard::default()).unwrap();
            let (folder, name_of_file) = Folder::of(&path).unwrap();
            let model =
                Model::load(&folder, &name_of_file, u64::MAX, &LoadOptions::default()).unwrap();
            assert_eq!(model.info().quantization, name);
            let mut context = Context::new(Rc::new(model), None).unwrap();
            for token in [1, 300, 2, 77] {
                context.feed(&[token]).unwrap();
                let logits = context.logits().unwrap();
                let n = logits.len() as f32;
                let deviation = (logits.iter().map(|x| x * x).sum::<f32>() / n).sqrt();
                let what = format!("{family:?} {quantization:?}: {deviation}");
                assert!((1.0..5.0).contains(&deviation), "{what}");
            }
        }
    }
}

/// Notes where windows are opened.
struct Watched<'a>(&'a Folder, Rc<RefCell<BTreeSet<u64>>>);
struct WatchedSource(Box<dyn Source>, Rc<RefCell<BTreeSet<u64>>>);

impl Weights for Watched<'_> {
    fn open(&self, name: &str) -> moewe_engine::Result<Box<dyn Source>> {
        Ok(Box::new(WatchedSource(self.0.open(name)?, self.1.clone())))
    }
}

impl Source for WatchedSource {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> moewe_engine::Result<()> {
        self.0.read(offset, out)
    }

    fn window(&self, offset: u64, length: usize) -> moewe_engine::Result<Box<dyn Window>> {
        self.1.borrow_mut().insert(offset);
        self.0.window(offset, length)
    }

    fn prefetch(&self, offset: u64, length: u64) {
        self.0.prefetch(offset, length);
    }
}

#[test]
fn the_engine_computes_sane_numbers_with_it() {
    let file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
    generate(file.path(), &TINY, 1, &mut Heard::default()).unwrap();
    let (folder, name) = Folder::of(file.path()).unwrap();
    let windows = Rc::default();
    let model = Model::load(
        &Watched(&folder, Rc::clone(&windows)),
        &name,
        u64::MAX,
        &LoadOptions::default(),
    )
    .unwrap();
    assert_eq!(model.info().quantization, "Q4_K");
    let loaded = windows.borrow().len();

    let mut context = Context::new(Rc::new(model), None).unwrap();
    let mut likeliest = BTreeSet::new();
    let mut experts_per_token = Vec::new();
    for token in (0..64).map(|i| i * 37 % TINY.n_vocab) {
        let before = windows.borrow().len();
        context.feed(&[token]).unwrap();
        experts_per_token.push(windows.borrow().len() - before);
        let logits = context.logits().unwrap();
        let n = logits.len() as f32;
        let deviation = (logits.iter().map(|x| x * x).sum::<f32>() / n).sqrt();
        assert!((1.5..4.0).contains(&deviation), "{deviation}");
        likeliest.insert((0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])));
    }
    assert!(likeliest.len() > 32, "{likeliest:?}");
    // The first token brings in 2 experts of 3 matrices in each of 3 layers;
    // the others choose others, until most have been used.
    assert_eq!(experts_per_token[0], 18);
    let used = windows.borrow().len() - loaded;
    assert!(used > 16 * 3 * 3 * 3 / 4, "{used}");
}

#[test]
fn without_experts_it_is_dense() {
    let file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
    generate(file.path(), &DENSE, 1, &mut Heard::default()).unwrap();
    let gguf = Gguf::read(file.path()).unwrap();
    let ty = |name: &str| gguf.header.tensors[name].ty;
    assert_eq!(
        ["blk.0.ffn_down.weight", "blk.1.ffn_down.weight", "blk.2.attn_v.weight"].map(ty),
        [TensorType::Q6_K, TensorType::Q4_K, TensorType::Q6_K]
    );
    let (folder, name) = Folder::of(file.path()).unwrap();
    let model = Model::load(&folder, &name, u64::MAX, &LoadOptions::default()).unwrap();
    assert_eq!(model.info().architecture, "llama");
    let mut context = Context::new(Rc::new(model), None).unwrap();
    for token in [1, 300, 2, 77] {
        context.feed(&[token]).unwrap();
        let logits = context.logits().unwrap();
        let n = logits.len() as f32;
        let deviation = (logits.iter().map(|x| x * x).sum::<f32>() / n).sqrt();
        assert!((1.5..4.0).contains(&deviation), "{deviation}");
    }
}

#[test]
fn its_tokenizer_writes_every_text() {
    let file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
    generate(file.path(), &TINY, 1, &mut Heard::default()).unwrap();
    let gguf = Gguf::read(file.path()).unwrap();
    let tokenizer = Tokenizer::from_metadata(&gguf.header.metadata).unwrap().unwrap();
    assert_eq!(tokenizer.n_vocab(), TINY.n_vocab);
    for text in ["Once upon a time", "\u{1f98a} naïve\n\t0"] {
        let tokens = tokenizer.encode(text, true, false).unwrap();
        assert_eq!(tokenizer.decode(&tokens, false).unwrap(), text);
    }
    assert_eq!(tokenizer.encode("<|endoftext|>", false, true).unwrap(), [256]);
    // "aa" to "az", "aA" to "aZ", "ba", ...
    assert_eq!(tokenizer.encode("ba", false, false).unwrap(), [259 + 52]);
}
