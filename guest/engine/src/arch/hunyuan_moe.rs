//! Hunyuan-A13B: norms of each head of queries and keys when positions have turned them,
//! and a shared expert.

use super::decoder::{Decoder, Experts};
use super::file::File;
use crate::error::Result;
use crate::plan::{LayerPlan, Pairs, Plan, QkNorm, Score};

pub(super) fn plan(file: &File<'_>) -> Result<Plan> {
    let model = Decoder::read(file)?;
    let experts = model.with_shared(model.experts(Score::Softmax, true)?)?;
    // That of all together, if it is said.
    let n_ff_shared = file.keys.count("expert_shared_feed_forward_length")?;
    let experts =
        experts.map(|all| Experts { n_ff_shared: n_ff_shared.unwrap_or(all.n_ff_shared), ..all });
    model.plan(Pairs::Halves, |layer| LayerPlan {
        mix: {
            let norm = model.qk_norm(layer, model.head_dim, model.head_dim);
            model.attention(layer, Some(QkNorm { turned: true, ..norm }))
        },
        ffn: model.ffn(layer, experts.as_ref()),
        scale: None,
    })
}
