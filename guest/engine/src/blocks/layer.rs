//! Layers: what is added to the hidden states, one after the other.

use super::attention::Attention;
use super::block::Block;
use super::glu::Glu;
use super::latent::LatentAttention;
use super::loader::Loader;
use super::mixture::{Mixture, Next};
use super::norm::Norm;
use super::pass::Pass;
use crate::error::Result;
use crate::experts::ExpertLayer;
use crate::kv_cache::LayerCache;
use crate::ops;
use crate::plan::{self, BothPlan, FfnPlan, LayerPlan, MixPlan, NormPlan};
use crate::takes::Takes;

/// A layer of a model.
pub(crate) struct Layer {
    mix: Residual<Mix>,
    ffn: Residual<Ffn>,
    scale: Option<f32>,
}

/// What mixes tokens.
enum Mix {
    Attention(Box<Attention>),
    Latent(Box<LatentAttention>),
}

/// What each token goes through alone.
enum Ffn {
    Dense(Box<Glu>),
    Mixture(Box<Mixture>),
    Both(Box<Both>),
}

/// A dense network and a mixture, whose outputs are added.
struct Both {
    dense: Residual<Glu>,
    router: Norm,
    mixture: Residual<Mixture>,
}

/// What is added to the hidden states, with the norms before and behind it.
struct Residual<B> {
    before: Option<Norm>,
    op: B,
    after: Option<Norm>,
    scale: f32,
}

impl Block for Layer {
    type Plan = LayerPlan;

    fn takes(plan: &LayerPlan, size: usize) -> Takes {
        Residual::<Mix>::takes(&plan.mix, size).and(Residual::<Ffn>::takes(&plan.ffn, size))
    }

    fn load(plan: &LayerPlan, loader: &mut Loader<'_>) -> Result<Self> {
        let scale = plan.scale.as_ref().map(|scale| loader.vector(scale)).transpose()?;
        Ok(Self {
            mix: Residual::load(&plan.mix, loader)?,
            ffn: Residual::load(&plan.ffn, loader)?,
            scale: scale.and_then(|scale| scale.first().copied()),
        })
    }
}

impl<B: Block> Block for Residual<B> {
    type Plan = plan::Residual<B::Plan>;

    fn takes(plan: &Self::Plan, size: usize) -> Takes {
        B::takes(&plan.op, size)
    }

    fn load(plan: &Self::Plan, loader: &mut Loader<'_>) -> Result<Self> {
        let mut norm = |plan: &Option<NormPlan>| {
            plan.as_ref().map(|plan| Norm::load(plan, loader)).transpose()
        };
        let (before, after) = (norm(&plan.before)?, norm(&plan.after)?);
        Ok(Self { before, op: B::load(&plan.op, loader)?, after, scale: plan.scale })
    }
}

impl Block for Mix {
    type Plan = MixPlan;

    fn takes(plan: &MixPlan, size: usize) -> Takes {
        match plan {
            MixPlan::Attention(plan) => Attention::takes(plan, size),
            MixPlan::Latent(plan) => LatentAttention::takes(plan, size),
        }
    }

    fn load(plan: &MixPlan, loader: &mut Loader<'_>) -> Result<Self> {
        Ok(match plan {
            MixPlan::Attention(plan) => Self::Attention(Box::new(Attention::load(plan, loader)?)),
            MixPlan::Latent(plan) => Self::Latent(Box::new(LatentAttention::load(plan, loader)?)),
        })
    }
}

impl Block for Ffn {
    type Plan = FfnPlan;

    fn takes(plan: &FfnPlan, size: usize) -> Takes {
        match plan {
            FfnPlan::Dense(plan) => Glu::takes(plan, size),
            FfnPlan::Mixture(plan) => Mixture::takes(plan, size),
            FfnPlan::Both(plan) => Both::takes(plan, size),
        }
    }

    fn load(plan: &FfnPlan, loader: &mut Loader<'_>) -> Result<Self> {
        Ok(match plan {
            FfnPlan::Dense(plan) => Self::Dense(Box::new(Glu::load(plan, loader)?)),
            FfnPlan::Mixture(plan) => Self::Mixture(Box::new(Mixture::load(plan, loader)?)),
            FfnPlan::Both(plan) => Self::Both(Box::new(Both::load(plan, loader)?)),
        })
    }
}

impl Block for Both {
    type Plan = BothPlan;

