//! Layers: what is added to the hidden states, one after the other.

use super::attention::Attention;
use super::block::Block;
use super::glu::Glu;
use super::loader::Loader;
use super::mixture::{Mixture, Next};
use super::norm::Norm;
use super::pass::Pass;
use crate::error::Result;
use crate::experts::ExpertLayer;
use crate::kv_cache::LayerCache;
use crate::plan::{self, FfnPlan, LayerPlan, MixPlan, NormPlan};
use crate::takes::Takes;

/// A layer of a model.
pub(crate) struct Layer {
    mix: Residual<Mix>,
    ffn: Residual<Ffn>,
}

/// What mixes tokens.
enum Mix {
    Attention(Attention),
}

/// What each token goes through alone.
enum Ffn {
    Dense(Box<Glu>),
    Mixture(Box<Mixture>),
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
        Ok(Self {
            mix: Residual::load(&plan.mix, loader)?,
            ffn: Residual::load(&plan.ffn, loader)?,
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
        }
    }

    fn load(plan: &MixPlan, loader: &mut Loader<'_>) -> Result<Self> {
        match plan {
            MixPlan::Attention(plan) => Attention::load(plan, loader).map(Self::Attention),
        }
    }
}

impl Block for Ffn {
    type Plan = FfnPlan;

    fn takes(plan: &FfnPlan, size: usize) -> Takes {
        match plan {
            FfnPlan::Dense(plan) => Glu::takes(plan, size),
            FfnPlan::Mixture(plan) => Mixture::takes(plan, size),
        }
    }

    fn load(plan: &FfnPlan, loader: &mut Loader<'_>) -> Result<Self> {
        Ok(match plan {
            FfnPlan::Dense(plan) => Self::Dense(Box::new(Glu::load(plan, loader)?)),
            FfnPlan::Mixture(plan) => Self::Mixture(Box::new(Mixture::load(plan, loader)?)),
        })
    }
}

impl<B> Residual<B> {
    /// Adds what `run` has the block leave in `out`.
    fn add(
        &self,
        pass: &mut Pass<'_>,
        run: impl FnOnce(&B, &mut Pass<'_>) -> Result<()>,
    ) -> Result<()> {
        pass.normalize(0, self.before.as_ref());
        run(&self.op, pass)?;
        pass.gather_out(self.after.as_ref())?;
        pass.add_to_hidden(self.scale);
        Ok(())
    }
}

impl Layer {
    /// What a session remembers of this layer, with no token yet.
    pub fn cache(&self) -> LayerCache {
        match &self.mix.op {
            Mix::Attention(attention) => attention.cache(),
        }
    }

    /// The layer's experts, if it has any.
    pub fn experts(&self) -> Option<&ExpertLayer> {
        match &self.ffn.op {
            Ffn::Dense(_) => None,
            Ffn::Mixture(mixture) => Some(&mixture.experts),
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
        })?;
        pass.check_finite(index, "attn").map_err(|error| match cache.is_limited() {
            true => error.and("; `--kv f32` holds larger keys and values"),
            false => error,
        })?;
        pass.exchange.go_on()?;
        self.ffn.add(pass, |ffn, pass| match ffn {
            Ffn::Dense(glu) => glu.run(pass),
            Ffn::Mixture(mixture) => {
                mixture.run(pass, index, next.and_then(|next| next.asked_early(index + 1)))
            }
        })?;
        pass.check_finite(index, "ffn")
    }

    /// The router of this layer, which is number `index`, if it has one.
    fn asked_early(&self, index: usize) -> Option<Next<'_>> {
        match &self.ffn.op {
            Ffn::Dense(_) => None,
            Ffn::Mixture(mixture) => {
                Some(Next { index, norm: self.ffn.before.as_ref(), router: &mixture.router })
            }
        }
    }
}
