//! A context: the tokens so far, their KV cache, and the logits behind them.

use std::rc::Rc;

use crate::error::{Error, ErrorKind, Result};
use crate::forward::{BATCH_MAX, Batch, Scratch, forward};
use crate::kv_cache::KvCache;
use crate::model::Model;

/// Tokens and what the model makes of them. Tokens are computed when their
/// logits are wanted, so the last token of a generation costs nothing.
pub struct Context {
    model: Rc<Model>,
    cache: KvCache,
    n_ctx: usize,
    tokens: Vec<u32>,
    /// How many of the tokens are in the cache.
    computed: usize,
    /// The logits behind the last computed token; empty if there are none.
    logits: Vec<f32>,
    scratch: Scratch,
}

impl Context {
    /// An empty context for at most `n_ctx` tokens; the model's training
    /// context if absent.
    pub fn new(model: Rc<Model>, n_ctx: Option<u32>) -> Result<Self> {
        let trained = model.h.n_ctx_train;
        let n_ctx = n_ctx.map_or(trained, |n| n as usize);
        if n_ctx == 0 || n_ctx > trained {
            return Err(Error::input(format!(
                "a context of {n_ctx} tokens is not possible; the model was trained for 1 to {trained}"
            )));
        }
        let cache = KvCache::new(model.h.n_layer, model.kv_heads.len(), model.h.head_dim);
        Ok(Self {
            model,
            cache,
            n_ctx,
            tokens: Vec::new(),
            computed: 0,
            logits: Vec::new(),
            scratch: Scratch::default(),
        })
    }

    /// The model.
    pub fn model(&self) -> &Rc<Model> {
        &self.model
    }

    /// The tokens so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The most tokens that the context may hold.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// Whether no further token fits.
    pub fn is_full(&self) -> bool {
        self.tokens.len() == self.n_ctx
    }

    /// Bytes of this member's KV cache.
    pub fn kv_bytes(&self) -> u64 {
        self.cache.bytes()
    }

    /// Appends tokens and computes them. Nothing is appended if it fails.
    pub fn feed(&mut self, tokens: &[u32]) -> Result<()> {
        if tokens.is_empty() {
            return Err(Error::input("the prompt is empty; give at least one token"));
        }
        let n_vocab = self.model.info().n_vocab;
        if let Some(id) = tokens.iter().find(|&&id| id >= n_vocab) {
            return Err(Error::input(format!(
                "token {id} is outside the vocabulary of {n_vocab}; was the text tokenised for \
                 another model?"
            )));
        }
        let left = self.n_ctx - self.tokens.len();
        if tokens.len() > left {
            return Err(Error::new(
                ErrorKind::ContextFull,
                format!(
                    "{} tokens do not fit the {left} that are left of a context of {}; shorten the \
                     prompt{}",
                    tokens.len(),
                    self.n_ctx,
                    if self.n_ctx < self.model.h.n_ctx_train {
                        format!(", or use a larger context (up to {})", self.model.h.n_ctx_train)
                    } else {
                        String::new()
                    }
                ),
            ));
        }
        let before = self.tokens.len();
        self.tokens.extend_from_slice(tokens);
        let computed = self.compute();
        if computed.is_err() {
            self.rewind(before)?;
        }
        computed
    }

    /// Appends one token that the model chose; it is computed later.
    pub(crate) fn push(&mut self, token: u32) {
        assert!(!self.is_full() && token < self.model.info().n_vocab);
        self.tokens.push(token);
    }

    /// The logits behind the last token.
    pub fn logits(&mut self) -> Result<&[f32]> {
        self.compute()?;
        if self.logits.is_empty() {
            return Err(Error::input("there are no logits yet; feed at least one token"));
        }
        Ok(&self.logits)
    }

    /// Forgets all but the first `n` tokens.
    pub fn rewind(&mut self, n: usize) -> Result<()> {
        if n > self.tokens.len() {
            return Err(Error::input(format!(
                "cannot rewind to token {n} of {}",
                self.tokens.len()
            )));
        }
        self.tokens.truncate(n);
        if n < self.computed {
            self.computed = n;
            self.logits.clear();
            self.cache.truncate(n);
        }
        Ok(())
    }

    fn compute(&mut self) -> Result<()> {
        self.cache.reserve(self.tokens.len())?;
        while self.computed < self.tokens.len() {
            let end = self.tokens.len().min(self.computed + BATCH_MAX);
            let batch = Batch {
                position: self.computed,
                tokens: &self.tokens[self.computed..end],
                n_logits: usize::from(end == self.tokens.len()),
            };
            let logits = forward(&self.model, &mut self.cache, &mut self.scratch, &batch)?;
            self.logits.clear();
            self.logits.extend_from_slice(logits);
            self.computed = end;
        }
        Ok(())
    }
}
