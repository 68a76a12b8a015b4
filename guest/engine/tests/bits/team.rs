//! Any number of threads computes the same bits.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::thread;

use moewe_engine::native::{Folder, Member};
use moewe_engine::team::{SharedMemory, Team};
use moewe_engine::{Context, Error, ErrorKind, KvFormat, LoadOptions, Model};
use moewe_fixtures::{TOKENS, model};

/// Runs `f` in a thread for each member, with its model.
fn run<T: Send>(
    path: &Path,
    size: usize,
    window_bytes_max: u64,
    kv_format: KvFormat,
    f: impl Fn(Rc<Model>) -> T + Sync,
) -> Vec<T> {
    let (folder, name) = Folder::of(path).unwrap();
    let options = LoadOptions { kv_format, ..LoadOptions::default() };
    thread::scope(|scope| {
        let member = |member: Member| {
            let (folder, name, options, f) = (&folder, &name, &options, &f);
            scope.spawn(move || {
                let model =
                    Model::load_in_team(folder, name, window_bytes_max, options, Box::new(member))
                        .unwrap();
                f(Rc::new(model))
            })
        };
        let threads: Vec<_> = Member::team(size).into_iter().map(member).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// The bits of the logits behind a batch, and behind each of the tokens that
/// follow it one by one.
fn logits(model: Rc<Model>, tokens: &[u32], n_batch: usize) -> Vec<Vec<u32>> {
    let mut context = Context::new(model, None).unwrap();
    let (batch, single) = tokens.split_at(n_batch);
    let mut feed = |tokens: &[u32]| {
        context.feed(tokens).unwrap();
        context.logits().unwrap().iter().map(|x| x.to_bits()).collect()
    };
    let first = feed(batch);
    std::iter::once(first).chain(single.iter().map(|&t| feed(&[t]))).collect()
}

fn check(name: &str) {
    let tokens = &TOKENS[..12];
    for (quant, kv_format) in
        [("q4_k_m", KvFormat::F16), ("q8_0", KvFormat::Q8_0), ("f16", KvFormat::F32)]
    {
        let path = model(&format!("{name}-{quant}"));
        for n_batch in [1, tokens.len()] {
            let alone =
                &run(&path, 1, u64::MAX, kv_format, |model| logits(model, tokens, n_batch))[0];
            assert!(alone.iter().flatten().any(|&x| x != alone[0][0]));
            // Eleven are more than any of these models has heads.
            for size in [2, 3, 4, 11] {
                let all =
                    run(&path, size, u64::MAX, kv_format, |model| logits(model, tokens, n_batch));
                for (rank, got) in all.iter().enumerate() {
                    assert!(got == alone, "{name} {quant}: rank {rank} of {size} differs");
                }
            }
        }
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
fn granitemoe() {
    check("granitemoe");
}

#[test]
fn dsv3() {
    check("dsv3");
}

#[test]
fn deepseekv2() {
    check("deepseekv2");
}

#[test]
fn gptoss() {
    check("gptoss");
}

#[test]
fn gemma3() {
    check("gemma3");
}

#[test]
fn gemma4() {
    check("gemma4");
}

#[test]
fn llama4() {
    check("llama4");
}

#[test]
fn phi3() {
    check("phi3");
}

#[test]
fn a_batch_that_is_exchanged_in_steps() {
    let tokens: Vec<u32> = (0..700).map(|i| i * 37 % 500).collect();
    for name in ["mixtral-q8_0", "dsv3-q8_0"] {
        let (path, kv_format) = (model(name), KvFormat::default());
        let [one, two] = [1, 2].map(|size| {
            run(&path, size, u64::MAX, kv_format, |model| logits(model, &tokens, 699)).remove(0)
        });
        assert!(one == two, "{name}");
    }
}

#[test]
fn members_address_the_weights_about_once() {
    let (path, kv_format) = (model("mixtral-q8_0"), KvFormat::default());
    let alone = run(&path, 1, u64::MAX, kv_format, |model| logits(model, &TOKENS, 1));
    // As little as this is too little for one member, and enough for four.
    let (folder, name) = Folder::of(&path).unwrap();
    let error = Model::load(&folder, &name, 600_000, &LoadOptions::default()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    let four = run(&path, 4, 600_000, kv_format, |model| logits(model, &TOKENS, 1));
    assert!(four.iter().all(|got| *got == alone[0]));
}

#[test]
fn a_member_that_gives_up_breaks_the_team() {
    let mut members = Member::team(2);
    let (last, first) = (members.pop().unwrap(), members.pop().unwrap());
    let waiting = thread::spawn(move || first.barrier());
    drop(last);
    assert_eq!(waiting.join().unwrap().unwrap_err().kind(), ErrorKind::Team);
}

/// A team of one that is stopped when it has asked so many times.
struct Stopped(Rc<Cell<u32>>);

impl Team for Stopped {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn barrier(&self) -> Result<(), Error> {
        Ok(())
    }

    fn is_stopped(&self) -> bool {
        let n = self.0.get();
        self.0.set(n.saturating_sub(1));
        n == 0
    }

    fn share(&self, _: usize) -> Result<Box<dyn SharedMemory>, Error> {
        unreachable!("there is nobody to share with")
    }
}

#[test]
fn whoever_is_stopped_has_changed_nothing() {
    let path = model("qwen2moe-q8_0");
    let (folder, name) = Folder::of(&path).unwrap();
    let n_left = Rc::new(Cell::new(u32::MAX));
    let team = Box::new(Stopped(n_left.clone()));
    let model = Rc::new(
        Model::load_in_team(&folder, &name, u64::MAX, &LoadOptions::default(), team).unwrap(),
    );
    // The second batch of the longer one is short.
    for n_tokens in [7, 515] {
        let text: Vec<u32> = (0..n_tokens).map(|i| i * 37 % 500).collect();
        let mut context = Context::new(model.clone(), None).unwrap();
        context.feed(&text[..3]).unwrap();
        let logits = context.logits().unwrap().to_vec();
        let bytes = context.kv_bytes();
        let mut n_stops = 0;
        loop {
            n_left.set(n_stops);
            let fed = context.feed(&text);
            n_left.set(u32::MAX);
            let Err(error) = fed else { break };
            assert_eq!(error.kind(), ErrorKind::Stopped);
            assert_eq!((context.tokens(), context.kv_bytes()), (&text[..3], bytes));
            assert!(context.logits().unwrap() == logits, "{n_stops} of {n_tokens}");
            n_stops += 1;
        }
        assert!(n_stops > 3, "{n_stops}");
        let mut other = Context::new(model.clone(), None).unwrap();
        other.feed(&text[..3]).unwrap();
        other.feed(&text).unwrap();
        assert!(context.logits().unwrap() == other.logits().unwrap());
    }
}
