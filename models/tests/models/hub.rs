//! Fetching models from repositories of Hugging Face.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use moewe_models::{Error, Library, Recipe, Result, Step};
use tempfile::{TempDir, tempdir};

use crate::pull::{Log, sha256};
use crate::server::{Answer, Habit, Server};

const FIRST: &str = "tiny-00001-of-00002.gguf";
const SECOND: &str = "tiny-00002-of-00002.gguf";
const REPOSITORY: &str = "me/tiny-GGUF";

/// A hub with a split model, whose bytes are on another server, and an empty library.
struct Fixture {
    hub: Server,
    cdn: Server,
    recipe: Recipe,
    files: [Vec<u8>; 2],
    _dir: TempDir,
    library: Library,
}

fn content(n: u8) -> Vec<u8> {
    (0..90_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8 ^ n).collect()
}

fn recipe(file_lines: [&str; 2]) -> Recipe {
    let [first, second] = file_lines;
    let about = if first.contains("size_bytes") { "" } else { "bytes_about = 180_000" };
    let text = format!(
        "name = 'tiny'\ndescription = ''\nlicence = 'MIT'\nparameters = '1M'\n\
         quantization = 'F16'\n{about}\n\
         [[files]]\nname = '{FIRST}'\n{first}\n[[files]]\nname = '{SECOND}'\n{second}\n\
         [source.huggingface]\nrepository = '{REPOSITORY}'\nfolder = 'F16'\n"
    );
    text.parse().unwrap()
}

fn path_of(name: &str) -> String {
    format!("/{REPOSITORY}/resolve/main/F16/{name}")
}

/// Where the bytes are, and what Hugging Face says of them.
fn redirect(cdn: &Server, name: &str, bytes: &[u8]) -> Answer {
    let headers =
        vec![("X-Linked-Size", bytes.len().to_string()), ("X-Linked-ETag", quoted(bytes))];
    Answer::Redirect { location: format!("{}/{name}?signed=1", cdn.url), headers }
}

fn quoted(bytes: &[u8]) -> String {
    format!("\"{}\"", sha256(bytes))
}

/// What the hub answers for the two files is changed by `change`.
fn fixture_with(change: impl FnOnce(&mut HashMap<String, Answer>, &Server)) -> Fixture {
    let files = [content(1), content(2)];
    let names = [FIRST, SECOND];
    let stored = names.iter().zip(&files);
    let cdn = Server::start(
        stored.clone().map(|(name, bytes)| (format!("/{name}?signed=1"), bytes.clone())).collect(),
    );
    let mut answers: HashMap<_, _> =
        stored.map(|(name, bytes)| (path_of(name), redirect(&cdn, name, bytes))).collect();
    change(&mut answers, &cdn);
    let hub = Server::with(answers);
    let dir = tempdir().unwrap();
    let library = Library::new(dir.path().join("models")).with_hub(format!("{}/", hub.url));
    Fixture { hub, cdn, recipe: recipe(["", ""]), files, _dir: dir, library }
}

fn fixture() -> Fixture {
    fixture_with(|_, _| {})
}

impl Fixture {
    fn pull(&self) -> (Result<PathBuf>, Log) {
        let mut log = Log::default();
        (self.library.pull(&self.recipe, &mut log), log)
    }

    fn error(&self) -> Error {
        self.pull().0.unwrap_err()
    }

    /// Pulls, and checks that the model is there and nothing else is left.
    fn pull_whole(&self) -> Log {
        let (path, log) = self.pull();
        assert_eq!(path.unwrap(), self.path(FIRST));
        for (name, bytes) in [FIRST, SECOND].into_iter().zip(&self.files) {
            assert!(fs::read(self.path(name)).unwrap() == *bytes, "the bytes of {name} differ");
        }
        assert_eq!(names(&self.library.folder().join(".partial")), [format!("{FIRST}.lock")]);
        log
    }

