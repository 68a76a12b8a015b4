//! Norms.

use super::loader::Loader;
use crate::error::Result;
use crate::ops;
use crate::plan::{NormKind, NormPlan};

/// A norm.
pub(crate) struct Norm {
    kind: NormKind,
    /// Ones if the plan has none.
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    epsilon: f32,
}

impl Norm {
    pub fn load(plan: &NormPlan, loader: &mut Loader<'_>) -> Result<Self> {
        let weight = plan.weight.as_ref().map(|weight| loader.vector(weight)).transpose()?;
        let bias = plan.bias.as_ref().map(|bias| loader.vector(bias)).transpose()?;
        let mut weight = weight.unwrap_or_else(|| vec![1.0; plan.len]);
        ops::scale(&mut weight, plan.scale);
        Ok(Self { kind: plan.kind, weight, bias, epsilon: plan.epsilon })
    }

    /// How many numbers are normalised together.
    pub fn len(&self) -> usize {
        self.weight.len()
    }

    /// Normalises vectors that lie one after another, in place.
    pub fn apply(&self, x: &mut [f32]) {
        for x in x.chunks_exact_mut(self.weight.len()) {
            match self.kind {
                NormKind::Rms => ops::rms_norm(x, &self.weight, self.epsilon),
                NormKind::Layer => ops::layer_norm(x, &self.weight, self.epsilon),
            }
            if let Some(bias) = &self.bias {
                ops::add(x, bias);
            }
        }
    }
}
