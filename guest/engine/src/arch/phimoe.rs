//! Phi-3.5-MoE: LayerNorms and biases everywhere, SparseMixer's weights, which do not add up
//! to 1; in long contexts, positions turn by other factors.

use super::decoder::Decoder;
use super::file::File;
use super::rope;
use crate::error::Result;
use crate::plan::{LayerPlan, Pairs, Plan, Score};

/// Twice the jitter of the router, of which the file says nothing.
const SHARE: f32 = 0.02;

pub(super) fn plan(file: &File<'_>) -> Result<Plan> {
    let model = Decoder::read(file)?;
    let experts = model.experts(Score::SparseMixer { share: SHARE }, false)?;
    let mut plan = model.plan(Pairs::Halves, |layer| LayerPlan {
        mix: model.attention(layer, None),
        ffn: model.ffn(layer, experts.as_ref()),
        scale: None,
    })?;
    rope::with_long_factors(file, &mut plan);
    Ok(plan)
}
