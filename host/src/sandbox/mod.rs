//! One guest: its store, its limits, and what it imports.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use wasmtime::component::{Resource, ResourceAny, ResourceTable, ResourceTableError};
use wasmtime::{ResourceLimiter, Store, StoreContextMut, Trap, UpdateDeadline};

use crate::bindings::Engine as Bindings;
use crate::bindings::exports::moewe::inference::inference::{self as wit_inference, Guest};
use crate::bindings::moewe::inference::{team, weights};
use crate::engine::{Engine, MEMORY_BYTES_MAX};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::{self, MapError, Region};
use crate::weights::{WeightFileHandle, WeightStats, WeightStore, WeightsMode};

/// The most open sources: as many as a split model has files.
const N_SOURCES_MAX: usize = 1 << 10;
/// The most entries of a table of functions.
const TABLE_LEN_MAX: usize = 1 << 16;
/// The most modules, and tables, that a component is made of.
const N_PARTS_MAX: usize = 16;
/// The most bytes that the arguments or the results of one call may take in
/// the host's memory.
const CALL_BYTES_MAX: usize = 128 << 20;

/// What a guest may use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes of memory beside the weights.
    pub memory_max: u64,
    /// Time that one call may take.
    pub time_max: Option<Duration>,
}

/// Why a running guest was interrupted.
#[derive(Debug, Clone, Copy, thiserror::Error)]
enum Interrupt {
    #[error("cancelled")]
    Cancelled,
    #[error("time limit")]
    TimeLimit,
}

/// The data of a store.
pub(crate) struct State {
    weights: Arc<WeightStore>,
    limits: Limits,
    /// Open files; the guest knows them by number.
    sources: ResourceTable,
    /// Sizes of the files that were opened so far, each counted once.
    opened: BTreeMap<String, u64>,
    /// The memory that files can be attached to.
    region: Option<Arc<Region>>,
    /// The region that the team shares, and its size.
    shared: Option<(File, u64)>,
    stats: WeightStats,
    cancelled: Arc<AtomicBool>,
    deadline: Option<Instant>,
    /// Whether the guest was refused memory during this call.
    memory_refused: bool,
}

impl State {
    pub(crate) fn new(weights: Arc<WeightStore>, limits: Limits) -> Self {
        let mut sources = ResourceTable::new();
        sources.set_max_capacity(N_SOURCES_MAX);
        Self {
            weights,
            limits,
            sources,
            opened: BTreeMap::new(),
            region: None,
            shared: None,
            stats: WeightStats::default(),
            cancelled: Arc::default(),
            deadline: None,
            memory_refused: false,
        }
    }

    /// The most bytes that the guest's memory may have now: its own less what
    /// the team shares, and windows for the files that it opened, each with a
    /// page on both sides.
    fn memory_bytes_max(&self) -> u64 {
        let n_windows = self.region.as_ref().map_or(0, |r| r.n_windows() as u64);
        let windows: u64 = self.opened.values().fold(0, |sum, n| sum.saturating_add(*n));
        let shared = self.shared.as_ref().map_or(0, |(_, size)| *size);
        (self.limits.memory_max.saturating_sub(shared))
            .saturating_add(windows)
            .saturating_add(2 * n_windows * memory::page_size())
            .min(MEMORY_BYTES_MAX)
    }

    fn count(&mut self, add: impl Fn(&mut WeightStats)) {
        add(&mut self.stats);
        self.weights.count(add);
    }

    fn attach(
        &mut self,
        source: &Resource<WeightFileHandle>,
        offset: u64,
        length: u64,
        address: u64,
    ) -> wasmtime::Result<Result<u64, weights::Error>> {
        let file = self.sources.get(source)?.clone();
        let Some(region) = self.region.as_ref().filter(|_| self.attaches()) else {
            let code = weights::ErrorCode::Unsupported;
            return Ok(Err(file.error(code, "this host copies weights, it does not attach them")));
        };
        let attached =
            file.check_range(offset, length).and_then(|()| file.check_unchanged()).and_then(|()| {
                region
                    .attach(file.file(), offset, length, address)
                    .map_err(|e| file.error(map_code(&e), e))
            });
        if attached.is_ok() {
            self.count(|s| {
                s.n_attach += 1;
                s.bytes_attached += length;
            });
        }
        Ok(attached)
    }

