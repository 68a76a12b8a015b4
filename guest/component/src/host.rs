//! The imports: weights, the store of experts, and the team.

use std::mem::ManuallyDrop;

use moewe_protocol::{
    ByteBuf, Capabilities, Capacity, Choice, Host, HostError, HostErrorCode, Piece, Place, Shape,
    Team, TeamError,
};

use crate::bindings::moewe::inference::{experts, team, weights};

type Result<T> = std::result::Result<T, HostError>;

/// What this component imports.
pub(crate) struct Imports;

/// A source by its number, which the engine closes.
fn source(number: u32) -> ManuallyDrop<weights::Source> {
    // SAFETY: the engine uses numbers that `open` has answered, and closes each once.
    ManuallyDrop::new(unsafe { weights::Source::from_handle(number) })
}

/// A store by its number, which the engine closes.
fn store(number: u32) -> ManuallyDrop<experts::Store> {
    // SAFETY: as for sources.
    ManuallyDrop::new(unsafe { experts::Store::from_handle(number) })
}

impl Host for Imports {
    fn capabilities(&self) -> Capabilities {
        let weights::Capabilities { attach, page_size, n_windows_max } =
            weights::get_capabilities();
        Capabilities { attach, page_size, n_windows_max }
    }

    fn detach(&self, address: u64, length: u64) -> Result<()> {
        Ok(weights::detach(address, length)?)
    }

    fn open(&self, name: String) -> Result<u32> {
        Ok(weights::Source::open(name.as_bytes())?.take_handle())
    }

    fn size(&self, number: u32) -> u64 {
        source(number).size()
    }

    fn read(&self, number: u32, offset: u64, length: u32) -> Result<ByteBuf> {
        Ok(ByteBuf::from(source(number).read(offset, length)?))
    }

    fn attach(&self, number: u32, offset: u64, length: u64, address: u64) -> Result<u64> {
        Ok(source(number).attach(offset, length, address)?)
    }

    fn copied(&self, number: u32, length: u64) {
        source(number).copied(length);
    }

    fn prefetch(&self, number: u32, offset: u64, length: u64) {
        source(number).prefetch(offset, length);
    }

    fn close(&self, number: u32) {
        drop(ManuallyDrop::into_inner(source(number)));
    }

    fn open_store(&self, files: Vec<String>, shape: Shape) -> Result<Option<u32>> {
        let files: Vec<_> = files.into_iter().map(String::into_bytes).collect();
        let store = experts::Store::open(&files, shape.into())?;
        Ok(store.map(|store| store.take_handle()))
    }

    fn add_layer(&self, number: u32, layer: u32, pieces: Vec<Piece>) -> Result<()> {
        let pieces: Vec<_> = pieces.into_iter().map(Into::into).collect();
        Ok(store(number).add_layer(layer, &pieces)?)
    }

    fn ready(&self, number: u32) -> Result<Capacity> {
        let experts::Capacity { slot_bytes, n_demand_max, member_bytes_max } =
            store(number).ready()?;
        Ok(Capacity { slot_bytes, n_demand_max, member_bytes_max })
    }

    fn demand(&self, number: u32, layer: u32, choices: Vec<Choice>) -> Result<Vec<Place>> {
        let choices: Vec<_> = choices.into_iter().map(Into::into).collect();
        let places = store(number).demand(layer, &choices)?;
        Ok(places.into_iter().map(Into::into).collect())
    }

    fn wait(&self, number: u32, slot: u32) -> Result<()> {
        Ok(store(number).wait(slot)?)
    }

    fn attach_slot(
        &self,
        number: u32,
        slot: u32,
        offset: u64,
        length: u64,
        address: u64,
    ) -> Result<()> {
        Ok(store(number).attach(slot, offset, length, address)?)
    }

    fn release(&self, number: u32) -> Result<()> {
        Ok(store(number).release()?)
    }

    fn prefetch_experts(&self, number: u32, layer: u32, experts: Vec<u32>) {
        store(number).prefetch(layer, &experts);
    }

    fn close_store(&self, number: u32) {
        drop(ManuallyDrop::into_inner(store(number)));
    }
}

impl Team for Imports {
    fn rank(&self) -> u32 {
        team::rank()
    }

    fn size(&self) -> u32 {
        team::size()
    }

    fn barrier(&self) -> std::result::Result<(), TeamError> {
        Ok(team::barrier()?)
    }

    fn is_stopped(&self) -> bool {
        team::is_stopped()
    }

    fn share(&self, address: u64, length: u64) -> std::result::Result<(), TeamError> {
        Ok(team::share(address, length)?)
    }
}

impl From<weights::Error> for HostError {
    fn from(weights::Error { code, message }: weights::Error) -> Self {
        let code = match code {
            weights::ErrorCode::NotFound => HostErrorCode::NotFound,
            weights::ErrorCode::NotPermitted => HostErrorCode::NotPermitted,
            weights::ErrorCode::InvalidRange => HostErrorCode::InvalidRange,
            weights::ErrorCode::Unsupported => HostErrorCode::Unsupported,
            weights::ErrorCode::Changed => HostErrorCode::Changed,
            weights::ErrorCode::Io => HostErrorCode::Io,
            weights::ErrorCode::OutOfMemory => HostErrorCode::OutOfMemory,
            weights::ErrorCode::TooManyWindows => HostErrorCode::TooManyWindows,
        };
        Self { code, message }
    }
}

impl From<team::ErrorCode> for TeamError {
    fn from(code: team::ErrorCode) -> Self {
        match code {
            team::ErrorCode::InvalidRange => Self::InvalidRange,
            team::ErrorCode::Unsupported => Self::Unsupported,
            team::ErrorCode::OutOfMemory => Self::OutOfMemory,
            team::ErrorCode::Broken => Self::Broken,
        }
    }
}

impl From<Shape> for experts::Shape {
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

impl From<Piece> for experts::Piece {
    fn from(Piece { file, offset, length }: Piece) -> Self {
        Self { file, offset, length }
    }
}

impl From<Choice> for experts::Choice {
    fn from(Choice { expert, token }: Choice) -> Self {
        Self { expert, token }
    }
}

impl From<experts::Place> for Place {
    fn from(experts::Place { slot, loaded }: experts::Place) -> Self {
        Self { slot, loaded }
    }
}
