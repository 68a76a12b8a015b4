//! A model, and its sessions.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use moewe_packed::{Stamp, read_header};

use crate::context::{KvFormat, RopeScaling, load_options};
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::guest::{Choice, Guest};
use crate::info::ModelInfo;
use crate::residency::{ExpertStats, ExpertStore, MemoryNeeds, MemoryOptions};
use crate::sandbox::bindings::exports::moewe::inference::inference as wit;
use crate::sandbox::{Limits, Program, Sandbox};
use crate::session::{Session, SessionOptions};
use crate::weights::{WeightStats, Weights, WeightsMode};

/// How a model is opened.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ModelOptions {
    /// How the weights reach a session.
    pub weights: WeightsMode,
    /// The guest that computes; by default the one with 32-bit addresses where the
    /// weights, of which a budget holds a part, and the KV cache that a session asks for
    /// can be addressed by it, else the one with 64-bit addresses.
    pub guest: Option<Guest>,
    /// How many threads a session computes with, from 1, the default, to
    /// [`THREADS_MAX`](Self::THREADS_MAX). Each has a guest of its own, with
    /// its share of the heads and of the rows of every matrix, and its share of
    /// the KV cache. The results are the same to the bit.
    ///
    /// More than one needs Linux.
    pub threads: usize,
    /// Bytes of memory that a session may use beside the weights, for its KV
    /// cache above all, all threads together; 2 GiB by default.
    ///
    /// The engine never writes to the weights. A guest that somebody took over
    /// could, and so make private copies of them: the bytes that a session can
    /// take from the machine are this limit and, for each thread, the size of
    /// the model's files.
    pub memory_max: u64,
    /// The most memory that the process may take, for models that are larger
    /// than that; any amount by default, and the system's page cache holds the
    /// weights. Linux only.
    pub memory: Option<MemoryOptions>,
    /// How sessions keep the keys and values of past tokens.
    pub kv_format: KvFormat,
    /// What is done for contexts that are longer than those of the training; by default
    /// what the file says.
    pub rope_scaling: Option<RopeScaling>,
    /// The longest time that one call may take; any time by default. A call
    /// that exceeds it ends the session.
    pub time_max: Option<Duration>,
}

impl ModelOptions {
    /// The most threads of a session.
    pub const THREADS_MAX: usize = 64;

    fn n_threads(&self) -> Result<usize> {
        let (n, max) = (self.threads, Self::THREADS_MAX);
        if (1..=max).contains(&n) {
            return Ok(n);
        }
        let message = format!("{n} threads cannot compute together; use 1 to {max}");
        Err(Error::new(ErrorKind::InvalidInput, message))
    }
}

impl Default for ModelOptions {
    fn default() -> Self {
        Self {
            weights: WeightsMode::default(),
            guest: None,
            threads: 1,
            memory_max: 2 << 30,
            memory: None,
            kv_format: KvFormat::default(),
            rope_scaling: None,
            time_max: None,
        }
    }
}

/// A model whose files are open. Its sessions can run on different threads.
pub struct Model {
    engine: Engine,
    weights: Arc<Weights>,
    limits: Limits,
    n_threads: usize,
    /// How guests load it.
    load_options: wit::LoadOptions,
    /// The guest that sessions have, unless their KV cache wants another.
    choice: Choice,
    path: PathBuf,
    info: Arc<ModelInfo>,
    /// The sandbox that `open` made, until a session takes it.
    spare: Mutex<Option<Sandbox>>,
}

impl Model {
    /// Opens a model by its GGUF file; a split model by its first file.
    ///
    /// If the packed copy that `moewe pack` makes, `NAME.packed.gguf`, lies
    /// beside `NAME.gguf` and was made from the file as it is now, the copy is
    /// opened: it computes the same, faster. [`path`](Self::path) tells.
    ///
    /// # Errors
    ///
    /// `Weights` if the file cannot be read, `InvalidModel` if it is damaged or
    /// something else than a GGUF file, `Unsupported` if the engine lacks what
    /// it asks for, `OutOfMemory` if it does not fit the sandbox,
    /// `InvalidInput` if there cannot be so many threads.
    pub fn open(engine: &Engine, path: impl AsRef<Path>, options: ModelOptions) -> Result<Self> {
        let n_threads = options.n_threads()?;
        let path = file_to_open(path.as_ref())?;
        let mut weights = Weights::open(&path, options.weights)?;
        let budget_bytes = options.memory.as_ref().map(|memory| memory.bytes);
        let choice = choose(&weights, options.guest, budget_bytes, 0);
        prepare(engine, &weights, &options, choice)?;
        if let Some(memory) = options.memory {
            weights.limit(memory)?;
        }
        let limits = Limits { memory_max: options.memory_max, time_max: options.time_max };
        let load = load_options(options.kv_format, options.rope_scaling);
        Self::load(engine, path, weights, limits, load, n_threads, choice)
    }

