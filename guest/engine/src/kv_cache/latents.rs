//! Attention over latents
//! ([multi-head latent attention](https://arxiv.org/abs/2405.04434)): what is cached of a
//! position serves all heads, as the key, and with its first numbers as the value too.
//!
//! Chunk by chunk, with a running softmax. A chunk is made f32 once for all queries. What
//! is computed for a query depends on its position only, as in [`attend`](super::attend).

use super::attend::{Row, multiply_by};
use super::format::KvFormat;
use super::kernel::{KERNEL, add_products};
use super::panels::Panels;
use super::shape::{CHUNK, PANEL};
use crate::ops::load;
use crate::simd::V;

/// Queries that go through a chunk together.
const TILE: usize = 48;
/// Numbers of a latent that can be kept apart from the others: those that share a scale.
const UNIT: usize = 32;

/// What latents are, and how they are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LatentShape {
    /// Numbers of a latent, a multiple of four.
    pub key_dim: usize,
    /// So many of them, a multiple of eight, are the value.
    pub value_dim: usize,
    pub format: KvFormat,
}

impl LatentShape {
    /// Words of the latents of [`PANEL`] positions.
    pub fn panel_words(&self) -> usize {
        self.format.bytes(self.key_dim) * PANEL / size_of::<u32>()
    }

    /// Panels of the first `n` positions.
    pub fn n_panels(n: usize) -> usize {
        n.div_ceil(PANEL)
    }

    /// Panels of a chunk.
    pub const PANELS: usize = CHUNK / PANEL;

    /// Numbers of a latent, and words of a panel, that stay together where latents are
    /// divided.
    pub fn units(&self) -> (usize, usize) {
        (UNIT, self.format.bytes(UNIT) * PANEL / size_of::<u32>())
    }

    /// Numbers that a chunk has while it is attended to.
    pub fn chunk_len(&self) -> usize {
        CHUNK * (self.key_dim + self.value_dim)
    }
}

/// Attention of some queries while it goes through the chunks: of the same number of heads
/// for each token of a batch.
pub(crate) struct Attention<'a> {
    shape: LatentShape,
    format: &'static dyn Panels,
    scale: f32,
    /// Sorted by position.
    rows: Vec<Row>,
    scores: Vec<f32>,
    /// A chunk's latents as f32, as keys and as values.
    keys: &'a mut [f32],
    values: &'a mut [f32],
}

impl<'a> Attention<'a> {
    /// Of `n_heads` queries at each of `n_tokens` positions from `position` on. There is
    /// room for a chunk, as [`LatentShape::chunk_len`] says it, in `room`.
    pub fn new(
        shape: LatentShape,
        scale: f32,
        position: usize,
        n_tokens: usize,
        n_heads: usize,
        room: &'a mut [f32],
    ) -> Self {
        let seen = (position + 1..).take(n_tokens);
        let seen = seen.flat_map(|n| std::iter::repeat_n(n, n_heads));
        let rows: Vec<_> = seen.enumerate().map(|(at, n)| Row::new(at, 0..n, None)).collect();
        let scores = vec![0.0; TILE.min(rows.len()) * CHUNK];
        let (keys, values) = room.split_at_mut(CHUNK * shape.key_dim);
        Self { shape, format: shape.format.panels(), scale, rows, scores, keys, values }
    }

    /// Goes through chunk number `chunk`, whose panels these are, as far as there are
    /// positions. Queries are `[n_tokens][n_heads][key_dim]`, `out` is
    /// `[n_tokens][n_heads][value_dim]` and begins as zeros.
    pub fn add(&mut self, chunk: usize, panels: &[u32], queries: &[f32], out: &mut [f32]) {
        let LatentShape { key_dim, value_dim, .. } = self.shape;
        let start = chunk * CHUNK;
        let first = self.rows.partition_point(|row| row.seen.end <= start);
        let rows = &mut self.rows[first..];
        if rows.is_empty() {
            return;
        }
        let panel_bytes = self.shape.panel_words() * size_of::<u32>();
        let panels: &[u8] = bytemuck::cast_slice(panels);
        let panels = panels.chunks_exact(panel_bytes);
        let keys: Vec<_> = (panels.zip(self.keys.chunks_exact_mut(key_dim * PANEL)))
            .map(|(panel, room)| self.format.keys(panel, key_dim, room))
            .collect();
        transpose(&keys, &mut self.values[..CHUNK * value_dim]);
        for rows in rows.chunks_mut(TILE) {
            let scores = &mut self.scores[..rows.len() * CHUNK];
            scores.fill(0.0);
            add_scores(rows, start, queries, &keys, key_dim, scores);
            for (row, scores) in rows.iter_mut().zip(scores.chunks_exact_mut(CHUNK)) {
                let n = row.in_chunk(start).end;
                let padded = n.next_multiple_of(4);
                scores[n..padded].fill(f32::NEG_INFINITY);
                let out = &mut out[row.at * value_dim..][..value_dim];
                row.weigh(&mut scores[..padded], self.scale, out);
            }
            add_values(rows, start, scores, self.values, value_dim, out);
        }
    }

