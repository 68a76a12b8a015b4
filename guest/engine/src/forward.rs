//! The forward pass: tokens in, logits out.

use crate::blocks::{Pass, Scratch};
use crate::error::Result;
use crate::kv_cache::KvCache;
use crate::model::Model;
use crate::takes::BATCH_MAX;

/// Tokens that are computed together.
pub(crate) struct Batch<'a> {
    /// Position of the first token.
    pub position: usize,
    /// 1 to [`BATCH_MAX`] tokens, all inside the vocabulary.
    pub tokens: &'a [u32],
    /// Of how many tokens, from the last one backwards, the logits are wanted.
    pub n_logits: usize,
    /// Whether the context is a long one, which all of it must have been computed for.
    pub is_long: bool,
}

/// Computes a batch, fills the cache, which has room for it as `scratch` has, and
/// leaves the logits that are wanted in `scratch`.
///
/// # Errors
/// [`InvalidModel`](crate::ErrorKind::InvalidModel) if numbers come out that are
/// not finite, for any of the tokens; the error names the layer.
pub(crate) fn forward(
    model: &Model,
    cache: &mut KvCache,
    scratch: &mut Scratch,
    batch: &Batch<'_>,
) -> Result<()> {
    let (position, n_tokens) = (batch.position, batch.tokens.len());
    assert!((1..=BATCH_MAX).contains(&n_tokens) && batch.n_logits <= n_tokens);
    assert!(n_tokens <= scratch.n_tokens());
    scratch.all.clear();
    scratch.all.extend(0..n_tokens);
    scratch.angles.clear();
    scratch
        .angles
        .extend(model.ropes.iter().map(|rope| rope.angles(position, n_tokens, batch.is_long)));
    let mut pass = Pass {
        exchange: &model.exchange,
        experts: &model.experts,
        sources: &model.sources,
        n_embd: model.info().n_embd as usize,
        position,
        n_tokens,
        s: scratch,
    };
    model.embedding.run(&mut pass, batch.tokens)?;
    for (i, (layer, cache)) in model.layers.iter().zip(cache.layers()).enumerate() {
        layer.run(&mut pass, i, cache, model.layers.get(i + 1))?;
    }
    model.head.run(&mut pass, &model.embedding.matrix, batch.n_logits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::native::Folder;
    use crate::options::LoadOptions;

    #[test]
    fn logits_of_several_tokens_are_those_of_each() {
        let path = moewe_fixtures::model("qwen2moe-q4_k_m");
        let (folder, name) = Folder::of(&path).unwrap();
        let model = Model::load(&folder, &name, u64::MAX, &LoadOptions::default()).unwrap();
        let tokens = [3, 141, 59, 26, 5];
        let run = |batches: &[Batch<'_>]| -> Vec<f32> {
            let mut cache = model.cache();
            cache.reserve(tokens.len()).unwrap();
            let mut scratch = Scratch::default();
            scratch.reserve(&model.widths, tokens.len()).unwrap();
            scratch.reserve_logits(3 * model.info().n_vocab as usize).unwrap();
            let logits = |batch| {
                forward(&model, &mut cache, &mut scratch, batch).unwrap();
                scratch.logits.clone()
            };
            batches.iter().flat_map(logits).collect()
        };
        let single = |position: usize| {
            let tokens = &tokens[position..=position];
            Batch { position, tokens, n_logits: usize::from(position >= 2), is_long: false }
        };
        let all = run(&[Batch { position: 0, tokens: &tokens, n_logits: 3, is_long: false }]);
        assert_eq!(all.len(), 3 * model.info().n_vocab as usize);
        assert_eq!(all, run(&[0, 1, 2, 3, 4].map(single)));
    }
}