    fn attaches(&self) -> bool {
        self.region.is_some() && self.weights.mode == WeightsMode::Attach
    }
}

fn map_code(error: &MapError) -> weights::ErrorCode {
    match error {
        MapError::Range { .. } | MapError::NotAttached { .. } => weights::ErrorCode::InvalidRange,
        // The file system knows no mappings, or all of them are in use: the
        // bytes can still be copied.
        MapError::Map(_) | MapError::TooMany => weights::ErrorCode::Unsupported,
    }
}

impl weights::Host for State {
    fn get_capabilities(&mut self) -> wasmtime::Result<weights::Capabilities> {
        let page_size = u32::try_from(memory::page_size())?;
        Ok(weights::Capabilities { attach: self.attaches(), page_size })
    }

    fn detach(
        &mut self,
        address: u64,
        length: u64,
    ) -> wasmtime::Result<Result<(), weights::Error>> {
        let Some(region) = &self.region else {
            let (code, message) = (weights::ErrorCode::InvalidRange, "nothing is attached".into());
            return Ok(Err(weights::Error { code, message }));
        };
        let detached = region
            .detach(address, length)
            .map_err(|e| weights::Error { code: map_code(&e), message: e.to_string() });
        if detached.is_ok() {
            self.count(|s| s.n_detach += 1);
        }
        Ok(detached)
    }
}

impl weights::HostSource for State {
    fn open(
        &mut self,
        name: String,
    ) -> wasmtime::Result<Result<Resource<WeightFileHandle>, weights::Error>> {
        let file = match self.weights.file(&name) {
            Ok(file) => file,
            Err(e) => return Ok(Err(e)),
        };
        let size = file.size().next_multiple_of(memory::page_size());
        match self.sources.push(file) {
            Ok(source) => {
                self.opened.insert(name, size);
                Ok(Ok(source))
            }
            Err(ResourceTableError::Full) => Ok(Err(weights::Error {
                code: weights::ErrorCode::Io,
                message: format!("{name}: at most {N_SOURCES_MAX} files can be open"),
            })),
            Err(e) => Err(e.into()),
        }
    }

    fn size(&mut self, source: Resource<WeightFileHandle>) -> wasmtime::Result<u64> {
        Ok(self.sources.get(&source)?.size())
    }

    fn read(
        &mut self,
        source: Resource<WeightFileHandle>,
        offset: u64,
        length: u32,
    ) -> wasmtime::Result<Result<Vec<u8>, weights::Error>> {
        let read = self.sources.get(&source)?.read(offset, length);
        if let Ok(bytes) = &read {
            let n = bytes.len() as u64;
            self.count(|s| {
                s.n_read += 1;
                s.bytes_read += n;
            });
        }
        Ok(read)
    }

    fn attach(
        &mut self,
        source: Resource<WeightFileHandle>,
        offset: u64,
        length: u64,
        address: u64,
    ) -> wasmtime::Result<Result<u64, weights::Error>> {
        State::attach(self, &source, offset, length, address)
    }

    fn prefetch(
        &mut self,
        source: Resource<WeightFileHandle>,
        offset: u64,
        length: u64,
    ) -> wasmtime::Result<()> {
        if self.sources.get(&source)?.prefetch(offset, length) {
            self.count(|s| s.bytes_prefetched = s.bytes_prefetched.saturating_add(length));
        }
        Ok(())
    }

    fn drop(&mut self, source: Resource<WeightFileHandle>) -> wasmtime::Result<()> {
        self.sources.delete(source)?;
        Ok(())
    }
}

