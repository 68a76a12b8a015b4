//! Attention over the KV cache in constant memory: chunk by chunk with a
//! running softmax ([FlashAttention](https://arxiv.org/abs/2205.14135)).
//!
//! A tile of queries that share a KV head goes through a chunk together, so
//! that the cache is read once a tile. What is computed for a query depends on
//! its position only: it takes the same steps in the same order in any tile.

use std::ops::Range;

use crate::kv_cache::{CHUNK, KvCache, PANEL};
use crate::ops::load;
use crate::simd::V;

/// Queries in a tile.
const TILE: usize = 48;
/// Queries that the kernel takes at a time: with a panel they fill 16 vector
/// registers, which is what WebAssembly on x86-64 has.
const KERNEL: usize = 6;

/// One query of a tile.
struct Row {
    /// Where its numbers are among the queries, and its result in the output.
    at: usize,
    /// How many positions it sees.
    n: usize,
    /// The largest score so far.
    max: f32,
    /// The sum of the weights so far, relative to `max`.
    sum: f32,
}

impl Row {
    /// How many positions it sees of the chunk that begins at `start`.
    fn n_in_chunk(&self, start: usize) -> usize {
        self.n.saturating_sub(start).min(CHUNK)
    }

    /// Turns the scores of a chunk into weights relative to the largest score
    /// so far, and what there is in `out` too.
    fn weigh(&mut self, scores: &mut [f32], scale: f32, out: &mut [f32]) {
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
        for four in scores {
            let weight = load(four).mul_f32(scale).sub_f32(max).exp_f32();
            sum = sum.add_f32(weight);
            weight.store_f32(four);
        }
        self.sum += sum.sum_f32();
    }
}

impl KvCache {
    /// Attention of `n_tokens` tokens, which stand at positions from
    /// `position` on, in all heads: `softmax(query * keys / sqrt(head_dim)) *
    /// values` over the positions up to the token's own.
    ///
    /// `queries` and `out` are `[n_tokens][n_head][head_dim]`; equally many
    /// heads, one after another, share a KV head
    /// ([GQA](https://arxiv.org/abs/2305.13245)).
    pub fn attend(
        &self,
        layer: usize,
        position: usize,
        n_tokens: usize,
        queries: &[f32],
        out: &mut [f32],
    ) {
        let head_dim = self.head_dim();
        let width = queries.len() / n_tokens;
        let group = width / (self.kv_heads() * head_dim);
        assert_eq!(queries.len(), n_tokens * self.kv_heads() * group * head_dim);
        assert_eq!(queries.len(), out.len());
        let mut scores = vec![0.0; TILE * CHUNK];
        let mut rows = Vec::with_capacity(TILE);
        out.fill(0.0);
        for kv_head in 0..self.kv_heads() {
            let all = (0..n_tokens).flat_map(|token| (0..group).map(move |head| (token, head)));
            let mut all = all.map(|(token, head)| Row {
                at: token * width + (kv_head * group + head) * head_dim,
                n: position + token + 1,
                max: f32::NEG_INFINITY,
                sum: 0.0,
            });
            loop {
                rows.clear();
                rows.extend(all.by_ref().take(TILE));
                if rows.is_empty() {
                    break;
                }
                self.attend_tile(layer, kv_head, &mut rows, &mut scores, queries, out);
            }
        }
    }

    /// Attention of the queries of one tile, which are sorted by position.
    fn attend_tile(
        &self,
        layer: usize,
        kv_head: usize,
        rows: &mut [Row],
        scores: &mut [f32],
        queries: &[f32],
        out: &mut [f32],
    ) {
        let head_dim = self.head_dim();
        let scale = 1.0 / (head_dim as f32).sqrt();
        for (i, (keys, values)) in self.chunks(layer, kv_head).enumerate() {
            let start = i * CHUNK;
            let first = rows.partition_point(|row| row.n <= start);
            let rows = &mut rows[first..];
            let Some(last) = rows.last() else { break };
            let n_columns = last.n_in_chunk(start).next_multiple_of(PANEL);
            scores[..rows.len() * CHUNK].fill(0.0);
            for (column, panel) in
                (0..n_columns).step_by(PANEL).zip(keys.chunks_exact(PANEL * head_dim))
            {
                for (i, rows) in rows.chunks(KERNEL).enumerate() {
                    if rows.iter().any(|row| row.n_in_chunk(start) > column) {
                        let score = |row: usize| (i * KERNEL + row) * CHUNK + column;
                        let place = |row: usize| (rows[row].at, score(row));
                        add_products(queries, panel, PANEL, 0..head_dim, rows.len(), place, scores);
                    }
                }
            }
            for (row, scores) in rows.iter_mut().zip(scores.chunks_exact_mut(CHUNK)) {
                let n = row.n_in_chunk(start);
                let padded = n.next_multiple_of(4);
                scores[n..padded].fill(f32::NEG_INFINITY);
                row.weigh(&mut scores[..padded], scale, &mut out[row.at..][..head_dim]);
            }
            for (column, panel) in (0..head_dim).step_by(PANEL).zip(values.chunks(CHUNK * PANEL)) {
                let width = panel.len() / CHUNK;
                for (i, rows) in rows.chunks(KERNEL).enumerate() {
                    // All of these rows see the positions that the first sees.
                    let weights = |row: usize| (i * KERNEL + row) * CHUNK;
                    let place = |row: usize| (weights(row), rows[row].at + column);
                    let common = rows[0].n_in_chunk(start);
                    add_products(scores, panel, width, 0..common, rows.len(), place, out);
                    for (i, row) in rows.iter().enumerate() {
                        let rest = common..row.n_in_chunk(start);
                        if !rest.is_empty() {
                            let place = |_| {
                                let (a, c) = place(i);
                                (a + common, c)
                            };
                            add_products(scores, panel, width, rest, 1, place, out);
                        }
                    }
                }
            }
        }
        for row in rows {
            multiply_by(&mut out[row.at..][..head_dim], V::splat_f32(1.0 / row.sum));
        }
    }
}

