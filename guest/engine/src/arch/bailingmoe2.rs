//! Ling 2 and Ring 2: queries, keys and values in one tensor, norms of each head, positions
//! turn a part of it; sigmoids that are corrected, groups of experts, shared ones, and
//! leading layers without.

use super::decoder::{Decoder, Experts};
use super::file::File;
use crate::error::Result;
use crate::plan::{LayerPlan, Pairs, Plan, Score};

pub(super) fn plan(file: &File<'_>) -> Result<Plan> {
    let mut model = Decoder::read(file)?;
    let skipped = model.skip_predictors()?;
    let experts = model.experts(Score::Sigmoid, false)?;
    let n_shared = file.keys.count("expert_shared_count")?.unwrap_or(0);
    let n_ff_shared = file.keys.count("expert_shared_feed_forward_length")?;
    let experts = experts.map(|all| {
        let n_ff_shared = n_ff_shared.filter(|&n| n > 0).unwrap_or(all.n_ff);
        Experts { n_ff_shared: n_shared.saturating_mul(n_ff_shared), ..all }
    });
    let rows = [model.width(), model.kv_width(), model.kv_width()];
    let plan = model.plan(Pairs::Halves, |layer| {
        let norm = model.qk_norm(layer, model.head_dim, model.head_dim);
        let mut heads = model.heads(layer, Some(norm));
        let [q, k, v] = file.joint(&format!("blk.{layer}.attn_qkv"), rows, model.n_embd);
        (heads.q, heads.k, heads.v) = (q, k, Some(v));
        LayerPlan {
            mix: model.mix(layer, heads),
            ffn: model.ffn(layer, experts.as_ref()),
            scale: None,
        }
    })?;
    Ok(Plan { skipped, ..plan })
}