/// A team of one.
impl team::Host for State {
    fn rank(&mut self) -> wasmtime::Result<u32> {
        Ok(0)
    }

    fn size(&mut self) -> wasmtime::Result<u32> {
        Ok(1)
    }

    fn barrier(&mut self) -> wasmtime::Result<Result<(), team::ErrorCode>> {
        Ok(Ok(()))
    }

    fn share(
        &mut self,
        address: u64,
        length: u64,
    ) -> wasmtime::Result<Result<(), team::ErrorCode>> {
        let Some(region) = &self.region else { return Ok(Err(team::ErrorCode::Unsupported)) };
        if self.shared.is_none() {
            // Checked before a file of that size is made.
            if let Err(e) = region.check(address, length) {
                return Ok(Err(team_code(&e)));
            }
            // The guest can map something else over it, and fill both.
            let all = length.saturating_add(region.byte_size());
            if all > self.memory_bytes_max() {
                self.memory_refused = true;
                return Ok(Err(team::ErrorCode::Unsupported));
            }
            match memory::shared_memory(length) {
                Ok(file) => self.shared = Some((file, length)),
                Err(_) => return Ok(Err(team::ErrorCode::Unsupported)),
            }
        }
        Ok(match &self.shared {
            Some((file, size)) if *size == length => {
                region.share(file, length, address).map_err(|e| team_code(&e))
            }
            _ => Err(team::ErrorCode::InvalidRange),
        })
    }
}

fn team_code(error: &MapError) -> team::ErrorCode {
    match error {
        MapError::Range { .. } | MapError::NotAttached { .. } => team::ErrorCode::InvalidRange,
        MapError::Map(_) | MapError::TooMany => team::ErrorCode::Unsupported,
    }
}

impl ResourceLimiter for State {
    fn memory_growing(
        &mut self,
        _current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let allowed = desired as u64 <= self.memory_bytes_max()
            && maximum.is_none_or(|maximum| desired <= maximum);
        self.memory_refused |= !allowed;
        Ok(allowed)
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.memory_refused = true;
        Ok(())
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_LEN_MAX)
    }

    fn instances(&self) -> usize {
        N_PARTS_MAX
    }

    fn tables(&self) -> usize {
        N_PARTS_MAX
    }

    fn memories(&self) -> usize {
        1
    }
}

/// A store in which limits and interrupts work.
pub(crate) fn new_store(engine: &wasmtime::Engine, state: State) -> Store<State> {
    let mut store = Store::new(engine, state);
    store.limiter(|state| state);
    store.set_hostcall_fuel(CALL_BYTES_MAX);
    store.epoch_deadline_callback(|store: StoreContextMut<'_, State>| {
        let state = store.data();
        if state.cancelled.load(Ordering::Relaxed) {
            Err(Interrupt::Cancelled.into())
        } else if state.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            Err(Interrupt::TimeLimit.into())
        } else {
            Ok(UpdateDeadline::Continue(1))
        }
    });
    store
}

/// Runs one call into the guest, within the limits.
pub(crate) fn call<T>(
    store: &mut Store<State>,
    f: impl FnOnce(&mut Store<State>) -> wasmtime::Result<T>,
) -> Result<T> {
    let state = store.data_mut();
    state.memory_refused = false;
    state.deadline = state.limits.time_max.and_then(|time| Instant::now().checked_add(time));
    store.set_epoch_deadline(1);
    // A call that is shorter than a tick would not notice.
    let result = if store.data().cancelled.load(Ordering::Relaxed) {
        Err(Interrupt::Cancelled.into())
    } else {
        f(store)
    };
    result.map_err(|e| trap_error(store.data(), &e))
}

