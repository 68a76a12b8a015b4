//! The keys and values of past tokens.

//!
//! Each module knows only those above it:
//! - `shape`: how much goes together, and `span`: how much is seen;
//! - `panels`, what a format is, and the formats `f32`, `f16` and `q8_0`;
//! - `format`, the list of them;
//! - `layer`: keys and values of a layer;
//! - `kernel`, the inner loops of attention, `attend`, and `latents`, which is attention
//!   where one key and value serve all heads.

mod attend;
mod f16;
mod f32;
mod format;
mod kernel;
mod latents;
mod layer;
mod panels;
mod q8_0;
mod shape;
mod span;

use crate::error::Result;

pub use format::KvFormat;
pub(crate) use latents::{Attention as LatentAttention, LatentShape};
pub(crate) use layer::{LayerCache, held_max};
pub(crate) use shape::CHUNK;
pub(crate) use span::Span;

/// Keys and values of all layers.
pub(crate) struct KvCache {
    layers: Vec<LayerCache>,
}

impl KvCache {
    /// The cache of these layers.
    pub fn new(layers: Vec<LayerCache>) -> Self {
        Self { layers }
    }

    /// The caches of all layers.
    pub fn layers(&mut self) -> &mut [LayerCache] {
        &mut self.layers
    }

    /// Makes room for `n` positions. Nothing changes if that fails.
    pub fn reserve(&mut self, n: usize) -> Result<()> {
        let before = self.room();
        let reserved = self.layers.iter_mut().try_for_each(|layer| layer.reserve(n));
        if reserved.is_err() {
            self.truncate(before);
        }
        reserved
    }

    /// Positions that there is room for.
    pub fn room(&self) -> usize {
        self.layers.iter().map(LayerCache::room).min().unwrap_or(0)
    }

    /// Forgets the positions from `n` on. Answers how many are left: none, if a layer has
    /// already given up what the next token would attend to.
    pub fn rewind(&mut self, n: usize) -> usize {
        let left = if self.layers.iter().all(|layer| layer.goes_on_from(n)) { n } else { 0 };
        self.truncate(left);
        left
    }

    /// Gives the room for positions from `n` on back.
    pub fn truncate(&mut self, n: usize) {
        self.layers.iter_mut().for_each(|layer| layer.truncate(n));
    }

    /// Bytes in use.
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(LayerCache::bytes).sum()
    }
}
