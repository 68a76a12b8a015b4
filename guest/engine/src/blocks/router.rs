//! Routers: which experts a token goes through.

use super::block::Block;
use super::linear::Linear;
use super::loader::Loader;
use super::pass::Pass;
use crate::error::{Error, Result};
use crate::experts::Choice;
use crate::ops;
use crate::plan::RouterPlan;
use crate::takes::{Room, Takes};
use crate::team::Parts;

/// A layer's router; every member has all of it.
pub(crate) struct Router {
    matrix: Linear,
    name: String,
    n_used: usize,
    normalize: bool,
    scale: f32,
}

impl Block for Router {
    type Plan = RouterPlan;

    fn takes(plan: &RouterPlan, _size: usize) -> Takes {
        Takes {
            vector_len: plan.matrix.rows,
            room: Room {
                n_expert: plan.matrix.rows,
                n_expert_used: plan.n_used,
                ..Room::default()
            },
            ..Takes::default()
        }
    }

    fn load(plan: &RouterPlan, loader: &mut Loader<'_>) -> Result<Self> {
        let &RouterPlan { n_used, normalize, scale, .. } = plan;
        let (matrix, name) = (loader.linear(&plan.matrix)?, plan.matrix.name.clone());
        Ok(Self { matrix, name, n_used, normalize, scale })
    }
}

impl Router {
    /// Takes down the experts that the router of layer `index` picks, by expert, then by
    /// token.
    pub fn route(&self, pass: &mut Pass<'_>, index: usize) -> Result<()> {
        let (exchange, s) = (pass.exchange, &mut *pass.s);
        let n_expert = self.matrix.n_rows;
        let split = exchange.rows(n_expert);
        self.matrix.multiply(split.mine(), &s.activations, &s.all, &mut s.router);
        exchange.gather(&mut [Parts::whole(split, &mut s.router)])?;
        // An expert whose number is negative infinity would just not be picked.
        if !ops::are_finite(&s.router) {
            return Err(Error::not_finite(format_args!(
                "what the router of layer {index} computes ({})",
                self.name
            )));
        }
        s.choices.clear();
        for (token, logits) in s.router.chunks_exact_mut(n_expert).enumerate() {
            ops::softmax(logits);
            top_k(logits, self.n_used, &mut s.order);
            let sum: f32 = s.order.iter().map(|&e| logits[e]).sum();
            let scale = self.scale / if self.normalize { sum } else { 1.0 };
            s.choices.extend(s.order.iter().map(|&expert| Choice {
                expert,
                token,
                weight: logits[expert] * scale,
            }));
        }
        s.choices.sort_by_key(|choice| choice.expert);
        Ok(())
    }

    /// Takes down in `tokens` which experts the router would pick for the vectors in
    /// `guess`, ascending.
    pub fn guess(&self, pass: &mut Pass<'_>) {
        let s = &mut *pass.s;
        let n_expert = self.matrix.n_rows;
        self.matrix.multiply(0..n_expert, &s.guess, &s.all, &mut s.router);
        s.tokens.clear();
        for logits in s.router.chunks_exact(n_expert) {
            top_k(logits, self.n_used, &mut s.order);
            s.tokens.extend_from_slice(&s.order);
        }
        s.tokens.sort_unstable();
        s.tokens.dedup();
    }
}

/// The indices of the `k` largest numbers, the largest first.
fn top_k(x: &[f32], k: usize, out: &mut Vec<usize>) {
    out.clear();
    out.extend(0..x.len());
    out.sort_by(|&a, &b| x[b].total_cmp(&x[a]));
    out.truncate(k);
}