/// What an error of a call means.
fn trap_error(state: &State, error: &wasmtime::Error) -> Error {
    let new = |kind, message: String| Error::new(kind, message);
    match error.downcast_ref::<Interrupt>() {
        Some(Interrupt::Cancelled) => return new(ErrorKind::Cancelled, "cancelled".to_owned()),
        Some(Interrupt::TimeLimit) => {
            let seconds = state.limits.time_max.unwrap_or_default().as_secs_f64();
            let message = format!("the call took longer than its limit of {seconds} s");
            return new(ErrorKind::TimeLimit, message);
        }
        None => {}
    }
    let name = state.weights.name();
    match error.downcast_ref::<Trap>() {
        Some(Trap::UnreachableCodeReached) if state.memory_refused => {
            let message = format!(
                "{name}: needs more memory than the sandbox may have ({} MiB with the weights); \
                 use a smaller context or a smaller model",
                state.memory_bytes_max() >> 20
            );
            new(ErrorKind::OutOfMemory, message)
        }
        _ => {
            // The frames of the guest help those who look for the bug alone.
            let frames = std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0");
            let cause = if frames { format!("{error:#}") } else { error.root_cause().to_string() };
            let message = format!("{name}: the engine failed, please report it: {cause}");
            new(ErrorKind::Internal, message)
        }
    }
}

/// Ends what a session does, from another thread or a signal handler's thread.
#[derive(Debug, Clone)]
pub struct CancelHandle {
    pub(crate) stopped: Arc<AtomicBool>,
    pub(crate) cancelled: Arc<AtomicBool>,
}

impl CancelHandle {
    /// Ends a generation that is under way behind the current step. The session
    /// can go on.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Ends the call that is under way, in the midst of it, and the session
    /// with it; later calls fail.
    pub fn cancel(&self) {
        self.stop();
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

/// A guest with a model loaded.
pub(crate) struct Sandbox {
    store: Store<State>,
    /// Its clock drives the limits: it must not stop before the sandbox.
    _engine: Engine,
    bindings: Bindings,
    model: ResourceAny,
    info: wit_inference::ModelInfo,
    /// The error that ended the sandbox.
    ended: Option<Error>,
    cancel: CancelHandle,
}

impl Sandbox {
    /// Makes a sandbox and loads the model in it.
    pub(crate) fn load(
        engine: &Engine,
        weights: &Arc<WeightStore>,
        limits: Limits,
    ) -> Result<Self> {
        let mut store = new_store(engine.wasmtime(), State::new(weights.clone(), limits));
        let cancel =
            CancelHandle { stopped: Arc::default(), cancelled: store.data().cancelled.clone() };
        let (bindings, region) =
            memory::capture(|| call(&mut store, |store| engine.guest().instantiate(store)));
        let bindings = bindings?;
        store.data_mut().region = region;
        let guest = bindings.moewe_inference_inference();
        let model = guest.model();
        let handle = call(&mut store, |store| model.call_load(store, weights.name()))??;
        let info = call(&mut store, |store| model.call_info(store, handle))?;
        let _engine = engine.clone();
        Ok(Self { store, _engine, bindings, model: handle, info, ended: None, cancel })
    }

    /// Calls the guest. An error that is not the guest's own answer ends the
    /// sandbox: its memory may be in any state.
    pub(crate) fn call<T>(
        &mut self,
        f: impl FnOnce(&mut Store<State>, &Guest, ResourceAny) -> wasmtime::Result<T>,
    ) -> Result<T> {
        if let Some(error) = &self.ended {
            return Err(Error::new(
                ErrorKind::Ended,
                format!("this session has ended ({error}); start a new one"),
            ));
        }
        let guest = self.bindings.moewe_inference_inference();
        let result = call(&mut self.store, |store| f(store, guest, self.model));
        if let Err(error) = &result {
            self.ended = Some(error.clone());
        }
        result
    }

    pub(crate) fn info(&self) -> &wit_inference::ModelInfo {
        &self.info
    }

    pub(crate) fn stats(&self) -> WeightStats {
        self.store.data().stats
    }

    pub(crate) fn cancel_handle(&self) -> &CancelHandle {
        &self.cancel
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }
}

#[cfg(test)]
mod tests;
