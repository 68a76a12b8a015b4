//! Packed models: the same numbers, and no other file in their place.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread;

use moewe_engine::native::{Folder, Member};
use moewe_engine::{Context, LoadOptions, Model};
use moewe_fixtures::model;
use moewe_gguf::{Gguf, Header};
use moewe_models::generate::{Shape, generate};
use moewe_models::pack::{Error, check, check_source, copy_path, pack};
use moewe_models::{Progress, Step};
use moewe_packed::{Mismatch, PackedCopy};
use tempfile::TempDir;

const PAGE: u64 = 4096;
const N_PROMPT: usize = 8;

/// Has rows of 256 numbers, and 3 experts of which 2 are used.
const TINY: Shape = Shape {
    n_layer: 2,
    n_embd: 256,
    n_head: 4,
    kv_heads: 2,
    head_dim: 64,
    n_expert: 3,
    n_expert_used: 2,
    n_ff_expert: 256,
    n_vocab: 400,
    n_ctx: 128,
};

/// Remembers the steps, and how far the last one came.
#[derive(Default)]
struct Heard {
    steps: Vec<Step>,
    total: u64,
    at: u64,
}

impl Progress for Heard {
    fn start(&mut self, step: Step, _: &str, bytes_total: u64) {
        self.steps.push(step);
        (self.total, self.at) = (bytes_total, 0);
    }

    fn at(&mut self, bytes_done: u64) {
        assert!(bytes_done >= self.at);
        self.at = bytes_done;
    }

    fn note(&mut self, _: &str) {}
}

fn quiet() -> Heard {
    Heard::default()
}

/// A small model in a folder of its own.
fn tiny() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    generate(&path, &TINY, 1, &mut quiet()).unwrap();
    (folder, path)
}

/// A small model, packed; the packed file is returned.
fn packed() -> (TempDir, PathBuf) {
    let (folder, path) = tiny();
    let copy = copy_path(&path);
    pack(&path, &copy, false, &mut quiet()).unwrap();
    (folder, copy)
}

fn header(path: &Path) -> Header {
    Gguf::read(path).unwrap().header
}

/// Changes one byte of a file.
fn damage(path: &Path, at: u64) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at as usize] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

/// The bits of the logits behind a prompt and behind each token that follows,
/// computed by `size` threads.
fn logits(path: &Path, size: usize, tokens: &[u32], n_prompt: usize) -> Vec<Vec<u32>> {
    let (folder, name) = Folder::of(path).unwrap();
    thread::scope(|scope| {
        let member = |member: Member| {
            let (folder, name) = (&folder, &name);
            scope.spawn(move || {
                let model = Model::load_in_team(
                    folder,
                    name,
                    u64::MAX,
                    &LoadOptions::default(),
                    Box::new(member),
                )
                .unwrap();
                let mut context = Context::new(Rc::new(model), None).unwrap();
                let (prompt, rest) = tokens.split_at(n_prompt);
                let parts = std::iter::once(prompt).chain(rest.chunks(1));
                let logits = parts.map(|tokens| {
                    context.feed(tokens).unwrap();
                    context.logits().unwrap().iter().map(|x| x.to_bits()).collect()
                });
                logits.collect::<Vec<Vec<u32>>>()
            })
        };
        let threads: Vec<_> = Member::team(size).into_iter().map(member).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).next_back().unwrap()
    })
}

#[track_caller]
fn same_logits(original: &Path, packed: &Path) {
    let tokens: Vec<u32> = (0..12).map(|i| i * 37 % 400).collect();
    for n_prompt in [1, N_PROMPT] {
        let expected = logits(original, 1, &tokens, n_prompt);
        assert!(expected.iter().flatten().any(|&x| x != expected[0][0]));
        for size in [1, 2, 3] {
            let got = logits(packed, size, &tokens, n_prompt);
            assert!(got == expected, "{}: {size} threads, {n_prompt}", packed.display());
        }
    }
}

fn family(name: &str) {
    let folder = tempfile::tempdir().unwrap();
    for quant in ["q8_0", "q4_k_m"] {
        let original = model(&format!("{name}-{quant}"));
        let packed = folder.path().join(format!("{quant}.gguf"));
        pack(&original, &packed, false, &mut quiet()).unwrap();
        same_logits(&original, &packed);
        let info = |path: &Path| {
            let (folder, name) = Folder::of(path).unwrap();
            Model::load(&folder, &name, u64::MAX, &LoadOptions::default()).unwrap().info().clone()
        };
        assert_eq!(format!("{:?}", info(&original)), format!("{:?}", info(&packed)));
        // Only what is no matrix, or not quantised, stays as it is.
        for tensor in header(&packed).tensors.values() {
            assert!(tensor.ty.is_packed() || tensor.ty.packed(4).is_none(), "{tensor:?}");
        }
    }
}

