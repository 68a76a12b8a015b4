//! Models within a budget of memory: the same bits, and never more than that.

use std::ffi::{OsStr, OsString};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use moewe::{
    Engine, MemoryOptions, Model, ModelOptions, PolicyKind, Prefetch, Sampling, Session,
    SessionOptions, Usage,
};
use moewe_models::Silent;
use moewe_models::generate::{Shape, generate};
use moewe_tests::{moewe, moewe_ok, program, skip};

const TOKENS: [u32; 8] = [1, 50, 275, 337, 302, 273, 17, 99];

/// 64 experts of 0.4 MB.
const SMALL: Shape = Shape {
    n_layer: 4,
    n_embd: 512,
    n_head: 8,
    kv_heads: 2,
    head_dim: 64,
    n_expert: 16,
    n_expert_used: 4,
    n_ff_expert: 512,
    n_vocab: 400,
    n_ctx: 16384,
};
const N_EXPERTS: u64 = 64;
const SLOT_BYTES: u64 = 111 * 4096;

/// 1.03 GB, of which an eighth suffices.
const LARGE: Shape = Shape { n_layer: 12, n_embd: 1024, n_ff_expert: 768, n_expert: 64, ..SMALL };

fn folder() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// The small model, and the same model packed.
fn small() -> &'static [PathBuf; 2] {
    static PATHS: OnceLock<[PathBuf; 2]> = OnceLock::new();
    PATHS.get_or_init(|| {
        let paths = ["memory-small.gguf", "memory-of-small.gguf"].map(|name| folder().join(name));
        // The process that asked for one test alone has made them.
        if moewe_tests::is_alone() {
            return paths;
        }
        generate(&paths[0], &SMALL, 1, &mut Silent).unwrap();
        moewe_ok([os("pack"), os(&paths[0]), os("--force"), os("-o"), os(&paths[1])]);
        paths
    })
}

fn os(text: impl AsRef<OsStr>) -> OsString {
    text.as_ref().to_owned()
}

