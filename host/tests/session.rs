//! Sessions with the real guest, through the public interface.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use futures_lite::{StreamExt as _, future::block_on};
use moewe::{
    Engine, ErrorKind, Model, ModelOptions, Result, Sampling, Session, SessionOptions, Step,
    StopReason, WeightsMode,
};

const PROMPT: [u32; 5] = [504, 275, 337, 302, 273];

/// A small mixture-of-experts model.
fn model_path() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("session.gguf");
        std::fs::copy(moewe_fixtures::model("qwen3moe-q8_0"), &path).unwrap();
        path
    })
}

fn open(options: ModelOptions) -> Model {
    Model::open(&Engine::new().unwrap(), model_path(), options).unwrap()
}

fn greedy() -> SessionOptions {
    let mut options = SessionOptions::default();
    options.sampling = Sampling::greedy();
    options
}

fn generate(session: &mut Session, n: u64) -> Vec<Step> {
    session.generate(&PROMPT, Some(n)).collect::<Result<_>>().unwrap()
}

#[test]
fn a_generation_ends_at_its_length() {
    let model = open(ModelOptions::default());
    let mut session = model.session(greedy()).unwrap();
    let steps = generate(&mut session, 3);
    assert_eq!(steps.len(), 3);
    assert!(steps.iter().all(|s| s.token.is_some()));
    assert_eq!(steps[1].stop, None);
    assert_eq!(steps[2].stop, Some(StopReason::Length));
    let usage = session.usage().unwrap();
    assert_eq!((usage.prompt_tokens, usage.generated_tokens, usage.context_tokens), (5, 3, 8));

    let none: Vec<_> = session.generate(&[], Some(0)).collect::<Result<_>>().unwrap();
    assert_eq!(none.len(), 1);
    assert_eq!((none[0].token, none[0].stop), (None, Some(StopReason::Length)));
}

#[test]
fn a_generation_ends_when_the_context_is_full() {
    let model = open(ModelOptions::default());
    let mut options = greedy();
    options.n_ctx = Some(7);
    let mut session = model.session(options).unwrap();
    let steps: Vec<_> = session.generate(&PROMPT, None).collect::<Result<_>>().unwrap();
    assert_eq!(steps.last().unwrap().stop, Some(StopReason::ContextFull));
    assert_eq!(session.feed(&PROMPT).unwrap_err().kind(), ErrorKind::ContextFull);
    session.rewind(0).unwrap();
    session.feed(&PROMPT).unwrap();
}

#[test]
fn attached_and_copied_weights_compute_the_same() {
    let attached = open(ModelOptions::default());
    let mut options = ModelOptions::default();
    options.weights = WeightsMode::Read;
    let copied = open(options);
    let mut logits = [attached, copied].map(|model| {
        let mut session = model.session(greedy()).unwrap();
        session.feed(&PROMPT).unwrap();
        (session.logits().unwrap(), session.stats())
    });
    let (copied, copied_stats) = &mut logits[1].clone();
    let (attached, attached_stats) = &mut logits[0];
    assert_eq!(attached, copied);
    assert_eq!(copied_stats.bytes_attached, 0);
    assert!(copied_stats.bytes_read > attached_stats.bytes_read);
    #[cfg(target_os = "linux")]
    assert!(attached_stats.bytes_attached > attached_stats.bytes_read);
}

#[test]
fn a_stream_brings_the_same_steps_and_the_session_back() {
    let model = open(ModelOptions::default());
    let expected = generate(&mut model.session(greedy()).unwrap(), 5);
    block_on(async {
        let session = model.session(greedy()).unwrap();
        let mut stream = session.generate_stream(&PROMPT, Some(5)).unwrap();
        let mut steps = Vec::new();
        while let Some(step) = stream.next().await {
            steps.push(step.unwrap());
        }
        assert_eq!(steps, expected);
        let mut session = stream.finish().await.unwrap();
        assert_eq!(session.usage().unwrap().context_tokens, 10);

        // A stream that is left early stops soon; its session can go on.
        session.rewind(0).unwrap();
        let mut stream = session.generate_stream(&PROMPT, None).unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), expected[0]);
        let mut session = stream.finish().await.unwrap();
        session.rewind(0).unwrap();
        assert_eq!(generate(&mut session, 5), expected);
    });
}

#[test]
fn a_stopped_session_goes_on() {
    let model = open(ModelOptions::default());
    let mut session = model.session(greedy()).unwrap();
    let handle = session.cancel_handle();
    let mut generation = session.generate(&PROMPT, None);
    generation.next().unwrap().unwrap();
    handle.stop();
    let last = generation.next().unwrap().unwrap();
    assert_eq!((last.token, last.stop), (None, Some(StopReason::Cancelled)));
    assert!(generation.next().is_none());
    assert_eq!(session.generate(&[], Some(2)).count(), 2);
}