    fn path(&self, name: &str) -> PathBuf {
        self.library.folder().join(name)
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = folder.read_dir().unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_split_model_comes_by_way_of_redirects_its_first_file_last() {
    let f = fixture();
    let log = f.pull_whole();
    let steps: Vec<_> = log.steps.iter().map(|(step, name)| (*step, &**name)).collect();
    let expected = [SECOND, FIRST].map(|name| [(Step::Fetch, name), (Step::Check, name)]);
    assert_eq!(steps, expected.concat());
    assert_eq!(log.notes, [format!("tiny is at {}", f.path(FIRST).display())]);
    let requests = f.hub.requests("");
    let asked: Vec<_> = requests.iter().map(|r| (&*r.method, &*r.path)).collect();
    let expected = [SECOND, FIRST].map(path_of);
    let expected = expected.iter().flat_map(|path| [("HEAD", &**path), ("GET", &**path)]);
    assert_eq!(asked, expected.collect::<Vec<_>>());
    assert!(f.cdn.requests("").iter().all(|request| request.method == "GET"));

    // The second time, nobody is asked.
    let log = f.pull_whole();
    assert_eq!(log.notes, [format!("tiny is already at {}", f.path(FIRST).display())]);
    assert_eq!(f.hub.requests("").len(), requests.len());
}

#[test]
fn what_broke_off_goes_on_and_what_is_there_stays() {
    let f = fixture();
    f.cdn.set_habit(Habit::HangsUpAfter(50_000));
    let error = f.error();
    assert!(matches!(error, Error::Interrupted { bytes_done: 50_000, .. }), "{error}");
    // The second pull gets one file to its end, and the other not.
    let error = f.error();
    assert!(matches!(error, Error::Interrupted { bytes_done: 50_000, .. }), "{error}");
    assert!(f.path(SECOND).exists() && !f.path(FIRST).exists());
    f.cdn.set_habit(Habit::Good);
    f.pull_whole();
    let ranges = |name: &str| -> Vec<_> {
        let requests = f.cdn.requests(&format!("{name}?signed=1"));
        requests.into_iter().map(|request| request.range).collect()
    };
    let expected = [None, Some("bytes=50000-".to_owned())];
    assert_eq!([ranges(FIRST), ranges(SECOND)], [&expected, &expected]);
}

#[test]
fn other_bytes_than_the_server_promises_are_removed() {
    let f = fixture_with(|answers, cdn| {
        answers.insert(path_of(SECOND), redirect(cdn, SECOND, &content(3)));
    });
    let error = f.error();
    assert!(matches!(&error, Error::Mismatch { file, .. } if file == SECOND), "{error}");
    assert!(error.to_string().contains(&sha256(&content(3))), "{error}");
    assert_eq!(names(f.library.folder()), [".partial"]);
    assert_eq!(names(&f.library.folder().join(".partial")), [format!("{FIRST}.lock")]);
}

#[test]
fn a_file_that_has_changed_is_not_fetched() {
    let [first, second] = [content(1), content(2)].map(|bytes| sha256(&bytes));
    let [first, second] =
        [first, second].map(|hash| format!("size_bytes = 90_000\nsha256 = '{hash}'"));
    let mut f = fixture();
    f.recipe = recipe([&first, &second]);
    f.pull_whole();
    for (line, reason) in [
        (second.replace("90_000", "90_001"), "90000 bytes, not 90001"),
        (format!("size_bytes = 90_000\nsha256 = '{}'", sha256(b"old")), &*sha256(b"old")),
    ] {
        let mut f = fixture();
        f.recipe = recipe([&first, &line]);
        let error = f.error();
        assert!(matches!(&error, Error::Changed { file, .. } if file == SECOND), "{error}");
        assert!(error.to_string().contains(reason), "{error}");
        assert!(f.cdn.requests("").is_empty());
    }
}

#[test]
fn a_missing_file_is_named_with_the_way_out() {
    for (answer, status) in [(None, 404), (Some(Answer::Status(401)), 401)] {
        let f = fixture_with(|answers, _| {
            answers.remove(&path_of(SECOND));
            answers.extend(answer.map(|answer| (path_of(SECOND), answer)));
        });
        let error = f.error();
        assert!(matches!(error, Error::NotInRepository { .. }), "{error}");
        let expected = format!(
            "{}/{REPOSITORY} does not give F16/{SECOND} (HTTP {status}): look for a newer moewe",
            f.hub.url
        );
        assert!(error.to_string().starts_with(&expected), "{error}");
    }
    let mut f = fixture();
    f.library = f.library.with_hub("hub.example");
    let error = f.error();
    assert!(matches!(error, Error::NoHub(_)), "{error}");
}

#[test]
fn without_a_hash_the_user_is_told() {
    let f = fixture_with(|answers, _| {
        answers.insert(path_of(FIRST), Answer::File(content(1)));
    });
    let log = f.pull_whole();
    let note = format!("{FIRST}: nobody tells its SHA-256, its size alone is right");
    assert_eq!(log.notes[0], note);
    assert_eq!(log.notes.len(), 2);
}

#[test]
fn a_repository_that_has_moved_is_followed() {
    let f = fixture_with(|answers, _| {
        for name in [FIRST, SECOND] {
            let there = answers.remove(&path_of(name)).unwrap();
            let moved = path_of(name).replace("/me/", "/you/");
            let here = Answer::Redirect { location: moved.clone(), headers: Vec::new() };
            answers.extend([(moved, there), (path_of(name), here)]);
        }
    });
    assert_eq!(f.pull_whole().notes.len(), 1);
    let f = fixture_with(|answers, _| {
        let round = Answer::Redirect { location: path_of(SECOND), headers: Vec::new() };
        answers.insert(path_of(SECOND), round);
    });
    let error = f.error().to_string();
    assert!(error.contains("too many redirects"), "{error}");
}

#[test]
fn a_mirror_is_asked_for_each_file_first() {
    // A folder that has one of them, and says no hash.
    let mut f = fixture();
    let mirror = tempdir().unwrap();
    fs::write(mirror.path().join(SECOND), &f.files[1]).unwrap();
    f.library = f.library.with_mirror(mirror.path().to_str().unwrap());
    let log = f.pull_whole();
    assert!(log.notes[0].starts_with(&format!("{SECOND}: nobody tells its SHA-256")));
    assert!(f.hub.requests(SECOND).is_empty());

    // A server, asked for the size.
    let mut f = fixture();
    let mirror = Server::start(HashMap::from([(format!("/m/{FIRST}"), f.files[0].clone())]));
    f.library = f.library.with_mirror(format!("{}/m", mirror.url));
    f.pull_whole();
    assert!(f.hub.requests(FIRST).is_empty());
    assert_eq!(f.hub.requests(SECOND).len(), 2);
}
