//! The forward pass: tokens in, hidden states and logits out.

use crate::error::Result;
use crate::kv_cache::KvCache;
use crate::model::{FeedForward, Ffn, Layer, Linear, Mixture, Model};
use crate::ops;
use crate::quant::Activations;
use crate::rope::Angles;

/// Tokens that go through the layers together.
pub(crate) const BATCH_MAX: usize = 64;

/// Computes `tokens`, which stand at positions from `position` on, fills the
/// cache, and returns the logits behind the last of them.
///
/// There are 1 to [`BATCH_MAX`] tokens, all inside the vocabulary, and the
/// cache has room for them.
pub(crate) fn forward(
    model: &Model,
    cache: &mut KvCache,
    position: usize,
    tokens: &[u32],
) -> Result<Vec<f32>> {
    assert!((1..=BATCH_MAX).contains(&tokens.len()));
    let n_embd = model.h.n_embd;
    let mut pass = Pass {
        model,
        position,
        all: (0..tokens.len()).collect(),
        angles: model.rope.angles(position, tokens.len()),
        activations: Activations::default(),
        hidden: vec![0.0; tokens.len() * n_embd],
    };
    for (&token, row) in tokens.iter().zip(pass.hidden.chunks_exact_mut(n_embd)) {
        model.embedding.dequantize_row(token as usize, row);
    }
    for (i, layer) in model.layers.iter().enumerate() {
        pass.attention(cache, i, layer);
        pass.ffn(i, layer)?;
    }
    let mut last = pass.hidden[(tokens.len() - 1) * n_embd..].to_vec();
    ops::rms_norm(&mut last, &model.output_norm, model.h.rms_epsilon);
    pass.activations.set(&last, n_embd);
    Ok(linear(model.output(), &pass.activations, &[0]))
}

/// A batch on its way through the layers.
struct Pass<'a> {
    model: &'a Model,
    /// Position of the first token.
    position: usize,
    /// Index of each token in the batch.
    all: Vec<usize>,
    angles: Angles,
    activations: Activations,
    /// The residual stream: `[n_tokens][n_embd]`.
    hidden: Vec<f32>,
}

