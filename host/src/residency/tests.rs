//! Disks that fail, and guests that want no good.

use std::io::{self, IoSliceMut};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use moewe_models::Silent;
use moewe_models::generate::{Shape, generate};

use super::demands::Begun;
use super::slots::Requests;
use super::*;
use crate::context::{KvFormat, load_options};
use crate::files::WeightFiles;
use crate::guest;
use crate::sandbox::Limits;
use crate::weights::{Weights, WeightsMode};
use crate::{Engine, Model, Session, SessionOptions};

const SHAPE: Shape = Shape {
    n_layer: 3,
    n_embd: 256,
    n_head: 8,
    kv_heads: 2,
    head_dim: 32,
    n_expert: 8,
    n_expert_used: 2,
    n_ff_expert: 256,
    n_vocab: 400,
    n_ctx: 128,
};

/// What is wrong with a storage.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// A block at a time.
    Short,
    /// So many reads fail.
    Fails(u32),
    /// The file has so many bytes now.
    Shrunk(u64),
    /// Reads do not come back.
    Stalls,
}

/// A file in memory whose disk fails when it is told to.
struct Faulty {
    bytes: Vec<u8>,
    fault: Mutex<Fault>,
    changed: Condvar,
    /// How often it was asked for something.
    n_reads: AtomicU32,
}

impl Faulty {
    fn new(bytes: Vec<u8>, fault: Fault) -> Arc<Self> {
        let (fault, changed) = (Mutex::new(fault), Condvar::new());
        Arc::new(Self { bytes, fault, changed, n_reads: AtomicU32::new(0) })
    }

    fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
        self.changed.notify_all();
    }
}

impl Storage for Faulty {
    fn read_at(&self, buffers: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        self.n_reads.fetch_add(1, Ordering::Relaxed);
        let mut end = self.bytes.len();
        let mut fault = self.fault.lock().unwrap();
        while *fault == Fault::Stalls {
            fault = self.changed.wait(fault).unwrap();
        }
        match &mut *fault {
            Fault::Short => end = end.min(offset as usize + 4096),
            Fault::Fails(n) if *n > 0 => {
                *n -= 1;
                return Err(io::Error::from_raw_os_error(5));
            }
            Fault::Shrunk(size) => end = *size as usize,
            _ => {}
        }
        let mut bytes = self.bytes.get(offset as usize..end).unwrap_or_default();
        let before = bytes.len();
        for buffer in buffers {
            let (now, later) = bytes.split_at(buffer.len().min(bytes.len()));
            buffer[..now.len()].copy_from_slice(now);
            bytes = later;
        }
        Ok(before - bytes.len())
    }

    fn promised(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn size(&self) -> io::Result<u64> {
        match *self.fault.lock().unwrap() {
            Fault::Shrunk(size) => Ok(size),
            _ => Ok(self.promised()),
        }
    }
}

/// Lets the threads of the disk go on when a test ends.
struct Unblock(Arc<Faulty>);

impl Drop for Unblock {
    fn drop(&mut self) {
        self.0.set(Fault::None);
    }
}

fn generated() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    generate(&path, &SHAPE, 1, &mut Silent).unwrap();
    (folder, path)
}

fn faulty(path: &Path, fault: Fault) -> Arc<Faulty> {
    Faulty::new(std::fs::read(path).unwrap(), fault)
}

/// A store without limits, which reads from `file`.
fn store(file: &Arc<Faulty>, stall_max: Duration) -> ExpertStore {
    store_of_pages(file, stall_max, PAGE)
}

/// The same with pages of another size.
fn store_of_pages(file: &Arc<Faulty>, stall_max: Duration, page_size: u64) -> ExpertStore {
    let file = file.clone();
    let open = Box::new(move |_: &WeightFile| Ok(file.clone() as Arc<dyn Storage>));
    let options = MemoryOptions { prefetch: Prefetch::On, ..MemoryOptions::new(u64::MAX) };
    let mut store = ExpertStore::with_storage("model.gguf", options, page_size, open).unwrap();
    store.stall_max = stall_max;
    store
}

