//! Teams: the barrier, threads, and members that fail.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use wasmtime::{Caller, Linker, Module, ResourceLimiter as _};

use super::bindings::moewe::inference::team;
use super::call::{call, new_store};
use super::limits::Limiter;
use super::program::{config, start_clock};
use super::team::Broken;
use super::*;
use crate::weights::WeightsMode;

const NO_LIMIT: Limits = Limits { memory_max: 1 << 30, time_max: None };

fn meet(team: &Team, rank: usize) -> Result<(), Broken> {
    team.barrier(rank, || None::<()>).unwrap()
}

#[test]
fn all_see_what_was_written_before_the_barrier() {
    for size in [1, 2, 5] {
        let team = Team::new(size, None);
        let numbers: Vec<_> = (0..size).map(|_| AtomicU64::new(0)).collect();
        thread::scope(|scope| {
            for rank in 0..size {
                let (team, numbers) = (&team, &numbers);
                scope.spawn(move || {
                    for round in 1..300 {
                        numbers[rank].store(round, Ordering::Relaxed);
                        meet(team, rank).unwrap();
                        assert!(numbers.iter().all(|n| n.load(Ordering::Relaxed) == round));
                        meet(team, rank).unwrap();
                    }
                });
            }
        });
    }
}

#[test]
fn a_member_that_leaves_wakes_those_who_wait() {
    let team = Team::new(3, None);
    thread::scope(|scope| {
        let team = &team;
        let waiting = [0, 1].map(|rank| scope.spawn(move || meet(team, rank)));
        // Long enough for both to sleep.
        thread::sleep(Duration::from_millis(30));
        team.leave();
        assert!(waiting.into_iter().all(|thread| thread.join().unwrap() == Err(Broken)));
    });
    assert!(team.is_broken());
    team.begin(false);
    assert_eq!(meet(&team, 0), Err(Broken), "nothing repairs it");
}

#[test]
fn whoever_leaves_behind_the_last_barrier_breaks_nothing() {
    let team = Arc::new(Team::new(2, None));
    let mut crew = Crew::<()>::start(&team).unwrap();
    for _ in 0..2000 {
        let theirs = team.clone();
        let met = crew.all(move |rank, _| meet(&theirs, rank));
        assert_eq!(met, [Some(Ok(())), Some(Ok(()))]);
    }
    assert!(!team.is_broken());
}

#[test]
fn a_member_alone_waits_for_nobody() {
    let team = Arc::new(Team::new(2, None));
    let mut crew = Crew::<()>::start(&team).unwrap();
    assert_eq!(crew.first(|_| meet(&team, 0)), Err(Broken));
    let one = Arc::new(Team::new(1, None));
    assert_eq!(Crew::<()>::start(&one).unwrap().first(|_| meet(&one, 0)), Ok(()));
}

#[test]
fn every_member_keeps_what_it_made() {
    let team = Arc::new(Team::new(3, None));
    let mut crew = Crew::start(&team).unwrap();
    crew.all(|rank, member| *member = Some(10 * rank));
    let made = crew.all(|rank, member| (rank, *member));
    assert_eq!(made, [0, 1, 2].map(|rank| Some((rank, Some(10 * rank)))));
}

#[test]
fn a_member_that_panics_leaves_the_others_their_answers() {
    let team = Arc::new(Team::new(3, None));
    let mut crew = Crew::<()>::start(&team).unwrap();
    let theirs = team.clone();
    let answers = crew.all(move |rank, _| {
        assert_ne!(rank, 2, "a panic that the test wants");
        meet(&theirs, rank)
    });
    assert_eq!(answers, [Some(Err(Broken)), Some(Err(Broken)), None]);
    let again = crew.all(|rank, _| rank);
    assert_eq!(again, [0, 1, 2].map(Some), "its thread goes on");
    let answers = answers.into_iter().map(|a| a.map(|_| Ok(Err(error(ErrorKind::Team)))));
    let root = agree::<()>(&team, answers.collect()).unwrap_err();
    assert_eq!(root.kind(), ErrorKind::Internal);
}

fn error(kind: ErrorKind) -> Error {
    Error::new(kind, "said so")
}

