//! GLM-4.5 to 4.7: sigmoids that are corrected, a shared expert, leading layers without
//! experts; positions turn a part of each head. Some have norms of each head.

use super::decoder::Decoder;
use super::file::File;
use crate::error::Result;
use crate::plan::{LayerPlan, Pairs, Plan, Residual, Score};

pub(super) fn plan(file: &File<'_>) -> Result<Plan> {
    let mut model = Decoder::read(file)?;
    let skipped = model.skip_predictors()?;
    let experts = model.with_shared(model.experts(Score::Sigmoid, false)?)?;
    let plan = model.plan(Pairs::Halves, |layer| {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let has_norms = file.has(&name("attn_q_norm.weight"));
        let qk_norm = has_norms.then(|| model.qk_norm(layer, model.head_dim, model.head_dim));
        let before = Some(model.norm(&name("post_attention_norm"), model.n_embd));
        LayerPlan {
            mix: model.attention(layer, qk_norm),
            ffn: Residual { before, ..model.ffn(layer, experts.as_ref()) },
            scale: None,
        }
    })?;
    Ok(Plan { skipped, ..plan })
}
