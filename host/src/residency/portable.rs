//! There is no store where memory cannot be mapped.

#[expect(dead_code, reason = "nobody here looks at what guests say")]
#[path = "interface.rs"]
mod interface;
#[path = "options.rs"]
mod options;
#[path = "stats.rs"]
mod stats;

use std::convert::Infallible;
use std::ops::Range;
use std::sync::Arc;

use moewe_memory::Mapping;

use crate::error::{Error, ErrorKind, Result};
use crate::files::{WeightError, WeightFile};

pub(crate) use self::interface::{Capacity, Choice, FilePiece, Place, Shape};
pub use self::options::{MemoryOptions, Prefetch};
pub use self::stats::ExpertStats;

/// What a model takes of the memory that its process may have. Nobody finds out
/// here.
#[derive(Debug, Clone, Copy)]
pub struct MemoryNeeds(Infallible);

impl MemoryNeeds {
    /// Bytes of the weights that every token needs.
    pub fn dense_bytes(&self) -> u64 {
        match self.0 {}
    }

    /// Bytes of an expert, in whole pages.
    pub fn expert_bytes(&self) -> u64 {
        match self.0 {}
    }

    /// How many experts all layers have together.
    pub fn n_experts(&self) -> u64 {
        match self.0 {}
    }

    /// How many of them a layer uses for a token.
    pub fn n_expert_used(&self) -> u64 {
        match self.0 {}
    }

    /// Bytes of the KV cache of so many tokens.
    pub fn kv_bytes(&self, _: u64) -> u64 {
        match self.0 {}
    }

    /// The least memory that suffices for a session with a context of `n_tokens`.
    pub fn least(&self, _: u64) -> u64 {
        match self.0 {}
    }

    /// How many experts fit into so much memory beside a context of `n_tokens`.
    pub fn n_slots(&self, _: u64, _: u64) -> u64 {
        match self.0 {}
    }
}

/// A description that nobody takes.
pub(crate) struct Table(Infallible);

impl Table {
    pub fn new(_: Vec<Arc<WeightFile>>, _: Shape, _: u64) -> Result<Self, WeightError> {
        unreachable!("guests are told that there is no store")
    }

    pub fn add_layer(&mut self, _: u32, _: Vec<FilePiece>) -> Result<(), WeightError> {
        match self.0 {}
    }
}

/// A store, of which there is none.
pub(crate) enum ExpertStore {}

impl ExpertStore {
    pub(crate) fn new(name: &str, _: MemoryOptions) -> Result<Self> {
        Self::asking(name)
    }

    pub(crate) fn asking(name: &str) -> Result<Self> {
        let message = format!("{name}: a budget of memory is possible on Linux only");
        Err(Error::new(ErrorKind::Unsupported, message))
    }

    pub(crate) fn needs(&self) -> Option<MemoryNeeds> {
        match *self {}
    }

    pub(crate) fn page_size(&self) -> u64 {
        match *self {}
    }

    pub(crate) fn add_team(&self, _: usize) -> u64 {
        match *self {}
    }

    pub(crate) fn remove_team(&self, _: u64) {
        match *self {}
    }

    pub(crate) fn charge(&self, _: u64, _: u64) -> bool {
        match *self {}
    }

    pub(crate) fn bytes_max(&self) -> u64 {
        match *self {}
    }

    pub(crate) fn check_context(&self, _: u64, _: usize) -> Result<()> {
        match *self {}
    }

    pub(crate) fn give_up(&self, _: u64) {
        match *self {}
    }

    pub(crate) fn describe(&self, _: u64, _: Table, _: u64) -> Result<Capacity, WeightError> {
        match *self {}
    }

    pub(crate) fn demand<E>(
        &self,
        _: u64,
        _: u64,
        _: u32,
        _: &[Choice],
        _: impl Fn() -> Option<E>,
    ) -> Result<Result<Vec<Place>, WeightError>, E> {
        match *self {}
    }

    pub(crate) fn wait<E>(
        &self,
        _: u64,
        _: u32,
        _: bool,
        _: impl Fn() -> Option<E>,
    ) -> Result<Result<(), WeightError>, E> {
        match *self {}
    }

    pub(crate) fn release(&self, _: u64) -> Result<(), WeightError> {
        match *self {}
    }

    pub(crate) fn prefetch(&self, _: u64, _: u32, _: &[u32]) {
        match *self {}
    }

    pub(crate) fn with_slot<T>(
        &self,
        _: u32,
        _: u64,
        _: u64,
        _: impl FnOnce(&Mapping, u64) -> T,
    ) -> Result<T, WeightError> {
        match *self {}
    }

    pub(crate) fn with_dense<T, E>(
        &self,
        _: &WeightFile,
        _: Range<u64>,
        _: impl Fn() -> Option<E>,
        _: impl FnOnce(&Mapping) -> T,
    ) -> Result<Result<T, WeightError>, E> {
        match *self {}
    }

    pub(crate) fn stats(&self) -> ExpertStats {
        match *self {}
    }

    pub(crate) fn finish_trace(&self) -> Result<()> {
        match *self {}
    }
}