    fn takes(plan: &BothPlan, size: usize) -> Takes {
        let (dense, mixture) = (Glu::takes(&plan.dense.op, size), &plan.mixture.op);
        let mut takes = dense.and(Mixture::takes(mixture, size));
        takes.room.sum = mixture.gate.cols;
        takes
    }

    fn load(plan: &BothPlan, loader: &mut Loader<'_>) -> Result<Self> {
        Ok(Self {
            dense: Residual::load(&plan.dense, loader)?,
            router: Norm::load(&plan.router, loader)?,
            mixture: Residual::load(&plan.mixture, loader)?,
        })
    }
}

impl Both {
    /// What both networks add, of all members, and the same for `index` and `next` as in
    /// a [`Mixture`].
    fn run(&self, pass: &mut Pass<'_>, index: usize, next: Option<Next<'_>>) -> Result<()> {
        self.dense.run(pass, Glu::run)?;
        std::mem::swap(&mut pass.s.sum, &mut pass.s.out);
        pass.normalize(0, Some(&self.router));
        self.mixture.op.router.route(pass, index)?;
        self.mixture.run(pass, |mixture, pass| mixture.run_routed(pass, index, next))?;
        ops::add(&mut pass.s.out, &pass.s.sum);
        Ok(())
    }
}

impl<B> Residual<B> {
    /// Has `run` compute the block, and leaves what it adds in `out`, before it is scaled.
    fn run(
        &self,
        pass: &mut Pass<'_>,
        run: impl FnOnce(&B, &mut Pass<'_>) -> Result<()>,
    ) -> Result<()> {
        pass.normalize(0, self.before.as_ref());
        run(&self.op, pass)?;
        pass.gather_out(self.after.as_ref())
    }

    /// Adds what the block computes to the hidden states.
    fn add(
        &self,
        pass: &mut Pass<'_>,
        run: impl FnOnce(&B, &mut Pass<'_>) -> Result<()>,
    ) -> Result<()> {
        self.run(pass, run)?;
        pass.add_to_hidden(self.scale);
        Ok(())
    }
}

impl Layer {
    /// What a session remembers of this layer, with no token yet.
    pub fn cache(&self) -> LayerCache {
        match &self.mix.op {
            Mix::Attention(attention) => attention.cache(),
            Mix::Latent(attention) => attention.cache(),
        }
    }

    /// The layer's experts, if it has any.
    pub fn experts(&self) -> Option<&ExpertLayer> {
        match &self.ffn.op {
            Ffn::Dense(_) => None,
            Ffn::Mixture(mixture) => Some(&mixture.experts),
            Ffn::Both(both) => Some(&both.mixture.op.experts),
        }
    }

    /// Computes layer `index`, and remembers the batch in `cache`; `next` is the layer
    /// behind it.
    pub fn run(
        &self,
        pass: &mut Pass<'_>,
        index: usize,
        cache: &mut LayerCache,
        next: Option<&Self>,
    ) -> Result<()> {
        pass.exchange.go_on()?;
        self.mix.add(pass, |mix, pass| match mix {
            Mix::Attention(attention) => attention.run(pass, cache),
            Mix::Latent(attention) => attention.run(pass, cache),
        })?;
        pass.check_finite(index, "attn").map_err(|error| match cache.is_limited() {
            true => error.and("; `--kv f32` holds larger keys and values"),
            false => error,
        })?;
        pass.exchange.go_on()?;
        let next = next.and_then(|next| next.asked_early(index + 1));
        self.ffn.add(pass, |ffn, pass| match ffn {
            Ffn::Dense(glu) => glu.run(pass),
            Ffn::Mixture(mixture) => mixture.run(pass, index, next),
            Ffn::Both(both) => both.run(pass, index, next),
        })?;
        if let Some(scale) = self.scale {
            ops::scale(&mut pass.s.hidden, scale);
        }
        pass.check_finite(index, "ffn")
    }

    /// The router of this layer, which is number `index`, if it has one.
    fn asked_early(&self, index: usize) -> Option<Next<'_>> {
        match &self.ffn.op {
            Ffn::Dense(_) => None,
            Ffn::Mixture(mixture) => {
                Some(Next { index, norm: self.ffn.before.as_ref(), router: &mixture.router })
            }
            Ffn::Both(both) => {
                let router = &both.mixture.op.router;
                Some(Next { index, norm: Some(&both.router), router })
            }
        }
    }
}
