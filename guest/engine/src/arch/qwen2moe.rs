//! Qwen1.5-MoE and Qwen2-MoE: a shared expert with a gate of its own; the weights of
//! the chosen ones stay what they are among all.

use super::decoder::{Decoder, Experts};
use super::file::File;
use crate::error::Result;
use crate::plan::{LayerPlan, Pairs, Plan, Score};

pub(super) fn plan(file: &File<'_>) -> Result<Plan> {
    let model = Decoder::read(file)?;
    let n_ff_shared = file.keys.count("expert_shared_feed_forward_length")?.unwrap_or(0);
    let experts = model.experts(Score::Softmax, false)?;
    let experts = experts.map(|all| Experts { n_ff_shared, gates_shared: true, ..all });
    model.plan(Pairs::Halves, |layer| LayerPlan {
        mix: model.attention(layer, None),
        ffn: model.ffn(layer, experts.as_ref()),
        scale: None,
    })
}
