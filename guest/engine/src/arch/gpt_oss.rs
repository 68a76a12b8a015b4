//! gpt-oss: every second layer looks at a window only, heads have attention sinks, and
//! all matrices have biases.

use super::decoder::Decoder;
use super::file::File;
use crate::error::Result;
use crate::kv_cache::Span;
use crate::plan::{Activation, FrequencyScaling, LayerPlan, Pairs, Plan, Score};

/// The reference implementation's constants.
const ACTIVATION: Activation = Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0 };

pub(super) fn plan(file: &File<'_>) -> Result<Plan> {
    let kv_heads = file.keys.count("attention.head_count_kv")?;
    let model = Decoder { activation: ACTIVATION, ..Decoder::windowed(file, kv_heads)? };
    let experts = model.experts(Score::SoftmaxOfPicked, false)?;
    let (window, windowed) = (model.window()?, model.windows(2)?);
    let mut plan = model.plan(Pairs::Halves, |layer| {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let mut heads = model.heads(layer, None);
        heads.span = if windowed[layer] { window } else { Span::All };
        heads.sinks = Some(file.vector(&name("attn_sinks"), model.n_head));
        let mut ffn = model.ffn(layer, experts.as_ref());
        ffn.before = Some(model.norm(&name("post_attention_norm"), model.n_embd));
        LayerPlan { mix: model.mix(layer, heads), ffn, scale: None }
    })?;
    if let FrequencyScaling::Yarn { whole_pairs, .. } = &mut plan.ropes[0].scaling {
        *whole_pairs = false;
    }
    Ok(plan)
}
