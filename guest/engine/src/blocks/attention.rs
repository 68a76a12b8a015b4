//! Attention.

use std::ops::Range;

use super::block::Block;
use super::linear::Linear;
use super::loader::Loader;
use super::norm::Norm;
use super::pass::Pass;
use crate::error::Result;
use crate::kv_cache::{KvFormat, LayerCache, Span, held_max};
use crate::ops;
use crate::plan::{AttentionPlan, NormPlan, Temperature};
use crate::takes::{Room, State, Takes};
use crate::team::{Parts, shares};

/// Attention of a layer, of which this member computes some heads.
pub(crate) struct Attention {
    q: Linear,
    k: Linear,
    /// Absent if keys serve.
    v: Option<Linear>,
    o: Linear,
    q_norm: Option<Norm>,
    k_norm: Option<Norm>,
    /// Whether queries and keys are turned when they are normalised.
    turned: bool,
    v_norm: Option<Norm>,
    sinks: Option<Vec<f32>>,
    span: Span,
    temperature: Option<Temperature>,
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
        let member_kv_bytes = kv_head_bytes * kv_heads.max().unwrap_or_default() as u64;
        let state = match held_max(plan.span) {
            None => State {
                bytes_per_token: kv_head_bytes * plan.kv_heads as u64,
                member_bytes_per_token: member_kv_bytes,
                ..State::default()
            },
            Some(n) => State {
                member_window_bytes: member_kv_bytes.saturating_mul(n as u64),
                ..State::default()
            },
        };
        Takes {
            vector_len,
            token_len: vector_len.max(width + 2 * kv_width),
            products: 2 * n_embd as u64 * (width + kv_width) as u64,
            room: Room { heads: width, kv_heads: kv_width, ..Room::default() },
            state,
            ..Takes::default()
        }
    }

    fn load(plan: &AttentionPlan, loader: &mut Loader<'_>) -> Result<Self> {
        let heads = loader.exchange().heads(plan.n_head, 1).mine();
        let group = plan.n_head / plan.kv_heads;
        let kv_heads = kv_heads_of(heads.clone(), group);
        let kv_head = |head| heads.contains(&head).then(|| head / group - kv_heads.start);
        let kv_head_of = (0..plan.n_head).map(kv_head).collect();
        let mut norm =
            |plan: Option<&NormPlan>| plan.map(|plan| Norm::load(plan, loader)).transpose();
        let qk_norm = plan.qk_norm.as_ref();
        let q_norm = norm(qk_norm.map(|norm| &norm.q))?;
        let k_norm = norm(qk_norm.map(|norm| &norm.k))?;
        let v_norm = norm(plan.v_norm.as_ref())?;
        let sinks = plan.sinks.as_ref().map(|sinks| loader.vector(sinks)).transpose()?;
        Ok(Self {
            q: loader.linear(&plan.q)?,
            k: loader.linear(&plan.k)?,
            v: plan.v.as_ref().map(|v| loader.linear(v)).transpose()?,
            o: loader.linear(&plan.o)?,
            q_norm,
            k_norm,
            turned: qk_norm.is_some_and(|norm| norm.turned),
            v_norm,
            sinks,
            span: plan.span,
            temperature: plan.temperature,
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
        LayerCache::new(self.kv_heads.len(), self.head_dim, self.kv_format, self.span)
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
                for x in [&mut *q, &mut *k] {
                    x.chunks_exact_mut(self.head_dim).for_each(|head| angles.turn(i, head));
                }
            }
            if self.turned {
                let norms = [(&self.q_norm, &mut *q), (&self.k_norm, &mut *k)];
                norms.into_iter().for_each(|(norm, x)| apply(norm.as_ref(), x));
            }
            if let Some(temperature) = &self.temperature {
                ops::scale(q, temperature.at(pass.position + i));
            }
            if !cache.store(pass.position + i, k, v) {
                lost.push(i);
            }
        }
        s.mixed.resize(n_tokens * width, 0.0);
        let sinks = self.sinks.as_deref();
        cache.attend(pass.position, self.scale, sinks, &self.kv_head_of, &s.q, &mut s.mixed);
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
        let (q_norm, k_norm) = match self.turned {
            true => (None, None),
            false => (self.q_norm.as_ref(), self.k_norm.as_ref()),
        };
        // A norm over all heads needs all of them.
        let needed = |linear: &Linear, norm: Option<&Norm>, heads: &Range<usize>| {
            let over_all = norm.is_some_and(|norm| norm.len() > self.head_dim);
            if over_all { 0..linear.n_rows } else { heads.clone() }
        };
        let (q_needed, k_needed) =
            (needed(&self.q, q_norm, &heads), needed(&self.k, k_norm, &kv_heads));
        let project = |linear: &Linear, x: &mut Vec<f32>| {
            linear.multiply(exchange.rows(linear.n_rows).mine(), &s.activations, &s.all, x);
            exchange.rows(linear.n_rows)
        };
        let q = project(&self.q, &mut s.q);
        let k = project(&self.k, &mut s.k);
        let v = self.v.as_ref().map(|v| project(v, &mut s.v));
        let q = Parts { split: q, needed: q_needed.clone(), x: &mut s.q };
        let k = Parts { split: k, needed: k_needed.clone(), x: &mut s.k };
        match v {
            Some(split) => {
                let v = Parts { split, needed: kv_heads.clone(), x: &mut s.v };
                exchange.gather(&mut [q, k, v])?;
            }
            None => {
                exchange.gather(&mut [q, k])?;
                s.v.clone_from(&s.k);
            }
        }
        for (norm, needed, width, x) in [
            (q_norm, q_needed, self.q.n_rows, &mut s.q),
            (k_norm, k_needed, self.k.n_rows, &mut s.k),
            (self.v_norm.as_ref(), kv_heads, self.k.n_rows, &mut s.v),
        ] {
            x.chunks_exact_mut(width).for_each(|row| apply(norm, &mut row[needed.clone()]));
        }
        Ok(())
    }
}

fn apply(norm: Option<&Norm>, x: &mut [f32]) {
    if let Some(norm) = norm {
        norm.apply(x);
    }
}

impl Temperature {
    /// What a query at a position is multiplied by.
    fn at(&self, position: usize) -> f32 {
        let n = ((position + 1) / self.n_ctx) as f64;
        (1.0 + f64::from(self.scale) * libm::log(1.0 + n)) as f32
    }
}

/// The KV heads that heads need, of which so many share one.
fn kv_heads_of(heads: Range<usize>, group: usize) -> Range<usize> {
    match heads.is_empty() {
        true => 0..0,
        false => heads.start / group..heads.end.div_ceil(group),
    }
}
