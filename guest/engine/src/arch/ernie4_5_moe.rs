//! ERNIE 4.5 with experts: a softmax that is corrected, shared experts, and leading layers
//! without experts.

use super::decoder::{Decoder, Experts};
use super::file::File;
use crate::error::Result;
use crate::plan::{LayerPlan, Pairs, Plan, Score};

pub(super) fn plan(file: &File<'_>) -> Result<Plan> {
    let model = Decoder::read(file)?;
    let experts = model.with_shared(model.experts(Score::Softmax, true)?)?;
    // That of all together, if it is said.
    let n_ff_shared = file.keys.count("expert_shared_feed_forward_length")?;
    let experts =
        experts.map(|all| Experts { n_ff_shared: n_ff_shared.unwrap_or(all.n_ff_shared), ..all });
    model.plan(Pairs::Neighbours, |layer| LayerPlan {
        mix: model.attention(layer, None),
        ffn: model.ffn(layer, experts.as_ref()),
        scale: None,
    })
}
