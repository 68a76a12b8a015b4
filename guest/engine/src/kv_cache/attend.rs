//! Attention over the KV cache in constant memory: chunk by chunk with a
//! running softmax ([FlashAttention](https://arxiv.org/abs/2205.14135)).
//!
//! A tile of queries that share a KV head goes through a chunk together, so
//! that the cache is read, and made f32, once a tile. What is computed for a query depends on
//! its position only: it takes the same steps in the same order in any tile.

use std::ops::Range;

use super::kernel::{KERNEL, add_products};
use super::layer::LayerCache;
use super::shape::{CHUNK, PANEL};
use crate::ops::{load, replace};
use crate::simd::V;

/// Queries in a tile.
const TILE: usize = 48;

/// Room for what a tile works with.
struct Room {
    /// `[TILE][CHUNK]`
    scores: Vec<f32>,
    /// A panel of keys or of values.
    panel: Vec<f32>,
}

/// One query of a tile.
pub(super) struct Row {
    /// Where its numbers are among the queries, and its result in the output.
    pub at: usize,
    /// The positions that it sees.
    pub seen: Range<usize>,
    /// The largest score so far.
    max: f32,
    /// The sum of the weights so far, relative to `max`.
    pub sum: f32,
}

impl Row {
    pub fn new(at: usize, seen: Range<usize>, sink: Option<f32>) -> Self {
        // A sink has a weight, and no value.
        let (max, sum) = sink.map_or((f32::NEG_INFINITY, 0.0), |sink| (sink, 1.0));
        Self { at, seen, max, sum }
    }

    /// What it sees of the chunk that begins at `start`.
    pub fn in_chunk(&self, start: usize) -> Range<usize> {
        let place = |position: usize| position.saturating_sub(start).min(CHUNK);
        place(self.seen.start)..place(self.seen.end)
    }

    /// Turns the scores of a chunk into weights relative to the largest score
    /// so far, and what there is in `out` too.
    pub fn weigh(&mut self, scores: &mut [f32], scale: f32, out: &mut [f32]) {
        let (scores, _) = scores.as_chunks_mut::<4>();
        let max = scores
            .iter()
            .fold(V::splat_f32(f32::NEG_INFINITY), |max, four| load(four).max_f32(max))
            .to_f32();
        let max = max.into_iter().fold(f32::NEG_INFINITY, f32::max) * scale;
        if max > self.max {
            let factor = V::splat_f32(self.max - max).exp_f32();
            self.max = max;
            self.sum *= factor.to_f32()[0];
            multiply_by(out, factor);
        }
        let (scale, max) = (V::splat_f32(scale), V::splat_f32(self.max));
        let mut sum = V::splat_f32(0.0);
        replace(scores, |score| {
            let weight = score.mul_f32(scale).sub_f32(max).exp_f32();
            sum = sum.add_f32(weight);
            weight
        });
        self.sum += sum.sum_f32();
    }
}

impl LayerCache {
    /// Attention of tokens that stand at positions from `position` on:
    /// `softmax(query * keys * scale) * values` over the span of positions up
    /// to the token's own.
    ///
    /// `queries` and `out` are `[n_tokens][heads][head_dim]`; `kv_head_of` says
    /// for each of the heads which KV head it uses, if it is to be computed.
    /// Heads that share one stand beside each other
    /// ([GQA](https://arxiv.org/abs/2305.13245)). `sinks` are further scores, one for each
    /// head, of values that are zero
    /// ([attention sinks](https://arxiv.org/abs/2309.17453)).
    pub fn attend(
        &self,
        position: usize,
        scale: f32,
        sinks: Option<&[f32]>,
        kv_head_of: &[Option<usize>],
        queries: &[f32],
        out: &mut [f32],
    ) {
        let head_dim = self.head_dim;
        let width = kv_head_of.len() * head_dim;
        assert_eq!(queries.len(), out.len());
        let n_rows = TILE.min(queries.len() / head_dim);
        let mut room = Room {
            scores: vec![0.0; n_rows * CHUNK],
            panel: vec![0.0; CHUNK.max(head_dim) * PANEL],
        };
        let mut tile = Vec::with_capacity(n_rows);
        let mut first = 0;
        for group in kv_head_of.chunk_by(|a, b| a == b) {
            let heads = first..first + group.len();
            first = heads.end;
            let Some(kv_head) = group[0] else { continue };
            let tokens = (position..).zip((0..queries.len()).step_by(width));
            let mut rows = tokens.flat_map(|(position, token)| {
                let seen = self.span.first(position)..position + 1;
                heads.clone().map(move |head| {
                    let sink = sinks.map(|sinks| sinks[head]);
                    Row::new(token + head * head_dim, seen.clone(), sink)
                })
            });
            loop {
                tile.clear();
                tile.extend(rows.by_ref().take(TILE));
                if tile.is_empty() {
                    break;
                }
                self.attend_tile(kv_head, scale, &mut tile, &mut room, queries, out);
            }
        }
    }

