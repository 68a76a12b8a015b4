//! Gemma 4: as Gemma 3, with a norm of values, heads of other lengths in layers that look
//! at a window, and a mixture beside the dense network of each layer.

use super::decoder::{Decoder, Experts};
use super::file::File;
use super::rope;
use crate::error::{Error, Result};
use crate::kv_cache::Span;
use crate::plan::{
    Activation, BothPlan, FfnPlan, LayerPlan, NormPlan, Pairs, Plan, Residual, Score, VectorPlan,
};

pub(super) fn plan(file: &File<'_>) -> Result<Plan> {
    let keys = &file.keys;
    let n_layer = keys.positive("block_count")?;
    let kv_heads = keys.counts("attention.head_count_kv", n_layer)?.unwrap_or_default();
    let full = Decoder {
        activation: Activation::Geglu,
        attention_scale: 1.0,
        ..Decoder::windowed(file, kv_heads.first().copied())?
    };
    let head_dim = keys.count("attention.key_length_swa")?.unwrap_or(full.head_dim);
    if keys.count("attention.value_length_swa")?.unwrap_or(head_dim) != head_dim {
        return Err(Error::unsupported("heads with keys and values of different lengths"));
    }
    let windowed = full.windows(6)?;
    let models = (0..n_layer).map(|layer| {
        let head_dim = if windowed[layer] { head_dim } else { full.head_dim };
        full.of_heads(kv_heads.get(layer).copied().unwrap_or(full.kv_heads), head_dim)
    });
    let (models, window) = (models.collect::<Result<Vec<_>>>()?, full.window()?);
    let experts = full.experts(Score::Softmax, true)?;
    let mut plan = full.plan(Pairs::Halves, |layer| {
        let span = if windowed[layer] { window } else { Span::All };
        self::layer(&models[layer], layer, windowed[layer], span, experts.as_ref())
    })?;
    plan.ropes.push(rope::of_windows(file, head_dim, Pairs::Halves)?);
    plan.embedding.scale = (full.n_embd as f32).sqrt();
    plan.head.softcap = keys.factor("final_logit_softcapping")?;
    Ok(plan)
}

fn layer(
    model: &Decoder<'_>,
    layer: usize,
    is_windowed: bool,
    span: Span,
    experts: Option<&Experts>,
) -> LayerPlan {
    let name = |part: &str| format!("blk.{layer}.{part}");
    let norm = |part: &str| Some(model.norm(&name(part), model.n_embd));
    let qk_norm = model.qk_norm(layer, model.head_dim, model.head_dim);
    let mut heads = model.heads(layer, Some(qk_norm));
    heads.v = heads.v.filter(|v| model.file.has(&v.name));
    heads.v_norm = Some(model.plain_norm(model.head_dim));
    heads.rope = Some(usize::from(is_windowed));
    heads.span = span;
    let mut mix = model.mix(layer, heads);
    mix.after = norm("post_attention_norm");
    let mut ffn = model.ffn(layer, None);
    if let Some(experts) = experts.filter(|_| model.file.has(&name("ffn_gate_inp.weight"))) {
        ffn = Residual { before: None, op: both(model, layer, experts), after: None, scale: 1.0 };
    }
    ffn.after = norm("post_ffw_norm");
    let scale = VectorPlan { name: name("layer_output_scale.weight"), len: 1 };
    LayerPlan { mix, ffn, scale: model.file.has(&scale.name).then_some(scale) }
}

/// The dense network and the mixture of a layer.
fn both(model: &Decoder<'_>, layer: usize, experts: &Experts) -> FfnPlan {
    let name = |part: &str| format!("blk.{layer}.{part}");
    let norm = |part: &str| Some(model.norm(&name(part), model.n_embd));
    let mut mixture = model.mixture(layer, experts);
    let scales = VectorPlan { name: name("ffn_down_exps.scale"), len: experts.n };
    mixture.router.scales = model.file.has(&scales.name).then_some(scales);
    FfnPlan::Both(Box::new(BothPlan {
        dense: Residual {
            before: norm("ffn_norm"),
            op: model.glu(layer, "", model.n_ff),
            after: norm("post_ffw_norm_1"),
            scale: 1.0,
        },
        router: NormPlan {
            weight: Some(VectorPlan { name: name("ffn_gate_inp.scale"), len: model.n_embd }),
            scale: 1.0 / (model.n_embd as f32).sqrt(),
            ..model.plain_norm(model.n_embd)
        },
        mixture: Residual {
            before: norm("pre_ffw_norm_2"),
            op: mixture,
            after: norm("post_ffw_norm_2"),
            scale: 1.0,
        },
    }))
}
