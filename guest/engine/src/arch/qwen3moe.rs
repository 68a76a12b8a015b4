//! Qwen3 with experts.

use super::decoder::Decoder;
use super::file::File;
use crate::error::Result;
use crate::plan::{LayerPlan, Pairs, Plan, Score};

pub(super) fn plan(file: &File<'_>) -> Result<Plan> {
    let model = Decoder::read(file)?;
    let experts = model.experts(Score::Softmax, true)?;
    model.plan(Pairs::Halves, |layer| LayerPlan {
        mix: {
            let norm = model.qk_norm(layer, model.head_dim, model.head_dim);
            model.attention(layer, Some(norm))
        },
        ffn: model.ffn(layer, experts.as_ref()),
        scale: None,
    })
}
