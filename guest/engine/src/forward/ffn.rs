//! Feed-forward networks, and mixtures of them.

use super::{Pass, linear};
use crate::error::Result;
use crate::experts::Projection;
use crate::model::{FeedForward, Ffn, Layer, Mixture};
use crate::ops;
use crate::team::Parts;

/// An expert that the router picked for a token.
#[derive(Debug, Clone, Copy)]
pub(super) struct Choice {
    expert: usize,
    token: usize,
    weight: f32,
}

impl Pass<'_> {
    pub(super) fn ffn(&mut self, index: usize, layer: &Layer) -> Result<()> {
        self.normalize(0, &layer.ffn_norm);
        match &layer.ffn {
            Ffn::Dense(network) => self.dense(network)?,
            Ffn::Mixture(mixture) => self.mixture(index, mixture)?,
        }
        self.add_to_hidden()
    }

    fn dense(&mut self, network: &FeedForward) -> Result<()> {
        let split = self.model.exchange.rows(self.model.h.n_ff);
        self.inner(network);
        let s = &mut *self.s;
        self.model.exchange.gather(&mut [Parts { split, n: self.n_tokens, x: &mut s.gate }])?;
        s.inner.set(&s.gate, split.len());
        linear(&network.down, &s.inner, &s.all, &mut s.out);
        Ok(())
    }

    /// This member's inner numbers of a network.
    fn inner(&mut self, network: &FeedForward) {
        let s = &mut *self.s;
        linear(&network.gate, &s.activations, &s.all, &mut s.gate);
        linear(&network.up, &s.activations, &s.all, &mut s.up);
        ops::swiglu(&mut s.gate, &s.up);
    }

    /// A mixture of experts. Each expert is visited once, with all the tokens
    /// that were routed to it, in ascending order: a token's sum has the same
    /// order whatever else is in the batch.
    fn mixture(&mut self, index: usize, mixture: &Mixture) -> Result<()> {
        let (h, exchange) = (&self.model.h, &self.model.exchange);
        let mine = exchange.rows(h.n_embd).mine().len();
        self.route(mixture);
        if let Some((network, _)) = &mixture.shared {
            self.inner(network);
        }
        self.s.out.clear();
        self.s.out.resize(self.n_tokens * mine, 0.0);
        let choices = std::mem::take(&mut self.s.choices);
        // Experts are exchanged as many at a time as fit, and one at least.
        let (mut rest, mut first) = (&choices[..], true);
        while !rest.is_empty() {
            let mut n = 0;
            for group in rest.chunk_by(|a, b| a.expert == b.expert) {
                if n > 0 && (n + group.len()).saturating_mul(h.n_ff_expert) > exchange.len() {
                    break;
                }
                n += group.len();
            }
            let (round, later) = rest.split_at(n);
            rest = later;
            self.experts_inner(index, mixture, round)?;
            let s = &mut *self.s;
            let split = exchange.rows(h.n_ff_expert);
            let experts = Parts { split, n, x: &mut s.expert_gate };
            match &mixture.shared {
                Some((network, gate)) if first => {
                    let split = exchange.rows(h.n_ff_shared);
                    let shared = Parts { split, n: self.n_tokens, x: &mut s.gate };
                    exchange.gather(&mut [shared, experts])?;
                    self.shared_out(network, gate);
                }
                _ => exchange.gather(&mut [experts])?,
            }
            first = false;
            self.experts_out(index, mixture, round)?;
        }
        self.s.choices = choices;
        Ok(())
    }

    /// This member's inner numbers of the chosen experts: a vector for each
    /// choice.
    fn experts_inner(&mut self, index: usize, mixture: &Mixture, round: &[Choice]) -> Result<()> {
        let (model, s) = (self.model, &mut *self.s);
        let layer = &mixture.experts;
        let rows = layer.gate.rows.len();
        s.expert_gate.resize(round.len() * rows, 0.0);
        s.expert_up.resize(round.len() * rows, 0.0);
        if rows == 0 {
            return Ok(());
        }
        let mut done = 0;
        for group in round.chunk_by(|a, b| a.expert == b.expert) {
            s.tokens.clear();
            s.tokens.extend(group.iter().map(|choice| choice.token));
            let projections =
                [(Projection::Gate, &mut s.expert_gate), (Projection::Up, &mut s.expert_up)];
            for (projection, out) in projections {
                let expert = group[0].expert;
                let window = model.windows.get(&model.sources, layer, projection, index, expert)?;
                let matrix = layer.tensor(projection).matrix(&*window);
                let out = &mut out[done * rows..];
                matrix.multiply(&s.activations, &s.tokens, |i, row, y| out[i * rows + row] = y);
            }
            done += group.len();
        }
        ops::swiglu(&mut s.expert_gate, &s.expert_up);
        Ok(())
    }

    /// This member's rows of what the shared expert adds.
    fn shared_out(&mut self, network: &FeedForward, gate: &[f32]) {
        let (h, s) = (&self.model.h, &mut *self.s);
        let mine = network.down.rows.len();
        s.inner.set(&s.gate, h.n_ff_shared);
        linear(&network.down, &s.inner, &s.all, &mut s.out);
        for (i, x) in s.x.chunks_exact(h.n_embd).enumerate() {
            let weight = ops::sigmoid(x.iter().zip(gate).map(|(x, g)| x * g).sum());
            s.out[i * mine..(i + 1) * mine].iter_mut().for_each(|y| *y *= weight);
        }
    }

    /// Adds this member's rows of the chosen experts, whose inner numbers are
    /// gathered.
    fn experts_out(&mut self, index: usize, mixture: &Mixture, round: &[Choice]) -> Result<()> {
        let (model, s) = (self.model, &mut *self.s);
        let layer = &mixture.experts;
        let rows = layer.down.rows.len();
        if rows == 0 {
            return Ok(());
        }
        s.inner.set(&s.expert_gate, model.h.n_ff_expert);
        let mut done = 0;
        for group in round.chunk_by(|a, b| a.expert == b.expert) {
            s.tokens.clear();
            s.tokens.extend(done..done + group.len());
            let expert = group[0].expert;
            let window =
                model.windows.get(&model.sources, layer, Projection::Down, index, expert)?;
            let out = &mut s.out;
            layer.down.matrix(&*window).multiply(&s.inner, &s.tokens, |i, row, y| {
                let Choice { token, weight, .. } = group[i];
                out[token * rows + row] += weight * y;
            });
            done += group.len();
        }
        Ok(())
    }

    /// Takes down the experts that the router picks, by expert, then by token:
    /// softmax over all router logits, then the top `n_expert_used`
    /// ([Mixtral](https://arxiv.org/abs/2401.04088)).
    fn route(&mut self, mixture: &Mixture) {
        let (h, s) = (&self.model.h, &mut *self.s);
        linear(&mixture.router, &s.activations, &s.all, &mut s.router);
        s.choices.clear();
        for (token, logits) in s.router.chunks_exact_mut(h.n_expert).enumerate() {
            ops::softmax(logits);
            s.order.clear();
            s.order.extend(0..logits.len());
            s.order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
            s.order.truncate(h.n_expert_used);
            let sum: f32 = s.order.iter().map(|&e| logits[e]).sum();
            let scale = h.expert_scale / if h.normalize_top_k { sum } else { 1.0 };
            s.choices.extend(s.order.iter().map(|&expert| Choice {
                expert,
                token,
                weight: logits[expert] * scale,
            }));
        }
        s.choices.sort_by_key(|choice| choice.expert);
    }
}
