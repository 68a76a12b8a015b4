//! Attention.

use std::ops::Range;

use super::{Pass, multiply};
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
        self.heads(layer)?;

        let (mine, kv_mine) = self.numbers();
        let (model, n_tokens, s) = (self.model, self.n_tokens, &mut *self.s);
        let (h, exchange) = (&model.h, &model.exchange);
        let (width, kv_width) = (h.n_head * h.head_dim, h.kv_heads * h.head_dim);
        let rows = s.q.chunks_exact_mut(width).zip(s.k.chunks_exact_mut(kv_width));
        for (i, ((q, k), v)) in rows.zip(s.v.chunks_exact(kv_width)).enumerate() {
            let (q, k, v) = (&mut q[mine.clone()], &mut k[kv_mine.clone()], &v[kv_mine.clone()]);
            for x in [q, &mut *k] {
                x.chunks_exact_mut(h.head_dim).for_each(|head| s.angles.turn(i, head));
            }
            cache.store(index, self.position + i, k, v);
        }
        s.mixed.resize(n_tokens * width, 0.0);
        cache.attend(index, self.position, &model.kv_head_of, &s.q, &mut s.mixed);
        let split = exchange.heads(h.n_head, h.head_dim);
        exchange.gather(&mut [Parts::whole(split, &mut s.mixed)])?;
        s.inner.take(&mut s.mixed, width);
        multiply(&layer.o, exchange.rows(h.n_embd).mine(), &s.inner, &s.all, &mut s.out);
        self.add_to_hidden()
    }

    /// The numbers of this member's heads and KV heads, among those of all.
    fn numbers(&self) -> (Range<usize>, Range<usize>) {
        let n = self.model.h.head_dim;
        let numbers = |heads: &Range<usize>| heads.start * n..heads.end * n;
        (numbers(&self.model.heads), numbers(&self.model.kv_heads))
    }

    /// Queries, keys and values of this member's heads. The members compute
    /// equal shares of the rows, whatever heads they belong to.
    fn heads(&mut self, layer: &Layer) -> Result<()> {
        let (heads, kv_heads) = self.numbers();
        let (h, exchange) = (&self.model.h, &self.model.exchange);
        let s = &mut *self.s;
        let mut parts = [
            (&layer.q, &layer.q_norm, &heads, &mut s.q),
            (&layer.k, &layer.k_norm, &kv_heads, &mut s.k),
            (&layer.v, &None, &kv_heads, &mut s.v),
        ]
        .map(|(linear, norm, heads, x)| {
            let split = exchange.rows(linear.n_rows);
            multiply(linear, split.mine(), &s.activations, &s.all, x);
            // A norm over all heads needs all of them.
            let over_all = norm.as_ref().is_some_and(|weight| weight.len() > h.head_dim);
            let needed = if over_all { 0..linear.n_rows } else { heads.clone() };
            Parts { split, needed, x }
        });
        exchange.gather(&mut parts)?;
        for (norm, part) in [&layer.q_norm, &layer.k_norm].into_iter().zip(parts) {
            let Some(weight) = norm else { continue };
            for row in part.x.chunks_exact_mut(part.split.len()) {
                for x in row[part.needed.clone()].chunks_exact_mut(weight.len()) {
                    ops::rms_norm(x, weight, h.rms_epsilon);
                }
            }
        }
        Ok(())
    }
}
