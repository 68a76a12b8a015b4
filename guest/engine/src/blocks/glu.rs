//! Gated linear units.

use super::block::Block;
use super::linear::Linear;
use super::loader::Loader;
use super::pass::Pass;
use crate::error::Result;
use crate::ops;
use crate::plan::{Activation, GluPlan};
use crate::takes::{Room, Takes};
use crate::team::{Parts, Split};

/// A gated linear unit, of whose matrices this member has some rows.
pub(crate) struct Glu {
    gate: Linear,
    up: Linear,
    down: Linear,
    activation: Activation,
}

impl Block for Glu {
    type Plan = GluPlan;

    fn takes(plan: &GluPlan, _size: usize) -> Takes {
        let (n_embd, n_ff) = (plan.gate.cols, plan.n_ff());
        Takes {
            vector_len: n_embd.max(n_ff),
            token_len: n_embd.max(n_ff),
            products: 3 * n_embd as u64 * n_ff as u64,
            room: Room { n_ff, ..Room::default() },
            ..Takes::default()
        }
    }

    fn load(plan: &GluPlan, loader: &mut Loader<'_>) -> Result<Self> {
        Ok(Self {
            gate: loader.linear(&plan.gate)?,
            up: loader.linear(&plan.up)?,
            down: loader.linear(&plan.down)?,
            activation: plan.activation,
        })
    }
}

impl Glu {
    /// This member's rows of what the network adds.
    pub fn run(&self, pass: &mut Pass<'_>) -> Result<()> {
        let split = self.inner(pass);
        pass.exchange.gather(&mut [Parts::whole(split, &mut pass.s.gate)])?;
        self.down(pass);
        Ok(())
    }

    /// This member's inner numbers, in `gate`.
    pub fn inner(&self, pass: &mut Pass<'_>) -> Split {
        let s = &mut *pass.s;
        let split = pass.exchange.rows(self.gate.n_rows);
        for (linear, out) in [(&self.gate, &mut s.gate), (&self.up, &mut s.up)] {
            linear.multiply(split.mine(), &s.activations, &s.all, out);
        }
        activate(self.activation, split, &mut s.gate, &s.up);
        split
    }

    /// This member's rows of what the network adds, whose inner numbers are
    /// gathered.
    pub fn down(&self, pass: &mut Pass<'_>) {
        let s = &mut *pass.s;
        let rows = pass.exchange.rows(self.down.n_rows).mine();
        s.inner.take(&mut s.gate, self.down.cols);
        self.down.multiply(rows, &s.inner, &s.all, &mut s.out);
    }
}

/// The inner numbers of this member's part of each vector, in `gate`.
pub(super) fn activate(activation: Activation, split: Split, gate: &mut [f32], up: &[f32]) {
    let n = split.len();
    for (gate, up) in gate.chunks_exact_mut(n).zip(up.chunks_exact(n)) {
        let (gate, up) = (&mut gate[split.mine()], &up[split.mine()]);
        match activation {
            Activation::Swiglu => ops::swiglu(gate, up),
            Activation::Geglu => ops::geglu(gate, up),
            Activation::ClampedSwiglu { alpha, limit } => {
                ops::clamped_swiglu(gate, up, alpha, limit);
            }
        }
    }
}
