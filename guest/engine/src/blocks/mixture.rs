//! Mixtures of experts.

use super::block::Block;
use super::glu::{Glu, activate};
use super::linear::Linear;
use super::loader::Loader;
use super::norm::Norm;
use super::pass::Pass;
use super::router::Router;
use super::scratch::N_PREDICTED_MAX;
use crate::error::Result;
use crate::experts::{Choice, Demand, ExpertLayer, Projection};
use crate::ops;
use crate::plan::{Activation, ExpertsPlan, MixturePlan, SharedPlan, Weigh};
use crate::quant::put_numbers;
use crate::takes::{Room, Takes};
use crate::team::Parts;

/// A mixture of experts.
pub(crate) struct Mixture {
    pub router: Router,
    pub experts: ExpertLayer,
    /// Of the matrices gate, up and down: a row for each expert.
    biases: [Option<Linear>; 3],
    activation: Activation,
    weigh: Weigh,
    shared: Option<Shared>,
}

/// The expert that every token goes through, and the vector that gates it.
struct Shared {
    glu: Glu,
    gate: Option<Vec<f32>>,
}

/// The router of the layer behind a mixture's, and the norm of what it sees.
pub(crate) struct Next<'a> {
    pub index: usize,
    pub norm: Option<&'a Norm>,
    pub router: &'a Router,
}

impl Block for Mixture {
    type Plan = MixturePlan;

    fn takes(plan: &MixturePlan, size: usize) -> Takes {
        let (n_embd, n_ff, n_used) = (plan.gate.cols, plan.n_ff(), plan.router.n_used);
        let shared = plan.shared.as_ref().map(|shared| &shared.glu);
        let n_ff_shared = shared.map_or(0, |glu| glu.n_ff());
        let biases = [&plan.gate, &plan.up, &plan.down].map(|experts| &experts.bias);
        let bias = biases.into_iter().flatten().map(|bias| bias.cols).max().unwrap_or(0);
        let experts = Takes {
            vector_len: n_embd.max(n_ff),
            token_len: n_used.saturating_mul(n_ff).saturating_add(n_ff_shared).max(n_embd),
            expert_products: 3 * n_embd as u64 * n_ff as u64 * n_used as u64,
            room: Room { n_ff_expert: n_ff, expert_bias: bias, ..Room::default() },
            ..Takes::default()
        };
        let shared = shared.map_or_else(Takes::default, |glu| Glu::takes(glu, size));
        experts.and(shared).and(Router::takes(&plan.router, size))
    }

    fn load(plan: &MixturePlan, loader: &mut Loader<'_>) -> Result<Self> {
        let shared = plan.shared.as_ref().map(|SharedPlan { glu, gate }| -> Result<Shared> {
            let glu = Glu::load(glu, loader)?;
            let gate = gate.as_ref().map(|gate| loader.vector(gate)).transpose()?;
            Ok(Shared { glu, gate })
        });
        let shared = shared.transpose()?;
        let router = Router::load(&plan.router, loader)?;
        let mut bias = |experts: &ExpertsPlan| {
            experts.bias.as_ref().map(|bias| loader.linear(bias)).transpose()
        };
        let biases = [bias(&plan.gate)?, bias(&plan.up)?, bias(&plan.down)?];
        let experts = loader.experts(plan)?;
        Ok(Self { shared, router, biases, experts, activation: plan.activation, weigh: plan.weigh })
    }
}

impl Mixture {
    /// This member's rows of what the mixture of layer `index` adds. Each expert is
    /// visited once, with all the tokens that were routed to it, and added in ascending
    /// order: a token's sum has the same order whatever else is in the batch.
    pub fn run(&self, pass: &mut Pass<'_>, index: usize, next: Option<Next<'_>>) -> Result<()> {
        self.router.route(pass, index)?;
        self.run_routed(pass, index, next)
    }

