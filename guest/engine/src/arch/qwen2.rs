//! Qwen2 and Qwen2.5. Queries, keys and values have biases.

use super::decoder::Decoder;
use super::file::File;
use crate::error::Result;
use crate::plan::{LayerPlan, Pairs, Plan};

pub(super) fn plan(file: &File<'_>) -> Result<Plan> {
    let model = Decoder::read(file)?;
    model.plan(Pairs::Halves, |layer| LayerPlan {
        mix: model.attention(layer, None),
        ffn: model.ffn(layer, None),
        scale: None,
    })
}