impl Pass<'_> {
    /// Normalises the hidden states and takes them as activations.
    fn normalize(&mut self, weight: &[f32]) -> Vec<f32> {
        let h = &self.model.h;
        let mut x = self.hidden.clone();
        for row in x.chunks_exact_mut(h.n_embd) {
            ops::rms_norm(row, weight, h.rms_epsilon);
        }
        self.activations.set(&x, h.n_embd);
        x
    }

    fn attention(&mut self, cache: &mut KvCache, index: usize, layer: &Layer) {
        let h = &self.model.h;
        self.normalize(&layer.attn_norm);
        let mut q = linear(&layer.q, &self.activations, &self.all);
        let mut k = linear(&layer.k, &self.activations, &self.all);
        let v = linear(&layer.v, &self.activations, &self.all);
        let (width, kv_width) = (h.n_head * h.head_dim, h.kv_heads * h.head_dim);
        let rows = q.chunks_exact_mut(width).zip(k.chunks_exact_mut(kv_width));
        for (i, ((q, k), v)) in rows.zip(v.chunks_exact(kv_width)).enumerate() {
            for (x, norm) in [(&mut *q, &layer.q_norm), (&mut *k, &layer.k_norm)] {
                if let Some(weight) = norm {
                    for part in x.chunks_exact_mut(weight.len()) {
                        ops::rms_norm(part, weight, h.rms_epsilon);
                    }
                }
                x.chunks_exact_mut(h.head_dim).for_each(|head| self.angles.turn(i, head));
            }
            cache.store(index, self.position + i, k, v);
        }
        let mut mixed = vec![0.0; q.len()];
        cache.attend(index, self.position, self.all.len(), &q, &mut mixed);
        self.activations.set(&mixed, width);
        ops::add(&mut self.hidden, &linear(&layer.o, &self.activations, &self.all));
    }

    fn ffn(&mut self, index: usize, layer: &Layer) -> Result<()> {
        let x = self.normalize(&layer.ffn_norm);
        let out = match &layer.ffn {
            Ffn::Dense(network) => self.feed_forward(network),
            Ffn::Mixture(mixture) => self.mixture(index, mixture, &x)?,
        };
        ops::add(&mut self.hidden, &out);
        Ok(())
    }

    fn feed_forward(&self, network: &FeedForward) -> Vec<f32> {
        let mut gate = linear(&network.gate, &self.activations, &self.all);
        let up = linear(&network.up, &self.activations, &self.all);
        ops::swiglu(&mut gate, &up);
        let mut inner = Activations::default();
        inner.set(&gate, network.gate.rows());
        linear(&network.down, &inner, &self.all)
    }

    /// A mixture of experts for the normalised hidden states `x`. Each expert
    /// is visited once, with all the tokens that were routed to it.
    fn mixture(&self, index: usize, mixture: &Mixture, x: &[f32]) -> Result<Vec<f32>> {
        let h = &self.model.h;
        let mut out = match &mixture.shared {
            None => vec![0.0; x.len()],
            Some((network, gate)) => {
                let mut out = self.feed_forward(network);
                let rows = out.chunks_exact_mut(h.n_embd).zip(x.chunks_exact(h.n_embd));
                for (out, x) in rows {
                    let weight = ops::sigmoid(x.iter().zip(gate).map(|(x, g)| x * g).sum());
                    out.iter_mut().for_each(|y| *y *= weight);
                }
                out
            }
        };
        let mut routed: Vec<Vec<(usize, f32)>> = vec![Vec::new(); h.n_expert];
        let mut router_logits = linear(&mixture.router, &self.activations, &self.all);
        for (token, logits) in router_logits.chunks_exact_mut(h.n_expert).enumerate() {
            for (expert, weight) in self.route(logits) {
                routed[expert].push((token, weight));
            }
        }
        // Experts in ascending order: a token's sum has the same order
        // whatever else is in the batch.
        for (expert, chosen) in routed.iter().enumerate().filter(|(_, c)| !c.is_empty()) {
            let tokens: Vec<usize> = chosen.iter().map(|&(token, _)| token).collect();
            let windows =
                self.model.windows.get(&self.model.sources, &mixture.experts, index, expert)?;
            let [gate, up, down] = windows.matrices(&mixture.experts);
            let mut inner = vec![0.0; tokens.len() * h.n_ff_expert];
            let mut factor = inner.clone();
            gate.multiply(&self.activations, &tokens, |i, row, y| {
                inner[i * h.n_ff_expert + row] = y
            });
            up.multiply(&self.activations, &tokens, |i, row, y| {
                factor[i * h.n_ff_expert + row] = y
            });
            ops::swiglu(&mut inner, &factor);
            let mut activations = Activations::default();
            activations.set(&inner, h.n_ff_expert);
            let indices = &self.all[..tokens.len()];
            down.multiply(&activations, indices, |i, row, y| {
                let (token, weight) = chosen[i];
                out[token * h.n_embd + row] += weight * y;
            });
        }
        Ok(out)
    }

    /// The experts that the router picks, with their weights: softmax over
    /// all router logits, then the top `n_expert_used`
    /// ([Mixtral](https://arxiv.org/abs/2401.04088)).
    fn route(&self, logits: &mut [f32]) -> Vec<(usize, f32)> {
        let h = &self.model.h;
        ops::softmax(logits);
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        order.truncate(h.n_expert_used);
        let sum: f32 = order.iter().map(|&e| logits[e]).sum();
        let scale = h.expert_scale / if h.normalize_top_k { sum } else { 1.0 };
        order.into_iter().map(|e| (e, logits[e] * scale)).collect()
    }
}

/// The product of a matrix with the vectors of some tokens, plus its bias:
/// `[tokens.len()][rows]`.
fn linear(linear: &Linear, x: &Activations, tokens: &[usize]) -> Vec<f32> {
    let rows = linear.rows();
    let mut out = vec![0.0; tokens.len() * rows];
    linear.matrix().multiply(x, tokens, |i, row, y| out[i * rows + row] = y);
    if let Some(bias) = &linear.bias {
        out.chunks_exact_mut(rows).for_each(|row| ops::add(row, bias));
    }
    out
}
