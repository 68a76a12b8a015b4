//! Qwen3: a norm of each head of queries and keys.

use super::decoder::Decoder;
use super::file::File;
use crate::error::Result;
use crate::plan::{LayerPlan, Pairs, Plan};

pub(super) fn plan(file: &File<'_>) -> Result<Plan> {
    let model = Decoder::read(file)?;
    model.plan(Pairs::Halves, |layer| LayerPlan {
        mix: {
            let norm = model.qk_norm(layer, model.head_dim, model.head_dim);
            model.attention(layer, Some(norm))
        },
        ffn: model.ffn(layer, None),
        scale: None,
    })
}
