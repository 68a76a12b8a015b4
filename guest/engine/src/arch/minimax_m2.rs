//! MiniMax-M2: a norm of all heads of queries together, and one of all heads of keys;
//! sigmoids that are corrected; positions turn a part of each head.

use super::decoder::Decoder;
use super::file::File;
use crate::error::Result;
use crate::plan::{LayerPlan, Pairs, Plan, Score};

pub(super) fn plan(file: &File<'_>) -> Result<Plan> {
    let model = Decoder::read(file)?;
    let experts = model.experts(Score::Sigmoid, true)?;
    model.plan(Pairs::Halves, |layer| LayerPlan {
        mix: {
            let norm = model.qk_norm(layer, model.width(), model.kv_width());
            model.attention(layer, Some(norm))
        },
        ffn: model.ffn(layer, experts.as_ref()),
        scale: None,
    })
}
