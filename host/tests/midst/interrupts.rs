//! Sessions that are to end what they do.

use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use futures_lite::{StreamExt as _, future::block_on};
use moewe::{CancelHandle, ErrorKind, Result, StopReason};

use super::*;

/// How many threads compute.
#[cfg(target_os = "linux")]
const TEAMS: [usize; 2] = [1, 3];
#[cfg(not(target_os = "linux"))]
const TEAMS: [usize; 1] = [1];

/// A moment in which a long call is under way.
fn soon(session: &Session, act: fn(&CancelHandle)) -> JoinHandle<()> {
    let handle = session.cancel_handle();
    thread::spawn(move || {
        thread::sleep(Duration::from_millis(100));
        act(&handle);
    })
}

fn stops(session: &mut Session, prompt: &[u32], n: u64) -> Vec<Option<StopReason>> {
    let steps = session.generate(prompt, Some(n)).collect::<Result<Vec<_>>>().unwrap();
    steps.iter().map(|step| step.stop).collect()
}

#[test]
fn a_stop_before_a_generation_holds_for_that_one_alone() {
    let model = open(model_path(), |_| {});
    let mut session = session(&model);
    let handle = session.cancel_handle();
    handle.stop();
    assert_eq!(stops(&mut session, &PROMPT, 2), [Some(StopReason::Cancelled)]);
    assert_eq!(session.usage().unwrap().context_tokens, 0);
    assert_eq!(stops(&mut session, &PROMPT, 2), [None, Some(StopReason::Length)]);

    // What came too late for a generation is not meant for the next one.
    let mut generation = session.generate(&[], None);
    generation.next().unwrap().unwrap();
    handle.stop();
    drop(generation);
    assert_eq!(stops(&mut session, &[], 1), [Some(StopReason::Length)]);
    // Nor is the end of a stream that has ended.
    let mut session = block_on(async {
        let mut stream = session.generate_stream(&[], Some(1)).unwrap();
        while stream.next().await.is_some() {}
        stream.finish().await.unwrap()
    });
    assert_eq!(stops(&mut session, &[], 1), [Some(StopReason::Length)]);
}

#[test]
fn a_call_that_is_stopped_in_its_midst_changes_nothing() {
    for threads in TEAMS {
        let model = open(model_path(), |options| options.threads = threads);
        let expected = tokens(&mut session(&model), &PROMPT, 6).unwrap();
        let mut session = session(&model);
        session.feed(&PROMPT).unwrap();
        let (logits, usage) = (session.logits().unwrap(), session.usage().unwrap());
        // Before it computes anything, and later.
        session.cancel_handle().stop();
        let stopped = |session: &mut Session| {
            let error = session.feed(&long_prompt()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Stopped, "{error}");
            let now = session.usage().unwrap();
            assert_eq!((now.context_tokens, now.kv_bytes), (usage.context_tokens, usage.kv_bytes));
            assert!(session.logits().unwrap() == logits, "{threads} threads");
        };
        stopped(&mut session);
        let stopper = soon(&session, CancelHandle::stop);
        stopped(&mut session);
        stopper.join().unwrap();
        session.rewind(0).unwrap();
        assert_eq!(tokens(&mut session, &PROMPT, 6).unwrap(), expected);
    }
}

#[test]
fn a_generation_that_is_stopped_goes_on_with_the_same_tokens() {
    let model = open(model_path(), |_| {});
    let expected = tokens(&mut session(&model), &PROMPT, 40).unwrap();
    let mut session = session(&model);
    let (mut got, mut n_stopped) = (Vec::new(), 0);
    session.feed(&PROMPT).unwrap();
    while got.len() < expected.len() {
        session.cancel_handle().stop();
        // A token whose logits are there already is not computed.
        let step = session.next().or_else(|error| {
            assert_eq!(error.kind(), ErrorKind::Stopped, "{error}");
            n_stopped += 1;
            session.next()
        });
        got.extend(step.unwrap().token);
    }
    assert!(n_stopped > 10, "{n_stopped}");
    assert_eq!(got, expected);
}

#[test]
fn a_session_is_cancelled_in_the_midst_of_a_prompt() {
    for threads in TEAMS {
        let model = open(model_path(), |options| options.threads = threads);
        let expected = tokens(&mut session(&model), &PROMPT, 3).unwrap();
        let mut cancelled = session(&model);
        cancelled.feed(&PROMPT).unwrap();
        let canceller = soon(&cancelled, CancelHandle::cancel);
        let error = cancelled.feed(&long_prompt()).unwrap_err();
        canceller.join().unwrap();
        assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
        assert_eq!(cancelled.usage().unwrap_err().kind(), ErrorKind::Ended);
        assert_eq!(tokens(&mut session(&model), &PROMPT, 3).unwrap(), expected);
    }
}

#[test]
fn a_session_is_cancelled_in_the_midst_of_an_answer() {
    for threads in TEAMS {
        let model = open(model_path(), |options| options.threads = threads);
        let mut session = session(&model);
        session.feed(&PROMPT).unwrap();
        let canceller = soon(&session, CancelHandle::cancel);
        let mut n_tokens = 0;
        let error = loop {
            match session.next() {
                Ok(_) => n_tokens += 1,
                Err(error) => break error,
            }
        };
        canceller.join().unwrap();
        assert!(n_tokens > 0);
        assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
        assert_eq!(session.next().unwrap_err().kind(), ErrorKind::Ended);
    }
}

#[test]
fn time_runs_out_in_the_midst_of_a_call() {
    const TIME_MAX: Duration = Duration::from_secs(3);
    for threads in TEAMS {
        let model = open(model_path(), |options| {
            (options.threads, options.time_max) = (threads, Some(TIME_MAX));
        });
        // Each call has the time for itself.
        let mut within = session(&model);
        tokens(&mut within, &PROMPT, 3).unwrap();
        let mut late = session(&model);
        late.feed(&PROMPT).unwrap();
        let began = Instant::now();
        let error = late.feed(&long_prompt()).unwrap_err();
        let took = began.elapsed();
        assert_eq!(error.kind(), ErrorKind::TimeLimit, "{error}");
        assert_eq!(error.to_string(), "the call took longer than its limit of 3 s");
        assert!(took >= TIME_MAX && took < 5 * TIME_MAX, "{took:?}");
        assert_eq!(late.next().unwrap_err().kind(), ErrorKind::Ended);
        within.next().unwrap();
    }
}
