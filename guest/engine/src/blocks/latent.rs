//! Multi-head latent attention.
//!
//! A head's key and value are never made: its query is multiplied with the matrix that
//! would make the key, and then meets the latents themselves; their mixture is multiplied
//! with the matrix that makes the value. In a long prompt it would take fewer products to
//! make keys and values, but they would be rounded elsewhere, and then a prompt would not
//! give the same bits however it is cut into batches.
//!
//! All members of a team need all latents, and together they keep them once: each has some
//! numbers of all of them, and they gather them for every batch, some chunks at a time. One
//! copies less than a thousandth of what is computed with it then.

use std::ops::Range;

use super::block::Block;
use super::linear::Linear;
use super::loader::Loader;
use super::norm::Norm;
use super::pass::Pass;
use crate::error::{Error, ErrorKind, Result};
use crate::gguf::TensorType;
use crate::kv_cache::{self, LatentShape, LayerCache};
use crate::plan::{LatentHeads, LatentPlan, LatentQueryPlan};
use crate::quant::{Format, Matrix, f16, put_numbers};
use crate::takes::{LatentRoom, Room, State, Takes};
use crate::team::{Parts, shares, shares_of_units};
use crate::weights::Window;

/// Chunks that the members of a team gather at a time.
const N_GATHERED: usize = 8;

/// Attention of a layer over latents, of which this member computes some heads.
pub(crate) struct LatentAttention {
    q: Queries,
    latent: Linear,
    norm: Norm,
    k: HeadMatrices,
    v: HeadMatrices,
    o: Linear,
    scale: f32,
    rope: Option<usize>,
    shape: LatentShape,
    n_head: usize,
    plain_dim: usize,
    turned_dim: usize,
    value_dim: usize,
    /// The heads that this member computes, and how many the member has that has most.
    heads: Range<usize>,
    n_heads_max: usize,
    /// The numbers of all latents that this member keeps.
    mine: Range<usize>,
}

enum Queries {
    Whole(Linear),
    LowRank { down: Linear, norm: Norm, up: Linear },
}

/// A matrix for each of this member's heads.
struct HeadMatrices {
    linear: Linear,
    /// Rows from one head to the next, and those that come before the matrix.
    stride: usize,
    skipped: usize,
    n_rows: usize,
}

impl HeadMatrices {
    fn of(&self, head: usize) -> Matrix<'_> {
        let first = head * self.stride + self.skipped;
        self.linear.matrix(first..first + self.n_rows)
    }
}

/// Bytes that were copied.
struct Copied(Vec<u8>);

impl Window for Copied {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Block for LatentAttention {
    type Plan = LatentPlan;

    fn takes(plan: &LatentPlan, size: usize) -> Takes {
        let shape = shape(plan);
        let (n_embd, n_head, n_latent) = (plan.latent.cols, plan.n_head, plan.n_latent());
        let (width, value_width) = (n_head * plan.query_dim(), n_head * plan.value_dim);
        let (rank, query_products) = match &plan.q {
            LatentQueryPlan::Whole(_) => (0, n_embd as u64 * width as u64),
            LatentQueryPlan::LowRank { down, .. } => {
                (down.rows, down.rows as u64 * (n_embd + width) as u64)
            }
        };
        let head_products = n_latent as u64 * (n_head * plan.plain_dim + value_width) as u64;
        let of_latents = n_embd as u64 * (shape.key_dim + value_width) as u64;
        let n_heads_max = shares(n_head, size).map(|heads| heads.len()).max().unwrap_or_default();
        let panel_words = shape.panel_words();
        let gathered = if size > 1 { N_GATHERED * LatentShape::PANELS * panel_words } else { 0 };
        let parts = shares_of_units(shape.key_dim, shape.units().0, size);
        let part = parts.map(|part| part.len()).max().unwrap_or_default();
        let copied = match plan.heads {
            LatentHeads::Apart { .. } => 0,
            LatentHeads::Joint(_) => n_heads_max * plan.plain_dim * n_latent * size_of::<u16>(),
        };
        Takes {
            vector_len: n_embd.max(width).max(value_width).max(panel_words).max(rank),
            token_len: n_embd.max(width + shape.key_dim).max(rank + shape.key_dim).max(value_width),
            products: query_products + head_products + of_latents,
            room: Room {
                heads: width.max(value_width).max(rank),
                kv_heads: shape.key_dim,
                latent: LatentRoom {
                    n_head: n_heads_max,
                    query: shape.key_dim,
                    inner: plan.plain_dim.max(n_latent),
                    chunk: shape.chunk_len(),
                    gathered,
                },
                ..Room::default()
            },
            state: State {
                bytes_per_token: plan.kv_format.bytes(shape.key_dim) as u64,
                member_bytes_per_token: plan.kv_format.bytes(part) as u64,
                ..State::default()
            },
            copied_bytes: copied as u64,
            ..Takes::default()
        }
    }

