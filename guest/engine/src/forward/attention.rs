//! Attention.

use std::ops::Range;

use super::{Pass, linear};
use crate::error::Result;
use crate::kv_cache::KvCache;
use crate::model::Layer;
use crate::ops;
use crate::team::Parts;

impl Pass<'_> {
    pub(super) fn attention(
        &mut self,
        cache: &mut KvCache,
        index: usize,
        layer: &Layer,
    ) -> Result<()> {
        self.normalize(0, &layer.attn_norm);
        let (model, n_tokens, s) = (self.model, self.n_tokens, &mut *self.s);
        linear(&layer.q, &s.activations, &s.all, &mut s.q);
        linear(&layer.k, &s.activations, &s.all, &mut s.k);
        linear(&layer.v, &s.activations, &s.all, &mut s.v);
        self.gather_heads(layer)?;

        let (h, s) = (&model.h, &mut *self.s);
        let (heads, kv_heads) = (&model.heads, &model.kv_heads);
        let (width, kv_width) = (heads.len() * h.head_dim, kv_heads.len() * h.head_dim);
        for i in 0..n_tokens {
            let k = &mut s.k[i * kv_width..(i + 1) * kv_width];
            for x in [&mut s.q[i * width..(i + 1) * width], k] {
                x.chunks_exact_mut(h.head_dim).for_each(|head| s.angles.turn(i, head));
            }
            let kv = i * kv_width..(i + 1) * kv_width;
            cache.store(index, self.position + i, &s.k[kv.clone()], &s.v[kv]);
        }
        s.mixed.resize(n_tokens * width, 0.0);
        let kv_head = |head| head / (h.n_head / h.kv_heads) - kv_heads.start;
        let kv_head_of: Vec<usize> = heads.clone().map(kv_head).collect();
        cache.attend(index, self.position, &kv_head_of, &s.q, &mut s.mixed);
        let split = model.exchange.heads(h.n_head, h.head_dim);
        model.exchange.gather(&mut [Parts::whole(split, n_tokens, &mut s.mixed)])?;
        s.inner.take(&mut s.mixed, split.len());
        linear(&layer.o, &s.inner, &s.all, &mut s.out);
        self.add_to_hidden()
    }

    /// Queries, keys and values of this member's heads, from the rows that the
    /// members computed; with RMSNorm of queries and keys, over each head or
    /// over all heads.
    fn gather_heads(&mut self, layer: &Layer) -> Result<()> {
        let (model, n, s) = (self.model, self.n_tokens, &mut *self.s);
        let (h, exchange) = (&model.h, &model.exchange);
        let over_all =
            |norm: &Option<Vec<f32>>| norm.as_ref().is_some_and(|weight| weight.len() > h.head_dim);
        let numbers = |heads: &Range<usize>| heads.start * h.head_dim..heads.end * h.head_dim;
        let part = |n_head: usize, needed, x| {
            let split = exchange.rows(n_head * h.head_dim);
            Parts { split, needed, n, x }
        };
        let all = |needed: &Range<usize>, norm, n_head| match over_all(norm) {
            true => 0..n_head * h.head_dim,
            false => numbers(needed),
        };
        exchange.gather(&mut [
            part(h.n_head, all(&model.heads, &layer.q_norm, h.n_head), &mut s.q),
            part(h.kv_heads, all(&model.kv_heads, &layer.k_norm, h.kv_heads), &mut s.k),
            part(h.kv_heads, numbers(&model.kv_heads), &mut s.v),
        ])?;
        for (norm, mine, x) in [
            (&layer.q_norm, numbers(&model.heads), &mut s.q),
            (&layer.k_norm, numbers(&model.kv_heads), &mut s.k),
        ] {
            let Some(weight) = norm else { continue };
            for row in x.chunks_exact_mut(weight.len()) {
                ops::rms_norm(row, weight, h.rms_epsilon);
            }
            if over_all(norm) {
                // From here on, this member's heads alone are of use.
                for i in 0..n {
                    let row = i * weight.len();
                    x.copy_within(row + mine.start..row + mine.end, i * mine.len());
                }
                x.truncate(n * mine.len());
            }
        }
        Ok(())
    }
}