/// Opens the model with its weights from `file`.
fn open(
    path: &Path,
    file: &Arc<Faulty>,
    threads: usize,
    stall_max: Duration,
    time_max: Option<Duration>,
) -> Result<Model> {
    let mut weights = Weights::open(path, WeightsMode::Attach).unwrap();
    weights.store = Some(Arc::new(store(file, stall_max)));
    let limits = Limits { memory_max: 1 << 30, time_max };
    Model::load(
        &Engine::new().unwrap(),
        path.to_owned(),
        weights,
        limits,
        load_options(KvFormat::default(), None),
        threads,
        guest::Choice::asked(guest::Guest::Bits32),
    )
}

/// Pages may be larger than what a disk reads at a time, and end behind the file.
#[test]
fn pages_of_any_size_show_the_same() {
    let (_folder, path) = generated();
    let expected = expected(&path);
    for page_size in [PAGE, 16 << 10, 64 << 10] {
        for threads in [1, 2] {
            let file = faulty(&path, Fault::None);
            let mut weights = Weights::open(&path, WeightsMode::Attach).unwrap();
            weights.store = Some(Arc::new(store_of_pages(&file, LONG, page_size)));
            let limits = Limits { memory_max: 1 << 30, time_max: None };
            let engine = Engine::new().unwrap();
            let model = Model::load(
                &engine,
                path.clone(),
                weights,
                limits,
                load_options(KvFormat::default(), None),
                threads,
                guest::Choice::asked(guest::Guest::Bits32),
            )
            .unwrap();
            let got = bits(&mut session(&model)).unwrap();
            assert!(got == expected, "pages of {page_size} bytes, {threads} threads");
            assert!(model.expert_stats().unwrap().slot_bytes.is_multiple_of(page_size));
        }
    }
}

const LONG: Duration = Duration::from_secs(60);
/// More than the pauses of a read that is repeated.
const SHORT: Duration = Duration::from_millis(600);

fn session(model: &Model) -> Session {
    model.session(SessionOptions::default()).unwrap()
}

fn bits(session: &mut Session) -> Result<Vec<u32>> {
    session.feed(&[1, 50, 275, 337, 302])?;
    let first = session.logits()?;
    session.feed(&[7])?;
    let logits = first.into_iter().chain(session.logits()?);
    Ok(logits.map(f32::to_bits).collect())
}

fn expected(path: &Path) -> Vec<u32> {
    let model = Model::open(&Engine::new().unwrap(), path, crate::ModelOptions::default()).unwrap();
    bits(&mut session(&model)).unwrap()
}

#[test]
fn what_can_be_read_in_the_end_is_right() {
    let (_folder, path) = generated();
    let expected = expected(&path);
    for fault in [Fault::Short, Fault::Fails(1), Fault::Fails(3)] {
        for threads in [1, 2] {
            // While the weights that every token needs are read, and later.
            for at_load in [true, false] {
                let file = faulty(&path, if at_load { fault } else { Fault::None });
                let model = open(&path, &file, threads, LONG, None).unwrap();
                let mut session = session(&model);
                if !at_load {
                    file.set(fault);
                }
                assert!(bits(&mut session).unwrap() == expected, "{fault:?}, {threads} threads");
                let n_retries = model.expert_stats().unwrap().n_retries;
                assert_eq!(n_retries > 0, fault != Fault::Short, "{fault:?}");
            }
        }
    }
}

/// What a disk that is broken for good is said to be, and what helps.
const FOR_GOOD: [(Fault, &[&str]); 3] = [
    (Fault::Fails(u32::MAX), &["model.gguf: cannot read", "check the disk, and try again"]),
    (SHRUNK, &["model.gguf: became shorter", "load the model again"]),
    (Fault::Stalls, &["model.gguf: the disk has delivered nothing for 0.6 s", "try again"]),
];
const SHRUNK: Fault = Fault::Shrunk(9000);