    fn load(plan: &LatentPlan, loader: &mut Loader<'_>) -> Result<Self> {
        let (shape, exchange) = (shape(plan), loader.exchange());
        let n_heads_max = shares(plan.n_head, exchange.size()).map(|heads| heads.len()).max();
        let heads = exchange.heads(plan.n_head, 1).mine();
        let q = match &plan.q {
            LatentQueryPlan::Whole(q) => Queries::Whole(loader.linear(q)?),
            LatentQueryPlan::LowRank { down, norm, up } => Queries::LowRank {
                down: loader.linear(down)?,
                norm: Norm::load(norm, loader)?,
                up: loader.linear(up)?,
            },
        };
        let (k, v) = head_matrices(plan, &heads, loader)?;
        Ok(Self {
            q,
            latent: loader.linear(&plan.latent)?,
            norm: Norm::load(&plan.norm, loader)?,
            k,
            v,
            o: loader.linear(&plan.o)?,
            scale: plan.scale,
            rope: plan.rope,
            shape,
            n_head: plan.n_head,
            plain_dim: plan.plain_dim,
            turned_dim: plan.turned_dim,
            value_dim: plan.value_dim,
            heads,
            n_heads_max: n_heads_max.unwrap_or_default(),
            mine: exchange.units(shape.key_dim, shape.units().0).mine(),
        })
    }
}

fn shape(plan: &LatentPlan) -> LatentShape {
    let value_dim = plan.n_latent();
    LatentShape { key_dim: value_dim + plan.turned_dim, value_dim, format: plan.kv_format }
}

/// The matrices of these heads, which make of a query what meets latents, and of latents a
/// value.
fn head_matrices(
    plan: &LatentPlan,
    heads: &Range<usize>,
    loader: &mut Loader<'_>,
) -> Result<(HeadMatrices, HeadMatrices)> {
    let &LatentPlan { n_head, plain_dim, value_dim, .. } = plan;
    let n_latent = plan.n_latent();
    let mut load = |name: &str, cols: usize, n_rows: usize| -> Result<HeadMatrices> {
        let rows = heads.start * n_rows..heads.end * n_rows;
        let linear = loader.rows(name, &[cols, n_rows, n_head], rows)?;
        Ok(HeadMatrices { linear, stride: n_rows, skipped: 0, n_rows })
    };
    let name = match &plan.heads {
        LatentHeads::Apart { k, v } => {
            return Ok((load(k, plain_dim, n_latent)?, load(v, n_latent, value_dim)?));
        }
        LatentHeads::Joint(name) => name,
    };
    let stride = plain_dim + value_dim;
    let rows = heads.start * stride..heads.end * stride;
    let joint = loader.rows(name, &[n_latent, n_head * stride], rows)?;
    let group = joint.format.group_rows();
    if !plain_dim.is_multiple_of(group) || !value_dim.is_multiple_of(group) {
        return Err(Error::unsupported(format!(
            "tensor {name} has heads of {plain_dim} and {value_dim} rows, and {group} of them lie \
             together; use the model as it was downloaded"
        )));
    }
    let k = HeadMatrices {
        linear: turned_over(&joint, heads, stride, plain_dim)?,
        stride: n_latent,
        skipped: 0,
        n_rows: n_latent,
    };
    Ok((k, HeadMatrices { linear: joint, stride, skipped: plain_dim, n_rows: value_dim }))
}

/// The first `n` rows of each of these heads as columns: a copy, in F16.
fn turned_over(joint: &Linear, heads: &Range<usize>, stride: usize, n: usize) -> Result<Linear> {
    let n_rows = joint.cols;
    let n_bytes = heads.len().checked_mul(n_rows * n * size_of::<u16>());
    let mut bytes = Vec::new();
    let reserved = n_bytes.map(|n| bytes.try_reserve_exact(n));
    let (Some(n_bytes), Some(Ok(()))) = (n_bytes, reserved) else {
        let message = "no memory for the keys' matrices, which are copied from this file; get one \
                       that has `attn_k_b` tensors, or raise the memory limit";
        return Err(Error::new(ErrorKind::OutOfMemory, message));
    };
    bytes.resize(n_bytes, 0);
    let mut row = vec![0.0; n_rows];
    let (numbers, _) = bytes.as_chunks_mut::<2>();
    for (head, numbers) in heads.clone().zip(numbers.chunks_exact_mut(n_rows * n)) {
        for i in 0..n {
            joint.dequantize_row(head * stride + i, &mut row);
            for (numbers, &x) in numbers.chunks_exact_mut(n).zip(&row) {
                numbers[i] = f16::to_bits(x).to_le_bytes();
            }
        }
    }
    let format = Format::from_type(TensorType::F16).expect("a format of the engine");
    let rows = heads.start * n_rows..heads.end * n_rows;
    Ok(Linear {
        format,
        cols: n,
        n_rows: rows.end,
        rows,
        window: Some(Box::new(Copied(bytes))),
        bias: None,
    })
}

impl LatentAttention {
    /// What a session remembers of this layer, with no token yet.
    pub fn cache(&self) -> LayerCache {
        LayerCache::of_latents(self.mine.len(), self.shape.format)
    }

