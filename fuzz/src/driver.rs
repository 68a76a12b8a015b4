//! Runs a target over seeds and mutations of them, without any instrumentation: on a
//! stable toolchain.
//!
//! Inputs that lead where none has led before are kept, and mutated in their turn.
//! Where they lead, the target says itself.

use std::any::Any;
use std::collections::HashSet;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::memory;
use crate::mutate::Mutator;
use crate::target::{OUTCOME, Target};

/// The longest time for an input, and when to give up waiting.
const TIME_MAX: Duration = Duration::from_secs(2);
const WAIT_MAX: Duration = Duration::from_secs(20);
/// The most that any input may take in memory.
const BYTES_MAX: usize = 256 << 20;
/// Rust's parser of templates is recursive.
const STACK_BYTES: usize = 512 << 20;
/// The most inputs that are kept.
const N_POOL_MAX: usize = 4096;
/// Finds that look alike are told once, and so many are enough.
const N_FINDS_MAX: usize = 10;

/// How long a target is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Ends after so many inputs.
    pub n_inputs: Option<u64>,
    /// Ends after this time.
    pub time: Option<Duration>,
    /// The same seed makes the same inputs.
    pub seed: u64,
    /// More inputs to begin with lie in a folder of the target's name in this one.
    pub corpus: PathBuf,
    /// Inputs that broke a promise go into a folder of the target's name in this one.
    pub artifacts: PathBuf,
}

impl Options {
    /// Without an end; `folder` has `corpus` and `artifacts`.
    pub fn new(folder: &Path) -> Self {
        let (corpus, artifacts) = (folder.join("corpus"), folder.join("artifacts"));
        Self { n_inputs: None, time: None, seed: 1, corpus, artifacts }
    }

    fn is_over(&self, n_inputs: u64, started: Instant) -> bool {
        self.n_inputs.is_some_and(|n| n_inputs >= n)
            || self.time.is_some_and(|time| started.elapsed() >= time)
    }
}

/// A promise that an input broke.
#[derive(Debug)]
pub struct Find {
    /// What happened.
    pub what: String,
    /// Where the input lies.
    pub path: PathBuf,
}

/// What a run brought.
#[derive(Debug)]
pub struct Report {
    /// The target.
    pub name: &'static str,
    /// Inputs that were run.
    pub n_inputs: u64,
    /// Different ways in which they ended.
    pub n_outcomes: usize,
    /// How long it took.
    pub time: Duration,
    /// The longest time that an input took.
    pub time_max: Duration,
    /// The most memory that an input took.
    pub bytes_max: usize,
    /// What was found.
    pub finds: Vec<Find>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, n_inputs, n_outcomes, time, time_max, bytes_max, finds } = self;
        let (seconds, ms_max) = (time.as_secs_f64(), time_max.as_secs_f64() * 1e3);
        write!(
            f,
            "{name}: {n_inputs} inputs in {seconds:.1} s, {n_outcomes} outcomes, at most \
             {ms_max:.1} ms and {} KiB each, {} finds",
            bytes_max >> 10,
            finds.len()
        )?;
        finds.iter().try_for_each(|find| write!(f, "\n  {}: {}", find.path.display(), find.what))
    }
}

