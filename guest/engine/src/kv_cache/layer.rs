//! Keys and values of a layer.

use std::ops::Range;

use super::format::KvFormat;
use super::panels::Panels;
use super::shape::{CHUNK, PANEL};
use super::span::Span;
use crate::error::{Error, ErrorKind, Result};
use crate::takes::BATCH_MAX;

/// Keys and values of a layer, as far as they are attended to: behind a limited span, the
/// oldest make room for the newest.
pub(crate) struct LayerCache {
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) format: &'static dyn Panels,
    pub(super) span: Span,
    /// Whether there are values beside the keys.
    has_values: bool,
    /// Of `CHUNK` positions each: `[kv_heads]` of keys, a panel after the other, and
    /// values. They are words, so that numbers of any format are aligned.
    chunks: Vec<Vec<u32>>,
    /// Positions are less than that, since there were none.
    end: usize,
}

/// The most positions that are held for a span, if there is a limit: those that the first
/// token of a batch attends to and the batch itself, all of which is stored first. So as
/// many can be forgotten, too, and the next token finds what it attends to.
pub(crate) fn held_max(span: Span) -> Option<usize> {
    let n = span.len_max()?.saturating_add(BATCH_MAX);
    Some(n.div_ceil(CHUNK).saturating_mul(CHUNK))
}

impl LayerCache {
    /// An empty cache. `head_dim` is a multiple of four.
    pub fn new(kv_heads: usize, head_dim: usize, format: KvFormat, span: Span) -> Self {
        assert!(head_dim.is_multiple_of(4));
        let (format, chunks) = (format.panels(), Vec::new());
        Self { kv_heads, head_dim, format, span, has_values: true, chunks, end: 0 }
    }

    /// An empty cache of latents, or of parts of them: of `n` numbers, a multiple of four,
    /// which are keys and values.
    pub fn of_latents(n: usize, format: KvFormat) -> Self {
        Self { has_values: false, ..Self::new(1, n, format, Span::All) }
    }

    /// The most chunks that there are.
    fn n_chunks_max(&self) -> usize {
        held_max(self.span).map_or(usize::MAX, |n| n / CHUNK)
    }

    /// Whether what a token at position `n` attends to, of those before it, is there.
    pub(super) fn goes_on_from(&self, n: usize) -> bool {
        let held = held_max(self.span).unwrap_or(usize::MAX);
        self.end.saturating_sub(held) <= self.span.first(n)
    }

    /// Makes room for `n` positions.
    pub(super) fn reserve(&mut self, n: usize) -> Result<()> {
        let parts = self.kv_heads.checked_mul(if self.has_values { 2 } else { 1 });
        let bytes = parts.and_then(|parts| parts.checked_mul(self.head_bytes()));
        let n_words = bytes.ok_or_else(no_memory)? / size_of::<u32>();
        while self.chunks.len() < n.div_ceil(CHUNK).min(self.n_chunks_max()) {
            self.chunks.push(zeros(n_words)?);
        }
        Ok(())
    }

    /// Positions that there is room for.
    pub(super) fn room(&self) -> usize {
        match self.chunks.len() {
            n if n == self.n_chunks_max() => usize::MAX,
            n => n * CHUNK,
        }
    }

    /// Gives the room for positions from `n` on back, unless others have it now.
    pub(super) fn truncate(&mut self, n: usize) {
        if n == 0 || self.end.div_ceil(CHUNK) <= self.n_chunks_max() {
            self.chunks.truncate(n.div_ceil(CHUNK));
            self.end = self.end.min(n);
        }
    }

    /// Whether there are keys and values of a magnitude that the format lacks.
    pub fn is_limited(&self) -> bool {
        self.format.max().is_finite()
    }

    /// Bytes in use.
    pub(super) fn bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| (chunk.capacity() * size_of::<u32>()) as u64).sum()
    }

    /// Bytes of a chunk of keys of a head, or of values.
    fn head_bytes(&self) -> usize {
        CHUNK * self.format.bytes(self.head_dim)
    }

    /// Stores the keys and values of all heads at a position. Answers whether the format
    /// has numbers of their magnitude; if not, something else is stored.
    #[must_use]
    pub fn store(&mut self, position: usize, keys: &[f32], values: &[f32]) -> bool {
        let n = self.head_dim;
        assert!(keys.len() == self.kv_heads * n && values.len() == keys.len());
        let (format, head_bytes) = (self.format, self.head_bytes());
        let (panel_bytes, at) = (PANEL * format.bytes(n), position % CHUNK);
        self.end = self.end.max(position + 1);
        let chunk = position / CHUNK % self.n_chunks_max();
        let chunk: &mut [u8] = bytemuck::cast_slice_mut(&mut self.chunks[chunk]);
        let heads = keys.chunks_exact(n).zip(values.chunks_exact(n));
        for (chunk, (key, value)) in chunk.chunks_exact_mut(2 * head_bytes).zip(heads) {
            let (keys, values) = chunk.split_at_mut(head_bytes);
            let panel = &mut keys[at / PANEL * panel_bytes..][..panel_bytes];
            format.put_key(panel, at % PANEL, key);
            format.put_value(values, at, value);
        }
        self.holds(keys) && self.holds(values)
    }

    /// Whether the format has numbers of their magnitude.
    pub fn holds(&self, numbers: &[f32]) -> bool {
        let max = self.format.max();
        numbers.iter().all(|x| x.abs() <= max)
    }

    /// Stores a latent, or what this cache has of it, at a position. If the format does not
    /// [hold](Self::holds) it, something else is stored.
    pub fn store_latent(&mut self, position: usize, latent: &[f32]) {
        assert!(!self.has_values && latent.len() == self.head_dim);
        let at = position % PANEL;
        let (format, panel) = (self.format, self.panel_words(position / PANEL));
        let (chunk, words) = (&mut self.chunks[position / CHUNK], panel);
        format.put_key(bytemuck::cast_slice_mut(&mut chunk[words]), at, latent);
    }

    /// Panels of latents, or of what this cache has of them, that are in one chunk.
    pub fn panels(&self, panels: Range<usize>) -> &[u32] {
        let words = self.panel_words(panels.start);
        let end = words.start + panels.len() * words.len();
        &self.chunks[panels.start * PANEL / CHUNK][words.start..end]
    }

    /// Where a chunk of latents has a panel.
    fn panel_words(&self, panel: usize) -> Range<usize> {
        let n = PANEL * self.format.bytes(self.head_dim) / size_of::<u32>();
        let at = panel % (CHUNK / PANEL) * n;
        at..at + n
    }

    /// A head's keys and values in the chunk of positions from `start` on.
    pub(super) fn head(&self, kv_head: usize, start: usize) -> (&[u8], &[u8]) {
        let n = self.head_bytes();
        let chunk = &self.chunks[start / CHUNK % self.n_chunks_max()];
        let chunk: &[u8] = bytemuck::cast_slice(chunk);
        chunk[2 * n * kv_head..][..2 * n].split_at(n)
    }
}

fn zeros(n: usize) -> Result<Vec<u32>> {
    let mut v = Vec::new();
    v.try_reserve_exact(n).map_err(|_| no_memory())?;
    v.resize(n, 0);
    Ok(v)
}

fn no_memory() -> Error {
    Error::new(
        ErrorKind::OutOfMemory,
        "no memory for more KV cache; use a shorter prompt, keys and values of fewer bits, or \
         raise the memory limit",
    )
}
