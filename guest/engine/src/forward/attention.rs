//! Attention.

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
        self.normalize_heads(layer)?;

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
        model.exchange.gather(&mut [Parts { split, n: n_tokens, x: &mut s.mixed }])?;
        s.inner.set(&s.mixed, split.len());
        linear(&layer.o, &s.inner, &s.all, &mut s.out);
        self.add_to_hidden()
    }

    /// RMSNorm of queries and keys, over each head or over all heads.
    fn normalize_heads(&mut self, layer: &Layer) -> Result<()> {
        let (h, exchange, s) = (&self.model.h, &self.model.exchange, &mut *self.s);
        let mut over_all = Vec::new();
        for (norm, heads, mine, x) in [
            (&layer.q_norm, h.n_head, &self.model.heads, &mut s.q),
            (&layer.k_norm, h.kv_heads, &self.model.kv_heads, &mut s.k),
        ] {
            let Some(weight) = norm else { continue };
            if weight.len() > h.head_dim {
                let split = exchange.heads(heads, h.head_dim);
                over_all.push((weight, mine, Parts { split, n: self.n_tokens, x }));
            } else {
                let heads = x.chunks_exact_mut(h.head_dim);
                heads.for_each(|head| ops::rms_norm(head, weight, h.rms_epsilon));
            }
        }
        let (weights, mut parts): (Vec<_>, Vec<_>) =
            over_all.into_iter().map(|(weight, mine, part)| ((weight, mine), part)).unzip();
        if parts.is_empty() {
            return Ok(());
        }
        exchange.gather(&mut parts)?;
        for ((weight, mine), part) in weights.into_iter().zip(parts) {
            for row in part.x.chunks_exact_mut(weight.len()) {
                ops::rms_norm(row, weight, h.rms_epsilon);
            }
            // From here on, this member's heads alone are of use.
            let (from, to) = (mine.start * h.head_dim, mine.end * h.head_dim);
            for i in 0..part.n {
                let row = i * weight.len();
                part.x.copy_within(row + from..row + to, i * (to - from));
            }
            part.x.truncate(part.n * (to - from));
        }
        Ok(())
    }
}
