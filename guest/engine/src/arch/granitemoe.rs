//! Granite 3 with experts, in GraniteMoeShared with a shared one: Llama with factors on
//! embeddings, scores, and what each half of a layer adds, and a divisor of logits.

use super::decoder::{Decoder, Experts};
use super::file::File;
use crate::error::{Error, Result};
use crate::plan::{LayerPlan, Pairs, Plan, Score};

pub(super) fn plan(file: &File<'_>) -> Result<Plan> {
    let keys = &file.keys;
    let model = Decoder {
        residual_scale: keys.factor("residual_scale")?.unwrap_or(1.0),
        // Here this says whether there is RoPE at all.
        turns: keys.bool("rope.scaling.finetuned")?.unwrap_or(true),
        ..Decoder::read(file)?
    };
    let n_ff_shared = keys.count("expert_shared_feed_forward_length")?.unwrap_or(0);
    let experts = model.experts(Score::Softmax, true)?.map(|all| Experts { n_ff_shared, ..all });
    let divisor = keys.f32("logit_scale")?.filter(|&divisor| divisor > 0.0).ok_or_else(|| {
        Error::invalid(format!(
            "metadata `{}` is missing or not positive; the file is incomplete: get the model from \
             another source",
            keys.full("logit_scale")
        ))
    })?;
    let mut plan = model.plan(Pairs::Neighbours, |layer| LayerPlan {
        mix: model.attention(layer, None),
        ffn: model.ffn(layer, experts.as_ref()),
        scale: None,
    })?;
    plan.embedding.scale = keys.factor("embedding_scale")?.unwrap_or(1.0);
    plan.head.scale = 1.0 / divisor;
    Ok(plan)
}