/// Runs a target.
///
/// # Errors
///
/// If inputs can be neither read nor saved.
pub fn run(target: &Target, options: &Options) -> io::Result<Report> {
    let run = || {
        let runner = Runner::new(target, options)?;
        runner.run(options)
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, run)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs a target once, on the input in a file.
///
/// # Errors
///
/// If the file cannot be read.
pub fn replay(target: &Target, path: &Path) -> io::Result<Option<String>> {
    let input = fs::read(path)?;
    thread::scope(|scope| {
        let run = || measure(target, &input).err();
        let thread = thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, run)?;
        Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// What an input took.
struct Measures {
    time: Duration,
    bytes: usize,
    outcome: u64,
}

/// Runs a target on an input; answers what promise it broke.
fn measure(target: &Target, input: &[u8]) -> Result<Measures, String> {
    OUTCOME.set(0);
    let started = Instant::now();
    let run = || catch_unwind(AssertUnwindSafe(|| (target.fuzz)(input)));
    let (result, bytes) = memory::measured(run);
    let time = started.elapsed();
    if let Err(panic) = result {
        return Err(message(panic.as_ref()));
    }
    if bytes > BYTES_MAX {
        return Err(format!("it takes {bytes} bytes of memory"));
    }
    Ok(Measures { time, bytes, outcome: OUTCOME.get() })
}

/// How long this thread has had a processor, where the system tells.
fn processor_time() -> Option<Duration> {
    let text = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(Duration::from_nanos(text.split(' ').next()?.parse().ok()?))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
    let place = PLACE.with_borrow(Clone::clone);
    format!("{text} ({place})").chars().take(2000).collect()
}

thread_local! {
    /// Where the last panic was.
    static PLACE: std::cell::RefCell<String> = const { std::cell::RefCell::new(String::new()) };
}

/// Panics are told when their inputs are saved, not when they happen.
pub fn quieten_panics() {
    std::panic::set_hook(Box::new(|info: &PanicHookInfo<'_>| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        PLACE.with_borrow_mut(|last| *last = place);
    }));
}

/// The input that is being run, for whoever waits for it, and in a file in case that
/// the process dies of it.
struct Running {
    file: File,
    path: PathBuf,
    input: Mutex<Option<(Vec<u8>, Instant)>>,
}

impl Running {
    fn lock(&self) -> MutexGuard<'_, Option<(Vec<u8>, Instant)>> {
        self.input.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, input: &[u8]) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.write_all_at(input, 0)?;
        *self.lock() = Some((input.to_vec(), Instant::now()));
        Ok(())
    }

    fn end(&self) {
        *self.lock() = None;
    }

    /// Ends the process if an input has no end.
    fn watch(self: &Arc<Self>, name: &'static str) {
        let running = Arc::downgrade(self);
        thread::spawn(move || {
            while let Some(running) = running.upgrade() {
                let lock = running.lock();
                if let Some((input, began)) = &*lock
                    && began.elapsed() > WAIT_MAX
                {
                    let path = running.path.with_file_name("endless");
                    let saved = fs::write(&path, input);
                    eprintln!("{name}: {} does not end ({saved:?})", path.display());
                    std::process::exit(1);
                }
                drop(lock);
                drop(running);
                thread::sleep(Duration::from_millis(500));
            }
        });
    }
}

struct Runner<'a> {
    target: &'a Target,
    folder: PathBuf,
    running: Arc<Running>,
    pool: Vec<Vec<u8>>,
    outcomes: HashSet<u64>,
    report: Report,
}

impl<'a> Runner<'a> {
    fn new(target: &'a Target, options: &Options) -> io::Result<Self> {
        let folder = options.artifacts.join(target.name);
        fs::create_dir_all(&folder)?;
        let path = folder.join("running");
        let last = fs::read(&path).unwrap_or_default();
        if !last.is_empty() {
            let saved = folder.join("fatal");
            fs::write(&saved, last)?;
            eprintln!("{}: the last run ended amid {}", target.name, saved.display());
        }
        let (file, input) = (File::create(&path)?, Mutex::new(None));
        let running = Arc::new(Running { file, path, input });
        running.watch(target.name);
        let report = Report {
            name: target.name,
            n_inputs: 0,
            n_outcomes: 0,
            time: Duration::ZERO,
            time_max: Duration::ZERO,
            bytes_max: 0,
            finds: Vec::new(),
        };
        let (pool, outcomes) = Default::default();
        Ok(Self { target, folder, running, pool, outcomes, report })
    }

    fn run(mut self, options: &Options) -> io::Result<Report> {
        let started = Instant::now();
        let mut seeds = (self.target.seeds)();
        if let Ok(entries) = fs::read_dir(options.corpus.join(self.target.name)) {
            let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
            paths.sort();
            seeds.extend(paths.iter().filter_map(|path| fs::read(path).ok()));
        }
        seeds.push(Vec::new());
        for seed in seeds {
            self.input(&seed)?;
            self.pool.push(seed);
        }
        let mut mutator = Mutator::new(options.seed);
        while !options.is_over(self.report.n_inputs, started)
            && self.report.finds.len() < N_FINDS_MAX
        {
            let input = mutator.input(&self.pool, self.target);
            if self.input(&input)? && self.pool.len() < N_POOL_MAX {
                self.pool.push(input);
            }
        }
        self.report.time = started.elapsed();
        self.report.n_outcomes = self.outcomes.len();
        fs::remove_file(&self.running.path)?;
        Ok(self.report)
    }