    /// The guest that would compute the model with these options, and why. Only the sizes
    /// of its files are looked at.
    ///
    /// # Errors
    ///
    /// `Weights` if the file cannot be read.
    pub fn guest_for(
        path: impl AsRef<Path>,
        options: &ModelOptions,
    ) -> Result<(Guest, &'static str)> {
        let weights = Weights::open(&file_to_open(path.as_ref())?, options.weights)?;
        let budget_bytes = options.memory.as_ref().map(|memory| memory.bytes);
        let choice = choose(&weights, options.guest, budget_bytes, 0);
        Ok((choice.guest, choice.why))
    }

    /// What a model would take within a budget of memory, in the guest that `options` ask
    /// for, or that would compute it within the budget that they name. Its header is read,
    /// but no weights are.
    ///
    /// # Errors
    ///
    /// As for [`open`](Self::open), and `Unsupported` where there are no budgets.
    pub fn memory_needs(
        engine: &Engine,
        path: impl AsRef<Path>,
        options: &ModelOptions,
    ) -> Result<MemoryNeeds> {
        let n_threads = options.n_threads()?;
        let path = file_to_open(path.as_ref())?;
        let mut weights = Weights::open(&path, WeightsMode::Attach)?;
        let budget_bytes = options.memory.as_ref().map(|memory| memory.bytes);
        let choice = choose(&weights, options.guest, budget_bytes, 0);
        prepare(engine, &weights, options, choice)?;
        let store = Arc::new(ExpertStore::asking(weights.files.name())?);
        weights.store = Some(store.clone());
        let limits = Limits { memory_max: options.memory_max, time_max: options.time_max };
        let load = load_options(options.kv_format, options.rope_scaling);
        let loaded = Self::load(engine, path, weights, limits, load, n_threads, choice);
        store.needs().ok_or_else(|| match loaded {
            Err(error) => error,
            Ok(_) => Error::new(ErrorKind::Internal, "the engine did not describe the model"),
        })
    }

    /// Loads the model that these weights are of.
    pub(crate) fn load(
        engine: &Engine,
        path: PathBuf,
        weights: Weights,
        limits: Limits,
        load_options: wit::LoadOptions,
        n_threads: usize,
        choice: Choice,
    ) -> Result<Self> {
        let weights = Arc::new(weights);
        let program = engine.program(choice.guest)?;
        let sandbox = Sandbox::load(&program, &weights, limits, load_options, n_threads)?;
        Ok(Self {
            engine: engine.clone(),
            weights,
            limits,
            n_threads,
            load_options,
            choice,
            path,
            info: Arc::new(sandbox.info().clone()),
            spare: Mutex::new(Some(sandbox)),
        })
    }

    /// What the model is.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// The file that is open: the one that was asked for, or its packed copy.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Starts a session with an empty context, in a sandbox of its own.
    ///
    /// # Errors
    ///
    /// As for [`open`](Self::open), and `InvalidInput` if the options make no
    /// sense.
    pub fn session(&self, options: SessionOptions) -> Result<Session> {
        if let (Some(store), Some(n_ctx)) = (&self.weights.store, options.n_ctx) {
            store.check_context(n_ctx.min(self.info.n_ctx_max).into(), self.n_threads)?;
        }
        let choice = self.choice_for(options.n_ctx);
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut sandbox = match spare.filter(|sandbox| sandbox.guest() == choice.guest) {
            Some(sandbox) => sandbox,
            None => {
                let program = self.engine.program(choice.guest)?;
                let (limits, load) = (self.limits, self.load_options);
                Sandbox::load(&program, &self.weights, limits, load, self.n_threads)?
            }
        };
        match Session::start(&mut sandbox, &options) {
            Ok(()) => Ok(Session::new(sandbox, self.info.clone(), options.n_ctx, choice.why)),
            Err(error) => {
                // The next session need not load the model again.
                if !sandbox.has_ended() {
                    *self.spare.lock().unwrap_or_else(PoisonError::into_inner) = Some(sandbox);
                }
                Err(error)
            }
        }
    }

