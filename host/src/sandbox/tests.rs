//! Limits and interrupts, with core modules in the guest's place, and the host
//! functions as a guest calls them.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use wasmtime::component::{Component, Linker};
use wasmtime::{Instance, Module};

use super::bindings::moewe::inference::team;
use super::bindings::moewe::inference::weights::{ErrorCode, Host as _, HostSource as _};
use super::call::{CALL_BYTES_MAX, call, new_store};
use super::program::{config, start_clock};
use super::state::N_SOURCES_MAX;
use super::*;
use crate::weights::WeightsMode;

const NO_LIMIT: Limits = Limits { memory_max: 1 << 30, time_max: None };

/// A folder with a model of `n` bytes.
fn model(n: usize) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, (0..n).map(|i| i as u8).collect::<Vec<_>>()).unwrap();
    (folder, path)
}

fn state(path: &Path, mode: WeightsMode, limits: Limits) -> State {
    State::new(
        Arc::new(Weights::open(path, mode).unwrap()),
        limits,
        Arc::new(Team::new(1, None)),
        0,
        false,
    )
}

/// Runs the export `run` of a core module within the limits.
fn run(wat: &str, limits: Limits, started: impl FnOnce(&State)) -> (Result<i32>, State) {
    let (_folder, path) = model(100_000);
    let engine = wasmtime::Engine::new(&config()).unwrap();
    let _clock = start_clock(&engine).unwrap();
    let module = Module::new(&engine, wat::parse_str(wat).unwrap()).unwrap();
    let mut store = new_store(&engine, state(&path, WeightsMode::Attach, limits));
    started(store.data());
    let result = call(&mut store, |store| {
        let instance = Instance::new(&mut *store, &module, &[])?;
        instance.get_typed_func::<(), i32>(&mut *store, "run")?.call(store, ())
    });
    (result, store.into_data())
}

const LOOP: &str = r#"(module (func (export "run") (result i32) (loop (br 0)) (unreachable)))"#;

#[test]
fn a_call_ends_at_its_time_limit() {
    let limits = Limits { time_max: Some(Duration::from_millis(30)), ..NO_LIMIT };
    let error = run(LOOP, limits, |_| {}).0.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimeLimit);
    assert_eq!(error.to_string(), "the call took longer than its limit of 0.03 s");
}

#[test]
fn a_call_can_be_cancelled() {
    let (result, _) = run(LOOP, NO_LIMIT, |state| {
        let handle =
            CancelHandle { stopped: Arc::default(), cancelled: state.team.cancelled.clone() };
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            handle.cancel();
        });
    });
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Cancelled);
}

#[test]
fn memory_is_limited() {
    let grow = |n_pages: u32, after: &str| {
        let wat = format!(
            r#"(module (memory 1)
                (func (export "run") (result i32) (memory.grow (i32.const {n_pages})) {after}))"#
        );
        run(&wat, Limits { memory_max: 10 << 16, ..NO_LIMIT }, |_| {}).0
    };
    assert_eq!(grow(9, "").unwrap(), 1);
    assert_eq!(grow(10, "").unwrap(), -1);
    let error = grow(10, "(unreachable)").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    assert!(error.to_string().starts_with("model.gguf: needs more memory"), "{error}");
    assert_eq!(grow(9, "(unreachable)").unwrap_err().kind(), ErrorKind::Internal);
}

#[test]
fn a_module_that_starts_too_large_is_refused() {
    let wat = r#"(module (memory 11) (func (export "run") (result i32) (i32.const 0)))"#;
    let limits = Limits { memory_max: 10 << 16, ..NO_LIMIT };
    assert_eq!(run(wat, limits, |_| {}).0.unwrap_err().kind(), ErrorKind::OutOfMemory);
}

#[test]
fn weights_do_not_count_as_the_guests_own_memory() {
    let (_folder, path) = model(100_000);
    let mut state = state(&path, WeightsMode::Attach, NO_LIMIT);
    let team = state.team.clone();
    assert_eq!(team.memory_bytes_max(1 << 20), 1 << 20);
    let rounded = 100_000_u64.next_multiple_of(moewe_memory::page_size());
    for _ in 0..3 {
        state.open("model.gguf".into()).unwrap().unwrap();
        assert_eq!(team.memory_bytes_max(1 << 20), (1 << 20) + rounded, "a file counts once");
    }
    assert_eq!(team.memory_bytes_max(u64::MAX), u64::MAX);
}