#[test]
fn a_cancelled_session_is_gone_and_the_next_one_works() {
    let model = open(ModelOptions::default());
    let mut session = model.session(greedy()).unwrap();
    let handle = session.cancel_handle();
    let canceller = thread::spawn(move || {
        thread::sleep(Duration::from_millis(30));
        handle.cancel();
    });
    let error = loop {
        session.rewind(0).unwrap();
        if let Err(error) = session.feed(&[7; 256]) {
            break error;
        }
        // Between two calls there is nothing to interrupt.
        if canceller.is_finished() {
            break session.feed(&[7; 256]).unwrap_err();
        }
    };
    canceller.join().unwrap();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    let error = session.usage().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Ended);
    assert_eq!(error.to_string(), "this session has ended (cancelled); start a new one");
    assert_eq!(generate(&mut model.session(greedy()).unwrap(), 2).len(), 2);
}

#[test]
fn a_call_may_not_take_longer_than_allowed() {
    let path = model_path();
    let mut options = ModelOptions::default();
    options.time_max = Some(Duration::ZERO);
    let opened = Model::open(&Engine::new().unwrap(), path, options);
    let fed = opened.and_then(|model| model.session(greedy())?.feed(&[7; 2000]));
    assert_eq!(fed.unwrap_err().kind(), ErrorKind::TimeLimit);
}

#[test]
fn a_sandbox_that_is_too_small_says_so() {
    let path = model_path();
    let engine = Engine::new().unwrap();
    // Too small for the tokens, and for the guest itself.
    for memory_max in [2 << 20, 1 << 16] {
        let mut options = ModelOptions::default();
        options.memory_max = memory_max;
        let opened = Model::open(&engine, path, options);
        let fed = opened.and_then(|model| model.session(greedy())?.feed(&[7; 2000]));
        assert_eq!(fed.unwrap_err().kind(), ErrorKind::OutOfMemory);
    }
}

