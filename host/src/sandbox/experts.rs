//! The store of experts that a guest imports.

use std::mem;

use wasmtime::component::Resource;

use super::bindings::moewe::inference::experts::{
    Capacity, Choice, Host, HostStore, Piece, Place, Shape, Utf8,
};
use super::bindings::moewe::inference::weights::Error;
use super::errors::map_kind;
use super::handles::StoreHandle;
use super::state::State;
use super::text::checked_text;
use crate::files::{WeightError, WeightErrorKind};
use crate::residency::{self, Table};

type Answer<T> = wasmtime::Result<Result<T, Error>>;

fn refused<T>(message: &str) -> Answer<T> {
    let message = format!("the store of experts: {message}");
    Ok(Err(WeightError::new(WeightErrorKind::InvalidRange, message).into()))
}

/// What a guest is told.
fn told<T, U: From<T>>(answer: Result<T, WeightError>) -> Answer<U> {
    Ok(answer.map(U::from).map_err(Error::from))
}

impl From<Shape> for residency::Shape {
    fn from(shape: Shape) -> Self {
        Self {
            n_layer: shape.n_layer,
            n_expert: shape.n_expert,
            n_expert_used: shape.n_expert_used,
            dense_bytes: shape.dense_bytes,
            kv_bytes_per_token: shape.kv_bytes_per_token,
            kv_chunk: shape.kv_chunk,
            session_bytes: shape.session_bytes,
        }
    }
}

impl From<Piece> for residency::FilePiece {
    fn from(Piece { file, offset, length }: Piece) -> Self {
        Self { file, offset, length }
    }
}

impl From<Choice> for residency::Choice {
    fn from(Choice { expert, token }: Choice) -> Self {
        Self { expert, token }
    }
}

impl From<residency::Place> for Place {
    fn from(residency::Place { slot, loaded }: residency::Place) -> Self {
        Self { slot, loaded }
    }
}

impl From<residency::Capacity> for Capacity {
    fn from(capacity: residency::Capacity) -> Self {
        Self {
            slot_bytes: capacity.slot_bytes,
            n_demand_max: capacity.n_demand_max,
            member_bytes_max: capacity.member_bytes_max,
        }
    }
}

impl Host for State {}

impl HostStore for State {
    fn open(&mut self, files: Vec<Utf8>, shape: Shape) -> Answer<Option<Resource<StoreHandle>>> {
        let files = files.into_iter().map(checked_text).collect::<wasmtime::Result<Vec<_>>>()?;
        let page_size = self.page_size();
        if self.team.store().is_none() || self.region.is_none() {
            return Ok(Ok(None));
        }
        if self.has_store {
            return refused("it is open already");
        }
        let files = files.iter().map(|name| self.weights.files.get(name));
        let files: Result<Vec<_>, WeightError> = files.collect();
        match files.and_then(|files| Table::new(files, shape.into(), page_size)) {
            Ok(table) => {
                let described = Some(table);
                let handle = StoreHandle { described, n_demands: 0, holds: false };
                let handle = self.sources.push(handle)?;
                self.has_store = true;
                Ok(Ok(Some(handle)))
            }
            Err(e) => Ok(Err(e.into())),
        }
    }

    fn add_layer(
        &mut self,
        handle: Resource<StoreHandle>,
        layer: u32,
        pieces: Vec<Piece>,
    ) -> Answer<()> {
        match &mut self.sources.get_mut(&handle)?.described {
            Some(table) => {
                told(table.add_layer(layer, pieces.into_iter().map(Into::into).collect()))
            }
            None => refused("all was said already"),
        }
    }

    fn ready(&mut self, handle: Resource<StoreHandle>) -> Answer<Capacity> {
        let described = self.sources.get_mut(&handle)?.described.take();
        match (described, self.team.store()) {
            (Some(table), Some((store, team))) => {
                told(store.describe(team, table, self.team.memory_expected(self.rank)))
            }
            _ => refused("all was said already"),
        }
    }

    fn demand(
        &mut self,
        handle: Resource<StoreHandle>,
        layer: u32,
        choices: Vec<Choice>,
    ) -> Answer<Vec<Place>> {
        let StoreHandle { n_demands, holds, .. } = *self.sources.get(&handle)?;
        let Some((store, team)) = self.team.store().filter(|_| !holds) else {
            return refused("what was demanded before was not released");
        };
        let choices: Vec<_> = choices.into_iter().map(Into::into).collect();
        let places = store.demand(team, n_demands, layer, &choices, || self.interrupt())?;
        if places.is_ok() {
            let handle = self.sources.get_mut(&handle)?;
            handle.n_demands += 1;
            handle.holds = true;
        }
        let places = places.map(|places| places.into_iter().map(Place::from).collect());
        Ok(places.map_err(Error::from))
    }

    fn wait(&mut self, _handle: Resource<StoreHandle>, slot: u32) -> Answer<()> {
        let Some((store, team)) = self.team.store() else { return refused("there is none") };
        told(store.wait(team, slot, self.rank == 0, || self.interrupt())?)
    }

    fn attach(
        &mut self,
        _handle: Resource<StoreHandle>,
        slot: u32,
        offset: u64,
        length: u64,
        address: u64,
    ) -> Answer<()> {
        let (Some((store, _)), Some(region)) = (self.team.store(), &self.region) else {
            return refused("there is none");
        };
        let attached = store.with_slot(slot, offset, length, |memory, offset| {
            region
                .attach_part(memory.file(), offset, length, address)
                .map_err(|e| WeightError::new(map_kind(&e), format!("slot {slot}: {e}")))
        });
        let attached = attached.flatten();
        if attached.is_ok() {
            self.account_windows();
            self.count(|s| {
                s.n_attach += 1;
                s.bytes_attached += length;
            });
        }
        told(attached.map(drop))
    }

    fn release(&mut self, handle: Resource<StoreHandle>) -> Answer<()> {
        let holds = mem::take(&mut self.sources.get_mut(&handle)?.holds);
        match self.team.store().filter(|_| holds) {
            Some((store, team)) => told(store.release(team)),
            None => refused("nothing was demanded"),
        }
    }

    fn prefetch(
        &mut self,
        _handle: Resource<StoreHandle>,
        layer: u32,
        experts: Vec<u32>,
    ) -> wasmtime::Result<()> {
        if let Some((store, team)) = self.team.store() {
            store.prefetch(team, layer, &experts);
        }
        Ok(())
    }

    fn drop(&mut self, handle: Resource<StoreHandle>) -> wasmtime::Result<()> {
        self.sources.delete(handle)?;
        self.has_store = false;
        Ok(())
    }
}
