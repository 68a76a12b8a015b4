//! Gemma 3: norms behind each half of a layer, too, and to each layer that looks at all
//! tokens five that look at a window, with a RoPE of their own.

use super::decoder::Decoder;
use super::file::File;
use super::rope;
use crate::error::Result;
use crate::kv_cache::Span;
use crate::plan::{Activation, LayerPlan, Pairs, Plan};

/// The layers of Gemma 3 27B, whose scores have a scale of their own.
const N_LAYER_27B: usize = 62;

pub(super) fn plan(file: &File<'_>) -> Result<Plan> {
    let kv_heads = file.keys.count("attention.head_count_kv")?;
    let model = Decoder { activation: Activation::Geglu, ..Decoder::windowed(file, kv_heads)? };
    let (window, windowed) = (model.window()?, model.windows(6)?);
    let scale = match model.n_layer {
        N_LAYER_27B => 1.0 / ((model.n_embd / model.n_head) as f32).sqrt(),
        _ => model.attention_scale,
    };
    let mut plan = model.plan(Pairs::Halves, |layer| {
        let after = |part: &str| Some(model.norm(&format!("blk.{layer}.{part}"), model.n_embd));
        let norm = model.qk_norm(layer, model.head_dim, model.head_dim);
        let mut heads = model.heads(layer, Some(norm));
        heads.scale = scale;
        heads.rope = Some(usize::from(windowed[layer]));
        heads.span = if windowed[layer] { window } else { Span::All };
        let (mut mix, mut ffn) = (model.mix(layer, heads), model.ffn(layer, None));
        mix.after = after("post_attention_norm");
        ffn.after = after("post_ffw_norm");
        LayerPlan { mix, ffn, scale: None }
    })?;
    plan.ropes.push(rope::of_windows(file, model.head_dim, Pairs::Halves)?);
    plan.embedding.scale = (model.n_embd as f32).sqrt();
    plan.head.softcap = file.keys.factor("final_logit_softcapping")?;
    Ok(plan)
}