#[test]
fn experts_that_cannot_be_read_are_an_error_that_passes() {
    let (_folder, path) = generated();
    let expected = expected(&path);
    for (fault, words) in FOR_GOOD {
        for threads in [1, 2] {
            let file = faulty(&path, Fault::None);
            let _unblock = Unblock(file.clone());
            let model = open(&path, &file, threads, SHORT, None).unwrap();
            let mut session = session(&model);
            file.set(fault);
            for _ in 0..2 {
                let began = Instant::now();
                let error = bits(&mut session).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Weights, "{error}");
                for word in words {
                    assert!(error.to_string().contains(word), "{error}");
                }
                assert!(began.elapsed() < 10 * SHORT);
            }
            file.set(Fault::None);
            assert!(bits(&mut session).unwrap() == expected, "{fault:?}, {threads} threads");
            let store = model.store();
            let inner = store.shared.lock();
            let slots = &inner.model.as_ref().unwrap().slots;
            assert_eq!(slots.cache.n_pinned(), 0);
        }
    }
}

#[test]
fn dense_weights_that_cannot_be_read_are_an_error() {
    let (_folder, path) = generated();
    for (fault, words) in FOR_GOOD {
        for threads in [1, 2] {
            let file = faulty(&path, fault);
            let _unblock = Unblock(file.clone());
            let error = open(&path, &file, threads, SHORT, None).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Weights, "{error}");
            for word in words {
                assert!(error.to_string().contains(word), "{error}");
            }
        }
    }
}

#[test]
fn a_file_that_is_shorter_than_it_was_when_it_is_opened_once_more() {
    let (_folder, path) = generated();
    let bytes = std::fs::read(&path).unwrap();
    let file = Faulty::new(bytes[..5000].to_vec(), Fault::None);
    let error = open(&path, &file, 1, SHORT, None).unwrap_err();
    assert!(error.to_string().contains("became shorter"), "{error}");
}

