//! Embeddings.

use super::block::Block;
use super::linear::Linear;
use super::loader::Loader;
use super::pass::Pass;
use crate::error::{Error, Result};
use crate::ops;
use crate::plan::EmbeddingPlan;
use crate::takes::{Room, Takes};

/// What hidden states begin as.
pub(crate) struct Embedding {
    /// Every member has all of it.
    pub matrix: Linear,
    name: String,
    scale: f32,
}

impl Block for Embedding {
    type Plan = EmbeddingPlan;

    fn takes(plan: &EmbeddingPlan, _size: usize) -> Takes {
        let n_embd = plan.matrix.cols;
        Takes {
            vector_len: n_embd,
            token_len: n_embd,
            room: Room { n_embd, ..Room::default() },
            ..Takes::default()
        }
    }

    fn load(plan: &EmbeddingPlan, loader: &mut Loader<'_>) -> Result<Self> {
        let matrix = loader.linear(&plan.matrix)?;
        Ok(Self { matrix, name: plan.matrix.name.clone(), scale: plan.scale })
    }
}

impl Embedding {
    /// The hidden states of tokens, all of which have a row.
    pub fn run(&self, pass: &mut Pass<'_>, tokens: &[u32]) -> Result<()> {
        let (n_embd, hidden) = (pass.n_embd, &mut pass.s.hidden);
        hidden.resize(tokens.len() * n_embd, 0.0);
        for (&token, row) in tokens.iter().zip(hidden.chunks_exact_mut(n_embd)) {
            self.matrix.dequantize_row(token as usize, row);
            if self.scale != 1.0 {
                ops::scale(row, self.scale);
            }
            if !ops::are_finite(row) {
                return Err(Error::not_finite(format_args!(
                    "the embedding of token {token} ({})",
                    self.name
                )));
            }
        }
        Ok(())
    }
}