#[test]
fn sessions_are_apart() {
    let model = open(ModelOptions::default());
    let expected = generate(&mut model.session(greedy()).unwrap(), 4);
    let threads: Vec<_> = (0..3)
        .map(|_| model.session(greedy()).unwrap())
        .map(|mut session| thread::spawn(move || generate(&mut session, 4)))
        .collect();
    for thread in threads {
        assert_eq!(thread.join().unwrap(), expected);
    }
    let mut session = model.session(greedy()).unwrap();
    assert_eq!(session.usage().unwrap().context_tokens, 0);
    assert_eq!(session.feed(&[1 << 30]).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(generate(&mut session, 4), expected, "an error of the guest ends nothing");
    assert!(model.stats().bytes_attached >= session.stats().bytes_attached);
}

#[test]
fn a_session_outlives_its_engine_with_its_limits() {
    let model = open(ModelOptions::default());
    let mut session = model.session(greedy()).unwrap();
    drop(model);
    let handle = session.cancel_handle();
    let fed = thread::spawn(move || session.feed(&[7; 2000]));
    // The call has begun then, and is far from its last token.
    thread::sleep(Duration::from_millis(10));
    handle.cancel();
    assert_eq!(fed.join().unwrap().unwrap_err().kind(), ErrorKind::Cancelled);
}

#[test]
fn a_stream_that_is_left_ends_its_prefill() {
    let model = open(ModelOptions::default());
    let session = model.session(greedy()).unwrap();
    let prompt = [7; 2000];
    let stream = session.generate_stream(&prompt, None).unwrap();
    let mut session = block_on(stream.finish()).unwrap();
    let n_fed = session.usage().unwrap().context_tokens;
    assert!((n_fed as usize) < prompt.len(), "{n_fed} tokens were fed");
    session.rewind(0).unwrap();
    assert_eq!(generate(&mut session, 2).len(), 2);
}

fn threads(n: usize) -> ModelOptions {
    let mut options = ModelOptions::default();
    options.threads = n;
    options
}

#[test]
fn the_engine_takes_as_many_tokens_as_a_part_has() {
    assert_eq!(Session::FEED_LEN, moewe_engine::BATCH_MAX);
}

#[test]
fn the_number_of_threads_is_limited() {
    let path = model_path();
    for n in [0, ModelOptions::THREADS_MAX + 1] {
        let error = Model::open(&Engine::new().unwrap(), path, threads(n)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}

#[cfg(target_os = "linux")]
mod teams {
    use super::*;

    #[test]
    fn any_number_of_threads_computes_the_same() {
        let engine = Engine::new().unwrap();
        for name in ["qwen2moe-q4_k_m", "olmoe-q8_0", "mixtral-f16"] {
            let path = moewe_fixtures::model(name);
            let run = |n, weights| {
                let mut options = threads(n);
                options.weights = weights;
                let model = Model::open(&engine, &path, options).unwrap();
                let mut session = model.session(greedy()).unwrap();
                let steps = generate(&mut session, 6);
                let logits = session.logits().unwrap();
                session.rewind(3).unwrap();
                session.feed(&[7; 20]).unwrap();
                (steps, logits, session.logits().unwrap())
            };
            let alone = run(1, WeightsMode::Attach);
            for n in 2..=4 {
                assert!(run(n, WeightsMode::Attach) == alone, "{name}: {n} threads differ");
            }
            assert!(run(3, WeightsMode::Read) == alone, "{name}: copied weights differ");
        }
    }

    #[test]
    fn usage_and_stats_are_sums() {
        let path = moewe_fixtures::model("olmoe-q8_0");
        let engine = Engine::new().unwrap();
        let run = |n| {
            let model = Model::open(&engine, &path, threads(n)).unwrap();
            let mut session = model.session(greedy()).unwrap();
            generate(&mut session, 3);
            (session.usage().unwrap(), session.stats(), model.stats())
        };
        let (one, one_stats, _) = run(1);
        let (two, two_stats, two_all) = run(2);
        assert_eq!(one, two, "as many KV heads as heads: no thread has one twice");
        assert!(one.kv_bytes > 0);
        assert_eq!(two_stats, two_all);
        assert!(two_stats.n_attach > one_stats.n_attach);
        // Each thread has the embedding, the router and the vectors.
        let larger = two_stats.bytes_attached as f64 / one_stats.bytes_attached as f64;
        assert!((1.0..1.5).contains(&larger), "{larger} times the bytes are attached");
    }

    #[test]
    fn an_error_of_all_threads_ends_nothing() {
        let model = open(threads(2));
        let mut session = model.session(greedy()).unwrap();
        assert_eq!(session.next().unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(session.feed(&[1 << 30]).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(session.rewind(1).unwrap_err().kind(), ErrorKind::InvalidInput);
        let mut options = greedy();
        options.n_ctx = Some(0);
        assert_eq!(model.session(options).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(generate(&mut session, 2).len(), 2);
    }

    #[test]
    fn a_cancelled_team_is_gone_and_the_next_one_works() {
        let model = open(threads(3));
        let expected = generate(&mut model.session(greedy()).unwrap(), 2);
        for milliseconds in [3, 10, 20, 40] {
            let mut session = model.session(greedy()).unwrap();
            let handle = session.cancel_handle();
            let canceller = thread::spawn(move || {
                thread::sleep(Duration::from_millis(milliseconds));
                handle.cancel();
            });
            let error = loop {
                if let Err(error) = session.rewind(0).and_then(|()| session.feed(&[7; 256])) {
                    break error;
                }
            };
            canceller.join().unwrap();
            assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
            assert_eq!(session.usage().unwrap_err().kind(), ErrorKind::Ended);
        }
        assert_eq!(generate(&mut model.session(greedy()).unwrap(), 2), expected);
    }

    #[test]
    fn a_team_keeps_its_time_limit() {
        let path = model_path();
        let engine = Engine::new().unwrap();
        let mut options = threads(3);
        options.time_max = Some(Duration::ZERO);
        let opened = Model::open(&engine, path, options);
        let fed = opened.and_then(|model| model.session(greedy())?.feed(&[7; 2000]));
        assert_eq!(fed.unwrap_err().kind(), ErrorKind::TimeLimit);
    }

    /// Somewhere in between, one of the threads is refused memory and the
    /// others are not.
    #[test]
    fn a_team_that_is_too_small_says_so() {
        let path = model_path();
        let engine = Engine::new().unwrap();
        let run = |mib: u64| {
            let mut options = threads(2);
            options.memory_max = mib << 20;
            let model = Model::open(&engine, path, options)?;
            let mut session = model.session(greedy())?;
            let fed = session.feed(&[7; 2000]);
            if fed.is_err() {
                let mut next = model.session(greedy())?;
                assert_eq!(generate(&mut next, 2).len(), 2, "{mib} MiB");
            }
            fed
        };
        let mut enough = 0;
        for mib in [0, 1, 2, 4, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 64, 128] {
            match run(mib) {
                Ok(()) => enough += 1,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{mib} MiB: {error}");
                    assert_eq!(enough, 0, "{mib} MiB are too little, and less was enough");
                }
            }
        }
        assert!((1..12).contains(&enough), "{enough} limits were enough");
    }
}