fn multiply_by(x: &mut [f32], factor: V) {
    for four in x.as_chunks_mut::<4>().0 {
        load(four).mul_f32(factor).store_f32(four);
    }
}

/// Adds the products of `n` vectors with a part of a panel `[..][width]` to
/// `width` numbers each. `place` says for each vector where it begins in `x`
/// and where its results are in `out`; `depth` is the part of the panel.
#[inline(always)]
fn add_products(
    x: &[f32],
    panel: &[f32],
    width: usize,
    depth: Range<usize>,
    n: usize,
    place: impl Fn(usize) -> (usize, usize),
    out: &mut [f32],
) {
    let panel = &panel[depth.start * width..depth.end * width];
    let (fours, _) = panel.as_chunks::<4>();
    if width == PANEL {
        let (panel, _) = fours.as_chunks::<2>();
        match n {
            1 => kernel::<1, 2>(x, panel, place, out),
            2 => kernel::<2, 2>(x, panel, place, out),
            3 => kernel::<3, 2>(x, panel, place, out),
            4 => kernel::<4, 2>(x, panel, place, out),
            5 => kernel::<5, 2>(x, panel, place, out),
            _ => kernel::<KERNEL, 2>(x, panel, place, out),
        }
    } else {
        let (panel, _) = fours.as_chunks::<1>();
        for i in 0..n {
            kernel::<1, 1>(x, panel, |_| place(i), out);
        }
    }
}

/// [`add_products`] of `N` vectors with a panel of `4 * W` columns. Each of
/// the results is a sum of its own, in the order of the panel's rows.
#[inline(always)]
fn kernel<const N: usize, const W: usize>(
    x: &[f32],
    panel: &[[[f32; 4]; W]],
    place: impl Fn(usize) -> (usize, usize),
    out: &mut [f32],
) {
    let x: [&[f32]; N] = std::array::from_fn(|i| &x[place(i).0..][..panel.len()]);
    let mut sums: [[V; W]; N] = std::array::from_fn(|i| {
        let (fours, _) = out[place(i).1..][..4 * W].as_chunks::<4>();
        std::array::from_fn(|j| load(&fours[j]))
    });
    for (k, row) in panel.iter().enumerate() {
        let row = row.each_ref().map(load);
        for (sums, x) in sums.iter_mut().zip(x) {
            let x = V::splat_f32(x[k]);
            sums.iter_mut().zip(row).for_each(|(sum, y)| *sum = sum.madd_f32(x, y));
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        let (fours, _) = out[place(i).1..][..4 * W].as_chunks_mut::<4>();
        fours.iter_mut().zip(sums).for_each(|(four, sum)| sum.store_f32(four));
    }
}
#[cfg(test)]
mod timing {
    use super::*;
    #[test]
    #[ignore]
    fn timing() {
        for (hd, kv, group) in [(64, 3, 3), (128, 1, 4), (128, 4, 1), (128,1,8)] {
            let n = 4096;
            let mut cache = KvCache::new(1, kv, hd);
            cache.reserve(n).unwrap();
            let x: Vec<f32> = (0..kv * hd).map(|i| ((i * 7919) % 101) as f32 / 101.0 - 0.5).collect();
            for p in 0..n { cache.store(0, p, &x, &x); }
            for tokens in [1, 64, 512] {
                let q: Vec<f32> = (0..tokens * kv * group * hd).map(|i| ((i * 7919) % 103) as f32 / 103.0 - 0.5).collect();
                let mut out = q.clone();
                let mut best = f64::MAX;
                for pos in [448, 3584 ] {
                for _ in 0..(if tokens==1 {100} else if tokens == 64 {10} else {3}) {
                    let t = std::time::Instant::now();
                    cache.attend(0, pos, tokens, &q, &mut out);
                    best = best.min(t.elapsed().as_secs_f64());
                }
                let macs = 2.0 * (tokens * (pos + (tokens+1) / 2) * kv * group * hd) as f64;
                println!("hd {hd} kv {kv} group {group} tokens {tokens} pos {pos}: {:.2} GMAC/s, {:.1} GB/s of cache", macs / best / 1e9, (pos*kv*hd*8) as f64 / best / 1e9);
                best = f64::MAX;
                }
            }
        }
    }
}