#[test]
fn a_fault_of_the_engine_is_named() {
    let wat = r#"(module (memory 1)
        (func (export "run") (result i32) (i32.load (i32.const -8))))"#;
    let error = run(wat, NO_LIMIT, |_| {}).0.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    let message = error.to_string();
    assert!(message.starts_with("model.gguf: the engine failed, please report it: "), "{message}");
    assert!(message.ends_with("wasm trap: out of bounds memory access"), "{message}");
}

#[test]
fn a_cancelled_call_does_not_begin() {
    let wat = r#"(module (func (export "run") (result i32) (i32.const 1)))"#;
    let (result, _) =
        run(wat, NO_LIMIT, |state| state.team.cancelled.store(true, Ordering::Relaxed));
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Cancelled);
}

#[test]
fn a_guest_that_is_cancelled_does_not_just_stop() {
    let (_folder, path) = model(1);
    let mut state = state(&path, WeightsMode::Read, NO_LIMIT);
    let (stopped, cancelled) = (state.team.stopped.clone(), state.team.cancelled.clone());
    let handle = CancelHandle { stopped, cancelled };
    let mut is_stopped = || team::Host::is_stopped(&mut state);
    assert!(!is_stopped().unwrap());
    handle.stop();
    assert!(is_stopped().unwrap());
    handle.cancel();
    let error = is_stopped().unwrap_err();
    assert!(error.to_string().contains("cancelled"), "{error}");
}

#[test]
fn results_are_limited() {
    let wat = r#"(component
            (core module $m
                (memory (export "memory") 3000)
                (func (export "run") (param i32) (result i32)
                    (i32.store (i32.const 4) (local.get 0))
                    (i32.const 0)))
            (core instance $i (instantiate $m))
            (func (export "run") (param "n" u32) (result (list u8))
                (canon lift (core func $i "run") (memory (core memory $i "memory")))))"#;
    let (_folder, path) = model(1);
    let engine = wasmtime::Engine::new(&config()).unwrap();
    let component = Component::new(&engine, wat::parse_str(wat).unwrap()).unwrap();
    let list = |n: usize| {
        let mut store = new_store(&engine, state(&path, WeightsMode::Attach, NO_LIMIT));
        call(&mut store, |store| {
            let instance = Linker::new(&engine).instantiate(&mut *store, &component)?;
            let run = instance.get_typed_func::<(u32,), (Vec<u8>,)>(&mut *store, "run")?;
            run.call(store, (n as u32,))
        })
    };
    assert_eq!(list(5000).unwrap().0.len(), 5000);
    let error = list(CALL_BYTES_MAX + 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(error.to_string().contains("too much data"), "{error}");
}

/// Of a guest that was taken over, and of a name that it asks for.
#[test]
fn bytes_that_are_no_text_end_a_sandbox() {
    let wat = r#"(component
            (core module $m
                (memory (export "memory") 1)
                (data (i32.const 8) "caf\c3\a9\c3")
                (func (export "run") (param i32) (result i32)
                    (i32.store (i32.const 0) (i32.const 8))
                    (i32.store (i32.const 4) (local.get 0))
                    (i32.const 0)))
            (core instance $i (instantiate $m))
            (func (export "run") (param "n" u32) (result (list u8))
                (canon lift (core func $i "run") (memory (core memory $i "memory")))))"#;
    let (_folder, path) = model(1);
    let engine = wasmtime::Engine::new(&config()).unwrap();
    let component = Component::new(&engine, wat::parse_str(wat).unwrap()).unwrap();
    let text = |n: u32| {
        let mut store = new_store(&engine, state(&path, WeightsMode::Attach, NO_LIMIT));
        call(&mut store, |store| {
            let instance = Linker::new(&engine).instantiate(&mut *store, &component)?;
            let run = instance.get_typed_func::<(u32,), (Vec<u8>,)>(&mut *store, "run")?;
            checked_text(run.call(store, (n,))?.0)
        })
    };
    assert_eq!(text(5).unwrap(), "caf\u{e9}");
    for n in [4, 6] {
        let error = text(n).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
        let message = error.to_string();
        assert!(
            message.starts_with("model.gguf: the engine gave bytes that are no text"),
            "{message}"
        );
    }

    let mut state = state(&path, WeightsMode::Attach, NO_LIMIT);
    let error = state.open(b"model.gguf\xff".to_vec()).unwrap_err();
    assert!(error.to_string().contains("no text"), "{error}");
}

