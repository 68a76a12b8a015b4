//! The head: logits.

use super::linear::Linear;
use super::loader::Loader;
use super::norm::Norm;
use super::pass::Pass;
use crate::error::{Error, Result};
use crate::ops;
use crate::plan::{HeadPlan, MatrixPlan};
use crate::takes::Takes;
use crate::team::Parts;

/// What makes logits of hidden states.
pub(crate) struct Head {
    norm: Norm,
    /// Absent if the embedding serves as the output matrix too.
    output: Option<Linear>,
    /// The tensor that serves.
    name: String,
    scale: f32,
    softcap: Option<f32>,
}

impl Head {
    /// What the head takes; `embedding` serves as its matrix if it has none.
    pub fn takes(plan: &HeadPlan, embedding: &MatrixPlan) -> Takes {
        let output = plan.output.as_ref().unwrap_or(embedding);
        Takes {
            vector_len: output.rows,
            products: output.rows as u64 * output.cols as u64,
            ..Takes::default()
        }
    }

    /// The head of a model with this embedding.
    pub fn load(plan: &HeadPlan, embedding: &MatrixPlan, loader: &mut Loader<'_>) -> Result<Self> {
        let output = plan.output.as_ref().map(|output| loader.linear(output)).transpose()?;
        let name = plan.output.as_ref().unwrap_or(embedding).name.clone();
        let norm = Norm::load(&plan.norm, loader)?;
        Ok(Self { norm, output, name, scale: plan.scale, softcap: plan.softcap })
    }

    /// The logits behind the last `n` tokens.
    pub fn run(&self, pass: &mut Pass<'_>, embedding: &Linear, n: usize) -> Result<()> {
        if n == 0 {
            pass.s.logits.clear();
            return Ok(());
        }
        pass.normalize(pass.n_tokens - n, Some(&self.norm));
        let s = &mut *pass.s;
        let output = self.output.as_ref().unwrap_or(embedding);
        let split = pass.exchange.rows(output.n_rows);
        output.multiply(split.mine(), &s.activations, &s.all[..n], &mut s.logits);
        if self.scale != 1.0 {
            for logits in s.logits.chunks_exact_mut(output.n_rows) {
                ops::scale(&mut logits[split.mine()], self.scale);
            }
        }
        if let Some(limit) = self.softcap {
            for logits in s.logits.chunks_exact_mut(output.n_rows) {
                ops::softcap(&mut logits[split.mine()], limit);
            }
        }
        pass.exchange.gather(&mut [Parts::whole(split, &mut s.logits)])?;
        if !ops::are_finite(&s.logits)
            && let Some(i) = s.logits.iter().position(|x| !x.is_finite())
        {
            let token = i % output.n_rows;
            return Err(Error::not_finite(format_args!(
                "the logit of token {token} ({})",
                self.name
            )));
        }
        Ok(())
    }
}
