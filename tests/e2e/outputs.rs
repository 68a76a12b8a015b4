//! What commands write: whole or not at all, and nothing else is lost by it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use moewe_models::Silent;
use moewe_models::generate::{Shape, generate};
use moewe_tests::{moewe, moewe_ok, program};

const SHAPE: Shape = Shape {
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

/// A model, its packed copy, and tokens, in a folder.
struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let fixture = Self { folder: tempfile::tempdir().unwrap() };
        generate(&fixture.path("model.gguf"), &SHAPE, 1, &mut Silent).unwrap();
        fs::write(fixture.path("tokens.json"), r#"{"ids": [1, 50, 275]}"#).unwrap();
        moewe_ok([OsString::from("pack"), fixture.path("model.gguf").into()]);
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The commands that write to a file, which is the last argument.
    fn commands(&self) -> [(&'static str, Vec<OsString>); 3] {
        let [model, tokens] = ["model.gguf", "tokens.json"].map(|name| self.path(name));
        let logits = [OsString::from("logits"), model.clone().into(), "--tokens".into()];
        let logits = [&logits[..], &[tokens.into(), "--out".into()]].concat();
        let run = ["run".into(), model.clone().into(), "Hello".into(), "-n".into(), "2".into()];
        let run = [&run[..], &["--temp".into(), "0".into(), "--trace".into()]].concat();
        let pack = ["pack".into(), model.into(), "--force".into(), "--out".into()];
        [("logits", logits), ("trace", run), ("pack", pack.into())]
    }
}

fn write(command: &[OsString], out: &Path) -> Output {
    moewe(command.iter().cloned().chain([out.into()]))
}

#[track_caller]
fn written(command: &[OsString], out: &Path) {
    let output = write(command, out);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The command says in one line why it does not write there.
#[track_caller]
fn refused(command: &[OsString], out: &Path, words: &[&str]) {
    let output = write(command, out);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.starts_with("error: ") && stderr.lines().count() == 1, "{stderr:?}");
    for word in words {
        assert!(stderr.contains(word), "no {word:?} in {stderr:?}");
    }
}

#[test]
fn what_is_read_is_not_written() {
    let fixture = Fixture::new();
    let [model, copy] = ["model.gguf", "model.packed.gguf"].map(|name| fixture.path(name));
    let [link, hard_link] = ["link", "hard-link"].map(|name| fixture.path(name));
    symlink(&model, &link).unwrap();
    fs::hard_link(&model, &hard_link).unwrap();
    let expected = [fs::read(&model).unwrap(), fs::read(&copy).unwrap()];
    for (name, command) in fixture.commands() {
        let mut inputs = vec![&model, &link, &hard_link];
        if name != "pack" {
            inputs.push(&copy);
        }
        for input in inputs {
            refused(&command, input, &["is a file that is read here", "name another"]);
        }
        assert!([fs::read(&model).unwrap(), fs::read(&copy).unwrap()] == expected, "{name}");
    }
    let tokens = fixture.path("tokens.json");
    refused(&fixture.commands()[0].1, &tokens, &["is a file that is read here"]);
    assert_eq!(fs::read_to_string(tokens).unwrap(), r#"{"ids": [1, 50, 275]}"#);
    // The original of a packed file that is named itself.
    let run =
        ["run".into(), copy.into(), "Hello".into(), "-n".into(), "2".into(), "--trace".into()];
    refused(&run, &model, &["is a file that is read here"]);
    assert!(fs::read(&model).unwrap() == expected[0]);
}

#[test]
fn links_stay_and_what_they_point_to_is_replaced() {
    let fixture = Fixture::new();
    for (name, command) in fixture.commands() {
        let folder = fixture.path(&format!("of-{name}"));
        fs::create_dir(&folder).unwrap();
        let [target, link, new, dangling] =
            ["target", "link", "new", "dangling"].map(|name| folder.join(name));
        fs::write(&target, "old").unwrap();
        symlink("target", &link).unwrap();
        symlink("new", &dangling).unwrap();
        written(&command, &link);
        written(&command, &dangling);
        for (link, target) in [(&link, &target), (&dangling, &new)] {
            assert!(link.symlink_metadata().unwrap().is_symlink(), "{name}");
            assert!(target.symlink_metadata().unwrap().is_file(), "{name}");
            assert!(target.metadata().unwrap().len() > 10, "{name}");
        }
        // Who could not read the old one cannot read the new one.
        fs::set_permissions(&target, fs::Permissions::from_mode(0o600)).unwrap();
        written(&command, &target);
        assert_eq!(target.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{name}");
        assert_eq!(folder.read_dir().unwrap().count(), 4, "{name}");
    }
}

#[test]
fn pipes_and_devices_are_written_to() {
    let fixture = Fixture::new();
    let [pipe, out] = ["pipe", "out"].map(|name| fixture.path(name));
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let [null, full, stdout] = ["null", "full", "stdout"].map(|name| fixture.path(name));
    symlink("/dev/null", &null).unwrap();
    symlink("/dev/full", &full).unwrap();
    symlink("/proc/self/fd/1", &stdout).unwrap();
    for (name, command) in fixture.commands() {
        written(&command, &out);
        // Were nothing written to it, nothing would ever come.
        let read = fixture.path("read");
        let mut reader = Command::new("timeout");
        let reader = reader.args(["60", "cat"]).arg(&pipe).stdout(File::create(&read).unwrap());
        let mut reader = reader.spawn().unwrap();
        written(&command, &pipe);
        assert!(reader.wait().unwrap().success(), "{name}");
        let got = fs::read(read).unwrap();
        // A trace says how much memory there was, which is never the same.
        let n_same = if name == "trace" { 9 } else { usize::MAX };
        let mut expected = fs::read(&out).unwrap();
        expected.truncate(n_same);
        assert!(got.starts_with(&expected), "{name}: {} bytes", got.len());
        assert!(pipe.metadata().unwrap().file_type().is_fifo(), "{name}");
        written(&command, &null);
        assert!(null.symlink_metadata().unwrap().is_symlink(), "{name}");
        assert!(null.metadata().unwrap().file_type().is_char_device(), "{name}");
        let output = write(&command, &full);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{name}: {stderr}");
        assert!(stderr.contains("full") && stderr.contains("space"), "{name}: {stderr}");

        // Where standard output goes to is kept, too.
        let before = b"before".to_vec();
        let to = fixture.path("to");
        fs::write(&to, &before).unwrap();
        let mut process = Command::new(program("moewe"));
        process.args(&command).arg(&stdout);
        let file = File::options().append(true).open(&to).unwrap();
        assert!(process.stdout(file).stderr(Stdio::null()).status().unwrap().success());
        let got = fs::read(&to).unwrap();
        assert!(got.starts_with(&before), "{name}");
        assert!(got.windows(expected.len()).any(|bytes| bytes == expected), "{name}");
    }
}

/// What is there stays until all of the new one is.
#[test]
fn who_is_interrupted_leaves_the_old_file() {
    let fixture = Fixture::new();
    let out = fixture.path("out");
    for (name, command) in fixture.commands() {
        fs::write(&out, "old").unwrap();
        // It is stopped while it writes: files of more bytes may not be made.
        let mut process = Command::new("sh");
        process.args(["-c", "ulimit -f 1; exec \"$0\" \"$@\""]).arg(program("moewe"));
        let process = process.args(&command).arg(&out).stdout(Stdio::null()).output().unwrap();
        if name != "trace" {
            assert!(!process.status.success(), "{name}");
            assert_eq!(fs::read_to_string(&out).unwrap(), "old", "{name}");
        }
    }
    // A run that ends early: the prompt is too long.
    let (_, run) = &fixture.commands()[1];
    let run: Vec<_> = run.iter().cloned().chain(["--ctx-size".into(), "1".into()]).collect();
    let trace = run.iter().position(|arg| arg == "--trace").unwrap();
    let mut run = run.clone();
    run.insert(trace + 1, out.clone().into());
    fs::write(&out, "old").unwrap();
    let output = moewe(run);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read_to_string(&out).unwrap(), "old");
}

/// Presses Ctrl-C as soon as there are so many files in the folder; `None` if the
/// command was done before.
fn interrupt(command: &mut Command, folder: &Path, n_files: usize) -> Option<Output> {
    let n_found = || folder.read_dir().unwrap().count();
    let mut process = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    while n_found() < n_files {
        // Who is done, and was asked for it, cannot be signalled any more.
        if process.try_wait().unwrap().is_some() {
            return None;
        }
        thread::sleep(Duration::from_millis(1));
    }
    let process_id = process.id().to_string();
    assert!(Command::new("kill").args(["-INT", &process_id]).status().unwrap().success());
    let output = process.wait_with_output().unwrap();
    (!output.status.success()).then_some(output)
}

/// Of what Ctrl-C ends nothing is left.
#[test]
fn who_is_stopped_leaves_the_old_file_only() {
    let tokens: Vec<usize> = (0..100).collect();
    let tokens = format!("{{\"ids\": {tokens:?}}}");
    for (name, out) in [("pack", "model.packed.gguf"), ("logits", "logits.npy")] {
        // Larger, until it is not done before the signal comes.
        let stopped = [32, 128, 256].into_iter().any(|n_expert| {
            let folder = tempfile::tempdir().unwrap();
            let [model, out, ids] = ["model.gguf", out, "ids"].map(|name| folder.path().join(name));
            let shape = Shape { n_layer: 4, n_expert, n_ff_expert: 1024, ..SHAPE };
            generate(&model, &shape, 1, &mut Silent).unwrap();
            fs::write(&ids, &tokens).unwrap();
            fs::write(&out, "old").unwrap();
            let mut command = Command::new(program("moewe"));
            command.arg(name).arg(&model).arg("--out").arg(&out);
            match name {
                "pack" => command.arg("--force"),
                _ => command.arg("--tokens").arg(&ids),
            };
            let Some(output) = interrupt(&mut command, folder.path(), 4) else { return false };
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(130), "{name}: {stderr}");
            assert_eq!(stderr.lines().last(), Some("stopping; Ctrl-C again ends it at once"));
            assert_eq!(fs::read_to_string(&out).unwrap(), "old");
            assert_eq!(folder.path().read_dir().unwrap().count(), 3, "{name}");
            true
        });
        assert!(stopped, "{name}: whatever it was, it was done before the signal came");
    }
}

#[test]
fn a_reason_is_told_once() {
    let fixture = Fixture::new();
    let nowhere = fixture.path("nowhere/out");
    for (_, command) in fixture.commands() {
        let output = write(&command, &nowhere);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert_eq!(stderr.matches("No such file").count(), 1, "{stderr}");
        assert!(stderr.contains("nowhere/out"), "{stderr}");
    }
}

/// A guest takes more than `ulimit -s` may give.
#[test]
fn a_small_stack_is_enough() {
    let fixture = Fixture::new();
    let (_, command) = &fixture.commands()[0];
    let mut process = Command::new("sh");
    process.args(["-c", "ulimit -s 64; exec \"$0\" \"$@\""]).arg(program("moewe"));
    let output = process.args(command).arg(fixture.path("out")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(fixture.path("out").exists());
}
