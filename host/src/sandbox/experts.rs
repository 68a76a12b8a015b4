//! The store of experts that a guest imports.

use std::mem;

use wasmtime::component::Resource;

use super::State;
use super::imports::map_code;
use super::text;
use crate::bindings::moewe::inference::experts::{
    Capacity, Choice, Host, HostStore, Piece, Place, Shape, Utf8,
};
use crate::bindings::moewe::inference::weights::{Error, ErrorCode};
use crate::store::Table;
use crate::weights::error;

type Answer<T> = wasmtime::Result<Result<T, Error>>;

/// A guest's handle of the store.
pub struct StoreHandle {
    /// What the guest has said of its model, until all is said.
    described: Option<Table>,
    /// Demands that it has made.
    n_demands: u64,
    /// Whether it has not released the last one.
    holds: bool,
}

fn refused<T>(message: &str) -> Answer<T> {
    Ok(Err(error(ErrorCode::InvalidRange, format!("the store of experts: {message}"))))
}

impl Host for State {}

impl HostStore for State {
    fn open(&mut self, files: Vec<Utf8>, shape: Shape) -> Answer<Option<Resource<StoreHandle>>> {
        let files =
            files.into_iter().map(text::checked_text).collect::<wasmtime::Result<Vec<_>>>()?;
        let page_size = self.page_size();
        if self.team.store().is_none() || self.region.is_none() {
            return Ok(Ok(None));
        }
        if self.has_store {
            return refused("it is open already");
        }
        let files = files.iter().map(|name| self.weights.file(name));
        let files: Result<Vec<_>, Error> = files.collect();
        match files.and_then(|files| Table::new(files, shape, page_size)) {
            Ok(table) => {
                let described = Some(table);
                let handle = StoreHandle { described, n_demands: 0, holds: false };
                let handle = self.sources.push(handle)?;
                self.has_store = true;
                Ok(Ok(Some(handle)))
            }
            Err(e) => Ok(Err(e)),
        }
    }

    fn add_layer(
        &mut self,
        handle: Resource<StoreHandle>,
        layer: u32,
        pieces: Vec<Piece>,
    ) -> Answer<()> {
        match &mut self.sources.get_mut(&handle)?.described {
            Some(table) => Ok(table.add_layer(layer, pieces)),
            None => refused("all was said already"),
        }
    }

    fn ready(&mut self, handle: Resource<StoreHandle>) -> Answer<Capacity> {
        let described = self.sources.get_mut(&handle)?.described.take();
        match (described, self.team.store()) {
            (Some(table), Some((store, team))) => {
                Ok(store.describe(team, table, self.team.memory_expected(self.rank)))
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
        let places = store.demand(team, n_demands, layer, &choices, || self.interrupt())?;
        if places.is_ok() {
            let handle = self.sources.get_mut(&handle)?;
            handle.n_demands += 1;
            handle.holds = true;
        }
        Ok(places)
    }

    fn wait(&mut self, _handle: Resource<StoreHandle>, slot: u32) -> Answer<()> {
        let Some((store, team)) = self.team.store() else { return refused("there is none") };
        Ok(store.wait(team, slot, self.rank == 0, || self.interrupt())?)
    }

    fn attach(
        &mut self,
        _handle: Resource<StoreHandle>,
        slot: u32,
        offset: u64,
        length: u64,
        address: u64,
    ) -> Answer<()> {
        let (Some((store, team)), Some(region)) = (self.team.store(), &self.region) else {
            return refused("there is none");
        };
        let attached = store.with_slot(team, slot, offset, length, |memory, offset| {
            region
                .attach_part(memory.file(), offset, length, address)
                .map_err(|e| error(map_code(&e), format!("slot {slot}: {e}")))
        });
        let attached = attached.flatten();
        if attached.is_ok() {
            self.account_windows();
        }
        Ok(attached.map(drop))
    }

    fn release(&mut self, handle: Resource<StoreHandle>) -> Answer<()> {
        let holds = mem::take(&mut self.sources.get_mut(&handle)?.holds);
        match self.team.store().filter(|_| holds) {
            Some((store, team)) => Ok(store.release(team)),
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