    /// Runs an input; answers whether it led elsewhere than all before.
    fn input(&mut self, input: &[u8]) -> io::Result<bool> {
        self.report.n_inputs += 1;
        self.running.begin(input)?;
        let mut measures = measure(self.target, input);
        // Others may have had the processor.
        if let Ok(measures) = &mut measures
            && measures.time > TIME_MAX / 4
        {
            let before = processor_time();
            let _ = measure(self.target, input);
            if let (Some(before), Some(after)) = (before, processor_time()) {
                measures.time = measures.time.min(after.saturating_sub(before));
            }
        }
        self.running.end();
        match measures {
            Ok(Measures { time, .. }) if time > TIME_MAX => {
                self.find(input, format!("it takes {:.1} s", time.as_secs_f64()))?;
                Ok(false)
            }
            Ok(Measures { time, bytes, outcome }) => {
                let report = &mut self.report;
                if time > TIME_MAX / 4 && time > report.time_max {
                    fs::write(self.folder.join("slowest"), input)?;
                }
                report.time_max = report.time_max.max(time);
                report.bytes_max = report.bytes_max.max(bytes);
                Ok(self.outcomes.insert(outcome))
            }
            Err(what) => {
                self.find(input, what)?;
                Ok(false)
            }
        }
    }

    fn find(&mut self, input: &[u8], what: String) -> io::Result<()> {
        let place = |what: &str| what.rsplit(" (").next().unwrap_or_default().to_owned();
        if self.report.finds.iter().any(|find| place(&find.what) == place(&what)) {
            return Ok(());
        }
        let path = self.folder.join(format!("find-{}", self.report.n_inputs));
        fs::write(&path, input)?;
        self.report.finds.push(Find { what, path });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finds(n_inputs: u64, fuzz: fn(&[u8])) -> Vec<(String, Vec<u8>)> {
        let seeds = || vec![b"abc".to_vec()];
        let target = Target { name: "test", fuzz, seeds, words: &["xyz"], len_max: 100 };
        let folder = tempfile::tempdir().unwrap();
        let options = Options { n_inputs: Some(n_inputs), ..Options::new(folder.path()) };
        let report = run(&target, &options).unwrap();
        assert!(report.to_string().starts_with("test: "));
        let read = |find: Find| (find.what, fs::read(find.path).unwrap());
        report.finds.into_iter().map(read).collect()
    }

    #[test]
    fn a_broken_promise_is_found_and_saved_once() {
        let found = finds(3000, |input| assert!(!input.windows(3).any(|w| w == b"xyz"), "an xyz"));
        let [(what, input)] = &found[..] else { panic!("{found:?}") };
        assert!(what.starts_with("an xyz") && input.windows(3).any(|w| w == b"xyz"), "{found:?}");
    }

    #[test]
    fn inputs_that_lead_elsewhere_are_built_upon() {
        // Three changes in a row are too many for chance.
        let found = finds(3000, |input| {
            for (n, start) in ["xyz", "xyzxyz", "xyzxyzxyz"].iter().enumerate() {
                if input.starts_with(start.as_bytes()) {
                    crate::target::reached(["one", "two", "three"][n]);
                    assert!(n < 2, "three");
                }
            }
        });
        assert_eq!(found.len(), 1, "{found:?}");
    }

    #[test]
    fn memory_and_time_are_bounded() {
        let found = finds(2, |input| drop(vec![0u8; BYTES_MAX * usize::from(input == b"abc") + 1]));
        assert!(found.is_empty() || found[0].0.contains("bytes of memory"), "{found:?}");
        assert_eq!(found.len(), 1);
        let found = finds(2, |input| {
            let now = || processor_time().unwrap();
            let began = now();
            while input == b"abc" && now() - began < TIME_MAX + Duration::from_millis(10) {}
        });
        assert!(found.len() == 1 && found[0].0.starts_with("it takes 2"), "{found:?}");
        assert_eq!(found[0].1, b"abc");
    }

    #[test]
    fn a_seed_makes_the_same_inputs() {
        let inputs = |seed| -> Vec<_> {
            let mut mutator = Mutator::new(seed);
            let pool = [b"some".to_vec(), b"more".to_vec()];
            (0..50).map(|_| mutator.input(&pool, &crate::trace::TARGET)).collect()
        };
        assert_eq!(inputs(7), inputs(7));
        assert_ne!(inputs(7), inputs(8));
    }
}