/// What `moewe` answers to a mistake: one line.
#[track_caller]
fn refused(args: &[OsString]) -> String {
    let output = moewe(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.starts_with("error: ") && stderr.lines().count() == 1, "{stderr:?}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    stderr
}

fn least_of(message: &str) -> u64 {
    let (before, _) = message.split_once(" are the least").unwrap_or_else(|| panic!("{message}"));
    before.rsplit(' ').next().unwrap().parse().unwrap()
}

/// A `moewe logits` that writes to a file of its own.
struct Logits {
    folder: tempfile::TempDir,
    args: Vec<OsString>,
}

impl Logits {
    fn new(model: &Path, threads: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (tokens, out) = (folder.path().join("t.json"), folder.path().join("l.npy"));
        std::fs::write(&tokens, format!("{{\"ids\": {TOKENS:?}}}")).unwrap();
        let threads = threads.to_string();
        let args = [os("logits"), os(model), os("--tokens"), os(tokens), os("--out"), os(out)];
        let args = args.into_iter().chain([os("-t"), os(threads)]).collect();
        Self { folder, args }
    }

    fn with(&self, more: &[&str]) -> Vec<OsString> {
        self.args.iter().cloned().chain(more.iter().map(os)).collect()
    }

    /// The least memory that works, as the refusal of less names it.
    fn least(&self) -> u64 {
        least_of(&refused(&self.with(&["--memory", "1MiB"])))
    }

    #[track_caller]
    fn bytes(&self, more: &[&str]) -> Vec<u8> {
        moewe_ok(self.with(more));
        let out = self.folder.path().join("l.npy");
        let bytes = std::fs::read(&out).unwrap();
        std::fs::remove_file(out).unwrap();
        bytes
    }
}

#[test]
fn every_budget_computes_the_same() {
    let expected = Logits::new(&small()[0], 1).bytes(&[]);
    for model in small() {
        for threads in [1, 2] {
            let logits = Logits::new(model, threads);
            let least = logits.least();
            for n_more in [0, 5, 2 * N_EXPERTS] {
                let bytes = (least + n_more * SLOT_BYTES).to_string();
                let got = logits.bytes(&["--memory", &bytes]);
                assert!(got == expected, "{}, {threads} threads, {n_more}", model.display());
            }
        }
    }
}

#[test]
fn every_policy_computes_the_same_with_and_without_prefetching() {
    let expected = Logits::new(&small()[0], 1).bytes(&[]);
    let prefetches = ["on", "off", "auto"];
    for (model, threads, prefetches) in
        [(&small()[0], 2, &prefetches[..]), (&small()[1], 1, &prefetches[..1])]
    {
        let logits = Logits::new(model, threads);
        let bytes = (logits.least() + 4 * SLOT_BYTES).to_string();
        for policy in PolicyKind::ALL {
            for prefetch in prefetches {
                let policy = policy.to_string();
                let options = ["--policy", &policy, "--prefetch", prefetch, "--layer-floor", "1"];
                let got = logits.bytes(&[&["--memory", bytes.as_str()], &options[..]].concat());
                assert!(got == expected, "{policy}, {prefetch}, {threads} threads");
            }
        }
    }
}

#[test]
fn every_family_computes_the_same_with_the_least() {
    for name in ["mixtral-q8_0", "qwen2moe-q4_k_m", "qwen3moe-f16", "olmoe-q4_k_m"] {
        let model = moewe_tests::model(name);
        for threads in [1, 3] {
            let expected = Logits::new(&model, threads).bytes(&[]);
            for guest in ["32", "64"] {
                let mut logits = Logits::new(&model, threads);
                logits.args.extend(["--guest", guest].map(os));
                let least = logits.least().to_string();
                assert!(logits.bytes(&["--memory", &least]) == expected, "{name}, {guest} bits");
            }
        }
    }
}

fn is_alone(test: &str) -> bool {
    small();
    moewe_tests::runs_alone(&format!("memory::{test}"))
}

/// Opens a model, for as many sessions as are asked for, with as little memory as
/// they can have.
fn open(
    path: &Path,
    threads: usize,
    n_sessions: usize,
    n_tokens: usize,
    change: impl Fn(&mut MemoryOptions),
) -> (Model, Vec<Session>) {
    let engine = Engine::new().unwrap();
    let mut bytes = 1;
    for n_tries in 0..100 {
        let mut memory = MemoryOptions::new(bytes);
        change(&mut memory);
        let mut options = ModelOptions::default();
        (options.memory, options.threads) = (Some(memory), threads);
        options.time_max = Some(Duration::from_secs(60));
        let opened = Model::open(&engine, path, options).and_then(|model| {
            let sessions = (0..n_sessions).map(|_| {
                let mut session = model.session(greedy())?;
                session.feed(&prompt(n_tokens))?;
                session.rewind(0)?;
                Ok(session)
            });
            let sessions = sessions.collect::<moewe::Result<Vec<_>>>()?;
            Ok((model, sessions))
        });
        match opened {
            Ok(opened) => return opened,
            Err(e) => {
                assert_eq!(e.kind(), moewe::ErrorKind::OutOfMemory, "{e}");
                let least = || least_of(&e.to_string());
                bytes = if bytes == 1 { least() } else { bytes + (1 + n_tries / 16) * (1 << 20) };
            }
        }
    }
    panic!("{bytes} bytes do not suffice");
}

fn greedy() -> SessionOptions {
    let mut options = SessionOptions::default();
    options.sampling = Sampling::greedy();
    // The weights are random. This has their text repeat itself, and so be drafted.
    options.sampling.repeat_penalty = 0.5;
    options
}

fn prompt(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| i * 37 % SMALL.n_vocab).collect()
}

fn mapped(path: &Path) -> Session {
    let model = Model::open(&Engine::new().unwrap(), path, ModelOptions::default()).unwrap();
    model.session(greedy()).unwrap()
}

/// The bits of the logits behind a text, the tokens that follow, and what it took.
fn speak(session: &mut Session, prompt: &[u32], n: u64) -> (Vec<u32>, Vec<u32>, Usage) {
    session.feed(prompt).unwrap();
    let logits = session.logits().unwrap().into_iter().map(f32::to_bits).collect();
    let steps = session.generate(&[], Some(n)).map(Result::unwrap);
    let tokens = steps.filter_map(|step| step.token).collect();
    (logits, tokens, session.usage().unwrap())
}