    /// Ends it when all chunks were gone through.
    pub fn finish(self, out: &mut [f32]) {
        for (row, out) in self.rows.iter().zip(out.chunks_exact_mut(self.shape.value_dim)) {
            multiply_by(out, V::splat_f32(1.0 / row.sum));
        }
    }
}

/// Panels of values `[CHUNK][PANEL]` of panels of keys `[key_dim][PANEL]`.
fn transpose(keys: &[&[f32]], values: &mut [f32]) {
    for (column, values) in (0..).step_by(PANEL).zip(values.chunks_exact_mut(CHUNK * PANEL)) {
        for (keys, values) in keys.iter().zip(values.chunks_exact_mut(PANEL * PANEL)) {
            let (keys, _) = keys[column * PANEL..][..PANEL * PANEL].as_chunks::<4>();
            let (values, _) = values.as_chunks_mut::<4>();
            // Of four columns, four positions each.
            for (i, j) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let four = std::array::from_fn(|k| load(&keys[2 * (4 * i + k) + j]));
                for (k, row) in V::transpose_32(four).into_iter().enumerate() {
                    row.store_f32(&mut values[2 * (4 * j + k) + i]);
                }
            }
        }
    }
}

/// Adds the products of the queries with the keys of the chunk that begins at `start` to
/// `scores` (`[rows][CHUNK]`), as far as anyone sees them.
fn add_scores(
    rows: &[Row],
    start: usize,
    queries: &[f32],
    keys: &[&[f32]],
    key_dim: usize,
    scores: &mut [f32],
) {
    for (column, panel) in (0..).step_by(PANEL).zip(keys) {
        for (first, rows) in (0..).step_by(KERNEL).zip(rows.chunks(KERNEL)) {
            if rows.iter().any(|row| row.in_chunk(start).end > column) {
                let place = |i: usize| (rows[i].at * key_dim, (first + i) * CHUNK + column);
                add_products(queries, panel, PANEL, rows.len(), place, scores);
            }
        }
    }
}

