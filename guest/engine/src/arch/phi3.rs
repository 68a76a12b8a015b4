//! Phi-3 and Phi-4: Llama, with queries, keys and values in one tensor, and the matrices
//! `gate` and `up` in another; in long contexts, positions turn by other factors.

use super::decoder::Decoder;
use super::file::File;
use super::rope;
use crate::error::Result;
use crate::plan::{FfnPlan, LayerPlan, Pairs, Plan};

pub(super) fn plan(file: &File<'_>) -> Result<Plan> {
    let model = Decoder::windowed(file, file.keys.count("attention.head_count_kv")?)?;
    let window = model.window()?;
    let (width, kv_width, n_embd) = (model.width(), model.kv_width(), model.n_embd);
    let mut plan = model.plan(Pairs::Halves, |layer| {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let mut heads = model.heads(layer, None);
        if file.has(&name("attn_qkv.weight")) {
            let [q, k, v] = file.joint(&name("attn_qkv"), [width, kv_width, kv_width], n_embd);
            (heads.q, heads.k, heads.v) = (q, k, Some(v));
        }
        heads.span = window;
        let mut ffn = model.ffn(layer, None);
        if let FfnPlan::Dense(glu) = &mut ffn.op {
            [glu.gate, glu.up] = file.joint(&name("ffn_up"), [model.n_ff; 2], n_embd);
        }
        LayerPlan { mix: model.mix(layer, heads), ffn, scale: None }
    })?;
    rope::with_long_factors(file, &mut plan);
    Ok(plan)
}