#[test]
fn two_sessions_share_few_slots() {
    if !is_alone("two_sessions_share_few_slots") {
        return;
    }
    let (model, sessions) = open(&small()[0], 1, 2, 6, |_| {});
    let texts = [[1, 2, 3, 4, 5], [300, 20, 100, 7, 0]];
    thread::scope(|scope| {
        let both = sessions
            .into_iter()
            .zip(texts)
            .map(|(mut session, text)| scope.spawn(move || speak(&mut session, &text, 40)));
        let both: Vec<_> = both.collect();
        for (one, text) in both.into_iter().zip(texts) {
            let (got, expected) = (one.join().unwrap(), speak(&mut mapped(&small()[0]), &text, 40));
            assert!(got.0 == expected.0 && got.1 == expected.1);
        }
    });
    let stats = model.expert_stats().unwrap();
    assert!(stats.evictions > 0 && stats.n_slots < N_EXPERTS as usize, "{stats:?}");
}

#[test]
fn a_long_prompt_goes_through_few_slots_in_rounds() {
    if !is_alone("a_long_prompt_goes_through_few_slots_in_rounds") {
        return;
    }
    let prompt = prompt(700);
    let expected = speak(&mut mapped(&small()[0]), &prompt, 3);
    for threads in [1, 2] {
        let (model, mut sessions) = open(&small()[1], threads, 1, 700, |_| {});
        let got = speak(&mut sessions[0], &prompt, 3);
        assert!(got.0 == expected.0 && got.1 == expected.1, "{threads} threads");
        let stats = model.expert_stats().unwrap();
        assert!(stats.evictions > 0 && stats.n_slots < N_EXPERTS as usize, "{stats:?}");
    }
}

#[test]
fn drafts_change_nothing() {
    if !is_alone("drafts_change_nothing") {
        return;
    }
    let prompt: Vec<u32> = [5, 6, 7, 8].repeat(10);
    let expected = speak(&mut mapped(&small()[0]), &prompt, 60);
    let (_model, mut sessions) = open(&small()[0], 2, 1, 41, |_| {});
    let got = speak(&mut sessions[0], &prompt, 60);
    assert!(got.0 == expected.0 && got.1 == expected.1);
    assert!(got.2.drafted_tokens > 0, "{:?}", got.2);
}

#[test]
fn a_replayed_trace_counts_what_was_counted() {
    if !is_alone("a_replayed_trace_counts_what_was_counted") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut n_hits = 0;
    for &policy in PolicyKind::ALL {
        let trace = folder.path().join(policy.to_string());
        // The prompt takes several rounds in each layer.
        let (model, mut sessions) = open(&small()[0], 2, 1, 30, |memory| {
            (memory.policy, memory.prefetch) = (policy, Prefetch::Off);
            memory.trace = Some(trace.clone());
        });
        speak(&mut sessions[0], &prompt(30), 20);
        model.finish_trace().unwrap();
        let stats = model.expert_stats().unwrap();
        assert!(stats.evictions > 0, "{stats:?}");
        n_hits += stats.hits;

        let printed = moewe_ok([os("simulate"), os(&trace), os("--json")]);
        let reports: serde_json::Value = serde_json::from_str(&printed).unwrap();
        let [report] = &reports.as_array().unwrap()[..] else { panic!("{printed}") };
        let policies = report["policies"].as_array().unwrap();
        let counts = |name: &str| {
            let row = policies.iter().find(|row| row["policy"] == name).unwrap();
            (row["hits"].as_u64().unwrap(), row["misses"].as_u64().unwrap())
        };
        assert_eq!(counts(&policy.to_string()), (stats.hits, stats.misses), "{policy}");
        for other in PolicyKind::ALL {
            assert!(counts("belady").0 >= counts(&other.to_string()).0, "{other}");
        }
    }
    // Not each policy hits anything with so few slots.
    assert!(n_hits > 0);
}

