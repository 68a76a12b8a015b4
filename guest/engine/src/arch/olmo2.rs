//! OLMo 2: norms behind each half of a layer and none before, and norms of all heads
//! together.

use super::decoder::Decoder;
use super::file::File;
use crate::error::Result;
use crate::plan::{LayerPlan, Pairs, Plan};

pub(super) fn plan(file: &File<'_>) -> Result<Plan> {
    let model = Decoder::read(file)?;
    model.plan(Pairs::Halves, |layer| {
        let after = |part: &str| Some(model.norm(&format!("blk.{layer}.{part}"), model.n_embd));
        let norm = model.qk_norm(layer, model.width(), model.kv_width());
        let (mut mix, mut ffn) = (model.attention(layer, Some(norm)), model.ffn(layer, None));
        (mix.before, mix.after) = (None, after("post_attention_norm"));
        (ffn.before, ffn.after) = (None, after("post_ffw_norm"));
        LayerPlan { mix, ffn, scale: None }
    })
}
