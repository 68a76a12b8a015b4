//! OLMoE: a norm of all heads of queries together, and one of all heads of keys; the
//! weights of the chosen experts stay what they are among all.

use super::decoder::Decoder;
use super::file::File;
use crate::error::Result;
use crate::plan::{LayerPlan, Pairs, Plan, Score};

pub(super) fn plan(file: &File<'_>) -> Result<Plan> {
    let model = Decoder::read(file)?;
    let experts = model.experts(Score::Softmax, false)?;
    model.plan(Pairs::Halves, |layer| LayerPlan {
        mix: {
            let norm = model.qk_norm(layer, model.width(), model.kv_width());
            model.attention(layer, Some(norm))
        },
        ffn: model.ffn(layer, experts.as_ref()),
        scale: None,
    })
}
