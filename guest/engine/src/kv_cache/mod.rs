//! The keys and values of past tokens.

mod attend;
mod kernel;

use crate::error::{Error, ErrorKind, Result};

/// Positions in a chunk. The cache grows by a chunk in every layer, and
/// attention goes through it chunk by chunk.
pub(crate) const CHUNK: usize = 64;

/// Columns of a panel: what the kernel of attention keeps in two vectors.
pub(crate) const PANEL: usize = 8;

/// Keys and values of all layers.
pub(crate) struct KvCache {
    layers: Vec<LayerCache>,
}

/// Keys and values of a layer, in f32.
///
/// They lie in panels, in the order in which attention reads them: `PANEL`
/// columns of a matrix, row by row. For the scores, the columns are positions
/// and the rows the numbers of a key; for the mixture of values, the columns
/// are the numbers of a value and the rows positions. If a head has no multiple
/// of `PANEL` numbers, the last panel of its values is four columns wide.
pub(crate) struct LayerCache {
    kv_heads: usize,
    head_dim: usize,
    chunks: Vec<Chunk>,
}

struct Chunk {
    /// `[kv_heads][CHUNK / PANEL][head_dim][PANEL]`
    keys: Vec<f32>,
    /// `[kv_heads][head_dim / PANEL][CHUNK][PANEL]`
    values: Vec<f32>,
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
        self.layers.first().map_or(0, LayerCache::room)
    }

    /// Gives the room for positions from `n` on back.
    pub fn truncate(&mut self, n: usize) {
        self.layers.iter_mut().for_each(|layer| layer.chunks.truncate(n.div_ceil(CHUNK)));
    }

    /// Bytes in use.
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(LayerCache::bytes).sum()
    }
}

impl LayerCache {
    /// An empty cache. `head_dim` is a multiple of four.
    pub fn new(kv_heads: usize, head_dim: usize) -> Self {
        assert!(head_dim.is_multiple_of(4));
        Self { kv_heads, head_dim, chunks: Vec::new() }
    }

    /// Makes room for `n` positions.
    fn reserve(&mut self, n: usize) -> Result<()> {
        let size = self.kv_heads * CHUNK * self.head_dim;
        while self.room() < n {
            self.chunks.push(Chunk::new(size)?);
        }
        Ok(())
    }

    fn room(&self) -> usize {
        self.chunks.len() * CHUNK
    }

    fn bytes(&self) -> u64 {
        let chunk = 2 * self.kv_heads * CHUNK * self.head_dim * size_of::<f32>();
        (self.chunks.len() * chunk) as u64
    }

    /// Stores the keys and values of all heads at a position.
    pub fn store(&mut self, position: usize, keys: &[f32], values: &[f32]) {
        let n = self.head_dim;
        assert!(keys.len() == self.kv_heads * n && values.len() == keys.len());
        let chunk = &mut self.chunks[position / CHUNK];
        let at = position % CHUNK;
        for (panels, key) in chunk.keys.chunks_exact_mut(CHUNK * n).zip(keys.chunks_exact(n)) {
            let panel = &mut panels[at / PANEL * PANEL * n..][..PANEL * n];
            for (row, x) in panel.chunks_exact_mut(PANEL).zip(key) {
                row[at % PANEL] = *x;
            }
        }
        for (panels, value) in chunk.values.chunks_exact_mut(CHUNK * n).zip(values.chunks_exact(n))
        {
            for (panel, x) in panels.chunks_mut(CHUNK * PANEL).zip(value.chunks(PANEL)) {
                panel[at * x.len()..][..x.len()].copy_from_slice(x);
            }
        }
    }

    /// The panels of a head's keys and values, chunk by chunk.
    fn panels(&self, kv_head: usize) -> impl Iterator<Item = (&[f32], &[f32])> + '_ {
        let size = CHUNK * self.head_dim;
        let head = kv_head * size..(kv_head + 1) * size;
        self.chunks.iter().map(move |c| (&c.keys[head.clone()], &c.values[head.clone()]))
    }
}

impl Chunk {
    /// Room for `size` numbers in the keys, and in the values.
    fn new(size: usize) -> Result<Self> {
        Ok(Self { keys: zeros(size)?, values: zeros(size)? })
    }
}

fn zeros(n: usize) -> Result<Vec<f32>> {
    let mut v = Vec::new();
    v.try_reserve_exact(n).map_err(|_| {
        Error::new(
            ErrorKind::OutOfMemory,
            "no memory for more KV cache; use a shorter prompt or raise the memory limit",
        )
    })?;
    v.resize(n, 0.0);
    Ok(v)
}
