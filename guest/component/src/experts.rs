//! The engine's store of experts, over the component's imports.

use std::ops::Range;
use std::rc::Rc;

use moewe_engine::weights::{ExpertStore, ExpertTable, Piece, Place, Window};
use moewe_engine::{Error, ErrorKind, Result};

use crate::attached::{Attached, from_host};
use crate::bindings::moewe::inference::experts as host;
use crate::pages::PagePool;

/// The store that the host keeps.
pub(crate) struct Imported {
    store: Rc<host::Store>,
    pages: PagePool,
    slot_bytes: usize,
    n_demand_max: usize,
    bytes_max: u64,
}

impl Imported {
    /// Describes the model to the host; `None` if it has experts attached.
    pub fn open(model: &ExpertTable<'_>, pages: &PagePool) -> Result<Option<Box<dyn ExpertStore>>> {
        let shape = host::Shape {
            n_layer: count(model.n_layer)?,
            n_expert: count(model.n_expert)?,
            n_expert_used: count(model.n_expert_used)?,
            dense_bytes: model.dense_bytes,
            kv_bytes_per_token: model.kv_bytes_per_token,
            kv_chunk: count(model.kv_chunk)?,
            session_bytes: model.session_bytes,
        };
        let files: Vec<_> = model.files.iter().map(|name| name.clone().into_bytes()).collect();
        let Some(store) = host::Store::open(&files, shape).map_err(from_host)? else {
            return Ok(None);
        };
        for (index, pieces) in &model.layers {
            let piece = |&Piece { file, offset, length }: &Piece| {
                Ok(host::Piece { file: count(file)?, offset, length })
            };
            let pieces = pieces.iter().map(piece).collect::<Result<Vec<_>>>()?;
            store.add_layer(count(*index)?, &pieces).map_err(from_host)?;
        }
        let capacity = store.ready().map_err(from_host)?;
        let slot_bytes = usize::try_from(capacity.slot_bytes).map_err(|_| too_large())?;
        let n_demand_max = capacity.n_demand_max.max(1) as usize;
        let bytes_max = capacity.member_bytes_max;
        let (store, pages) = (Rc::new(store), pages.clone());
        Ok(Some(Box::new(Self { store, pages, slot_bytes, n_demand_max, bytes_max })))
    }
}

fn count(n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| too_large())
}

fn too_large() -> Error {
    Error::new(ErrorKind::OutOfMemory, "an expert is too large to be addressed")
}

impl ExpertStore for Imported {
    fn page_size(&self) -> usize {
        self.pages.page_size()
    }

    fn slot_bytes(&self) -> usize {
        self.slot_bytes
    }

    fn n_demand_max(&self) -> usize {
        self.n_demand_max
    }

    fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    fn demand(&self, layer: usize, choices: &[(usize, usize)]) -> Result<Vec<Place>> {
        let choice = |&(expert, token): &(usize, usize)| host::Choice {
            expert: expert as u32,
            token: token as u32,
        };
        let choices: Vec<_> = choices.iter().map(choice).collect();
        let places = self.store.demand(layer as u32, &choices).map_err(from_host)?;
        let place = |place: host::Place| Place { slot: place.slot as usize, loaded: place.loaded };
        Ok(places.into_iter().map(place).collect())
    }

    fn wait(&self, slot: usize) -> Result<()> {
        self.store.wait(slot as u32).map_err(from_host)
    }

    fn window(&self, slot: usize, pages: Range<usize>) -> Result<Box<dyn Window>> {
        let (offset, length) = (pages.start as u64, pages.len() as u64);
        let attach =
            |address| self.store.attach(slot as u32, offset, length, address).map(|()| true);
        match Attached::new(&self.pages, 0, pages.len(), self.store.clone(), attach)? {
            Some(window) => Ok(Box::new(window)),
            None => Err(Error::new(ErrorKind::Weights, "the host cannot attach its slots")),
        }
    }

    fn release(&self) -> Result<()> {
        self.store.release().map_err(from_host)
    }

    fn prefetch(&self, layer: usize, experts: &[usize]) {
        let experts: Vec<_> = experts.iter().map(|&expert| expert as u32).collect();
        self.store.prefetch(layer as u32, &experts);
    }
}