#[test]
fn a_plan_counts_as_the_store_does() {
    for (model, threads) in [(&small()[0], 1), (&small()[1], 2)] {
        let threads = threads.to_string();
        let told = |command: &str, bytes: u64, more: &[&str]| -> serde_json::Value {
            let args = [os(command), os(model), os("--json"), os("-t"), os(&threads)];
            let args = args.into_iter().chain([os("--memory"), os(bytes.to_string())]);
            serde_json::from_str(&moewe_ok(args.chain(more.iter().map(os)))).unwrap()
        };
        let plan = |bytes| told("plan", bytes, &["-c", "64"]);
        let floor = plan(1 << 30)["floor_bytes"].as_u64().unwrap();
        let least = Logits::new(model, threads.parse().unwrap()).least();
        println!("plan {floor}, logits {least}");
        assert!(floor.abs_diff(least) <= 2 << 20, "{floor}, {least}");
        // The floor has what a process takes when it opens the model: a MiB more or less.
        for bytes in [floor + (1 << 20), floor + 20 * SLOT_BYTES, 1 << 30] {
            let planned = plan(bytes)["n_slots"].as_u64().unwrap();
            let bench = told("bench", bytes, &["-p", "0", "-n", "63", "-r", "1"]);
            let counted = bench[0]["experts"]["n_slots"].as_u64().unwrap();
            println!("slots in {bytes}: {planned} planned, {counted} counted");
            // A sandbox takes some MB, more or less.
            assert!(planned.abs_diff(counted) * SLOT_BYTES <= 12 << 20, "{planned}, {counted}");
        }
    }
    let args = [os("plan"), os(&small()[0]), os("--memory"), os("1MiB")];
    assert!(refused(&args).contains("do not suffice"));
}

#[test]
fn traces_that_are_none() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    let simulate = || refused(&[os("simulate"), os(&trace)]);
    assert!(simulate().contains("No such file"));
    std::fs::write(&trace, "something else").unwrap();
    assert!(simulate().contains("not a trace"));
    let logits = Logits::new(&small()[0], 1);
    logits.bytes(&["--trace", trace.to_str().unwrap()]);
    moewe_ok([os("simulate"), os(&trace)]);
    let mut bytes = std::fs::read(&trace).unwrap();
    let pinned = [os("run"), os(&small()[0]), os("a"), os("--memory"), os("1GiB"), os("--pin")];
    let last = bytes.pop().unwrap();
    std::fs::write(&trace, &bytes).unwrap();
    assert!(simulate().contains("damaged"));
    bytes.extend([last, 77]);
    std::fs::write(&trace, &bytes).unwrap();
    let message = simulate();
    assert!(message.contains("damaged") && message.contains("unknown kind 77"), "{message}");
    let message = refused(&[&pinned[..], &[os(&trace)]].concat());
    assert!(message.contains("damaged") && message.contains("trace"), "{message}");
    // A folder that is not there cannot be written to.
    let nowhere = folder.path().join("nowhere/trace");
    let message = refused(&logits.with(&["--trace", nowhere.to_str().unwrap()]));
    assert!(message.contains("nowhere/trace"), "{message}");
}

#[test]
fn budgets_that_are_too_small_or_none() {
    let logits = Logits::new(&small()[0], 2);
    let least = logits.least();
    let less = (least - (4 << 20)).to_string();
    let message = refused(&logits.with(&["--memory", &less]));
    assert!(message.contains(&less), "{message}");
    assert!(least_of(&message).abs_diff(least) <= 2 << 20, "{message} {least}");
    logits.bytes(&["--memory", &least.to_string()]);

    let run = |more: &[&str]| {
        let all = ["-t", "2", "-n", "2"].iter().chain(more).map(os);
        let given = [os("run"), os(&small()[0]), os("Hello")];
        given.into_iter().chain(all).collect::<Vec<_>>()
    };
    let message = refused(&run(&["--memory", &least.to_string(), "-c", "16384"]));
    // In 16 bits.
    let kv = 16384 * 2 * 4 * 2 * 64 * 2;
    assert!(message.contains("context of 16384") && message.contains(&kv.to_string()), "{message}");
    // The context that the model was trained for, without room for its KV cache.
    let text = "word ".repeat(3000);
    let args = [os("run"), os(&small()[0]), os(text), os("--memory"), os(least.to_string())];
    let message = refused(&args);
    assert!(message.contains(" memory") && !message.contains("report"), "{message}");

    let message = refused(&run(&["--memory", "nonsense"]));
    assert!(message.contains("nonsense") && message.contains("4GiB"), "{message}");
    let message = refused(&run(&["--memory", "4GiB", "--weights", "read"]));
    assert!(message.contains("budget") && message.contains("attached"), "{message}");
}

