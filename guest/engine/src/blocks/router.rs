//! Routers: which experts a token goes through.

use super::block::Block;
use super::linear::Linear;
use super::loader::Loader;
use super::pass::Pass;
use super::picks::Picker;
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
    picker: Picker,
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
        let (matrix, name) = (loader.linear(&plan.matrix)?, plan.matrix.name.clone());
        Ok(Self { matrix, name, picker: Picker::load(plan, loader)? })
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
            self.picker.pick(logits, &mut s.picks);
            self.picker.weigh(logits, &mut s.picks);
            let picked = s.picks.experts.iter().zip(&s.picks.weights);
            let choice = |(&expert, &weight)| Choice { expert, token, weight };
            s.choices.extend(picked.map(choice));
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
        for logits in s.router.chunks_exact_mut(n_expert) {
            self.picker.pick(logits, &mut s.picks);
            s.tokens.extend_from_slice(&s.picks.experts);
        }
        s.tokens.sort_unstable();
        s.tokens.dedup();
    }
}
