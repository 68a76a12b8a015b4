//! Llama 4: to each layer that looks at all tokens, without RoPE, three that look at
//! chunks of the context, with it; the weight of an expert multiplies what goes into it.

use super::decoder::{Decoder, Experts};
use super::file::File;
use crate::error::Result;
use crate::kv_cache::Span;
use crate::plan::{LayerPlan, Pairs, Plan, QkNorm, Score, Temperature, Weigh};

/// The tokens of a chunk, of which the file says nothing.
const N_CHUNK: usize = 8192;
/// The experts of Llama 4 Maverick, which does not normalise queries and keys.
const N_EXPERT_MAVERICK: usize = 128;
/// What the reference implementation has where there is no RoPE.
const TEMPERATURE: Temperature = Temperature { n_ctx: 8192, scale: 0.1 };

pub(super) fn plan(file: &File<'_>) -> Result<Plan> {
    let keys = &file.keys;
    let model = Decoder::windowed(file, keys.count("attention.head_count_kv")?)?;
    let experts = model.experts(Score::Sigmoid, false)?;
    let experts = experts.map(|all| Experts { n_ff_shared: all.n_ff, weigh: Weigh::Before, ..all });
    // Which layers have experts, their routers tell.
    keys.u32("interleave_moe_layer_step")?;
    // A window of 0 says that there are no chunks, and RoPE everywhere.
    let has_chunks = keys.u32("attention.sliding_window")? != Some(0);
    let (chunk, chunked) = (model.shorter(N_CHUNK, Span::Chunk)?, model.windows(4)?);
    let is_normed = experts.as_ref().is_none_or(|experts| experts.n != N_EXPERT_MAVERICK);
    model.plan(Pairs::Neighbours, |layer| {
        let mut heads = model.heads(layer, None);
        if has_chunks && !chunked[layer] {
            (heads.rope, heads.temperature) = (None, Some(TEMPERATURE));
        } else if is_normed {
            let norm = model.plain_norm(model.head_dim);
            heads.qk_norm = Some(QkNorm { q: norm.clone(), k: norm, turned: true });
        }
        if has_chunks && chunked[layer] {
            heads.span = chunk;
        }
        LayerPlan {
            mix: model.mix(layer, heads),
            ffn: model.ffn(layer, experts.as_ref()),
            scale: None,
        }
    })
}
