//! One guest: its store, and the calls into it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use wasmtime::Store;
use wasmtime::component::{ResourceAny, ResourceTable};

use super::Answer;
use super::limits::{Interrupt, Limits, call, new_store};
use super::team::Team;
use crate::bindings::Engine as Bindings;
use crate::bindings::exports::moewe::inference::inference::{self as wit, Guest};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::memory::{self, Region};
use crate::model::ModelInfo;
use crate::weights::WeightStore;

/// The most open sources: as many as a split model has files.
pub(super) const N_SOURCES_MAX: usize = 1 << 10;

/// The data of a store.
pub(crate) struct State {
    pub(super) weights: Arc<WeightStore>,
    pub(super) limits: Limits,
    pub(super) team: Arc<Team>,
    pub(super) rank: usize,
    /// Open files; the guest knows them by number.
    pub(super) sources: ResourceTable,
    /// Sizes of the files that were opened so far, each counted once.
    pub(super) opened: BTreeMap<String, u64>,
    /// Whether it has a handle of the store, of which one is enough.
    pub(super) has_store: bool,
    /// The memory that files can be attached to.
    pub(super) region: Option<Arc<Region>>,
    pub(super) deadline: Option<Instant>,
    /// Whether the guest was refused memory during this call.
    pub(super) memory_refused: bool,
    /// How often it has asked during this call whether to stop.
    pub(super) n_stop_asked: u64,
}

impl State {
    pub(super) fn new(
        weights: Arc<WeightStore>,
        limits: Limits,
        team: Arc<Team>,
        rank: usize,
    ) -> Self {
        let mut sources = ResourceTable::new();
        sources.set_max_capacity(N_SOURCES_MAX);
        Self {
            weights,
            limits,
            team,
            rank,
            sources,
            opened: BTreeMap::new(),
            has_store: false,
            region: None,
            deadline: None,
            memory_refused: false,
            n_stop_asked: 0,
        }
    }

    /// Why the call that is under way shall end now.
    pub(super) fn interrupt(&self) -> Option<Interrupt> {
        if self.team.cancelled.load(Ordering::Relaxed) {
            return Some(Interrupt::Cancelled);
        }
        if self.has_lost_weights() {
            return Some(Interrupt::WeightsLost);
        }
        let late = self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        late.then_some(Interrupt::TimeLimit)
    }

    /// Whether the guest has zeros where weights were.
    pub(super) fn has_lost_weights(&self) -> bool {
        self.region.as_ref().is_some_and(|region| region.is_lost())
    }

    /// The unit in which the guest maps: the system's pages, but for stores in tests.
    pub(super) fn page_size(&self) -> u64 {
        self.team.store().map_or_else(memory::page_size, |(store, _)| store.page_size())
    }

    /// Tells the team about the windows of this guest.
    pub(super) fn account_windows(&self) {
        if let Some(region) = &self.region {
            let (n_windows, attached) = region.windows();
            self.team.account(self.rank, |account| {
                account.n_windows = n_windows as u64;
                account.attached = attached;
            });
        }
    }
}

/// A guest with a model loaded.
pub(super) struct Member {
    store: Store<State>,
    bindings: Bindings,
    model: ResourceAny,
    pub session: Option<ResourceAny>,
}

impl Member {
    /// Makes a guest and loads the model in it.
    pub fn load(engine: &Engine, state: State) -> Answer<(Self, ModelInfo)> {
        let name = state.weights.name().to_owned();
        let mut store = new_store(engine.wasmtime(), state);
        let (bindings, region) =
            memory::capture(|| call(&mut store, |store| engine.guest().instantiate(store)));
        let bindings = bindings?;
        store.data_mut().region = region;
        let model = bindings.moewe_inference_inference().model();
        let handle = match call(&mut store, |store| model.call_load(store, &name))? {
            Ok(handle) => handle,
            Err(error) => return Ok(Err(error.into())),
        };
        let info = call(&mut store, |store| model.call_info(store, handle)?.try_into())?;
        Ok(Ok((Self { store, bindings, model: handle, session: None }, info)))
    }

    /// Calls the guest, with its model and its session.
    pub fn call<T>(
        &mut self,
        f: impl FnOnce(
            &mut Store<State>,
            &Guest,
            ResourceAny,
            Option<ResourceAny>,
        ) -> wasmtime::Result<Result<T, wit::Error>>,
    ) -> Answer<T> {
        let guest = self.bindings.moewe_inference_inference();
        let answer = call(&mut self.store, |store| f(store, guest, self.model, self.session))?;
        let answer: Result<T, Error> = answer.map_err(Error::from);
        Ok(answer)
    }
}