#[cfg(target_os = "linux")]
#[test]
fn shared_memory_counts_too() {
    let wat = r#"(module (memory 8) (func (export "run") (result i32) (i32.const 1)))"#;
    let (_folder, path) = model(1);
    let engine = wasmtime::Engine::new(&config()).unwrap();
    let module = Module::new(&engine, wat::parse_str(wat).unwrap()).unwrap();
    let limits = Limits { memory_max: 10 << 16, ..NO_LIMIT };
    let mut store = new_store(&engine, state(&path, WeightsMode::Attach, limits));
    let (instance, region) = memory::capture(0, || Instance::new(&mut store, &module, &[]));
    instance.unwrap();
    let state = store.data_mut();
    state.region = region;
    let share =
        |state: &mut State, address, length| team::Host::share(state, address, length).unwrap();
    assert_eq!(share(state, 0, 3 << 16), Err(team::ErrorCode::OutOfMemory));
    assert_eq!(share(state, 0, 2 << 16), Ok(()));
    let around = 2 * moewe_memory::page_size();
    assert_eq!(state.team.memory_bytes_max(10 << 16), (8 << 16) + around);
    assert_eq!(share(state, 2 << 16, 2 << 16), Ok(()), "the same region again");
}

#[test]
fn a_guest_gets_the_files_of_its_model_alone() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "m-00001-of-00003.gguf", "x"];
    for name in names {
        std::fs::write(folder.path().join(name), name).unwrap();
    }
    let mut state = state(&folder.path().join(names[0]), WeightsMode::Read, NO_LIMIT);
    let mut open = |name: &str| {
        state.open(name.into()).unwrap().map(|s| state.size(s).unwrap()).map_err(|e| e.code)
    };
    assert_eq!(open(names[0]).unwrap(), 21);
    assert_eq!(open(names[1]).unwrap(), 21);
    for name in [
        names[2],
        names[3],
        "",
        "..",
        "./m-00001-of-00002.gguf",
        "../x",
        "/etc/passwd",
        "m-00000-of-00002.gguf",
        "m-00003-of-00002.gguf",
        "m-+0001-of-00002.gguf",
        "m-00002-of-00002.gguf\0",
    ] {
        assert_eq!(open(name).unwrap_err(), ErrorCode::NotFound, "{name:?}");
    }
}

#[test]
fn a_missing_sibling_is_not_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m-00001-of-00002.gguf");
    std::fs::write(&path, "x").unwrap();
    let mut state = state(&path, WeightsMode::Attach, NO_LIMIT);
    let error = state.open("m-00002-of-00002.gguf".into()).unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFound);
    assert!(error.message.ends_with("m-00002-of-00002.gguf: there is no such file"), "{error:?}");
}

#[test]
fn reads_are_exact_and_bounded() {
    let n = (2 << 20) + 5;
    let (_folder, path) = model(n);
    let mut state = state(&path, WeightsMode::Read, NO_LIMIT);
    let capabilities = state.get_capabilities().unwrap();
    assert!(!capabilities.attach && capabilities.n_windows_max == 0);
    let source = |state: &mut State| state.open("model.gguf".into()).unwrap().unwrap();
    let mut read = |offset, length| {
        let source = source(&mut state);
        state.read(source, offset, length).unwrap().map_err(|e| e.code)
    };
    assert_eq!(read(3, 4).unwrap(), [3, 4, 5, 6]);
    assert!(read(n as u64, 0).unwrap().is_empty());
    assert_eq!(read(0, u32::try_from(n).unwrap()).unwrap().len(), 1 << 20);
    assert_eq!(read(n as u64, 1).unwrap_err(), ErrorCode::InvalidRange);
    assert_eq!(read(u64::MAX, 1).unwrap_err(), ErrorCode::InvalidRange);
    assert_eq!(state.team.stats().n_read, 3);
    assert_eq!(state.team.stats().bytes_read, 4 + (1 << 20));
    assert_eq!(state.weights.stats(), state.team.stats());

    let source = source(&mut state);
    let error = state.attach(source, 0, 1, 0).unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::Unsupported);
}