#[test]
fn who_waits_for_a_disk_that_stalls_can_be_interrupted() {
    let (_folder, path) = generated();
    for threads in [1, 2] {
        let file = faulty(&path, Fault::None);
        let _unblock = Unblock(file.clone());
        let model = open(&path, &file, threads, LONG, Some(SHORT)).unwrap();
        let mut sessions = [session(&model), session(&model)];
        file.set(Fault::Stalls);
        let began = Instant::now();
        let handle = sessions[0].cancel_handle();
        let canceller = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            handle.cancel();
        });
        let error = bits(&mut sessions[0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert!(began.elapsed() < SHORT, "{:?}", began.elapsed());
        canceller.join().unwrap();
        let error = bits(&mut sessions[1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimeLimit);
        assert!(began.elapsed() < 4 * SHORT, "{:?}", began.elapsed());
        // The sessions have ended, though they are still there.
        let store = model.store();
        assert_eq!(store.shared.lock().model.as_ref().unwrap().slots.cache.n_pinned(), 0);
    }
    for threads in [1, 2] {
        let file = faulty(&path, Fault::Stalls);
        let _unblock = Unblock(file.clone());
        let error = open(&path, &file, threads, LONG, Some(SHORT)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimeLimit);
    }
}

const PAGE: u64 = 4096;

/// A file of 64 pages, each full of its number, and the weights with it.
fn pages() -> (tempfile::TempDir, WeightFiles, Arc<Faulty>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let bytes: Vec<u8> = (0..64 * PAGE).map(|i| (i / PAGE) as u8).collect();
    std::fs::write(&path, &bytes).unwrap();
    let weights = WeightFiles::open(&path).unwrap();
    (folder, weights, Faulty::new(bytes, Fault::None))
}

fn shape(n_layer: u32, n_expert: u32) -> interface::Shape {
    interface::Shape {
        n_layer,
        n_expert,
        n_expert_used: 2,
        dense_bytes: 0,
        kv_bytes_per_token: 0,
        kv_chunk: 64,
        session_bytes: 0,
    }
}

fn piece(file: u32, offset: u64, length: u64) -> FilePiece {
    FilePiece { file, offset, length }
}

/// 3 layers of 8 experts of one page; the first layer has none.
fn table(weights: &WeightFiles) -> Table {
    let mut table =
        Table::new(vec![weights.get("model.gguf").unwrap()], shape(3, 8), PAGE).unwrap();
    for layer in [1, 2] {
        let pieces = (0..8).map(|i| piece(0, (8 * u64::from(layer) + i) * PAGE, PAGE));
        table.add_layer(layer, pieces.collect()).unwrap();
    }
    table
}

/// A store with few slots, and two teams of one member.
fn few_slots(file: &Arc<Faulty>, weights: &WeightFiles, n_slots: usize) -> (ExpertStore, [u64; 2]) {
    let store = store(file, LONG);
    let teams = [(); 2].map(|()| store.add_team(1));
    let capacity = store.describe(teams[0], table(weights), 0).unwrap();
    assert_eq!((capacity.slot_bytes, capacity.n_demand_max), (PAGE, 4));
    store.describe(teams[1], table(weights), 0).unwrap();
    store.shared.lock().model.as_mut().unwrap().slots.set_capacity(n_slots);
    (store, teams)
}

/// Demands and waits; `None` if it takes too long.
fn demand(
    store: &ExpertStore,
    team: u64,
    n_before: u64,
    layer: u32,
    experts: &[u32],
) -> Option<Result<Vec<Place>, WeightError>> {
    let began = Instant::now();
    let late = || (began.elapsed() > Duration::from_millis(200)).then_some(());
    let choices: Vec<_> = experts.iter().map(|&expert| Choice { expert, token: 0 }).collect();
    let places = store.demand(team, n_before, layer, &choices, late).ok()?;
    if let Ok(places) = &places {
        for (place, expert) in places.iter().zip(experts) {
            store.wait(team, place.slot, true, late).ok()?.unwrap();
            let byte = store.with_slot(place.slot, 0, PAGE, |memory, offset| {
                let length = PAGE;
                let at = memory.at(offset as usize, length as usize);
                // SAFETY: the slot has been waited for, and is demanded.
                unsafe { (at.read(), at.add(length as usize - 1).read()) }
            });
            let number = (8 * layer + expert) as u8;
            assert_eq!(byte.unwrap(), (number, number));
        }
    }
    Some(places)
}

fn is_refused<T>(answer: Result<T, WeightError>) -> bool {
    answer.is_err_and(|e| e.kind == WeightErrorKind::InvalidRange)
}

#[test]
fn demands_that_make_no_sense_are_refused() {
    let (_folder, weights, file) = pages();
    let (store, [team, other]) = few_slots(&file, &weights, 6);
    let refused = |n_before, layer, experts: &[u32]| {
        is_refused(demand(&store, team, n_before, layer, experts).unwrap())
    };
    // Out of turn, of no layer, of one without experts, of none, of no expert.
    assert!(refused(1, 1, &[0]) && refused(u64::MAX - 1, 1, &[0]));
    assert!(refused(0, 3, &[0]) && refused(0, 0, &[0]) && refused(0, u32::MAX, &[0]));
    assert!(refused(0, 1, &[]) && refused(0, 1, &[8]) && refused(0, 1, &[70_000]));
    assert!(refused(0, 1, &[1, 0]), "not sorted");
    let all: Vec<u32> = (0..33).collect();
    assert!(refused(0, 1, &all), "too many");
    assert!(is_refused(store.release(team)), "nothing was demanded");
    assert!(is_refused(demand(&store, 77, 0, 1, &[0]).unwrap()), "no team");

    let places = demand(&store, team, 0, 1, &[0, 1]).unwrap().unwrap();
    let never = || None::<()>;
    let absent = (0..6).find(|slot| places.iter().all(|place| place.slot != *slot)).unwrap();
    for slot in [absent, 6, 1000, u32::MAX] {
        assert!(is_refused(store.wait(team, slot, true, never).unwrap()));
        // What was not demanded can be mapped, if it is there.
        let is_mapped = store.with_slot(slot, 0, 1, |_, _| ()).is_ok();
        assert_eq!(is_mapped, slot == absent);
    }
    let slot = places[0].slot;
    assert!(is_refused(store.wait(other, slot, true, never).unwrap()), "another team's");
    for (offset, length) in [(1, PAGE), (u64::MAX, 2), (PAGE, 1)] {
        assert!(is_refused(store.with_slot(slot, offset, length, |_, _| ())));
    }
    store.release(team).unwrap();
    assert!(is_refused(store.release(team)), "twice");
    // What was mapped once can be mapped again, whatever has become of it.
    store.shared.lock().model.as_mut().unwrap().slots.set_capacity(0);
    assert!((0..=slot).all(|slot| store.with_slot(slot, 0, 1, |_, _| ()).is_ok()));
    assert!(is_refused(store.with_slot(6, 0, 1, |_, _| ())));
    let n_pinned = store.shared.lock().model.as_ref().unwrap().slots.cache.n_pinned();
    assert_eq!(n_pinned, 0);
}

#[test]
fn members_that_demand_different_experts_are_told() {
    let (_folder, weights, file) = pages();
    let store = store(&file, LONG);
    let team = store.add_team(2);
    store.describe(team, table(&weights), 0).unwrap();
    demand(&store, team, 0, 1, &[0, 1]).unwrap().unwrap();
    assert!(is_refused(demand(&store, team, 0, 1, &[0, 2]).unwrap()));
    assert!(is_refused(demand(&store, team, 0, 2, &[0, 1]).unwrap()));
    demand(&store, team, 0, 1, &[0, 1]).unwrap().unwrap();
    store.release(team).unwrap();
    assert!(demand(&store, team, 1, 1, &[3]).is_none(), "one member has not released");
    store.release(team).unwrap();
    demand(&store, team, 1, 1, &[3]).unwrap().unwrap();
}

#[test]
fn models_that_cannot_be_are_refused() {
    let (_folder, weights, file) = pages();
    let model = || weights.get("model.gguf").unwrap();
    let new = |n_layer, n_expert| Table::new(vec![model()], shape(n_layer, n_expert), PAGE);
    for (n_layer, n_expert) in
        [(u32::MAX, 1), (1, u32::MAX), (u32::MAX, u32::MAX), (1 << 12, 1 << 14)]
    {
        assert!(is_refused(new(n_layer, n_expert)));
    }
    assert!(is_refused(Table::new(vec![model(), model()], shape(1, 1), PAGE)), "a file twice");
    let add = |pieces: Vec<FilePiece>| new(2, 2).unwrap().add_layer(0, pieces);
    let sound = || vec![piece(0, 0, PAGE), piece(0, PAGE, PAGE)];
    add(sound()).unwrap();
    assert!(is_refused(add(vec![])) && is_refused(add(vec![piece(0, 0, PAGE)])));
    for bad in [
        piece(1, 0, PAGE),
        piece(u32::MAX, 0, PAGE),
        piece(0, 64 * PAGE, 1),
        piece(0, u64::MAX, PAGE),
        piece(0, PAGE, u64::MAX),
    ] {
        assert!(is_refused(add(vec![piece(0, 0, PAGE), bad])), "{bad:?}");
    }
    let mut twice = new(2, 2).unwrap();
    twice.add_layer(0, sound()).unwrap();
    assert!(is_refused(twice.add_layer(0, sound())) && is_refused(twice.add_layer(2, sound())));

    let store = store(&file, LONG);
    let team = store.add_team(1);
    let mut greedy = table(&weights);
    greedy.shape.dense_bytes = u64::MAX;
    greedy.shape.kv_bytes_per_token = u64::MAX;
    greedy.shape.kv_chunk = u32::MAX;
    greedy.shape.session_bytes = u64::MAX;
    // There are that many bytes, if only just.
    let _ = store.describe(team, greedy, u64::MAX);
    let (store, [_, other]) = few_slots(&file, &weights, 6);
    assert!(is_refused(store.describe(other, new(2, 2).unwrap(), 0)), "another model");
}

#[test]
fn prefetches_that_make_no_sense_take_no_slots() {
    let (_folder, weights, file) = pages();
    let (store, [team, other]) = few_slots(&file, &weights, 4);
    for (layer, experts) in [
        (0, &[0, 1, 2, 3][..]),
        (3, &[0]),
        (u32::MAX, &[0]),
        (1, &[8]),
        (1, &[u32::MAX]),
        (1, &[3, 2, 1, 0]),
        (1, &[1, 1, 1, 1]),
        (1, &[]),
    ] {
        store.prefetch(team, layer, experts);
    }
    assert_eq!(store.shared.lock().model.as_ref().unwrap().slots.cache.n_used(), 0);
    store.prefetch(team, 2, &[4, 5, 6, 7]);
    store.prefetch(99, 2, &[1]);
    demand(&store, other, 0, 1, &[0, 1, 2, 3]).unwrap().unwrap();
}

#[test]
fn a_team_that_goes_leaves_its_slots_to_others() {
    let (_folder, weights, file) = pages();
    let (store, [team, other]) = few_slots(&file, &weights, 4);
    demand(&store, team, 0, 1, &[0, 1, 2]).unwrap().unwrap();
    assert!(demand(&store, other, 0, 1, &[4, 5]).is_none(), "there is no room");
    store.give_up(team);
    demand(&store, other, 0, 1, &[4, 5]).unwrap().unwrap();
    assert!(is_refused(store.release(team)));
    assert!(demand(&store, team, 1, 2, &[0, 1, 2]).is_none());
    store.remove_team(other);
    demand(&store, team, 1, 2, &[0, 1, 2]).unwrap().unwrap();
    store.remove_team(team);
    let inner = store.shared.lock();
    assert_eq!(inner.model.as_ref().unwrap().slots.cache.n_pinned(), 0);
    assert_eq!((inner.budget.n_guests, inner.budget.guests), (0, 0));
}

/// A prefetch is cancelled for one team at the moment when another one demands it.
#[test]
fn a_prefetch_that_is_demanded_and_cancelled() {
    let (_folder, weights, file) = pages();
    let _unblock = Unblock(file.clone());
    for is_waited_for in [true, false] {
        let (store, [team, other]) = few_slots(&file, &weights, 4);
        file.set(Fault::Stalls);
        // As many as are read ahead at a time.
        store.prefetch(team, 2, &[0]);
        store.prefetch(team, 2, &[2]);
        store.prefetch(team, 2, &[4]);
        store.prefetch(team, 2, &[6]);
        let disk = || store.disk.stats().n_calls;
        let began = Instant::now();
        while disk() < 4 && began.elapsed() < Duration::from_secs(5) {
            thread::yield_now();
        }
        store.shared.lock().model.as_mut().unwrap().slots.set_capacity(5);
        store.prefetch(team, 1, &[3]);
        let mut requests = Requests::default();
        let begun = store.shared.lock().begin(team, 1, &[3], &mut requests);
        assert!(matches!(begun, Begun::Yes));
        let [id] = requests.promoted[..] else { panic!("it is no prefetch") };
        assert!(store.disk.cancel(id), "it has begun");
        requests.send(&store.disk);
        file.set(Fault::None);
        if is_waited_for {
            demand(&store, team, 0, 1, &[3]).unwrap().unwrap();
            store.release(team).unwrap();
        } else {
            store.give_up(team);
        }
        // No slot is lost.
        store.shared.lock().model.as_mut().unwrap().slots.set_capacity(4);
        demand(&store, other, 0, 1, &[0, 1, 2, 4]).unwrap().unwrap();
    }
}

#[test]
fn nobody_maps_more_than_the_budget_allows() {
    let (_folder, weights, file) = pages();
    let store = store(&file, LONG);
    let team = store.add_team(1);
    {
        let budget = &mut store.shared.lock().budget;
        budget.base = 0;
        budget.bytes = 80 << 20;
    }
    assert!(!store.charge(team, u64::MAX) && !store.charge(team, 81 << 20));
    store.describe(team, table(&weights), 0).unwrap();
    let room = {
        let inner = store.shared.lock();
        inner.budget.bytes - inner.budget.floor(inner.n_demand_max)
    };
    assert!(store.charge(team, room));
    assert!(!store.charge(team, u64::MAX) && !store.charge(team, room + 16 * PAGE));
    let model = weights.get("model.gguf").unwrap();
    let map = |range| store.with_dense(&model, range, || None::<()>, |_| ()).unwrap();
    // A few pages are taken for what lies around the weights that were told.
    map(0..PAGE).unwrap();
    store.shared.lock().budget.dense_resident += 16 << 20;
    assert!(map(PAGE..9 * PAGE).is_err_and(|e| e.kind == WeightErrorKind::OutOfMemory));
    assert!(store.charge(team, 0));
    map(PAGE..9 * PAGE).unwrap();
}

/// Memory that is being read into is nobody else's, though nobody waits for it.
#[test]
fn what_nobody_waits_for_any_more_is_read_once() {
    let (_folder, weights, file) = pages();
    let _unblock = Unblock(file.clone());
    let store = store(&file, SHORT);
    let team = store.add_team(1);
    store.describe(team, table(&weights), 0).unwrap();
    let model = weights.get("model.gguf").unwrap();
    let byte = |memory: &Mapping| {
        let at = memory.at(2 * PAGE as usize, PAGE as usize);
        // SAFETY: the page has been read, and nobody writes to it any more.
        unsafe { (at.read(), at.add(PAGE as usize - 1).read()) }
    };
    let map = |wait: Duration| {
        let began = Instant::now();
        let late = || (began.elapsed() > wait).then_some(());
        store.with_dense(&model, PAGE..4 * PAGE, late, byte)
    };
    file.set(Fault::Stalls);
    let before = store.shared.lock().budget.dense_resident;
    for _ in 0..3 {
        assert!(map(SHORT / 10).is_err(), "it was not interrupted");
    }
    assert_eq!(file.n_reads.load(Ordering::Relaxed), 1);
    // Who waits for the read of somebody else hears of a disk that stands still.
    assert!(map(LONG).unwrap().is_err_and(|e| e.message.contains("delivered nothing")));
    assert_eq!(file.n_reads.load(Ordering::Relaxed), 1);
    file.set(Fault::None);
    assert_eq!(map(LONG).unwrap().unwrap(), (2, 2));
    assert_eq!(file.n_reads.load(Ordering::Relaxed), 1);
    assert_eq!(store.shared.lock().budget.dense_resident, before + 3 * PAGE);

    // What failed is read again, into the same room.
    let map = |pages: Range<u64>| store.with_dense(&model, pages, || None::<()>, |_| ()).unwrap();
    file.set(Fault::Fails(u32::MAX));
    assert!(map(8 * PAGE..9 * PAGE).is_err());
    file.set(Fault::None);
    map(8 * PAGE..9 * PAGE).unwrap();
    assert_eq!(store.shared.lock().budget.dense_resident, before + 4 * PAGE);
}

#[test]
fn slots_that_are_free_keep_no_memory_when_there_are_fewer() {
    let (_folder, weights, file) = pages();
    let (store, [team, _]) = few_slots(&file, &weights, 4);
    demand(&store, team, 0, 1, &[0, 1, 2, 3]).unwrap().unwrap();
    store.release(team).unwrap();
    let resident = || arena_bytes(&store) / PAGE;
    assert_eq!(resident(), 4);
    // A demand that fails gives its slot back.
    file.set(Fault::Fails(u32::MAX));
    let choice = [Choice { expert: 7, token: 0 }];
    let places = store.demand(team, 1, 1, &choice, || None::<()>).unwrap().unwrap();
    assert!(store.wait(team, places[0].slot, true, || None::<()>).unwrap().is_err());
    store.release(team).unwrap();
    store.shared.lock().model.as_mut().unwrap().slots.set_capacity(3);
    assert_eq!(resident(), 3);
    file.set(Fault::None);
    demand(&store, team, 2, 2, &[0, 1, 2]).unwrap().unwrap();
    assert!(resident() <= 3);
}

/// Bytes of the arena that take memory.
fn arena_bytes(store: &ExpertStore) -> u64 {
    let inner = store.shared.lock();
    let slots = &inner.model.as_ref().unwrap().slots;
    std::os::unix::fs::MetadataExt::blocks(&slots.arena.file().metadata().unwrap()) * 512
}

/// 24 slots of 0.7 MB, three of which share a huge page.
#[test]
fn huge_pages_take_no_more_than_the_slots_that_there_may_be() {
    const N_EXPERT: u64 = 24;
    const LENGTH: u64 = 171 * PAGE;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let bytes: Vec<u8> = (0..N_EXPERT * LENGTH).map(|i| (i / LENGTH) as u8 + 1).collect();
    std::fs::write(&path, &bytes).unwrap();
    let weights = WeightFiles::open(&path).unwrap();
    let store = store(&Faulty::new(bytes, Fault::None), LONG);
    let mut table =
        Table::new(vec![weights.get("model.gguf").unwrap()], shape(1, N_EXPERT as u32), PAGE)
            .unwrap();
    let pieces = (0..N_EXPERT).map(|i| piece(0, i * LENGTH, LENGTH)).collect();
    table.add_layer(0, pieces).unwrap();
    let team = store.add_team(1);
    store.describe(team, table, 0).unwrap();
    let used_bytes =
        || store.shared.lock().model.as_ref().unwrap().slots.cache.n_used() as u64 * LENGTH;

    let mut state = 1_u64;
    let mut random = |n: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % n
    };
    let (mut prepared_max, mut n_before) = (0, 0);
    for _ in 0..100 {
        let n_slots = 3 + random(N_EXPERT - 3) as usize;
        store.shared.lock().model.as_mut().unwrap().slots.set_capacity(n_slots);
        assert_eq!(arena_bytes(&store), used_bytes(), "what is free was given back");
        for _ in 0..4 {
            let first = random(N_EXPERT - 2) as u32;
            let experts = [first, first + 1, first + 2];
            let choices = experts.map(|expert| Choice { expert, token: 0 });
            let never = || None::<()>;
            let places = store.demand(team, n_before, 0, &choices, never).unwrap().unwrap();
            n_before += 1;
            for (place, expert) in places.iter().zip(experts) {
                store.wait(team, place.slot, true, never).unwrap().unwrap();
                let read = |memory: &Mapping, offset: u64| {
                    let at = memory.at(offset as usize, LENGTH as usize);
                    // SAFETY: the slot has been waited for, and is demanded.
                    let bytes = unsafe { std::slice::from_raw_parts(at, LENGTH as usize) };
                    bytes.iter().all(|&byte| u32::from(byte) == expert + 1)
                };
                assert!(store.with_slot(place.slot, 0, LENGTH, read).unwrap());
            }
            store.release(team).unwrap();
            let allowed = n_slots as u64 * LENGTH;
            let bytes = arena_bytes(&store);
            assert!(bytes <= allowed, "{bytes} bytes, {allowed} were allowed");
            prepared_max = prepared_max.max(bytes - used_bytes());
        }
    }
    if prepared_max == 0 {
        moewe_fixtures::skip("there are no huge pages here");
    }
}
