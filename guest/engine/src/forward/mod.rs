//! The forward pass: tokens in, hidden states and logits out.
//!
//! Members of a team make the same pass. What each of them computes a part of
//! is gathered before anybody needs the whole ([`Exchange`](crate::team)).

mod attention;
mod ffn;
mod scratch;

use std::ops::Range;

use crate::error::{Error, Result};
use crate::kv_cache::KvCache;
use crate::model::{Linear, Model};
use crate::ops;
use crate::quant::{Activations, put_numbers};
use crate::team::Parts;

pub(crate) use self::scratch::{Scratch, Widths};

/// Tokens that go through the layers together.
pub const BATCH_MAX: usize = 512;

/// Tokens that are computed together.
pub(crate) struct Batch<'a> {
    /// Position of the first token.
    pub position: usize,
    /// 1 to [`BATCH_MAX`] tokens, all inside the vocabulary.
    pub tokens: &'a [u32],
    /// Of how many tokens, from the last one backwards, the logits are wanted.
    pub n_logits: usize,
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
    let n_tokens = batch.tokens.len();
    assert!((1..=BATCH_MAX).contains(&n_tokens) && batch.n_logits <= n_tokens);
    assert!(n_tokens <= scratch.n_tokens());
    let n_embd = model.h.n_embd;
    scratch.all.clear();
    scratch.all.extend(0..n_tokens);
    scratch.angles = model.rope.angles(batch.position, n_tokens);
    scratch.hidden.resize(n_tokens * n_embd, 0.0);
    for (&token, row) in batch.tokens.iter().zip(scratch.hidden.chunks_exact_mut(n_embd)) {
        model.embedding.dequantize_row(token as usize, row);
        if !ops::are_finite(row) {
            return Err(Error::not_finite(format_args!(
                "the embedding of token {token} (token_embd.weight)"
            )));
        }
    }
    let mut pass = Pass { model, position: batch.position, n_tokens, s: scratch };
    for (i, layer) in model.layers.iter().enumerate() {
        model.exchange.go_on()?;
        pass.attention(cache, i, layer)?;
        pass.check_finite(i, "attn")?;
        model.exchange.go_on()?;
        pass.ffn(i, layer)?;
        pass.check_finite(i, "ffn")?;
    }
    pass.logits(batch.n_logits)
}

/// A batch on its way through the layers.
struct Pass<'a> {
    model: &'a Model,
    /// Position of the first token.
    position: usize,
    n_tokens: usize,
    s: &'a mut Scratch,
}

impl Pass<'_> {
    /// Normalises the hidden states from token `first` on, and takes them as
    /// activations.
    fn normalize(&mut self, first: usize, weight: &[f32]) {
        let (h, s) = (&self.model.h, &mut *self.s);
        s.x.clear();
        s.x.extend_from_slice(&s.hidden[first * h.n_embd..]);
        for row in s.x.chunks_exact_mut(h.n_embd) {
            ops::rms_norm(row, weight, h.rms_epsilon);
        }
        s.activations.take(&mut s.x, h.n_embd);
    }

    /// Gathers what a block computed, and adds it to the hidden states.
    fn add_to_hidden(&mut self) -> Result<()> {
        let split = self.model.exchange.rows(self.model.h.n_embd);
        self.model.exchange.gather(&mut [Parts::whole(split, &mut self.s.out)])?;
        ops::add(&mut self.s.hidden, &self.s.out);
        Ok(())
    }

    /// Checks what a part of a layer left behind. NaNs and infinities that count for
    /// anything end up in the hidden states, and all members of a team have these
    /// whole, so they fail alike.
    fn check_finite(&self, index: usize, part: &str) -> Result<()> {
        if ops::are_finite(&self.s.hidden) {
            return Ok(());
        }
        Err(Error::not_finite(format_args!("what layer {index} computes (blk.{index}.{part}*)")))
    }

    /// The logits behind the last `n` tokens.
    fn logits(&mut self, n: usize) -> Result<()> {
        if n == 0 {
            self.s.logits.clear();
            return Ok(());
        }
        self.normalize(self.n_tokens - n, &self.model.output_norm);
        let (model, s) = (self.model, &mut *self.s);
        let output = model.output.as_ref().unwrap_or(&model.embedding);
        let split = model.exchange.rows(output.n_rows);
        // No more than is needed, as a vocabulary is large.
        if s.logits.capacity() < n * output.n_rows {
            s.logits = Vec::with_capacity(n * output.n_rows);
        }
        multiply(output, split.mine(), &s.activations, &s.all[..n], &mut s.logits);
        model.exchange.gather(&mut [Parts::whole(split, &mut s.logits)])?;
        if !ops::are_finite(&s.logits)
            && let Some(i) = s.logits.iter().position(|x| !x.is_finite())
        {
            let name = if model.output.is_some() { "output" } else { "token_embd" };
            let token = i % output.n_rows;
            return Err(Error::not_finite(format_args!(
                "the logit of token {token} ({name}.weight)"
            )));
        }
        Ok(())
    }
}

/// The products of some rows of a matrix with the vectors of some tokens, plus
/// their bias, at their places in `[tokens.len()][n_rows]`.
fn multiply(
    linear: &Linear,
    rows: Range<usize>,
    x: &Activations,
    tokens: &[usize],
    out: &mut Vec<f32>,
) {
    let n = linear.n_rows;
    out.resize(tokens.len() * n, 0.0);
    if rows.is_empty() {
        return;
    }
    let (matrix, bias) = linear.part(rows.clone());
    let mine = &mut out[rows.start..];
    matrix.multiply(x, tokens, |i, row, y| put_numbers(&mut mine[i * n + row..], y));
    if let Some(bias) = bias {
        out.chunks_exact_mut(n).for_each(|y| ops::add(&mut y[rows.clone()], bias));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::native::Folder;

    #[test]
    fn logits_of_several_tokens_are_those_of_each() {
        let path = moewe_fixtures::model("qwen2moe-q4_k_m");
        let (folder, name) = Folder::of(&path).unwrap();
        let model = Model::load(&folder, &name, u64::MAX).unwrap();
        let tokens = [3, 141, 59, 26, 5];
        let run = |batches: &[Batch<'_>]| -> Vec<f32> {
            let mut cache = KvCache::new(model.h.n_layer, model.h.kv_heads, model.h.head_dim);
            cache.reserve(tokens.len()).unwrap();
            let mut scratch = Scratch::default();
            scratch.reserve(&model.widths, tokens.len()).unwrap();
            let logits = |batch| {
                forward(&model, &mut cache, &mut scratch, batch).unwrap();
                scratch.logits.clone()
            };
            batches.iter().flat_map(logits).collect()
        };
        let single = |position: usize| {
            let tokens = &tokens[position..=position];
            Batch { position, tokens, n_logits: usize::from(position >= 2) }
        };
        let all = run(&[Batch { position: 0, tokens: &tokens, n_logits: 3 }]);
        assert_eq!(all.len(), 3 * model.info().n_vocab as usize);
        assert_eq!(all, run(&[0, 1, 2, 3, 4].map(single)));
    }
}