#[test]
fn members_must_agree() {
    use ErrorKind::{Cancelled, InvalidInput, OutOfMemory, Team as Lost};
    let team = Team::new(2, None);
    let agree = |a: Answer<u8>, b: Answer<u8>| agree(&team, vec![Some(a), Some(b)]);
    let refused = |kind| Ok(Err(error(kind)));
    let kind = |answer: Answer<Vec<u8>>| answer.map_err(|e| e.kind());
    assert_eq!(agree(Ok(Ok(1)), Ok(Ok(2))).unwrap().unwrap(), [1, 2]);
    // All refuse: the sandbox goes on.
    let answer = agree(refused(InvalidInput), refused(InvalidInput)).unwrap();
    assert_eq!(answer.unwrap_err().kind(), InvalidInput);
    // Some refuse: it does not, and the cause is the one that is told.
    assert_eq!(kind(agree(refused(Lost), refused(OutOfMemory))).unwrap_err(), OutOfMemory);
    assert_eq!(kind(agree(Ok(Ok(1)), refused(OutOfMemory))).unwrap_err(), OutOfMemory);
    assert_eq!(kind(agree(refused(Lost), Err(error(Cancelled)))).unwrap_err(), Cancelled);
    assert_eq!(kind(agree(Ok(Ok(1)), refused(Lost))).unwrap_err(), Lost);
    team.leave();
    assert_eq!(team.barrier(0, || None::<()>), Ok(Err(Broken)));
    assert_eq!(kind(super::agree(&team, vec![Some(Ok(Ok(1)))])).unwrap_err(), Lost);
}

/// Guests in the place of the two members of a team: what the export `run` of
/// each core module comes to. One that answers 1 gave up because of the other.
fn run(modules: [&str; 2], limits: Limits, during: impl FnOnce(&Team)) -> Answer<Vec<i32>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, "x").unwrap();
    let weights = Arc::new(Weights::open(&path, WeightsMode::Attach).unwrap());
    let engine = wasmtime::Engine::new(&config()).unwrap();
    let _clock = start_clock(&engine).unwrap();
    let mut linker = Linker::<State>::new(&engine);
    let barrier = |mut caller: Caller<'_, State>| -> wasmtime::Result<i32> {
        Ok(team::Host::barrier(caller.data_mut())?.is_err().into())
    };
    linker.func_wrap("team", "barrier", barrier).unwrap();
    let modules = modules.map(|wat| Module::new(&engine, wat::parse_str(wat).unwrap()).unwrap());

    let team = Arc::new(Team::new(2, None));
    let mut crew = Crew::<()>::start(&team).unwrap();
    let theirs = team.clone();
    thread::scope(|scope| {
        let answers = scope.spawn(move || {
            crew.all(move |rank, _| {
                let state = State::new(weights.clone(), limits, theirs.clone(), rank, false);
                let mut store = new_store(&engine, state);
                let answer = call(&mut store, |store| {
                    let instance = linker.instantiate(&mut *store, &modules[rank])?;
                    instance.get_typed_func::<(), i32>(&mut *store, "run")?.call(store, ())
                })?;
                Ok(if answer == 1 { Err(error(ErrorKind::Team)) } else { Ok(answer) })
            })
        });
        during(&team);
        agree(&team, answers.join().unwrap())
    })
}

const WAITS: &str = r#"(module (import "team" "barrier" (func $barrier (result i32)))
    (func (export "run") (result i32) (call $barrier)))"#;
const TRAPS: &str = r#"(module (func (export "run") (result i32) (unreachable)))"#;
const RETURNS: &str = r#"(module (func (export "run") (result i32) (i32.const 0)))"#;
const LOOPS: &str = r#"(module (func (export "run") (result i32) (loop (br 0)) (unreachable)))"#;
const GROWS: &str = r#"(module (memory 1) (func (export "run") (result i32)
    (drop (memory.grow (i32.const 60000))) (unreachable)))"#;

#[test]
fn members_that_meet_answer() {
    assert_eq!(run([WAITS, WAITS], NO_LIMIT, |_| {}).unwrap().unwrap(), [0, 0]);
}

#[test]
fn a_member_that_fails_is_the_one_that_is_named() {
    let late = Limits { time_max: Some(Duration::from_millis(50)), ..NO_LIMIT };
    for (fails, limits, kind) in [
        (TRAPS, NO_LIMIT, ErrorKind::Internal),
        (GROWS, NO_LIMIT, ErrorKind::OutOfMemory),
        (RETURNS, NO_LIMIT, ErrorKind::Team),
        (LOOPS, late, ErrorKind::TimeLimit),
    ] {
        for modules in [[WAITS, fails], [fails, WAITS]] {
            let error = run(modules, limits, |_| {}).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
        }
    }
}

#[test]
fn all_members_are_cancelled() {
    for modules in [[WAITS, LOOPS], [LOOPS, WAITS], [LOOPS, LOOPS]] {
        let error = run(modules, NO_LIMIT, |team| {
            thread::sleep(Duration::from_millis(30));
            team.cancelled.store(true, Ordering::Relaxed);
        });
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Cancelled);
    }
}