    /// The guest that computes, and why it is this one; a session with a larger KV cache
    /// may have another ([`Session::guest`]).
    pub fn guest(&self) -> (Guest, &'static str) {
        (self.choice.guest, self.choice.why)
    }

    /// Whether 64-bit addresses would suit the model better, and this build has no guest
    /// with them.
    pub fn lacks_wide_guest(&self) -> bool {
        self.choice.lacks_wide
    }

    /// The guest for a session with a context of so many tokens. Most never fill the
    /// longest one that they may have: only what was asked for counts.
    fn choice_for(&self, n_ctx: Option<u32>) -> Choice {
        let Some(n_ctx) = n_ctx.filter(|_| !self.choice.is_asked) else { return self.choice };
        let n_ctx = n_ctx.min(self.info.n_ctx_max);
        let kv_bytes = self.info.kv_bytes_per_token.saturating_mul(n_ctx.into());
        // Each thread has addresses of its own.
        let kv_bytes = kv_bytes.min(self.limits.memory_max).div_ceil(self.n_threads as u64);
        choose(&self.weights, None, budget_bytes(&self.weights), kv_bytes)
    }

    #[cfg(test)]
    pub(crate) fn store(&self) -> &crate::residency::ExpertStore {
        self.weights.store.as_ref().expect("the model has a store")
    }

    /// How the experts are doing, if the model has a budget of memory.
    pub fn expert_stats(&self) -> Option<ExpertStats> {
        self.weights.store.as_ref().map(|store| store.stats())
    }

    /// Ends the trace that [`MemoryOptions::trace`] asked for, and puts it into its
    /// place. Until then, what was there before stays.
    ///
    /// # Errors
    ///
    /// `Internal` if it could not be written.
    pub fn finish_trace(&self) -> Result<()> {
        self.weights.store.as_ref().map_or(Ok(()), |store| store.finish_trace())
    }

    /// What all sessions together asked of the weights so far.
    pub fn stats(&self) -> WeightStats {
        self.weights.stats()
    }
}

/// The guest that was asked for, or else the one that suits.
fn choose(
    weights: &Weights,
    asked: Option<Guest>,
    budget_bytes: Option<u64>,
    kv_bytes: u64,
) -> Choice {
    match asked {
        Some(guest) => Choice::asked(guest),
        None => Choice::of(weights, budget_bytes, kv_bytes, Program::has_wide()),
    }
}

/// Compiles the guest. What that takes is given back before anything is counted, and what
/// stays of it counts in a budget: so there is the guest, too, that a session with a large
/// KV cache may want.
fn prepare(
    engine: &Engine,
    weights: &Weights,
    options: &ModelOptions,
    choice: Choice,
) -> Result<()> {
    engine.program(choice.guest)?;
    if let Some(memory) = &options.memory {
        let largest = choose(weights, options.guest, Some(memory.bytes), options.memory_max);
        engine.program(largest.guest)?;
    }
    Ok(())
}

/// The budget that the weights have, if there is one.
fn budget_bytes(weights: &Weights) -> Option<u64> {
    weights.store.as_ref().map(|store| store.bytes_max())
}

/// The file to open: the packed copy, if there is one of the model as it is now.
fn file_to_open(path: &Path) -> Result<PathBuf> {
    let found = moewe_packed::file_to_open(path);
    // If there is none, the file itself may be a packed one.
    if found == path && matches!(Stamp::read(path), Ok(Some(_))) {
        let header = File::open(path).and_then(|mut file| read_header(&mut file));
        header.map_err(|e| {
            let message = format!("{}: {e}; pack the original model again", path.display());
            Error::new(ErrorKind::InvalidModel, message)
        })?;
    }
    Ok(found)
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model").field("info", &self.info).finish_non_exhaustive()
    }
}