    /// The same when the router has made its choices.
    pub fn run_routed(
        &self,
        pass: &mut Pass<'_>,
        index: usize,
        next: Option<Next<'_>>,
    ) -> Result<()> {
        let choices = std::mem::take(&mut pass.s.choices);
        let rounds = self.rounds(pass, &choices);
        let (experts, sources) = (pass.experts, pass.sources);
        let demand = |round: &[Choice]| {
            let choices = round.iter().map(|choice| (choice.expert, choice.token));
            experts.demand(sources, &self.experts, index, choices)
        };
        for (i, round) in rounds.iter().enumerate() {
            // A round may take as long as a layer that has one.
            if i > 0 {
                pass.exchange.go_on()?;
            }
            let demand = demand(round)?;
            match rounds.get(i + 1) {
                Some(round) => announce(pass, index, round),
                None => {
                    if let Some(next) = &next {
                        predict(pass, next);
                    }
                }
            }
            self.round(pass, &demand, round, i == 0)?;
            demand.release()?;
        }
        pass.s.choices = choices;
        Ok(())
    }

    /// Computes the choices of one round, in the first one the shared expert too.
    fn round(
        &self,
        pass: &mut Pass<'_>,
        demand: &Demand<'_>,
        round: &[Choice],
        is_first: bool,
    ) -> Result<()> {
        let shared = self.shared.as_ref().filter(|_| is_first);
        let shared_split = shared.map(|shared| shared.glu.inner(pass));
        if is_first {
            pass.s.out.clear();
            pass.s.out.resize(pass.n_tokens * pass.n_embd, 0.0);
        }
        let groups: Vec<_> = round.chunk_by(|a, b| a.expert == b.expert).collect();
        self.inner(pass, demand, &groups)?;
        let s = &mut *pass.s;
        let split = pass.exchange.rows(self.experts.gate.n_rows);
        let experts = Parts::whole(split, &mut s.expert_gate);
        match (shared, shared_split) {
            (Some(shared), Some(split)) => {
                let parts = Parts::whole(split, &mut s.gate);
                pass.exchange.gather(&mut [parts, experts])?;
                shared.out(pass);
            }
            _ => pass.exchange.gather(&mut [experts])?,
        }
        self.out(pass, demand, &groups)
    }