#[test]
fn members_stop_at_the_same_place() {
    for n_micros in 0..100 {
        let team = Team::new(3, None);
        let stopped_at = |team: &Team| {
            thread::scope(|scope| {
                let ask = || (0..).find(|&n| team.is_stopped(n)).unwrap();
                let members = [(); 3].map(|()| scope.spawn(ask));
                thread::sleep(Duration::from_micros(n_micros));
                team.stopped.store(true, Ordering::SeqCst);
                members.map(|member| member.join().unwrap())
            })
        };
        let places = stopped_at(&team);
        assert_eq!(places, [places[0]; 3]);
        assert!(team.is_stopped(places[0]) && team.is_stopped(places[0] + 1));
        team.begin(false);
        assert_eq!(stopped_at(&team), [0; 3], "another call");
    }
}

#[test]
fn members_share_one_limit_on_memory() {
    let team = Team::new(2, None);
    assert!(team.grow(0, 60, 100));
    assert!(!team.grow(1, 50, 100));
    assert!(team.grow(1, 40, 100));
    assert!(!team.grow(0, 1, 100) && team.grow(0, 0, 100));
    // Files count once, unless each member has its own windows on all of them.
    for rank in [0, 1] {
        team.account(rank, |account| account.files = 1000);
    }
    assert_eq!(team.memory_bytes_max(100), 1100);
    for rank in [0, 1] {
        team.account(rank, |account| account.attached = 700);
    }
    assert_eq!(team.memory_bytes_max(100), 1500);
    team.account(1, |account| account.attached = 5000);
    assert_eq!(team.memory_bytes_max(100), 1800, "no more than the files for each");
}

#[test]
fn what_the_system_refuses_is_given_back() {
    let team = Team::new(2, None);
    assert!(team.grow(0, 60, 100) && !team.grow(1, 50, 100));
    team.shrink(Some(0), 10);
    assert!(team.grow(1, 50, 100) && !team.grow(0, 1, 100));
    team.shrink(Some(1), 30);
    assert!(!team.render(31, 100) && team.render(30, 100));
}

/// Failures that the guest brings about without being granted anything give nothing back.
#[test]
fn only_what_was_granted_last_is_given_back() {
    let team = Arc::new(Team::new(1, None));
    let mut limiter = Limiter {
        team: team.clone(),
        rank: Some(0),
        bytes_max: 1000,
        memory_max: 100,
        granted: 0,
        refused: None,
    };
    let system = || std::io::Error::from(std::io::ErrorKind::OutOfMemory).into();
    assert!(limiter.memory_growing(0, 60, None).unwrap());
    limiter.memory_grow_failed(wasmtime::format_err!("exceeds the type's limits")).unwrap();
    assert!(!limiter.memory_growing(60, 110, None).unwrap());
    limiter.memory_grow_failed(system()).unwrap();
    assert!(!team.grow(0, 41, 100));
    assert!(limiter.memory_growing(60, 90, None).unwrap());
    for _ in 0..2 {
        limiter.memory_grow_failed(system()).unwrap();
        assert!(!team.grow(0, 41, 100));
    }
    assert!(team.grow(0, 40, 100));
}

#[test]
fn whole_files_count_for_each_member_and_slots_as_much_again() {
    let team = Team::new(2, None).with_whole_files(true);
    for rank in [0, 1] {
        team.account(rank, |account| account.files = 1000);
    }
    assert_eq!(team.memory_bytes_max(100), 2100);
    team.account(0, |account| account.attached = 1700);
    assert_eq!(team.memory_bytes_max(100), 2800);
    team.account(1, |account| account.attached = 5000);
    assert_eq!(team.memory_bytes_max(100), 3800, "no more than twice the files");
}

#[cfg(target_os = "linux")]
#[test]
fn the_shared_region_counts_once_and_has_one_length() {
    use super::team::NotShared;
    let team = Team::new(2, None);
    assert_eq!(team.share(0, 101, 100).unwrap_err(), NotShared::TooLarge);
    for rank in [0, 1, 1] {
        team.share(rank, 30, 100).unwrap();
        assert_eq!(team.memory_bytes_max(100), 70);
    }
    assert_eq!(team.share(1, 40, 100).unwrap_err(), NotShared::Length);
}

#[test]
fn what_renders_is_within_the_limit_on_memory() {
    const MIB: u64 = 1 << 20;
    let team = Team::new(1, None);
    assert!(team.grow(0, 40 * MIB, 100 * MIB));
    assert!(!team.render(61 * MIB, 100 * MIB));
    assert!(team.render(60 * MIB, 100 * MIB));
    assert!(team.render(0, 100 * MIB));
}
