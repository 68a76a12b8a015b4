//! Feed-forward networks, and mixtures of them.

use super::{Pass, multiply};
use crate::error::{Error, Result};
use crate::experts::{Demand, Projection};
use crate::model::{FeedForward, Ffn, Layer, Linear, Mixture};
use crate::ops;
use crate::quant::put_numbers;
use crate::team::{Parts, Split};

/// The most tokens for which the next layer's experts are predicted: many tokens
/// want nearly all of them.
pub(super) const N_PREDICTED_MAX: usize = 4;

/// An expert that the router picked for a token.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Choice {
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
        let split = self.inner(network);
        let s = &mut *self.s;
        self.model.exchange.gather(&mut [Parts::whole(split, &mut s.gate)])?;
        self.down(&network.down);
        Ok(())
    }

    /// This member's inner numbers of a network.
    fn inner(&mut self, network: &FeedForward) -> Split {
        let s = &mut *self.s;
        let split = self.model.exchange.rows(network.gate.n_rows);
        for (linear, out) in [(&network.gate, &mut s.gate), (&network.up, &mut s.up)] {
            multiply(linear, split.mine(), &s.activations, &s.all, out);
        }
        swiglu(split, &mut s.gate, &s.up);
        split
    }

    /// This member's rows of what a network adds, whose inner numbers are
    /// gathered.
    fn down(&mut self, down: &Linear) {
        let s = &mut *self.s;
        let rows = self.model.exchange.rows(down.n_rows).mine();
        s.inner.take(&mut s.gate, down.cols);
        multiply(down, rows, &s.inner, &s.all, &mut s.out);
    }

    /// A mixture of experts. Each expert is visited once, with all the tokens
    /// that were routed to it, and added in ascending order: a token's sum has
    /// the same order whatever else is in the batch.
    fn mixture(&mut self, index: usize, mixture: &Mixture) -> Result<()> {
        let (model, exchange) = (self.model, &self.model.exchange);
        let h = &model.h;
        self.route(index, mixture)?;
        let choices = std::mem::take(&mut self.s.choices);
        let rounds = self.rounds(&choices);
        let demand = |round: &[Choice]| {
            let choices = round.iter().map(|choice| (choice.expert, choice.token));
            model.experts.demand(&model.sources, &mixture.experts, index, choices)
        };
        for (i, round) in rounds.iter().enumerate() {
            // A round may take as long as a layer that has one.
            if i > 0 {
                exchange.go_on()?;
            }
            let demand = demand(round)?;
            match rounds.get(i + 1) {
                Some(next) => self.announce(index, next),
                None => self.predict(index + 1),
            }
            if i == 0 {
                if let Some((network, _)) = &mixture.shared {
                    self.inner(network);
                }
                self.s.out.clear();
                self.s.out.resize(self.n_tokens * h.n_embd, 0.0);
            }
            let groups: Vec<_> = round.chunk_by(|a, b| a.expert == b.expert).collect();
            self.experts_inner(mixture, &demand, &groups)?;
            let s = &mut *self.s;
            let split = exchange.rows(h.n_ff_expert);
            let experts = Parts::whole(split, &mut s.expert_gate);
            match &mixture.shared {
                Some((network, gate)) if i == 0 => {
                    let split = exchange.rows(h.n_ff_shared);
                    let shared = Parts::whole(split, &mut s.gate);
                    exchange.gather(&mut [shared, experts])?;
                    self.shared_out(network, gate);
                }
                _ => exchange.gather(&mut [experts])?,
            }
            self.experts_out(mixture, &demand, &groups)?;
            demand.release()?;
        }
        self.s.choices = choices;
        Ok(())
    }

    /// Choices that are computed together: of as many experts as can be demanded
    /// at once and whose inner numbers can be exchanged, and of one at least.
    fn rounds<'a>(&self, choices: &'a [Choice]) -> Vec<&'a [Choice]> {
        let (h, n_max) = (&self.model.h, self.model.experts.n_demand_max());
        let (mut rounds, mut rest) = (Vec::new(), choices);
        while !rest.is_empty() {
            let (mut n, mut n_experts) = (0, 0);
            for group in rest.chunk_by(|a, b| a.expert == b.expert) {
                let len = (n + group.len()).saturating_mul(h.n_ff_expert);
                if n > 0 && (len > self.model.exchange.len() || n_experts == n_max) {
                    break;
                }
                n += group.len();
                n_experts += 1;
            }
            let (round, later) = rest.split_at(n);
            rounds.push(round);
            rest = later;
        }
        rounds
    }

    /// Says which experts of the same layer come next.
    fn announce(&mut self, index: usize, next: &[Choice]) {
        let experts = &self.model.experts;
        if !experts.prefetches() || !self.model.exchange.is_first() {
            return;
        }
        let order = &mut self.s.order;
        order.clear();
        order.extend(next.iter().map(|choice| choice.expert));
        order.dedup();
        experts.prefetch(index, order);
    }

    /// Says which experts layer `index` will probably want: those that its
    /// router picks for the hidden states as they are now, before this layer
    /// has added anything to them
    /// ([Eliseev and Mazur, 2023](https://arxiv.org/abs/2312.17238)).
    fn predict(&mut self, index: usize) {
        let model = self.model;
        if !model.experts.prefetches()
            || !model.exchange.is_first()
            || self.n_tokens > N_PREDICTED_MAX
        {
            return;
        }
        let Some(layer) = model.layers.get(index) else { return };
        let Ffn::Mixture(next) = &layer.ffn else { return };
        let (h, s) = (&model.h, &mut *self.s);
        s.guess_x.clear();
        s.guess_x.extend_from_slice(&s.hidden);
        for row in s.guess_x.chunks_exact_mut(h.n_embd) {
            ops::rms_norm(row, &layer.ffn_norm, h.rms_epsilon);
        }
        s.guess.take(&mut s.guess_x, h.n_embd);
        multiply(&next.router, 0..h.n_expert, &s.guess, &s.all, &mut s.router);
        s.tokens.clear();
        for logits in s.router.chunks_exact(h.n_expert) {
            top_k(logits, h.n_expert_used, &mut s.order);
            s.tokens.extend_from_slice(&s.order);
        }
        s.tokens.sort_unstable();
        s.tokens.dedup();
        model.experts.prefetch(index, &s.tokens);
    }

    /// This member's inner numbers of the chosen experts: a vector for each
    /// choice, whatever the order in which the experts come.
    fn experts_inner(
        &mut self,
        mixture: &Mixture,
        demand: &Demand<'_>,
        groups: &[&[Choice]],
    ) -> Result<()> {
        let s = &mut *self.s;
        let layer = &mixture.experts;
        let split = self.model.exchange.rows(layer.gate.n_rows);
        let (width, rows) = (split.len(), split.mine());
        let n: usize = groups.iter().map(|group| group.len()).sum();
        s.expert_gate.resize(n * width, 0.0);
        s.expert_up.resize(n * width, 0.0);
        for i in demand.order(groups.len()) {
            demand.wait(i)?;
            if rows.is_empty() {
                continue;
            }
            let first: usize = groups[..i].iter().map(|group| group.len()).sum();
            s.tokens.clear();
            s.tokens.extend(groups[i].iter().map(|choice| choice.token));
            let expert = demand.rows(i, groups[i][0].expert)?;
            let projections =
                [(Projection::Gate, &mut s.expert_gate), (Projection::Up, &mut s.expert_up)];
            for (projection, out) in projections {
                let matrix = expert.matrix(projection);
                let out = &mut out[first * width + rows.start..];
                matrix.multiply(&s.activations, &s.tokens, |i, row, y| {
                    put_numbers(&mut out[i * width + row..], y);
                });
            }
        }
        swiglu(split, &mut s.expert_gate, &s.expert_up);
        Ok(())
    }

    /// This member's rows of what the shared expert adds.
    fn shared_out(&mut self, network: &FeedForward, gate: &[f32]) {
        self.down(&network.down);
        let (h, exchange, s) = (&self.model.h, &self.model.exchange, &mut *self.s);
        let rows = exchange.rows(h.n_embd).mine();
        for (i, out) in s.out.chunks_exact_mut(h.n_embd).enumerate() {
            let x = s.activations.vector(i).iter();
            let weight = ops::sigmoid(x.zip(gate).map(|(x, g)| x * g).sum());
            out[rows.clone()].iter_mut().for_each(|y| *y *= weight);
        }
    }

    /// Adds this member's rows of the chosen experts, whose inner numbers are
    /// gathered.
    fn experts_out(
        &mut self,
        mixture: &Mixture,
        demand: &Demand<'_>,
        groups: &[&[Choice]],
    ) -> Result<()> {
        let (h, s) = (&self.model.h, &mut *self.s);
        let layer = &mixture.experts;
        let rows = &layer.down.rows;
        if rows.is_empty() {
            return Ok(());
        }
        s.inner.take(&mut s.expert_gate, h.n_ff_expert);
        let mut done = 0;
        for (i, group) in groups.iter().enumerate() {
            s.tokens.clear();
            s.tokens.extend(done..done + group.len());
            let expert = demand.rows(i, group[0].expert)?;
            let out = &mut s.out[rows.start..];
            expert.matrix(Projection::Down).multiply(&s.inner, &s.tokens, |i, row, y| {
                let Choice { token, weight, .. } = group[i];
                let out = &mut out[token * h.n_embd + row..][..y.len()];
                out.iter_mut().zip(y).for_each(|(out, y)| *out += weight * y);
            });
            done += group.len();
        }
        Ok(())
    }

    /// Takes down the experts that the router picks, by expert, then by token:
    /// softmax over all router logits, then the top `n_expert_used`
    /// ([Mixtral](https://arxiv.org/abs/2401.04088)).
    fn route(&mut self, index: usize, mixture: &Mixture) -> Result<()> {
        let (h, exchange, s) = (&self.model.h, &self.model.exchange, &mut *self.s);
        let split = exchange.rows(h.n_expert);
        multiply(&mixture.router, split.mine(), &s.activations, &s.all, &mut s.router);
        exchange.gather(&mut [Parts::whole(split, &mut s.router)])?;
        // An expert whose number is negative infinity would just not be picked.
        if !ops::are_finite(&s.router) {
            return Err(Error::not_finite(format_args!(
                "what the router of layer {index} computes (blk.{index}.ffn_gate_inp.weight)"
            )));
        }
        s.choices.clear();
        for (token, logits) in s.router.chunks_exact_mut(h.n_expert).enumerate() {
            ops::softmax(logits);
            top_k(logits, h.n_expert_used, &mut s.order);
            let sum: f32 = s.order.iter().map(|&e| logits[e]).sum();
            let scale = h.expert_scale / if h.normalize_top_k { sum } else { 1.0 };
            s.choices.extend(s.order.iter().map(|&expert| Choice {
                expert,
                token,
                weight: logits[expert] * scale,
            }));
        }
        s.choices.sort_by_key(|choice| choice.expert);
        Ok(())
    }
}

/// [`ops::swiglu`] of this member's part of each vector.
fn swiglu(split: Split, gate: &mut [f32], up: &[f32]) {
    let n = split.len();
    for (gate, up) in gate.chunks_exact_mut(n).zip(up.chunks_exact(n)) {
        ops::swiglu(&mut gate[split.mine()], &up[split.mine()]);
    }
}

/// The indices of the `k` largest numbers, the largest first.
fn top_k(x: &[f32], k: usize, out: &mut Vec<usize>) {
    out.clear();
    out.extend(0..x.len());
    out.sort_by(|&a, &b| x[b].total_cmp(&x[a]));
    out.truncate(k);
}
