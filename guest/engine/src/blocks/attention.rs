//! Attention.

use std::ops::Range;

use super::block::Block;
use super::linear::Linear;
use super::loader::Loader;
use super::norm::Norm;
use super::pass::Pass;
use crate::error::Result;
use crate::kv_cache::{KvFormat, LayerCache};
use crate::plan::AttentionPlan;
use crate::takes::{Room, State, Takes};
use crate::team::{Parts, shares};

/// Attention of a layer, of which this member computes some heads.
pub(crate) struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    q_norm: Option<Norm>,
    k_norm: Option<Norm>,
    scale: f32,
    rope: Option<usize>,
    n_head: usize,
    head_dim: usize,
    kv_format: KvFormat,
    /// The heads whose attention this member computes, and the KV heads that
    /// they need: another member may need them too.
    heads: Range<usize>,
    kv_heads: Range<usize>,
    /// For each of all heads, which of those KV heads it needs; `None` if
    /// another member computes it.
    kv_head_of: Vec<Option<usize>>,
}

impl Block for Attention {
    type Plan = AttentionPlan;

    fn takes(plan: &AttentionPlan, size: usize) -> Takes {
        let (n_embd, width, kv_width) = (plan.q.cols, plan.q.rows, plan.k.rows);
        let group = plan.n_head / plan.kv_heads;
        let kv_heads = shares(plan.n_head, size).map(|heads| kv_heads_of(heads, group).len());
        let kv_head_bytes = 2 * plan.kv_format.bytes(plan.head_dim) as u64;
        let vector_len = n_embd.max(width).max(kv_width);
        Takes {
            vector_len,
            token_len: vector_len.max(width + 2 * kv_width),
            products: 2 * n_embd as u64 * (width + kv_width) as u64,
            room: Room {
                heads: width,
                kv_heads: kv_width,
                head_dim: plan.head_dim,
                ..Room::default()
            },
            state: State {
                bytes_per_token: kv_head_bytes * plan.kv_heads as u64,
                member_bytes_per_token: kv_head_bytes * kv_heads.max().unwrap_or_default() as u64,
            },
            ..Takes::default()
        }
    }

    fn load(plan: &AttentionPlan, loader: &mut Loader<'_>) -> Result<Self> {
        let heads = loader.exchange().heads(plan.n_head, 1).mine();
        let group = plan.n_head / plan.kv_heads;
        let kv_heads = kv_heads_of(heads.clone(), group);
        let kv_head = |head| heads.contains(&head).then(|| head / group - kv_heads.start);
        let kv_head_of = (0..plan.n_head).map(kv_head).collect();
        let (q_norm, k_norm) = match &plan.qk_norm {
            None => (None, None),
            Some(norm) => (Some(Norm::load(&norm.q, loader)?), Some(Norm::load(&norm.k, loader)?)),
        };
        Ok(Self {
            q: loader.linear(&plan.q)?,
            k: loader.linear(&plan.k)?,
            v: loader.linear(&plan.v)?,
            o: loader.linear(&plan.o)?,
            q_norm,
            k_norm,
            scale: plan.scale,
            rope: plan.rope,
            n_head: plan.n_head,
            head_dim: plan.head_dim,
            kv_format: plan.kv_format,
            heads,
            kv_heads,
            kv_head_of,
        })
    }
}

impl Attention {
    /// What a session remembers of this layer, with no token yet.
    pub fn cache(&self) -> LayerCache {
        LayerCache::new(self.kv_heads.len(), self.head_dim, self.kv_format)
    }

    /// This member's rows of what attention adds; the cache gets the batch's keys and
    /// values.
    pub fn run(&self, pass: &mut Pass<'_>, cache: &mut LayerCache) -> Result<()> {
        self.project(pass)?;

        let (mine, kv_mine) = self.numbers();
        let (exchange, n_tokens, s) = (pass.exchange, pass.n_tokens, &mut *pass.s);
        let (width, kv_width) = (self.q.n_rows, self.k.n_rows);
        let angles = self.rope.map(|rope| &s.angles[rope]);
        let mut lost = Vec::new();
        let rows = s.q.chunks_exact_mut(width).zip(s.k.chunks_exact_mut(kv_width));
        for (i, ((q, k), v)) in rows.zip(s.v.chunks_exact(kv_width)).enumerate() {
            let (q, k, v) = (&mut q[mine.clone()], &mut k[kv_mine.clone()], &v[kv_mine.clone()]);
            if let Some(angles) = angles {
                for x in [q, &mut *k] {
                    x.chunks_exact_mut(self.head_dim).for_each(|head| angles.turn(i, head));
                }
            }
            if !cache.store(pass.position + i, k, v) {
                lost.push(i);
            }
        }
        s.mixed.resize(n_tokens * width, 0.0);
        cache.attend(pass.position, self.scale, &self.kv_head_of, &s.q, &mut s.mixed);
        // All members shall find out.
        for i in lost {
            s.mixed[i * width..][mine.clone()].fill(f32::NAN);
        }
        let split = exchange.heads(self.n_head, self.head_dim);
        exchange.gather(&mut [Parts::whole(split, &mut s.mixed)])?;
        s.inner.take(&mut s.mixed, width);
        self.o.multiply(exchange.rows(self.o.n_rows).mine(), &s.inner, &s.all, &mut s.out);
        Ok(())
    }

    /// The numbers of this member's heads and KV heads, among those of all.
    fn numbers(&self) -> (Range<usize>, Range<usize>) {
        let n = self.head_dim;
        let numbers = |heads: &Range<usize>| heads.start * n..heads.end * n;
        (numbers(&self.heads), numbers(&self.kv_heads))
    }

    /// Queries, keys and values of this member's heads. The members compute
    /// equal shares of the rows, whatever heads they belong to.
    fn project(&self, pass: &mut Pass<'_>) -> Result<()> {
        let (heads, kv_heads) = self.numbers();
        let (exchange, s) = (pass.exchange, &mut *pass.s);
        let mut parts = [
            (&self.q, &self.q_norm, &heads, &mut s.q),
            (&self.k, &self.k_norm, &kv_heads, &mut s.k),
            (&self.v, &None, &kv_heads, &mut s.v),
        ]
        .map(|(linear, norm, heads, x)| {
            let split = exchange.rows(linear.n_rows);
            linear.multiply(split.mine(), &s.activations, &s.all, x);
            // A norm over all heads needs all of them.
            let over_all = norm.as_ref().is_some_and(|norm| norm.len() > self.head_dim);
            let needed = if over_all { 0..linear.n_rows } else { heads.clone() };
            Parts { split, needed, x }
        });
        exchange.gather(&mut parts)?;
        for (norm, part) in [&self.q_norm, &self.k_norm].into_iter().zip(parts) {
            let Some(norm) = norm else { continue };
            for row in part.x.chunks_exact_mut(part.split.len()) {
                norm.apply(&mut row[part.needed.clone()]);
            }
        }
        Ok(())
    }
}

/// The KV heads that heads need, of which so many share one.
fn kv_heads_of(heads: Range<usize>, group: usize) -> Range<usize> {
    match heads.is_empty() {
        true => 0..0,
        false => heads.start / group..heads.end.div_ceil(group),
    }
}