    /// Choices that are computed together: of as many experts as can be demanded
    /// at once and whose inner numbers can be exchanged, and of one at least.
    fn rounds<'a>(&self, pass: &Pass<'_>, choices: &'a [Choice]) -> Vec<&'a [Choice]> {
        let n_max = pass.experts.n_demand_max();
        let (mut rounds, mut rest) = (Vec::new(), choices);
        while !rest.is_empty() {
            let (mut n, mut n_experts) = (0, 0);
            for group in rest.chunk_by(|a, b| a.expert == b.expert) {
                let len = (n + group.len()).saturating_mul(self.experts.gate.n_rows);
                if n > 0 && (len > pass.exchange.len() || n_experts == n_max) {
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

    /// This member's inner numbers of the chosen experts: a vector for each
    /// choice, whatever the order in which the experts come.
    fn inner(&self, pass: &mut Pass<'_>, demand: &Demand<'_>, groups: &[&[Choice]]) -> Result<()> {
        let s = &mut *pass.s;
        let split = pass.exchange.rows(self.experts.gate.n_rows);
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
            if self.weigh == Weigh::Before {
                // What a matrix makes of a vector times a number is as many times as much.
                for (at, choice) in (first..).zip(groups[i]) {
                    for out in [&mut s.expert_gate, &mut s.expert_up] {
                        ops::scale(&mut out[at * width..][rows.clone()], choice.weight);
                    }
                }
            }
            let [gate, up, _] = &self.biases;
            for (biases, out) in [(gate, &mut s.expert_gate), (up, &mut s.expert_up)] {
                let Some(biases) = biases else { continue };
                s.bias.resize(width, 0.0);
                biases.dequantize_row(groups[i][0].expert, &mut s.bias);
                for at in first..first + groups[i].len() {
                    ops::add(&mut out[at * width..][rows.clone()], &s.bias[rows.clone()]);
                }
            }
        }
        activate(self.activation, split, &mut s.expert_gate, &s.expert_up);
        Ok(())
    }

    /// Adds this member's rows of the chosen experts, whose inner numbers are
    /// gathered.
    fn out(&self, pass: &mut Pass<'_>, demand: &Demand<'_>, groups: &[&[Choice]]) -> Result<()> {
        let (n_embd, s) = (pass.n_embd, &mut *pass.s);
        let down = &self.experts.down;
        if down.rows.is_empty() {
            return Ok(());
        }
        s.inner.take(&mut s.expert_gate, down.cols);
        let mut done = 0;
        for (i, group) in groups.iter().enumerate() {
            s.tokens.clear();
            s.tokens.extend(done..done + group.len());
            let expert = demand.rows(i, group[0].expert)?;
            let weight = |choice: &Choice| match self.weigh {
                Weigh::Before => 1.0,
                Weigh::After => choice.weight,
            };
            if let [.., Some(biases)] = &self.biases {
                s.bias.resize(n_embd, 0.0);
                biases.dequantize_row(group[0].expert, &mut s.bias);
                for choice in *group {
                    let out = &mut s.out[choice.token * n_embd..][down.rows.clone()];
                    ops::add_scaled(out, &s.bias[down.rows.clone()], weight(choice));
                }
            }
            let out = &mut s.out[down.rows.start..];
            expert.matrix(Projection::Down).multiply(&s.inner, &s.tokens, |i, row, y| {
                let weight = weight(&group[i]);
                let out = &mut out[group[i].token * n_embd + row..][..y.len()];
                out.iter_mut().zip(y).for_each(|(out, y)| *out += weight * y);
            });
            done += group.len();
        }
        Ok(())
    }
}

impl Shared {
    /// This member's rows of what the shared expert adds, whose inner numbers are
    /// gathered.
    fn out(&self, pass: &mut Pass<'_>) {
        self.glu.down(pass);
        let Some(gate) = &self.gate else { return };
        let s = &mut *pass.s;
        let rows = pass.exchange.rows(pass.n_embd).mine();
        for (i, out) in s.out.chunks_exact_mut(pass.n_embd).enumerate() {
            let x = s.activations.vector(i).iter();
            let weight = ops::sigmoid(x.zip(gate).map(|(x, g)| x * g).sum());
            out[rows.clone()].iter_mut().for_each(|y| *y *= weight);
        }
    }
}

/// Says which experts of layer `index` come next.
fn announce(pass: &mut Pass<'_>, index: usize, round: &[Choice]) {
    if !pass.experts.prefetches() || !pass.exchange.is_first() {
        return;
    }
    let order = &mut pass.s.order;
    order.clear();
    order.extend(round.iter().map(|choice| choice.expert));
    order.dedup();
    pass.experts.prefetch(index, order);
}

/// Says which experts the next layer will probably want: those that its router picks
/// for the hidden states as they are now, before this layer has added anything to them
/// ([Eliseev and Mazur, 2023](https://arxiv.org/abs/2312.17238)).
fn predict(pass: &mut Pass<'_>, next: &Next<'_>) {
    if !pass.experts.prefetches() || !pass.exchange.is_first() || pass.n_tokens > N_PREDICTED_MAX {
        return;
    }
    let s = &mut *pass.s;
    s.guess_x.clear();
    s.guess_x.extend_from_slice(&s.hidden);
    if let Some(norm) = next.norm {
        norm.apply(&mut s.guess_x);
    }
    s.guess.take(&mut s.guess_x, pass.n_embd);
    next.router.guess(pass);
    pass.experts.prefetch(next.index, &pass.s.tokens);
}