#[test]
fn mixtral() {
    family("mixtral");
}

#[test]
fn qwen2moe() {
    family("qwen2moe");
}

#[test]
fn qwen3moe() {
    family("qwen3moe");
}

#[test]
fn olmoe() {
    family("olmoe");
}

#[test]
fn gptoss() {
    family("gptoss");
}

#[test]
fn gemma4() {
    family("gemma4");
}

#[test]
fn phi3() {
    family("phi3");
}

#[test]
fn experts_lie_together_on_pages() {
    let (_folder, copy) = packed();
    let header = header(&copy);
    let mut tensors: Vec<_> = header.tensors.values().collect();
    tensors.sort_by_key(|t| t.offset);
    assert!(tensors.iter().all(|t| t.offset.is_multiple_of(PAGE)));
    let experts =
        (tensors.iter()).map(|t| t.name.as_str()).skip_while(|n| *n != "blk.0.ffn_gate.0.weight");
    let expected = [0, 1].into_iter().flat_map(|layer| {
        [0, 1, 2].into_iter().flat_map(move |expert| {
            let name = move |m| format!("blk.{layer}.ffn_{m}.{expert}.weight");
            ["gate", "up", "down"].map(name)
        })
    });
    assert_eq!(experts.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
}

#[test]
fn metadata_is_copied() {
    let (folder, copy) = packed();
    let own = |key: &str| key.starts_with("moewe.packed.") || key == "general.alignment";
    let pairs = |path: &Path| -> BTreeMap<String, String> {
        let metadata = header(path).metadata;
        let pairs = metadata.iter().filter(|(key, _)| !own(key));
        pairs.map(|(key, value)| (key.to_owned(), format!("{value:?}"))).collect()
    };
    let original = pairs(&folder.path().join("tiny.gguf"));
    assert!(original.len() > 15);
    assert_eq!(pairs(&copy), original);
}

#[test]
fn a_file_always_gives_the_same_bytes() {
    let (folder, path) = tiny();
    let outs = ["a", "b"].map(|name| folder.path().join(name));
    let mut heard = quiet();
    for out in &outs {
        pack(&path, out, false, &mut heard).unwrap();
        assert_eq!(heard.at, heard.total);
    }
    assert_eq!(heard.steps, [Step::Pack; 2]);
    assert!(std::fs::read(&outs[0]).unwrap() == std::fs::read(&outs[1]).unwrap());
    // Only finished files are left.
    assert_eq!(folder.path().read_dir().unwrap().count(), 3);
}

#[test]
fn what_must_not_be_packed_is_refused() {
    let (folder, copy) = packed();
    let path = folder.path().join("tiny.gguf");
    let elsewhere = folder.path().join("elsewhere");
    let pack = |source: &Path, out: &Path, force| pack(source, out, force, &mut quiet());
    assert!(matches!(pack(&copy, &elsewhere, false), Err(Error::AlreadyPacked(_))));
    assert!(matches!(pack(&path, &copy, false), Err(Error::Exists(_))));
    use moewe_output::Error as Out;
    assert!(matches!(pack(&path, &path, true), Err(Error::Output(Out::Input(_)))));
    assert!(matches!(pack(&path, folder.path(), true), Err(Error::Output(Out::Folder(_)))));
    assert!(matches!(pack(&elsewhere, &elsewhere, false), Err(Error::Model(_))));
    assert_eq!(folder.path().read_dir().unwrap().count(), 2);
    pack(&path, &copy, true).unwrap();
    same_logits(&path, &copy);
}

#[test]
fn damage_is_found_and_named() {
    let (_folder, copy) = packed();
    let mut heard = quiet();
    assert_eq!(check(&copy, &mut heard).unwrap(), header(&copy).tensors.len());
    assert_eq!((heard.at, heard.steps), (heard.total, vec![Step::Check]));
    let sound = std::fs::read(&copy).unwrap();
    for name in ["blk.1.ffn_up.2.weight", "output_norm.weight"] {
        let tensor = header(&copy).tensors[name].clone();
        damage(&copy, tensor.offset + tensor.size - 1);
        let error = check(&copy, &mut quiet()).unwrap_err();
        assert!(error.to_string().contains(&format!("tensor {name} is damaged")), "{error}");
        std::fs::write(&copy, &sound).unwrap();
    }
    // A letter of the vocabulary.
    let at = sound.windows(12).position(|w| w == b"<|im_start|>").unwrap();
    damage(&copy, at as u64 + 4);
    let error = check(&copy, &mut quiet()).unwrap_err();
    assert!(error.to_string().contains("its header is damaged"), "{error}");
    std::fs::write(&copy, &sound[..sound.len() - 5000]).unwrap();
    let error = check(&copy, &mut quiet()).unwrap_err();
    assert!(error.to_string().contains("past the end"), "{error}");

    let (_folder, original) = tiny();
    assert!(matches!(check(&original, &mut quiet()), Err(Error::NotPacked(_))));
}

#[test]
fn a_copy_belongs_to_one_file() {
    let (folder, copy) = packed();
    let path = folder.path().join("tiny.gguf");
    assert_eq!(PackedCopy::of(&path), PackedCopy::Current(copy.clone()));
    assert_eq!(PackedCopy::of(&copy), PackedCopy::Absent);

    let original = std::fs::read(&path).unwrap();
    // Weights of another seed, behind a header that says the same.
    let other = folder.path().join("other.gguf");
    generate(&other, &TINY, 2, &mut quiet()).unwrap();
    let header_bytes = header(&path).header_bytes[0] as usize;
    let other = std::fs::read(&other).unwrap();
    let retrained = [&original[..header_bytes], &other[header_bytes..]].concat();
    let longer = [&original[..], &[0]].concat();
    let mut renamed = original.clone();
    renamed[header_bytes - 40] ^= 1;
    let stale = |why| PackedCopy::Stale(copy.clone(), why);
    for changed in [&retrained, &longer, &renamed, &original[..100].to_vec()] {
        std::fs::write(&path, changed).unwrap();
        assert_eq!(PackedCopy::of(&path), stale(Mismatch::Source));
        assert!(matches!(check_source(&path, &mut quiet()), Err(Error::OtherSource { .. })));
    }

    std::fs::write(&path, &original).unwrap();
    assert_eq!(PackedCopy::of(&path), stale(Mismatch::Unsure));
    check_source(&path, &mut quiet()).unwrap();
    assert_eq!(PackedCopy::of(&path), PackedCopy::Current(copy.clone()));
    let sound = std::fs::read(&copy).unwrap();
    // The version, two keys, and the count of the stamp.
    for at in [56, 120, 160, 179] {
        damage(&copy, at);
        assert_eq!(PackedCopy::of(&path), stale(Mismatch::Version), "byte {at}");
        std::fs::write(&copy, &sound).unwrap();
    }
    for len in [0, 50, 140] {
        std::fs::write(&copy, &sound[..len]).unwrap();
        assert_eq!(PackedCopy::of(&path), stale(Mismatch::Version), "{len} bytes");
    }
    std::fs::write(&copy, &sound).unwrap();
    // The length, the checksum, the inode, and a letter of the vocabulary.
    let letter = sound.windows(12).position(|w| w == b"<|im_start|>").unwrap() as u64;
    for at in [97, 136, 187 + 4 * 8, letter] {
        damage(&copy, at);
        assert_eq!(PackedCopy::of(&path), stale(Mismatch::Damaged), "byte {at}");
        std::fs::write(&copy, &sound).unwrap();
    }
    assert_eq!(PackedCopy::of(&path), PackedCopy::Current(copy.clone()));
    std::fs::remove_file(&copy).unwrap();
    assert_eq!(PackedCopy::of(&path), PackedCopy::Absent);
}

/// One hundredth of the weights, wherever it lies: size and header are the same.
#[test]
fn a_copy_of_what_has_changed_in_one_place_is_stale() {
    let (folder, copy) = packed();
    let path = folder.path().join("tiny.gguf");
    let original = std::fs::read(&path).unwrap();
    let n = original.len() / 100;
    let data_bytes = original.len() - header(&path).header_bytes[0] as usize;
    let mut n_unsure = 0;
    for i in 1..=13 {
        let at = original.len() - data_bytes * i / 14;
        let mut changed = original.clone();
        changed[at..at + n].iter_mut().for_each(|byte| *byte ^= 1);
        std::fs::write(&path, changed).unwrap();
        let found = PackedCopy::of(&path);
        let PackedCopy::Stale(_, why) = found else { panic!("byte {at}: {found:?}") };
        n_unsure += usize::from(why == Mismatch::Unsure);
        let checked = check_source(&path, &mut quiet());
        assert!(matches!(checked, Err(Error::OtherSource { .. })), "byte {at}: {checked:?}");
        assert!(matches!(PackedCopy::of(&path), PackedCopy::Stale(..)), "byte {at}");
    }
    assert!(n_unsure > 0, "all changes lay in samples");
    // Another file under its name, as old as it was.
    let time = std::fs::metadata(&path).unwrap().modified().unwrap();
    std::fs::write(&path, &original).unwrap();
    check_source(&path, &mut quiet()).unwrap();
    let old = std::fs::metadata(&path).unwrap().modified().unwrap();
    assert!(old >= time);
    assert_eq!(PackedCopy::of(&path), PackedCopy::Current(copy.clone()));
    let other = folder.path().join("other");
    std::fs::write(&other, &original).unwrap();
    std::fs::File::options().write(true).open(&other).unwrap().set_modified(old).unwrap();
    std::fs::rename(&other, &path).unwrap();
    assert_eq!(PackedCopy::of(&path), PackedCopy::Stale(copy, Mismatch::Unsure));
}

#[test]
fn a_pair_that_was_copied_is_used_again_when_it_was_checked() {
    let (folder, copy) = packed();
    let elsewhere = tempfile::tempdir().unwrap();
    let names = ["tiny.gguf", "tiny.packed.gguf"];
    for name in names {
        std::fs::copy(folder.path().join(name), elsewhere.path().join(name)).unwrap();
    }
    let [path, moved] = names.map(|name| elsewhere.path().join(name));
    assert_eq!(PackedCopy::of(&path), PackedCopy::Stale(moved.clone(), Mismatch::Unsure));
    // Not while somebody may look at what changes.
    let user = std::fs::File::open(&moved).unwrap();
    user.lock_shared().unwrap();
    assert!(matches!(check_source(&path, &mut quiet()), Err(Error::InUse(_))));
    drop(user);
    assert_eq!(check_source(&path, &mut quiet()).unwrap(), header(&copy).tensors.len());
    assert_eq!(PackedCopy::of(&path), PackedCopy::Current(moved.clone()));
    check(&moved, &mut quiet()).unwrap();
    same_logits(&path, &moved);
    // Nothing needs to be told any more.
    let user = std::fs::File::open(&moved).unwrap();
    user.lock_shared().unwrap();
    check_source(&path, &mut quiet()).unwrap();
    assert!(matches!(check_source(&moved, &mut quiet()), Err(Error::NotPacked(_))));
}

#[test]
fn a_model_is_not_overwritten_by_what_is_written_beside_its_copy() {
    let (folder, path) = tiny();
    let source = folder.path().join("copy.gguf.part");
    std::fs::rename(&path, &source).unwrap();
    let expected = std::fs::read(&source).unwrap();
    let error = pack(&source, &folder.path().join("copy.gguf"), true, &mut quiet()).unwrap_err();
    assert!(error.to_string().contains("copy.gguf.part is a file that is read"), "{error}");
    assert!(std::fs::read(&source).unwrap() == expected);
}

#[test]
#[cfg(unix)]
fn links_stay_and_pipes_get_the_same_bytes() {
    let (folder, path) = tiny();
    let [target, link, pipe] = ["target", "link", "pipe"].map(|name| folder.path().join(name));
    std::os::unix::fs::symlink("target", &link).unwrap();
    pack(&path, &link, false, &mut quiet()).unwrap();
    assert!(link.symlink_metadata().unwrap().is_symlink());
    let expected = std::fs::read(&target).unwrap();
    assert!(matches!(pack(&path, &link, false, &mut quiet()), Err(Error::Exists(_))));
    pack(&path, &link, true, &mut quiet()).unwrap();
    assert!(link.symlink_metadata().unwrap().is_symlink());
    assert!(std::fs::read(&target).unwrap() == expected);

    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let got = thread::scope(|scope| {
        let reader = scope.spawn(|| std::fs::read(&pipe).unwrap());
        let mut heard = quiet();
        pack(&path, &pipe, false, &mut heard).unwrap();
        assert_eq!(heard.at, heard.total);
        reader.join().unwrap()
    });
    assert!(got == expected, "{} bytes came, of {}", got.len(), expected.len());
    pack(&path, Path::new("/dev/null"), false, &mut quiet()).unwrap();
    assert!(!Path::new("/dev/null").metadata().unwrap().is_file());
    assert_eq!(folder.path().read_dir().unwrap().count(), 4);
}

/// Gives up after it was asked so many times.
struct Stops(Cell<u32>);

impl Progress for Stops {
    fn start(&mut self, _: Step, _: &str, _: u64) {}
    fn at(&mut self, _: u64) {}
    fn note(&mut self, _: &str) {}

    fn is_stopped(&self) -> bool {
        let left = self.0.get().checked_sub(1);
        self.0.set(left.unwrap_or(0));
        left.is_none()
    }
}

#[test]
fn who_is_stopped_leaves_what_was_there() {
    let (folder, path) = tiny();
    let copy = copy_path(&path);
    for n in 0.. {
        std::fs::write(&copy, "old").unwrap();
        match pack(&path, &copy, true, &mut Stops(Cell::new(n))) {
            Err(Error::Stopped) => assert_eq!(std::fs::read(&copy).unwrap(), b"old"),
            packed => {
                packed.unwrap();
                // Once for each tensor at least.
                assert!(n as usize >= header(&copy).tensors.len(), "it was asked {n} times");
                break;
            }
        }
        assert_eq!(folder.path().read_dir().unwrap().count(), 2, "{n}");
    }
    check(&copy, &mut quiet()).unwrap();
}
