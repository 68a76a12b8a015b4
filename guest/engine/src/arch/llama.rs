//! Llama, Mistral, Mixtral, SmolLM2.

use super::decoder::Decoder;
use super::file::File;
use crate::error::Result;
use crate::plan::{LayerPlan, Pairs, Plan, Score};

pub(super) fn plan(file: &File<'_>) -> Result<Plan> {
    let model = Decoder::read(file)?;
    let experts = model.experts(Score::Softmax, true)?;
    // Converters permute the rows of queries and keys for that.
    model.plan(Pairs::Neighbours, |layer| LayerPlan {
        mix: model.attention(layer, None),
        ffn: model.ffn(layer, experts.as_ref()),
        scale: None,
    })
}