/// Adds the values of the chunk that begins at `start`, each times its weight, to `out`.
fn add_values(
    rows: &[Row],
    start: usize,
    weights: &[f32],
    values: &[f32],
    value_dim: usize,
    out: &mut [f32],
) {
    for (column, panel) in (0..).step_by(PANEL).zip(values.chunks_exact(CHUNK * PANEL)) {
        for (first, rows) in (0..).step_by(KERNEL).zip(rows.chunks(KERNEL)) {
            // All of these rows see what the first of them sees, then each goes on alone.
            let common = rows[0].in_chunk(start).end;
            let place = |i: usize| ((first + i) * CHUNK, rows[i].at * value_dim + column);
            let (panel, rest) = panel.split_at(common * PANEL);
            add_products(weights, panel, PANEL, rows.len(), place, out);
            for (i, row) in rows.iter().enumerate() {
                let (from, to) = place(i);
                let rest = &rest[..(row.in_chunk(start).end - common) * PANEL];
                add_products(weights, rest, PANEL, 1, |_| (from + common, to), out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv_cache::layer::LayerCache;
    use rand_xoshiro::Xoshiro256PlusPlus;
    use rand_xoshiro::rand_core::{Rng, SeedableRng};

    const FORMATS: [KvFormat; 3] = [KvFormat::F32, KvFormat::F16, KvFormat::Q8_0];

    fn random(rng: &mut Xoshiro256PlusPlus, n: usize) -> Vec<f32> {
        (0..n).map(|_| (rng.next_u64() >> 40) as f32 / (1u64 << 22) as f32 - 2.0).collect()
    }

    struct Case {
        shape: LatentShape,
        n_heads: usize,
        latents: Vec<f32>,
        queries: Vec<f32>,
        cache: LayerCache,
    }

    impl Case {
        fn new(shape: LatentShape, n: usize, n_heads: usize) -> Self {
            let mut rng = Xoshiro256PlusPlus::seed_from_u64(7);
            let latents = random(&mut rng, n * shape.key_dim);
            let queries = random(&mut rng, n * n_heads * shape.key_dim);
            let mut cache = LayerCache::of_latents(shape.key_dim, shape.format);
            cache.reserve(n).unwrap();
            for (i, latent) in latents.chunks(shape.key_dim).enumerate() {
                assert!(cache.holds(latent));
                cache.store_latent(i, latent);
            }
            Self { shape, n_heads, latents, queries, cache }
        }

        fn scale(&self) -> f32 {
            1.0 / (self.shape.key_dim as f32).sqrt()
        }

        /// Of `n_tokens` from `position` on, `n_together` heads at a time.
        fn attend(&self, position: usize, n_tokens: usize, n_together: usize) -> Vec<f32> {
            let LatentShape { key_dim, value_dim, .. } = self.shape;
            let mut all = vec![f32::NAN; n_tokens * self.n_heads * value_dim];
            for first in (0..self.n_heads).step_by(n_together) {
                let n = n_together.min(self.n_heads - first);
                let rows = (position..position + n_tokens).flat_map(|i| {
                    let from = (i * self.n_heads + first) * key_dim;
                    &self.queries[from..from + n * key_dim]
                });
                let queries: Vec<f32> = rows.copied().collect();
                let mut out = vec![0.0; n_tokens * n * value_dim];
                let mut room = vec![f32::NAN; self.shape.chunk_len()];
                let (shape, scale) = (self.shape, self.scale());
                let mut attention = Attention::new(shape, scale, position, n_tokens, n, &mut room);
                let n_panels = LatentShape::n_panels(position + n_tokens);
                let panels: Vec<u32> =
                    (0..n_panels).flat_map(|i| self.cache.panels(i..i + 1)).copied().collect();
                let words = shape.panel_words() * LatentShape::PANELS;
                for (chunk, panels) in panels.chunks(words).enumerate() {
                    attention.add(chunk, panels, &queries, &mut out);
                }
                attention.finish(&mut out);
                for (i, out) in out.chunks(n * value_dim).enumerate() {
                    let to = (i * self.n_heads + first) * value_dim;
                    all[to..to + out.len()].copy_from_slice(out);
                }
            }
            all
        }

        /// The formula, in f64.
        fn expected(&self, position: usize) -> Vec<f64> {
            let LatentShape { key_dim, value_dim, .. } = self.shape;
            let latents: Vec<_> = self.latents.chunks(key_dim).take(position + 1).collect();
            let queries = self.queries.chunks(key_dim).skip(position * self.n_heads);
            let of_head = |query: &[f32]| {
                let score = |latent: &&[f32]| {
                    let products = query.iter().zip(*latent);
                    let dot: f64 = products.map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
                    (dot * f64::from(self.scale())).exp()
                };
                let weights: Vec<f64> = latents.iter().map(score).collect();
                let sum: f64 = weights.iter().sum();
                let number = |i: usize| {
                    let products = weights.iter().zip(&latents);
                    products.map(|(w, latent)| w * f64::from(latent[i])).sum::<f64>() / sum
                };
                (0..value_dim).map(number).collect::<Vec<_>>()
            };
            queries.take(self.n_heads).flat_map(of_head).collect()
        }
    }

    fn bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|x| x.to_bits()).collect()
    }

    fn shape(key_dim: usize, value_dim: usize, format: KvFormat) -> LatentShape {
        LatentShape { key_dim, value_dim, format }
    }

    #[test]
    fn attention_is_what_the_formula_says() {
        for (format, tolerance) in FORMATS.into_iter().zip([3e-6, 3e-3, 5e-2]) {
            for (key_dim, value_dim) in [(96, 64), (36, 32), (12, 8), (80, 80)] {
                let case = Case::new(shape(key_dim, value_dim, format), 150, 5);
                let got = case.attend(0, 150, 5);
                for position in [0, 1, 7, 8, 62, 63, 64, 65, 127, 149] {
                    let got = &got[position * 5 * value_dim..][..5 * value_dim];
                    for (got, want) in got.iter().zip(case.expected(position)) {
                        let error = (f64::from(*got) - want).abs();
                        assert!(error < tolerance, "{format:?}, {key_dim}: {got}, not {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_query_gets_the_same_bits_beside_any_others() {
        for format in FORMATS {
            let case = Case::new(shape(96, 64, format), 200, 7);
            let width = 7 * 64;
            let all = case.attend(0, 200, 7);
            for (position, n_tokens, n_together) in
                [(0, 200, 1), (199, 1, 7), (199, 1, 3), (60, 10, 2), (64, 64, 7), (127, 3, 4)]
            {
                let got = case.attend(position, n_tokens, n_together);
                let want = &all[position * width..][..n_tokens * width];
                assert!(bits(&got) == bits(want), "{format:?}, {n_tokens} from {position}");
            }
        }
    }

    /// Members of a team keep some numbers of each latent.
    #[test]
    fn parts_of_latents_are_parts_of_the_whole() {
        for format in FORMATS {
            for key_dim in [96, 100, 20] {
                let shape = shape(key_dim, 8, format);
                let case = Case::new(shape, 20, 1);
                let (unit, unit_words) = shape.units();
                let n_units = key_dim / unit;
                for cut in 0..=n_units {
                    let mut parts = [0..cut * unit, cut * unit..key_dim].map(|range| {
                        let mut cache = LayerCache::of_latents(range.len(), format);
                        cache.reserve(20).unwrap();
                        for (i, latent) in case.latents.chunks(key_dim).enumerate() {
                            cache.store_latent(i, &latent[range.clone()]);
                        }
                        cache
                    });
                    for i in 0..LatentShape::n_panels(20) {
                        let whole = case.cache.panels(i..i + 1);
                        assert_eq!(whole.len(), shape.panel_words());
                        let [a, b] = parts.each_mut().map(|part| part.panels(i..i + 1));
                        assert_eq!([a, b].concat(), whole, "{format:?}, {key_dim}, {cut}");
                        assert_eq!(a.len(), cut * unit_words);
                    }
                }
            }
        }
    }
}