    /// Attention of the queries of one tile, which are sorted by position.
    fn attend_tile(
        &self,
        kv_head: usize,
        scale: f32,
        rows: &mut [Row],
        Room { scores, panel }: &mut Room,
        queries: &[f32],
        out: &mut [f32],
    ) {
        let head_dim = self.head_dim;
        rows.iter().for_each(|row| out[row.at..][..head_dim].fill(0.0));
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return };
        let begin = first.seen.start / CHUNK * CHUNK;
        for start in (begin..last.seen.end).step_by(CHUNK) {
            let (keys, values) = self.head(kv_head, start);
            let from = rows.partition_point(|row| row.seen.end <= start);
            let to = rows.partition_point(|row| row.seen.start < start + CHUNK);
            let rows = &mut rows[from..to];
            scores[..rows.len() * CHUNK].fill(0.0);
            self.add_scores(rows, start, queries, keys, panel, scores);
            for (row, scores) in rows.iter_mut().zip(scores.chunks_exact_mut(CHUNK)) {
                let Range { start: from, end: to } = row.in_chunk(start);
                let (padded_from, padded_to) = (from / 4 * 4, to.next_multiple_of(4));
                scores[padded_from..from].fill(f32::NEG_INFINITY);
                scores[to..padded_to].fill(f32::NEG_INFINITY);
                let out = &mut out[row.at..][..head_dim];
                row.weigh(&mut scores[padded_from..padded_to], scale, out);
            }
            self.add_values(rows, start, scores, values, panel, out);
        }
        for row in rows {
            multiply_by(&mut out[row.at..][..head_dim], V::splat_f32(1.0 / row.sum));
        }
    }

    /// Adds the products of the queries with the keys of the chunk that begins at
    /// `start` to `scores` (`[rows][CHUNK]`), as far as anyone sees them.
    fn add_scores(
        &self,
        rows: &[Row],
        start: usize,
        queries: &[f32],
        keys: &[u8],
        room: &mut [f32],
        scores: &mut [f32],
    ) {
        let panels = keys.chunks_exact(keys.len() / (CHUNK / PANEL));
        for (column, panel) in (0..CHUNK).step_by(PANEL).zip(panels) {
            let sees = |row: &Row| {
                let seen = row.in_chunk(start);
                seen.start < column + PANEL && seen.end > column
            };
            if !rows.iter().any(sees) {
                continue;
            }
            let panel = self.format.keys(panel, self.head_dim, room);
            for (first, rows) in (0..).step_by(KERNEL).zip(rows.chunks(KERNEL)) {
                if rows.iter().any(sees) {
                    let place = |i: usize| (rows[i].at, (first + i) * CHUNK + column);
                    add_products(queries, panel, PANEL, rows.len(), place, scores);
                }
            }
        }
    }

    /// Adds the values of the chunk that begins at `start`, each times its weight,
    /// to `out`.
    fn add_values(
        &self,
        rows: &[Row],
        start: usize,
        weights: &[f32],
        values: &[u8],
        room: &mut [f32],
        out: &mut [f32],
    ) {
        let (format, head_dim) = (self.format, self.head_dim);
        let seen = rows.iter().map(|row| row.in_chunk(start).end).max().unwrap_or(0);
        for column in (0..head_dim).step_by(PANEL) {
            let width = PANEL.min(head_dim - column);
            let panel = format.values(values, head_dim, column, seen, room);
            for (first, rows) in (0..).step_by(KERNEL).zip(rows.chunks(KERNEL)) {
                // What only the first of these rows see, each goes through alone, and so
                // what only the last ones see.
                let common = {
                    let first = rows[0].in_chunk(start).end;
                    rows[rows.len() - 1].in_chunk(start).start.min(first)..first
                };
                let place = |i: usize, at: usize| ((first + i) * CHUNK + at, rows[i].at + column);
                let alone = |i: usize, seen: Range<usize>, out: &mut [f32]| {
                    if !seen.is_empty() {
                        let panel = &panel[seen.start * width..seen.end * width];
                        add_products(weights, panel, width, 1, |_| place(i, seen.start), out);
                    }
                };
                for (i, row) in rows.iter().enumerate() {
                    alone(i, row.in_chunk(start).start..common.start, out);
                }
                let of_all = &panel[common.start * width..common.end * width];
                let place_common = |i| place(i, common.start);
                add_products(weights, of_all, width, rows.len(), place_common, out);
                for (i, row) in rows.iter().enumerate() {
                    let seen = row.in_chunk(start);
                    alone(i, seen.start.max(common.end)..seen.end, out);
                }
            }
        }
    }
}

