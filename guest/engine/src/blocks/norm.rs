//! Norms.

use super::loader::Loader;
use crate::error::Result;
use crate::ops;
use crate::plan::NormPlan;

/// An RMSNorm.
pub(crate) struct Norm {
    weight: Vec<f32>,
    epsilon: f32,
}

impl Norm {
    pub fn load(plan: &NormPlan, loader: &mut Loader<'_>) -> Result<Self> {
        Ok(Self { weight: loader.vector(&plan.weight)?, epsilon: plan.epsilon })
    }

    /// How many numbers are normalised together.
    pub fn len(&self) -> usize {
        self.weight.len()
    }

    /// Normalises vectors that lie one after another, in place.
    pub fn apply(&self, x: &mut [f32]) {
        for x in x.chunks_exact_mut(self.weight.len()) {
            ops::rms_norm(x, &self.weight, self.epsilon);
        }
    }
}
