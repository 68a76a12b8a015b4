//! One guest with a model: its store, and the calls into it. What it imports,
//! and what limits it, are modules of their own.

mod imports;
mod limits;

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use wasmtime::Store;
use wasmtime::component::{ResourceAny, ResourceTable};

use self::limits::{call, new_store};
use crate::bindings::Engine as Bindings;
use crate::bindings::exports::moewe::inference::inference::{self as wit, Guest};
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::{self, Region};
use crate::weights::{WeightStats, WeightStore};

pub use self::limits::CancelHandle;
pub(crate) use self::limits::Limits;

/// The most open sources: as many as a split model has files.
const N_SOURCES_MAX: usize = 1 << 10;

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
}

/// A guest with a model loaded.
pub(crate) struct Sandbox {
    store: Store<State>,
    /// Its clock drives the limits: it must not stop before the sandbox.
    _engine: Engine,
    bindings: Bindings,
    model: ResourceAny,
    info: wit::ModelInfo,
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

    pub(crate) fn info(&self) -> &wit::ModelInfo {
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
