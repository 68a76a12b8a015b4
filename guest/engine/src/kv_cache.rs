//! The keys and values of past tokens.

use crate::error::{Error, ErrorKind, Result};

/// Positions in a chunk. The cache grows by a chunk in every layer, and
/// attention goes through it chunk by chunk.
pub(crate) const CHUNK: usize = 64;

/// Columns of a panel: what the kernel of attention keeps in two vectors.
pub(crate) const PANEL: usize = 8;

/// Keys and values of all layers, in f32.
///
/// They lie in panels, in the order in which attention reads them: `PANEL`
/// columns of a matrix, row by row. For the scores, the columns are positions
/// and the rows the numbers of a key; for the mixture of values, the columns
/// are the numbers of a value and the rows positions. If a head has no multiple
/// of `PANEL` numbers, the last panel of its values is four columns wide.
pub(crate) struct KvCache {
    kv_heads: usize,
    head_dim: usize,
    /// For each layer, its chunks.
    layers: Vec<Vec<Chunk>>,
}

struct Chunk {
    /// `[kv_heads][CHUNK / PANEL][head_dim][PANEL]`
    keys: Vec<f32>,
    /// `[kv_heads][head_dim / PANEL][CHUNK][PANEL]`
    values: Vec<f32>,
}

impl KvCache {
    /// An empty cache. `head_dim` is a multiple of four.
    pub fn new(n_layer: usize, kv_heads: usize, head_dim: usize) -> Self {
        assert!(head_dim.is_multiple_of(4));
        Self { kv_heads, head_dim, layers: (0..n_layer).map(|_| Vec::new()).collect() }
    }

    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Makes room for `n` positions. Nothing changes if that fails.
    pub fn reserve(&mut self, n: usize) -> Result<()> {
        let size = self.kv_heads * CHUNK * self.head_dim;
        let wanted = n.div_ceil(CHUNK);
        let before = self.room() / CHUNK;
        for i in 0..self.layers.len() {
            while self.layers[i].len() < wanted {
                match Chunk::new(size) {
                    Ok(chunk) => self.layers[i].push(chunk),
                    Err(e) => {
                        self.layers.iter_mut().for_each(|layer| layer.truncate(before));
                        return Err(e);
                    }
                }
            }
        }
        Ok(())
    }

    /// Positions that there is room for.
    pub fn room(&self) -> usize {
        self.layers.first().map_or(0, Vec::len) * CHUNK
    }

    /// Gives the room for positions from `n` on back.
    pub fn truncate(&mut self, n: usize) {
        self.layers.iter_mut().for_each(|layer| layer.truncate(n.div_ceil(CHUNK)));
    }

    /// Bytes in use.
    pub fn bytes(&self) -> u64 {
        let chunk = 2 * self.kv_heads * CHUNK * self.head_dim * size_of::<f32>();
        self.layers.iter().map(|layer| (layer.len() * chunk) as u64).sum()
    }

    /// Stores the keys and values of all heads at a position.
    pub fn store(&mut self, layer: usize, position: usize, keys: &[f32], values: &[f32]) {
        let n = self.head_dim;
        assert!(keys.len() == self.kv_heads * n && values.len() == keys.len());
        let chunk = &mut self.layers[layer][position / CHUNK];
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
    pub fn chunks(
        &self,
        layer: usize,
        kv_head: usize,
    ) -> impl Iterator<Item = (&[f32], &[f32])> + '_ {
        let size = CHUNK * self.head_dim;
        let head = kv_head * size..(kv_head + 1) * size;
        self.layers[layer].iter().map(move |c| (&c.keys[head.clone()], &c.values[head.clone()]))
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
