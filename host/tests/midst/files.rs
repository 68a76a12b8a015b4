//! Files of a model that change while it is in use.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::thread;

use moewe::{Error, ErrorKind, MemoryOptions};

use super::*;

/// A model that is the test's own, and its folder.
fn copy(name: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::copy(model_path(), &path).unwrap();
    (folder, path)
}

fn writable(path: &Path) -> File {
    File::options().write(true).open(path).unwrap()
}

fn cut_short(path: &Path) {
    writable(path).set_len(4096).unwrap();
}

/// Writes over the last tenth of the file.
fn overwrite(path: &Path) {
    let size = path.metadata().unwrap().len();
    let garbage = vec![0x5a; size as usize / 10];
    writable(path).write_all_at(&garbage, size - garbage.len() as u64).unwrap();
}

#[track_caller]
fn assert_changed(error: &Error, path: &Path) {
    let message = error.to_string();
    assert_eq!(error.kind(), ErrorKind::Weights, "{message}");
    let name = path.display();
    assert!(message.starts_with(&format!("{name}: changed while it was in use; ")), "{message}");
    assert!(message.contains("load the model again"), "{message}");
}

#[test]
fn a_file_that_is_cut_short_ends_its_own_sessions_alone() {
    let expected = tokens(&mut session(&open(model_path(), |_| {})), &PROMPT, 60).unwrap();
    for threads in [1, 2] {
        let (_folder, path) = copy("cut.gguf");
        let options = |options: &mut ModelOptions| options.threads = threads;
        let (cut, other) = (open(&path, options), open(model_path(), options));
        let mut tenants = [session(&cut), session(&cut)];
        let mut neighbour = session(&other);
        let neighbours = thread::spawn(move || tokens(&mut neighbour, &PROMPT, 60));
        for tenant in &mut tenants {
            assert_eq!(tokens(tenant, &PROMPT, 3).unwrap(), expected[..3]);
        }
        cut_short(&path);
        for tenant in &mut tenants {
            assert_changed(&tenant.next().unwrap_err(), &path);
            assert_eq!(tenant.next().unwrap_err().kind(), ErrorKind::Ended);
        }
        assert_changed(&cut.session(greedy()).unwrap_err(), &path);
        assert_eq!(neighbours.join().unwrap().unwrap(), expected);
        assert_eq!(tokens(&mut session(&other), &PROMPT, 60).unwrap(), expected);
    }
}

#[test]
fn a_file_that_is_cut_short_in_the_midst_of_a_call() {
    for threads in [1, 2] {
        let (_folder, path) = copy("cut.gguf");
        let model = open(&path, |options| options.threads = threads);
        let mut session = session(&model);
        let cutter = {
            let path = path.clone();
            thread::spawn(move || {
                thread::sleep(std::time::Duration::from_millis(100));
                cut_short(&path);
            })
        };
        assert_changed(&session.feed(&long_prompt()).unwrap_err(), &path);
        cutter.join().unwrap();
        assert_eq!(session.usage().unwrap_err().kind(), ErrorKind::Ended);
    }
}

#[test]
fn a_file_that_changes_in_place_is_no_answer() {
    for memory in [None, Some(MemoryOptions::new(8 << 30))] {
        for threads in [1, 2] {
            let (_folder, path) = copy("changed.gguf");
            let model = open(&path, |options| {
                (options.threads, options.memory) = (threads, memory.clone());
            });
            let [mut one, mut other] = [session(&model), session(&model)];
            tokens(&mut one, &PROMPT, 3).unwrap();
            overwrite(&path);
            let mut rest = one.generate(&[], Some(50));
            let error = rest.find_map(Result::err).expect("an error in place of garbage");
            assert_changed(&error, &path);
            assert_eq!(one.next().unwrap_err().kind(), ErrorKind::Ended);
            assert_changed(&other.feed(&PROMPT).unwrap_err(), &path);
            assert_changed(&model.session(greedy()).unwrap_err(), &path);
        }
    }
}

#[test]
fn a_file_that_was_copied_may_change() {
    let (_folder, path) = copy("copied.gguf");
    let mut sessions = [model_path(), &path].map(|path| {
        let mut session =
            session(&open(path, |options| options.weights = moewe::WeightsMode::Read));
        // All experts are wanted by so many tokens.
        session.feed(&long_prompt()[..512]).unwrap();
        session
    });
    cut_short(&path);
    let [expected, got] = sessions.each_mut().map(|session| tokens(session, &PROMPT, 10).unwrap());
    assert_eq!(got, expected);
}