    /// This member's rows of what attention adds; the cache gets the batch's latents.
    pub fn run(&self, pass: &mut Pass<'_>, cache: &mut LayerCache) -> Result<()> {
        self.project(pass)?;
        let lost = self.store(pass, cache);
        let (n_tokens, width) = (pass.n_tokens, self.n_head * self.value_dim);
        pass.s.mixed.resize(n_tokens * width, 0.0);
        // All members gather as often.
        let n = LatentRoom::n_together(self.n_heads_max, n_tokens);
        for i in 0..self.n_heads_max.div_ceil(n) {
            let head = |i: usize| (self.heads.start + i * n).min(self.heads.end);
            let heads = head(i)..head(i + 1);
            self.absorb(pass, heads.clone());
            self.attend(pass, cache, heads.len())?;
            self.expand(pass, heads);
        }
        let (exchange, s) = (pass.exchange, &mut *pass.s);
        let split = exchange.heads(self.n_head, self.value_dim);
        // All members shall find out.
        for i in lost {
            s.mixed[i * width..][split.mine()].fill(f32::NAN);
        }
        exchange.gather(&mut [Parts::whole(split, &mut s.mixed)])?;
        s.inner.take(&mut s.mixed, width);
        self.o.multiply(exchange.rows(self.o.n_rows).mine(), &s.inner, &s.all, &mut s.out);
        Ok(())
    }

    /// Numbers of a head's query.
    fn query_dim(&self) -> usize {
        self.plain_dim + self.turned_dim
    }

    /// Queries of this member's heads, and whole latents. The members compute equal shares
    /// of the rows.
    fn project(&self, pass: &mut Pass<'_>) -> Result<()> {
        let (exchange, s) = (pass.exchange, &mut *pass.s);
        let split = exchange.rows(self.latent.n_rows);
        self.latent.multiply(split.mine(), &s.activations, &s.all, &mut s.k);
        let latents = Parts::whole(split, &mut s.k);
        let n = self.query_dim();
        let needed = self.heads.start * n..self.heads.end * n;
        match &self.q {
            Queries::Whole(q) => {
                let split = exchange.rows(q.n_rows);
                q.multiply(split.mine(), &s.activations, &s.all, &mut s.q);
                exchange.gather(&mut [latents, Parts { split, needed, x: &mut s.q }])
            }
            Queries::LowRank { down, norm, up } => {
                let split = exchange.rows(down.n_rows);
                down.multiply(split.mine(), &s.activations, &s.all, &mut s.mixed);
                exchange.gather(&mut [latents, Parts::whole(split, &mut s.mixed)])?;
                norm.apply(&mut s.mixed);
                s.inner.take(&mut s.mixed, down.n_rows);
                let split = exchange.rows(up.n_rows);
                up.multiply(split.mine(), &s.inner, &s.all, &mut s.q);
                exchange.gather(&mut [Parts { split, needed, x: &mut s.q }])
            }
        }
    }

    /// Stores the latents. Answers the tokens whose latents have numbers that the cache's
    /// format lacks.
    fn store(&self, pass: &mut Pass<'_>, cache: &mut LayerCache) -> Vec<usize> {
        let s = &mut *pass.s;
        let angles = self.rope.map(|rope| &s.angles[rope]);
        let mut lost = Vec::new();
        for (i, key) in s.k.chunks_exact_mut(self.shape.key_dim).enumerate() {
            let (latent, turned) = key.split_at_mut(self.shape.value_dim);
            self.norm.apply(latent);
            if let Some(angles) = angles {
                angles.turn(i, turned);
            }
            if !cache.holds(key) {
                lost.push(i);
            }
            cache.store_latent(pass.position + i, &key[self.mine.clone()]);
        }
        lost
    }

