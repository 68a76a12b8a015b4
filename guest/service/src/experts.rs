//! The engine's store of experts, over what the guest imports.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use moewe_engine::weights::{ExpertStore, ExpertTable, Piece, Place, Window};
use moewe_engine::{Error, ErrorKind, Result};
use moewe_protocol::{Choice, Host, Shape};

use crate::attached::{Attached, Part, from_host};
use crate::pages::PagePool;
use crate::{Addresses, Platform};

/// The store that the host keeps.
pub(crate) struct Imported {
    host: &'static dyn Host,
    number: u32,
    pages: PagePool,
    slot_bytes: usize,
    n_demand_max: usize,
    bytes_max: u64,
    /// The slots that are attached, from the first on, where there are addresses for all.
    slots: Option<RefCell<Vec<Rc<Attached>>>>,
}

impl Imported {
    /// Describes the model to the host; `None` if it has experts attached.
    pub fn open(
        platform: Platform,
        model: &ExpertTable<'_>,
        pages: &PagePool,
    ) -> Result<Option<Box<dyn ExpertStore>>> {
        let host = platform.host;
        let shape = Shape {
            n_layer: count(model.n_layer)?,
            n_expert: count(model.n_expert)?,
            n_expert_used: count(model.n_expert_used)?,
            dense_bytes: model.dense.iter().map(|piece| piece.length).fold(0, u64::saturating_add),
            kv_bytes_per_token: model.kv_bytes_per_token,
            kv_chunk: count(model.kv_chunk)?,
            session_bytes: model.session_bytes,
        };
        let Some(number) = host.open_store(model.files.to_vec(), shape).map_err(from_host)? else {
            return Ok(None);
        };
        let mut store = Self {
            host,
            number,
            pages: pages.clone(),
            slot_bytes: 0,
            n_demand_max: 1,
            bytes_max: 0,
            slots: (platform.addresses == Addresses::Files).then(RefCell::default),
        };
        for (index, pieces) in &model.layers {
            let piece = |&Piece { file, offset, length }: &Piece| {
                Ok(moewe_protocol::Piece { file: count(file)?, offset, length })
            };
            let pieces = pieces.iter().map(piece).collect::<Result<Vec<_>>>()?;
            host.add_layer(number, count(*index)?, pieces).map_err(from_host)?;
        }
        let capacity = host.ready(number).map_err(from_host)?;
        store.slot_bytes = usize::try_from(capacity.slot_bytes).map_err(|_| too_large())?;
        store.n_demand_max = capacity.n_demand_max.max(1) as usize;
        store.bytes_max = capacity.member_bytes_max;
        Ok(Some(Box::new(store)))
    }

    fn attach(&self, slot: usize, pages: Range<usize>) -> Result<Attached> {
        let (offset, length) = (pages.start as u64, pages.len() as u64);
        let attach = |address| {
            let attached = self.host.attach_slot(self.number, slot as u32, offset, length, address);
            attached.map(|()| true)
        };
        Attached::new(self.host, &self.pages, 0, pages.len(), attach)?
            .ok_or_else(|| Error::new(ErrorKind::Weights, "the host cannot attach its slots"))
    }

    /// A slot as a whole. Slots are attached in their order, and stay: so most of them are
    /// neighbours in this memory as they are in the host's.
    fn whole(&self, slots: &RefCell<Vec<Rc<Attached>>>, slot: usize) -> Result<Rc<Attached>> {
        let mut slots = slots.borrow_mut();
        while slots.len() <= slot {
            let next = self.attach(slots.len(), 0..self.slot_bytes)?;
            slots.push(Rc::new(next));
        }
        Ok(slots[slot].clone())
    }
}

impl Drop for Imported {
    fn drop(&mut self) {
        self.host.close_store(self.number);
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
        let choice = |&(expert, token): &(usize, usize)| Choice {
            expert: expert as u32,
            token: token as u32,
        };
        let choices: Vec<_> = choices.iter().map(choice).collect();
        let places = self.host.demand(self.number, layer as u32, choices).map_err(from_host)?;
        let place = |place: moewe_protocol::Place| Place {
            slot: place.slot as usize,
            loaded: place.loaded,
        };
        Ok(places.into_iter().map(place).collect())
    }

    fn wait(&self, slot: usize) -> Result<()> {
        self.host.wait(self.number, slot as u32).map_err(from_host)
    }

    fn window(&self, slot: usize, pages: Range<usize>) -> Result<Box<dyn Window>> {
        Ok(match &self.slots {
            Some(slots) => Box::new(Part::of(self.whole(slots, slot)?, pages)),
            None => Box::new(self.attach(slot, pages)?),
        })
    }

    fn release(&self) -> Result<()> {
        self.host.release(self.number).map_err(from_host)
    }

    fn prefetch(&self, layer: usize, experts: &[usize]) {
        let experts = experts.iter().map(|&expert| expert as u32).collect();
        self.host.prefetch_experts(self.number, layer as u32, experts);
    }
}