/// The most that a process has had in memory so far.
fn peak_bytes(process: &Child) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{}/status", process.id())).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

/// A fresh control group, where those can be made: the kernel itself notes the most
/// that was ever in use.
struct Group(PathBuf);

impl Group {
    fn new(name: &str) -> Option<Self> {
        // Version 1 has a folder for memory, version 2 one for all.
        let made = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"].iter().find_map(|parent| {
            let group = Path::new(parent).join(name);
            std::fs::create_dir(&group).ok()?;
            let group = Self(group);
            group.peak().map(|_| group)
        });
        if made.is_none() {
            skip("no control group can be made, which would tell its peak");
        }
        made
    }

    fn take(&self, process: &Child) {
        std::fs::write(self.0.join("cgroup.procs"), process.id().to_string()).unwrap();
    }

    fn limit(&self, bytes: u64) {
        let names = ["memory.limit_in_bytes", "memory.max"].map(|name| self.0.join(name));
        let name = names.iter().find(|name| name.exists()).unwrap();
        std::fs::write(name, bytes.to_string()).unwrap();
    }

    /// How often the limit was reached.
    fn n_failures(&self) -> u64 {
        let text = |name: &str| std::fs::read_to_string(self.0.join(name));
        let n = match text("memory.failcnt") {
            Ok(n) => n,
            Err(_) => {
                let events = text("memory.events").unwrap();
                events.lines().find_map(|line| line.strip_prefix("max ")).unwrap().to_owned()
            }
        };
        n.trim().parse().unwrap()
    }

    fn peak(&self) -> Option<u64> {
        let names = ["memory.peak", "memory.max_usage_in_bytes"].map(|name| self.0.join(name));
        let text = names.iter().find_map(|name| std::fs::read_to_string(name).ok())?;
        text.trim().parse().ok()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// A command with a folder for compiled guests of its own, which starts when its input
/// comes, and so is in its group by then.
fn in_group(group: Option<&Group>, cache: &Path, args: &[OsString]) -> Output {
    let mut process = Command::new("sh")
        .args(["-c", "read go; exec \"$@\"", "sh"])
        .arg(program("moewe"))
        .args(args)
        .env("MOEWE_CACHE", cache)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    if let Some(group) = group {
        group.take(&process);
    }
    drop(process.stdin.take());
    process.wait_with_output().unwrap()
}

/// What a process has compiled itself takes no more than what it has found, and it
/// compiles within the least budget there is.
#[test]
fn the_first_run_ever_takes_no_more_than_later_ones() {
    let caches = tempfile::tempdir().unwrap();
    let run = |group: Option<&Group>, cache: &str, budget: u64| {
        let budget = budget.to_string();
        let given = [os("run"), os(&small()[0]), os("Once upon a time"), os("--memory")];
        let more = ["-n", "4", "-c", "64", "-t", "2", "--temp", "0"].map(os);
        let args: Vec<_> = given.into_iter().chain([os(budget)]).chain(more).collect();
        in_group(group, &caches.path().join(cache), &args)
    };
    let floor = |cache: &str| {
        let refusal = run(None, cache, 1 << 20).stderr;
        least_of(&String::from_utf8(refusal).unwrap())
    };
    let [first, later, other] = ["a", "a", "b"].map(floor);
    println!("the least is {first} bytes, then {later}, and {other} with an empty cache");
    for floor in [first, other] {
        assert!(floor.abs_diff(later) <= 5 << 20, "{floor} bytes at first, {later} later");
    }
    let mut texts = Vec::new();
    for (i, cache) in ["a", "c", "d", "a"].into_iter().enumerate() {
        let group = Group::new(&format!("moewe-first-{}-{i}", std::process::id()));
        if let Some(group) = &group {
            group.limit(later);
        }
        let output = run(group.as_ref(), cache, later);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {stderr}", output.status);
        texts.push(output.stdout);
        if let Some(group) = group {
            println!("{:?} of {later} bytes were taken", group.peak());
            assert_eq!(group.n_failures(), 0, "the limit was reached");
        }
        let kept = caches.path().join(cache).join("guests").read_dir().unwrap();
        assert_eq!(kept.count(), 1, "one file is kept, and nothing beside it");
    }
    assert!(texts.iter().all(|text| *text == texts[0] && !text.is_empty()));
}

/// What is said to fit does so, however much of the context is the prompt.
#[test]
fn what_is_planned_fits() {
    if !is_alone("what_is_planned_fits") {
        return;
    }
    let engine = Engine::new().unwrap();
    for (n, threads) in [(64, 2), (300, 1), (500, 2), (512, 2), (1500, 2), (1500, 1), (3000, 2)] {
        let prompt = prompt(n - 8);
        let expected = speak(&mut mapped(&small()[0]), &prompt, 8);
        for n_more in [0, 3, 20] {
            let mut options = ModelOptions::default();
            options.threads = threads;
            let needs = Model::memory_needs(&engine, &small()[1], &options).unwrap();
            let bytes = needs.least(n as u64) + n_more * SLOT_BYTES;
            options.memory = Some(MemoryOptions::new(bytes));
            let model = Model::open(&engine, &small()[1], options).unwrap();
            let mut session_options = greedy();
            session_options.n_ctx = Some(n as u32);
            let mut session = model.session(session_options).unwrap();
            let got = speak(&mut session, &prompt, 8);
            let what = format!("{n} tokens, {threads} threads, {bytes} bytes");
            assert!(got.0 == expected.0 && got.1 == expected.1, "{what}");
            println!("{what}: {:?}", model.expert_stats().unwrap());
        }
        // In many turns, with batches of all lengths.
        let mut options = ModelOptions::default();
        options.threads = threads;
        let needs = Model::memory_needs(&engine, &small()[0], &options).unwrap();
        options.memory = Some(MemoryOptions::new(needs.least(n as u64)));
        let model = Model::open(&engine, &small()[0], options).unwrap();
        let mut session = model.session(greedy()).unwrap();
        let mut rest = &prompt[..];
        for len in [1, 5, 30, 16, 200, 70, 400, 1000, 5000] {
            let (now, later) = rest.split_at(len.min(rest.len()));
            if !now.is_empty() {
                session.feed(now).unwrap();
            }
            rest = later;
        }
        let bits: Vec<_> = session.logits().unwrap().into_iter().map(f32::to_bits).collect();
        assert!(bits == expected.0, "{n} tokens, {threads} threads");
    }
}

#[test]
fn a_process_stays_within_its_budget() {
    let model = folder().join("memory-large.gguf");
    generate(&model, &LARGE, 1, &mut Silent).unwrap();
    let size = model.metadata().unwrap().len();
    let mut texts = Vec::new();
    for divisor in [8, 4, 2] {
        let budget = size / divisor;
        // It starts when its input comes, and so is in its group by then.
        let mut process = Command::new("sh")
            .args(["-c", "read go; exec \"$@\"", "sh"])
            .arg(program("moewe"))
            .arg("run")
            .args([os(&model), os("Once upon a time"), os("--memory"), os(budget.to_string())])
            .args(["-n", "4", "-c", "64", "-t", "2", "--temp", "0"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let group = Group::new(&format!("moewe-memory-{}", process.id()));
        if let Some(group) = &group {
            group.take(&process);
        }
        drop(process.stdin.take());
        let (mut peak, mut n_looks) = (0, 0);
        while process.try_wait().unwrap().is_none() {
            if let Some(bytes) = peak_bytes(&process) {
                (peak, n_looks) = (peak.max(bytes), n_looks + 1);
            }
            thread::sleep(Duration::from_millis(3));
        }
        assert!(process.wait().unwrap().success());
        let mut text = String::new();
        process.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        texts.push(text);
        println!("1/{divisor} of {size}: {budget} allowed, {peak} at most in {n_looks} looks");
        assert!(n_looks > 20 && peak > budget / 3, "nothing was seen");
        assert!(peak <= budget, "{peak} bytes, {budget} were allowed");
        if let Some(group) = group {
            let peak = group.peak().unwrap();
            println!("the kernel noted {peak}");
            assert!(peak <= budget, "{peak} bytes, {budget} were allowed");
        }
    }
    std::fs::remove_file(model).unwrap();
    assert!(texts.iter().all(|text| *text == texts[0] && !text.is_empty()));
}