    /// Makes queries of latents of the queries of these heads.
    fn absorb(&self, pass: &mut Pass<'_>, heads: Range<usize>) {
        let (n, n_tokens, s) = (heads.len(), pass.n_tokens, &mut *pass.s);
        let (key_dim, query_dim) = (self.shape.key_dim, self.query_dim());
        let latent = &mut s.latent;
        let of_heads = heads.start * query_dim..heads.end * query_dim;
        let angles = self.rope.map(|rope| &s.angles[rope]);
        latent.x.clear();
        latent.q.resize(n_tokens * n * key_dim, 0.0);
        for (i, q) in s.q.chunks_exact_mut(self.n_head * query_dim).enumerate() {
            for (g, q) in q[of_heads.clone()].chunks_exact_mut(query_dim).enumerate() {
                let (plain, turned) = q.split_at_mut(self.plain_dim);
                latent.x.extend_from_slice(plain);
                if let Some(angles) = angles {
                    angles.turn(i, turned);
                }
                let query = &mut latent.q[(i * n + g) * key_dim..][..key_dim];
                query[self.shape.value_dim..].copy_from_slice(turned);
            }
        }
        latent.activations.take(&mut latent.x, self.plain_dim);
        for (g, head) in heads.enumerate() {
            s.tokens.clear();
            s.tokens.extend((0..n_tokens).map(|i| i * n + g));
            let queries = &mut latent.q;
            self.k.of(head).multiply(&latent.activations, &s.tokens, |i, row, y| {
                put_numbers(&mut queries[(i * n + g) * key_dim + row..], y);
            });
        }
    }

    /// Has the queries of `n_heads` heads attend to all latents so far; leaves mixtures of
    /// these.
    fn attend(&self, pass: &mut Pass<'_>, cache: &LayerCache, n_heads: usize) -> Result<()> {
        let (exchange, position, n_tokens) = (pass.exchange, pass.position, pass.n_tokens);
        let latent = &mut pass.s.latent;
        latent.x.clear();
        latent.x.resize(n_tokens * n_heads * self.shape.value_dim, 0.0);
        latent.chunk.resize(self.shape.chunk_len(), 0.0);
        let room = &mut latent.chunk;
        let (shape, scale) = (self.shape, self.scale);
        let mut attention =
            kv_cache::LatentAttention::new(shape, scale, position, n_tokens, n_heads, room);
        let n_panels = LatentShape::n_panels(position + n_tokens);
        let n_gathered = if exchange.size() > 1 { N_GATHERED } else { 1 };
        let words = shape.panel_words();
        let (_, unit) = shape.units();
        let split = exchange.units(words, unit);
        for first in (0..n_panels).step_by(n_gathered * LatentShape::PANELS) {
            let panels = first..n_panels.min(first + n_gathered * LatentShape::PANELS);
            let chunk = first / LatentShape::PANELS;
            if exchange.size() == 1 {
                attention.add(chunk, cache.panels(panels), &latent.q, &mut latent.x);
                continue;
            }
            latent.gathered.resize(panels.len() * words, 0.0);
            for (i, out) in panels.zip(latent.gathered.chunks_exact_mut(words)) {
                let mine: &[f32] = bytemuck::cast_slice(cache.panels(i..i + 1));
                out[split.mine()].copy_from_slice(mine);
            }
            exchange.gather(&mut [Parts::whole(split, &mut latent.gathered)])?;
            let gathered: &[u32] = bytemuck::cast_slice(&latent.gathered);
            for (i, panels) in gathered.chunks(LatentShape::PANELS * words).enumerate() {
                attention.add(chunk + i, panels, &latent.q, &mut latent.x);
            }
        }
        attention.finish(&mut latent.x);
        Ok(())
    }

    /// Makes the values of these heads of mixtures of latents.
    fn expand(&self, pass: &mut Pass<'_>, heads: Range<usize>) {
        let (n, n_tokens, s) = (heads.len(), pass.n_tokens, &mut *pass.s);
        let (latent, width) = (&mut s.latent, self.n_head * self.value_dim);
        latent.activations.take(&mut latent.x, self.shape.value_dim);
        for (g, head) in heads.enumerate() {
            s.tokens.clear();
            s.tokens.extend((0..n_tokens).map(|i| i * n + g));
            let mixed = &mut s.mixed[head * self.value_dim..];
            self.v.of(head).multiply(&latent.activations, &s.tokens, |i, row, y| {
                put_numbers(&mut mixed[i * width + row..], y);
            });
        }
    }
}