#[test]
fn a_file_that_changes_is_noticed() {
    let (_folder, path) = model(100);
    let mut state = state(&path, WeightsMode::Read, NO_LIMIT);
    let open = |state: &mut State| state.open("model.gguf".into()).unwrap();
    let source = open(&mut state).unwrap();
    std::fs::write(&path, [0; 99]).unwrap();
    let error = open(&mut state).unwrap_err();
    assert_eq!(error.code, ErrorCode::Changed);
    assert!(error.message.contains("--weights read"), "{}", error.message);
    let error = state.read(source, 0, 1).unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::Changed);
}

#[test]
fn a_file_that_is_replaced_stays_as_it_was() {
    let (folder, path) = model(100);
    let mut state = state(&path, WeightsMode::Read, NO_LIMIT);
    let new = folder.path().join("new");
    std::fs::write(&new, [0; 99]).unwrap();
    std::fs::rename(new, path).unwrap();
    let source = state.open("model.gguf".into()).unwrap().unwrap();
    assert_eq!(state.read(source, 1, 2).unwrap().unwrap(), [1, 2]);
}

#[test]
fn open_sources_are_limited() {
    let (_folder, path) = model(1);
    let mut state = state(&path, WeightsMode::Attach, NO_LIMIT);
    let open = |state: &mut State| state.open("model.gguf".into()).unwrap();
    let first = open(&mut state).unwrap();
    for _ in 1..N_SOURCES_MAX {
        open(&mut state).unwrap();
    }
    assert_eq!(open(&mut state).unwrap_err().code, ErrorCode::Io);
    state.drop(first).unwrap();
    open(&mut state).unwrap();
}

#[test]
fn a_path_that_is_no_model_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let message = |path: &Path| {
        let error = Weights::open(path, WeightsMode::Attach).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Weights);
        error.to_string()
    };
    let missing = folder.path().join("missing.gguf");
    assert_eq!(message(&missing), format!("{}: there is no such file", missing.display()));
    let shown = folder.path().display();
    assert_eq!(message(folder.path()), format!("{shown}: is a folder; name the .gguf file in it"));
    assert_eq!(message(Path::new("/dev/null")), "/dev/null: is not a regular file");
}