pub(super) fn multiply_by(x: &mut [f32], factor: V) {
    replace(x.as_chunks_mut().0, |x| x.mul_f32(factor));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv_cache::format::KvFormat;
    use crate::kv_cache::layer::held_max;
    use crate::kv_cache::span::Span;
    use crate::takes::BATCH_MAX;
    use rand_xoshiro::Xoshiro256PlusPlus;
    use rand_xoshiro::rand_core::{Rng, SeedableRng};

    fn random(rng: &mut Xoshiro256PlusPlus, n: usize) -> Vec<f32> {
        (0..n).map(|_| (rng.next_u64() >> 40) as f32 / (1u64 << 22) as f32 - 2.0).collect()
    }

    /// What models have: `1 / sqrt(head_dim)`.
    fn scale(head_dim: usize) -> f32 {
        1.0 / (head_dim as f32).sqrt()
    }

    const FORMATS: [KvFormat; 3] = [KvFormat::F32, KvFormat::F16, KvFormat::Q8_0];

    struct Case {
        format: KvFormat,
        kv_heads: usize,
        group: usize,
        head_dim: usize,
        keys: Vec<f32>,
        values: Vec<f32>,
        queries: Vec<f32>,
        sinks: Option<Vec<f32>>,
        cache: LayerCache,
    }

    impl Case {
        /// A cache of `n` positions, and a query of each.
        fn new(format: KvFormat, n: usize, kv_heads: usize, group: usize, head_dim: usize) -> Self {
            let mut rng = Xoshiro256PlusPlus::seed_from_u64((n * head_dim + group) as u64);
            let kv_width = kv_heads * head_dim;
            let keys = random(&mut rng, n * kv_width);
            let values = random(&mut rng, n * kv_width);
            let queries = random(&mut rng, n * group * kv_width);
            let (sinks, cache) = (None, LayerCache::new(kv_heads, head_dim, format, Span::All));
            let case =
                Self { format, kv_heads, group, head_dim, keys, values, queries, sinks, cache };
            case.filled()
        }

        /// The same numbers, of which a query sees this span, and sinks if there shall be.
        fn seeing(mut self, span: Span, has_sinks: bool) -> Self {
            let n = self.kv_heads * self.group;
            self.sinks = has_sinks.then(|| (0..n).map(|head| head as f32 * 0.7 - 1.0).collect());
            self.cache = LayerCache::new(self.kv_heads, self.head_dim, self.format, span);
            self
        }

        /// Stores what these positions have.
        fn store(&mut self, positions: Range<usize>) {
            let n = self.kv_heads * self.head_dim;
            self.cache.reserve(positions.end).unwrap();
            for i in positions {
                let at = i * n..(i + 1) * n;
                assert!(self.cache.store(i, &self.keys[at.clone()], &self.values[at]));
            }
        }

        /// Fills the cache.
        fn filled(mut self) -> Self {
            self.store(0..self.keys.len() / (self.kv_heads * self.head_dim));
            self
        }

        fn kv_head_of(&self) -> Vec<Option<usize>> {
            (0..self.kv_heads * self.group).map(|head| Some(head / self.group)).collect()
        }

        fn width(&self) -> usize {
            self.kv_heads * self.group * self.head_dim
        }

        /// The attention of these positions, computed together.
        fn attend(&self, positions: Range<usize>) -> Vec<f32> {
            let width = self.width();
            let queries = &self.queries[positions.start * width..positions.end * width];
            let mut out = vec![f32::NAN; queries.len()];
            let scale = scale(self.head_dim);
            let sinks = self.sinks.as_deref();
            self.cache.attend(positions.start, scale, sinks, &self.kv_head_of(), queries, &mut out);
            out
        }

        /// The formula, in f64.
        fn expected(&self, position: usize) -> Vec<f64> {
            let (n, kv_width) = (self.head_dim, self.kv_heads * self.head_dim);
            let of = |x: &[f32], i: usize, head: usize| {
                x[i * kv_width + head / self.group * n..][..n].to_vec()
            };
            let query = &self.queries[position * self.width()..][..self.width()];
            let mut out = Vec::new();
            for (head, query) in query.chunks(n).enumerate() {
                let score = |i: usize| -> f64 {
                    let products = query.iter().zip(of(&self.keys, i, head));
                    let dot: f64 = products.map(|(&q, k)| f64::from(q) * f64::from(k)).sum();
                    dot / (n as f64).sqrt()
                };
                let seen = self.cache.span.first(position)..=position;
                let scores: Vec<f64> = seen.clone().map(score).collect();
                let sink = self.sinks.as_ref().map(|sinks| f64::from(sinks[head]));
                let all = scores.iter().copied().chain(sink);
                let max = all.clone().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = all.map(|s| (s - max).exp()).collect();
                let mut mixed = vec![0.0; n];
                for (i, weight) in seen.zip(&weights) {
                    let value = of(&self.values, i, head);
                    mixed.iter_mut().zip(value).for_each(|(m, v)| *m += weight * f64::from(v));
                }
                let sum: f64 = weights.iter().sum();
                out.extend(mixed.into_iter().map(|m| m / sum));
            }
            out
        }
    }

    fn bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|x| x.to_bits()).collect()
    }

    /// Head widths that models have, and ones that leave a narrow panel.
    const HEAD_DIMS: [usize; 7] = [64, 128, 80, 96, 4, 12, 60];

    #[test]
    fn attention_is_what_the_formula_says() {
        let formats = FORMATS.into_iter().zip([2e-6, 3e-3, 5e-2]);
        let cases = formats.flat_map(|format| HEAD_DIMS.map(|head_dim| (format, head_dim)));
        for ((format, tolerance), head_dim) in cases {
            for (group, kv_heads) in [(1, 2), (3, 3), (4, 1), (8, 2)] {
                let case = Case::new(format, 150, kv_heads, group, head_dim);
                let got = case.attend(0..150);
                for position in [0, 1, 62, 63, 64, 65, 127, 149] {
                    let got = &got[position * case.width()..][..case.width()];
                    for (got, want) in got.iter().zip(case.expected(position)) {
                        let error = (f64::from(*got) - want).abs();
                        assert!(
                            error < tolerance,
                            "{format:?}, {head_dim}, {group}: {got}, not {want}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_token_gets_the_same_bits_in_any_batch() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        for (i, head_dim) in HEAD_DIMS.into_iter().enumerate() {
            for (j, group) in [1, 3, 4, 8].into_iter().enumerate() {
                let n = 70 + rng.next_u64() as usize % 200;
                let case = Case::new(FORMATS[(i + j) % 3], n, 1 + i % 3, group, head_dim);
                let single: Vec<f32> = (0..n).flat_map(|i| case.attend(i..i + 1)).collect();
                for _ in 0..4 {
                    let start = rng.next_u64() as usize % n;
                    let end = start + 1 + rng.next_u64() as usize % (n - start);
                    let want = &single[start * case.width()..end * case.width()];
                    assert_eq!(bits(&case.attend(start..end)), bits(want), "{start}..{end} of {n}");
                }
            }
        }
    }

    /// A cache that holds less than there was gives the same numbers in batches of any
    /// length, and they are what the formula says.
    #[test]
    fn spans_are_held_and_nothing_else_is_seen() {
        let (n, mut rng) = (1300, Xoshiro256PlusPlus::seed_from_u64(5));
        let spans = [1, 3, 8, 50, 64, 200].map(Span::Window);
        let chunks = [1, 48, 64, 100].map(Span::Chunk);
        for (i, span) in spans.into_iter().chain(chunks).chain([Span::All]).enumerate() {
            let (format, group) = (FORMATS[i % 3], [1, 3, 8][i / 3 % 3]);
            let tolerance = [2e-6, 3e-3, 5e-2][i % 3];
            let of = || Case::new(format, n, 1, group, 32).seeing(span, i % 2 == 0);
            let (mut single, mut batched) = (of(), of());
            let alone = |position: usize| {
                single.store(position..position + 1);
                single.attend(position..position + 1)
            };
            let alone: Vec<f32> = (0..n).flat_map(alone).collect();
            let width = batched.width();
            let mut start = 0;
            while start < n {
                let end = n.min(start + 1 + rng.next_u64() as usize % BATCH_MAX);
                batched.store(start..end);
                let got = batched.attend(start..end);
                assert_eq!(bits(&got), bits(&alone[start * width..end * width]), "{span:?}");
                start = end;
            }
            for position in [0, 1, 2, 47, 48, 63, 64, 99, 100, 575, 576, 900, n - 1] {
                let got = &alone[position * width..][..width];
                for (got, want) in got.iter().zip(batched.expected(position)) {
                    let error = (f64::from(*got) - want).abs();
                    assert!(error < tolerance, "{span:?}, {position}: {got}, not {want}");
                }
            }
            let held = held_max(span).unwrap_or(n.next_multiple_of(CHUNK));
            let bytes = 2 * format.bytes(32) * held;
            assert_eq!(batched.cache.bytes(), bytes as u64, "{span:?}");
        }
    }

    /// As many positions as a batch has can be forgotten, and what is seen then is there.
    #[test]
    fn a_span_can_be_gone_back_in() {
        let (n, span) = (1000, Span::Window(30));
        for back in [1, 100, BATCH_MAX, BATCH_MAX + CHUNK + 1, n] {
            let mut case = Case::new(KvFormat::F16, n, 1, 2, 32).seeing(span, false);
            (0..n).step_by(100).for_each(|i| case.store(i..i + 100));
            let left = n - back;
            assert_eq!(case.cache.goes_on_from(left), back <= BATCH_MAX, "{back}");
            if !case.cache.goes_on_from(left) {
                continue;
            }
            let want = case.attend(left..left + 1);
            let (keys, values) = (case.keys.clone(), case.values.clone());
            // Other tokens take their places, but not those of what comes before.
            case.cache.truncate(left);
            case.keys.rotate_right(left * 32);
            case.values.rotate_right(left * 32);
            case.store(left + 1..n);
            (case.keys, case.values) = (keys, values);
            case.store(left..left + 1);
            assert_eq!(bits(&case.attend(left..left + 1)), bits(&want), "{back}");
        }
    }

    /// As with the heads divided among the members of a team, even amid the
    /// heads that share a KV head.
    #[test]
    fn a_head_gets_the_same_bits_beside_any_others() {
        let (n, group, head_dim) = (130, 3, 64);
        let cases = FORMATS.map(|format| Case::new(format, n, 4, group, head_dim));
        for (case, heads) in
            cases.iter().flat_map(|case| [0..1, 0..5, 5..12, 2..7, 4..4].map(|heads| (case, heads)))
        {
            let all = case.attend(0..n);
            let kv_heads = heads.start / group..heads.end.div_ceil(group);
            let part = |x: &[f32], heads: usize, part: &Range<usize>| -> Vec<f32> {
                let rows = x.chunks(heads * head_dim);
                rows.flat_map(|x| &x[part.start * head_dim..part.end * head_dim]).copied().collect()
            };
            let keys = part(&case.keys, 4, &kv_heads);
            let values = part(&case.values, 4, &kv_heads);
            let mut cache = LayerCache::new(kv_heads.len(), head_dim, case.format, Span::All);
            cache.reserve(n).unwrap();
            let kv_width = kv_heads.len() * head_dim;
            for (i, (k, v)) in keys.chunks(kv_width).zip(values.chunks(kv_width)).enumerate() {
                assert!(cache.store(i, k, v));
            }
            let kv_head = |head| heads.contains(&head).then(|| head / group - kv_heads.start);
            let kv_head_of: Vec<_> = (0..12).map(kv_head).collect();
            let mut out = vec![f32::NAN; all.len()];
            cache.attend(0, scale(head_dim), None, &kv_head_of, &case.queries, &mut out);
            assert_eq!(bits(&part(&out, 12, &heads)), bits(&part(&all, 12, &heads)));
            assert_eq!(
                out.iter().filter(|x| x.is_nan()).count(),
                (12 - heads.len()) * n * head_dim
            );
        }
    }

    #[test]
    fn what_was_there_before_a_rewind_leaves_no_trace() {
        for format in FORMATS {
            let mut case = Case::new(format, 100, 2, 3, 64);
            let before = case.attend(0..70);
            let nonsense = vec![f32::NAN; 128];
            (70..100).for_each(|i| assert!(!case.cache.store(i, &nonsense, &nonsense)));
            assert_eq!(bits(&case.attend(0..70)), bits(&before));
        }
    }

    /// Numbers that all formats have, the largest in each block of 32, give the same
    /// bits in all of them.
    #[test]
    fn what_a_format_has_is_kept() {
        for head_dim in HEAD_DIMS {
            let of = |format| {
                let mut case = Case::new(format, 150, 2, 3, head_dim);
                for numbers in [&mut case.keys, &mut case.values] {
                    for block in numbers.chunks_mut(head_dim).flat_map(|x| x.chunks_mut(32)) {
                        block.iter_mut().for_each(|x| *x = (*x * 63.0).round_ties_even() / 64.0);
                        block[0] = 127.0 / 64.0;
                    }
                }
                bits(&case.filled().attend(0..150))
            };
            let [want, rest @ ..] = FORMATS.map(of);
            assert!(rest.iter().all(|got| *got == want), "{head_dim}");
        }
    }

    #[test]
    fn what_a_format_has_not_is_told() {
        for (format, max) in [(KvFormat::F16, 65504.0), (KvFormat::Q8_0, 127.0 * 65504.0)] {
            let mut cache = LayerCache::new(1, 36, format, Span::All);
            cache.reserve(1).unwrap();
            let mut store = |key: f32, value: f32| {
                let (mut keys, mut values) = ([0.0; 36], [0.0; 36]);
                (keys[35], values[2]) = (key, value);
                cache.store(0, &keys, &values)
            };
            assert!(store(max, -max), "{format:?}");
            for bad in [max.next_up(), f32::NEG_INFINITY, f32::NAN] {
                assert!(!store(bad, 0.0) && !store(0.0, bad), "{format:?}");
            }
        }
    }

    #[test]
    fn bytes_are_those_of_the_format() {
        for (format, bytes) in FORMATS.into_iter().zip([4 * 60, 2 * 60, 60 + 2 * 2]) {
            assert_eq!(format.bytes(60), bytes);
            let mut cache = LayerCache::new(3, 60, format, Span::All);
            cache.reserve(65).unwrap();
            assert_eq!(cache.bytes(), (128 * 3 * 2 * bytes) as u64, "{format:?}");
        }
    }

    /// With scores of some thousands, one position has all the weight.
    #[test]
    fn large_scores_do_not_overflow() {
        let mut case = Case::new(KvFormat::F32, 200, 1, 4, 64);
        case.queries.iter_mut().for_each(|q| *q *= 1000.0);
        let got = case.attend(0..200);
        for position in [3, 80, 199] {
            let got = &got[position * case.width()..][..case.width()];
            for (got, want) in got.iter().zip(case.expected(position)) {
                assert!((f64::from(*got) - want).abs() < 1e-2, "{got}, not {want}");
            }
        }
    }
}
