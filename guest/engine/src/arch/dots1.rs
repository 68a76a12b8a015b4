//! dots.llm1: norms of each head, sigmoids that are corrected, shared experts, and leading
//! layers without experts.

use super::decoder::Decoder;
use super::file::File;
use crate::error::Result;
use crate::plan::{LayerPlan, Pairs, Plan, Score};

pub(super) fn plan(file: &File<'_>) -> Result<Plan> {
    let model = Decoder::read(file)?;
    let experts = model.with_shared(model.experts(Score::Sigmoid, false)?)?;
    model.plan(Pairs::Halves, |layer| LayerPlan {
        mix: {
            let norm = model.qk_norm(layer, model.head_dim, model.head_dim);
            model.attention(layer, Some(norm))
        },
        ffn: model.ffn(layer, experts.as_ref()),
        scale: None,
    })
}