/// What a guest that means harm asks of the store of experts.
#[cfg(target_os = "linux")]
#[test]
fn the_store_of_experts_is_opened_once_and_used_in_order() {
    use super::bindings::moewe::inference::experts::{Choice, HostStore as Store, Piece, Shape};
    use wasmtime::component::Resource;

    let wat = r#"(module (memory 8) (func (export "run") (result i32) (i32.const 1)))"#;
    let (_folder, path) = model(100_000);
    let engine = wasmtime::Engine::new(&config()).unwrap();
    let module = Module::new(&engine, wat::parse_str(wat).unwrap()).unwrap();
    let memory = crate::MemoryOptions::new(1 << 40);
    let mut weights = Weights::open(&path, WeightsMode::Attach).unwrap();
    weights.limit(memory).unwrap();
    let weights = Arc::new(weights);
    let team = Arc::new(Team::new(1, weights.store.clone()));
    let mut store = new_store(&engine, State::new(weights, NO_LIMIT, team, 0, false));
    let (instance, region) = memory::capture(0, || Instance::new(&mut store, &module, &[]));
    instance.unwrap();
    let state = store.data_mut();
    state.region = region;

    let shape = Shape {
        n_layer: 1,
        n_expert: 2,
        n_expert_used: 1,
        dense_bytes: 0,
        kv_bytes_per_token: 0,
        kv_chunk: 1,
        session_bytes: 0,
    };
    let open = |state: &mut State, name: &str, shape| {
        Store::open(state, vec![name.into()], shape).unwrap().map(Option::unwrap)
    };
    let code = |e: bindings::moewe::inference::weights::Error| e.code;
    assert_eq!(open(state, "/etc/passwd", shape).map_err(code).unwrap_err(), ErrorCode::NotFound);
    let giant = Shape { n_expert: u32::MAX, ..shape };
    assert!(open(state, "model.gguf", giant).is_err());
    let handle = open(state, "model.gguf", shape).unwrap();
    assert!(open(state, "model.gguf", shape).is_err(), "it is open");
    let again = || Resource::new_borrow(handle.rep());
    let choice = || vec![Choice { expert: 1, token: 0 }];
    let piece = |offset| Piece { file: 0, offset, length: 5000 };
    // Nothing is described yet.
    assert!(state.demand(again(), 0, choice()).unwrap().is_err());
    assert!(state.wait(again(), 0).unwrap().is_err());
    assert!(state.release(again()).unwrap().is_err());
    Store::prefetch(state, again(), 0, vec![0, 1]).unwrap();
    assert!(state.add_layer(again(), 0, vec![piece(0), piece(99_000)]).unwrap().is_err());
    state.add_layer(again(), 0, vec![piece(0), piece(70_000)]).unwrap().unwrap();
    let capacity = state.ready(again()).unwrap().unwrap();
    assert!(state.ready(again()).unwrap().is_err());
    assert!(state.add_layer(again(), 0, vec![piece(0), piece(70_000)]).unwrap().is_err());

    let places = state.demand(again(), 0, choice()).unwrap().unwrap();
    assert!(state.demand(again(), 0, choice()).unwrap().is_err(), "it holds one");
    state.wait(again(), places[0].slot).unwrap().unwrap();
    let whole = capacity.slot_bytes;
    assert!(Store::attach(state, again(), places[0].slot, 4096, whole, 0).unwrap().is_err());
    for address in [1, 8 << 16, (8 << 16) - 1, u64::MAX] {
        assert!(Store::attach(state, again(), places[0].slot, 0, whole, address).unwrap().is_err());
    }
    assert!(Store::attach(state, again(), 2, 0, whole, 0).unwrap().is_err());
    // Both slots, though only one of them was demanded.
    for slot in [0, 1] {
        Store::attach(state, again(), slot, 0, whole, u64::from(slot) * whole).unwrap().unwrap();
    }
    let (_, attached) = state.region.as_ref().unwrap().windows();
    assert_eq!(attached, 2 * whole);
    state.release(again()).unwrap().unwrap();
    assert!(state.release(again()).unwrap().is_err());

    // Whoever drops it with a demand does not get another turn, nor leaves it.
    state.demand(again(), 0, choice()).unwrap().unwrap();
    Store::drop(state, handle).unwrap();
    let handle = open(state, "model.gguf", shape).unwrap();
    let again = || Resource::new_borrow(handle.rep());
    state.add_layer(again(), 0, vec![piece(0), piece(70_000)]).unwrap().unwrap();
    state.ready(again()).unwrap().unwrap();
    assert!(state.demand(again(), 0, choice()).unwrap().is_err());
}

/// A guest that waits for what will never come, as the file is shorter now.
#[cfg(target_os = "linux")]
#[test]
fn a_call_ends_when_a_part_of_a_file_is_gone() {
    let wat = r#"(module (memory 8) (func (export "run") (result i32)
        (loop (br_if 0 (i32.eqz (i32.load8_u (i32.const 65537)))))
        (i32.const 1)))"#;
    let (_folder, path) = model(100_000);
    let engine = wasmtime::Engine::new(&config()).unwrap();
    let _clock = start_clock(&engine).unwrap();
    let module = Module::new(&engine, wat::parse_str(wat).unwrap()).unwrap();
    let mut store = new_store(&engine, state(&path, WeightsMode::Attach, NO_LIMIT));
    let (instance, region) = memory::capture(0, || Instance::new(&mut store, &module, &[]));
    let run = instance.unwrap().get_typed_func::<(), i32>(&mut store, "run").unwrap();
    let state = store.data_mut();
    state.region = region;
    let source = state.open("model.gguf".into()).unwrap().unwrap();
    state.attach(source, 0, 100_000, 1 << 16).unwrap().unwrap();
    assert_eq!(call(&mut store, |store| run.call(store, ())).unwrap(), 1);
    std::fs::File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
    let error = call(&mut store, |store| run.call(store, ())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Weights);
    assert!(error.to_string().contains("model.gguf: changed while it was in use"), "{error}");
    // As if a disk had failed: the file is what it was.
    std::fs::write(&path, [7; 100_000]).unwrap();
    store.data_mut().weights = Arc::new(Weights::open(&path, WeightsMode::Attach).unwrap());
    let error = call(&mut store, |store| run.call(store, ())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Weights);
    assert!(error.to_string().contains("model.gguf: a part cannot be read"), "{error}");
}
