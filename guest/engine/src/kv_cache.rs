//! The keys and values of past tokens.

use crate::error::{Error, ErrorKind, Result};
use crate::ops;

/// Positions in a chunk. The cache grows by a chunk in every layer.
const CHUNK: usize = 64;

/// Keys and values of all layers, in f32. Within a chunk, each head's vectors
/// lie one after another.
pub(crate) struct KvCache {
    kv_heads: usize,
    head_dim: usize,
    /// For each layer, its chunks.
    layers: Vec<Vec<Chunk>>,
}

struct Chunk {
    /// `[kv_heads][CHUNK][head_dim]`
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl KvCache {
    pub fn new(n_layer: usize, kv_heads: usize, head_dim: usize) -> Self {
        Self { kv_heads, head_dim, layers: (0..n_layer).map(|_| Vec::new()).collect() }
    }

    /// Makes room for `n` positions. Nothing changes if that fails.
    pub fn reserve(&mut self, n: usize) -> Result<()> {
        let size = self.kv_heads * CHUNK * self.head_dim;
        for layer in &mut self.layers {
            while layer.len() * CHUNK < n {
                let chunk = Chunk { keys: zeros(size)?, values: zeros(size)? };
                layer.push(chunk);
            }
        }
        Ok(())
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
        let chunk = &mut self.layers[layer][position / CHUNK];
        for head in 0..self.kv_heads {
            let at = (head * CHUNK + position % CHUNK) * n;
            chunk.keys[at..at + n].copy_from_slice(&keys[head * n..][..n]);
            chunk.values[at..at + n].copy_from_slice(&values[head * n..][..n]);
        }
    }

    /// Attention of one head over the first `n` positions:
    /// `softmax(query * keys * scale) * values` into `out`.
    pub fn attend(
        &self,
        layer: usize,
        head: usize,
        n: usize,
        query: &[f32],
        scores: &mut Vec<f32>,
        out: &mut [f32],
    ) {
        let parts = |n: usize| {
            let first = head * CHUNK * self.head_dim;
            self.layers[layer].iter().enumerate().map_while(move |(i, chunk)| {
                let len = n.checked_sub(i * CHUNK).filter(|&len| len > 0)?.min(CHUNK);
                let range = first..first + len * self.head_dim;
                Some((i * CHUNK..i * CHUNK + len, &chunk.keys[range.clone()], &chunk.values[range]))
            })
        };
        scores.resize(n, 0.0);
        for (positions, keys, _) in parts(n) {
            ops::dots(query, keys, &mut scores[positions]);
        }
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        scores.iter_mut().for_each(|s| *s *= scale);
        ops::softmax(scores);
        out.fill(0.0);
        for (positions, _, values) in parts(n) {
            ops::weighted_sum(&scores[positions], values, out);
        }
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
