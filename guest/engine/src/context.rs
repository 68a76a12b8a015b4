//! A context: the tokens so far, their KV cache, and the logits behind them.

use std::collections::VecDeque;
use std::rc::Rc;

use crate::blocks::Scratch;
use crate::error::{Error, ErrorKind, Result};
use crate::forward::{Batch, forward};
use crate::kv_cache::KvCache;
use crate::model::{Model, ModelInfo};
use crate::options::ROPE_FACTOR_MAX;

/// Tokens and what the model makes of them. Tokens are computed when their
/// logits are wanted, so the last token of a generation costs nothing.
pub struct Context {
    model: Rc<Model>,
    cache: KvCache,
    n_ctx: usize,
    tokens: Vec<u32>,
    /// How many of the tokens are in the cache.
    computed: usize,
    /// Whether these were computed as part of a long context, in which positions turn
    /// otherwise.
    is_long: bool,
    /// Tokens that are in the cache behind those, though nobody chose them yet.
    drafted: VecDeque<u32>,
    /// The logits behind the last computed token and behind each of the drafted
    /// ones: `[1 + drafted.len()][n_vocab]`; empty if there are none.
    logits: Vec<f32>,
    drafted_tokens: u64,
    accepted_tokens: u64,
    scratch: Scratch,
}

impl Context {
    /// An empty context for at most `n_ctx` tokens; for as many as the model can have
    /// if absent.
    pub fn new(model: Rc<Model>, n_ctx: Option<u32>) -> Result<Self> {
        let n_ctx = n_ctx.unwrap_or(model.info().n_ctx_max);
        check_n_ctx(n_ctx, model.info())?;
        let n_ctx = n_ctx as usize;
        let cache = model.cache();
        Ok(Self {
            model,
            cache,
            n_ctx,
            tokens: Vec::new(),
            computed: 0,
            is_long: false,
            drafted: VecDeque::new(),
            logits: Vec::new(),
            drafted_tokens: 0,
            accepted_tokens: 0,
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
            return Err(Error::input("the prompt has no tokens; give at least one"));
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
            let info = self.model.info();
            let way_out = if self.n_ctx < info.n_ctx_max as usize {
                format!(", or use a larger context (up to {})", info.n_ctx_max)
            } else {
                let n_wanted = self.tokens.len().saturating_add(tokens.len());
                scaling_for(n_wanted as u64, info)
                    .map_or_else(String::new, |way| format!(", or {way}"))
            };
            return Err(Error::new(
                ErrorKind::ContextFull,
                format!(
                    "{} tokens do not fit the {left} that are left of a context of {}; shorten the \
                     prompt{way_out}",
                    tokens.len(),
                    self.n_ctx,
                ),
            ));
        }
        let before = self.tokens.len();
        self.tokens.extend_from_slice(tokens);
        let computed = self.compute(&[]);
        if computed.is_err() {
            self.rewind(before)?;
            // Those behind the last token went with the first batch; should they be
            // wanted, they are computed once more.
            let n = if self.logits.is_empty() { before.saturating_sub(1) } else { before };
            self.computed = self.cache.rewind(self.computed.min(n));
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
        Ok(self.predict(&[])?.0)
    }

    /// The logits behind the last token, and the tokens. If they must be
    /// computed, so are those behind each token of `draft`, as far as there is
    /// room: should the same tokens be appended, their logits are there already.
    pub(crate) fn predict(&mut self, draft: &[u32]) -> Result<(&[f32], &[u32])> {
        self.compute(draft)?;
        if self.logits.is_empty() {
            return Err(Error::input("there are no logits yet; feed at least one token"));
        }
        let n_vocab = self.model.info().n_vocab as usize;
        Ok((&self.logits[..n_vocab], &self.tokens))
    }

    /// Tokens that were computed before anybody chose them.
    pub fn drafted_tokens(&self) -> u64 {
        self.drafted_tokens
    }

    /// How many of the drafted tokens were appended then.
    pub fn accepted_tokens(&self) -> u64 {
        self.accepted_tokens
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
            self.forget(n);
        }
        Ok(())
    }

    /// Forgets what was computed of tokens from `n` on, and of those before them if a layer
    /// no longer has what the next one would attend to: then all are computed anew.
    fn forget(&mut self, n: usize) {
        self.computed = self.cache.rewind(n);
        self.drafted.clear();
        self.logits.clear();
    }

    /// Computes what is not computed yet, and with the last of it as much of
    /// `draft` as there is room for without another chunk of the KV cache.
    fn compute(&mut self, draft: &[u32]) -> Result<()> {
        let n_vocab = self.model.info().n_vocab as usize;
        let new = self.tokens[self.computed..].iter();
        let n_accepted = new.zip(&self.drafted).take_while(|(a, b)| a == b).count();
        self.drafted.drain(..n_accepted);
        self.logits.drain(..n_accepted * n_vocab);
        self.computed += n_accepted;
        self.accepted_tokens += n_accepted as u64;
        let n = self.tokens.len();
        if self.computed == n {
            return Ok(());
        }
        let n_short = self.model.n_ctx_short;
        let is_long = n > n_short;
        if is_long != self.is_long {
            self.forget(0);
            self.is_long = is_long;
        }
        self.drafted.clear();
        self.logits.truncate(n_vocab);
        let n_batch = self.make_room(n, draft.len())?;
        let n_max = if is_long { self.n_ctx } else { self.n_ctx.min(n_short) };
        let room = n_max.min(self.cache.room()) - n;
        while self.computed < n {
            let end = n.min(self.computed + n_batch);
            let n_new = end - self.computed;
            let mut tokens = self.tokens[self.computed..end].to_vec();
            let last = end == n;
            if last {
                tokens.extend(draft.iter().take(room.min(n_batch - n_new)));
            }
            let mut compute = |tokens: &[u32]| {
                let n_logits = if last { 1 + tokens.len() - n_new } else { 0 };
                let batch = Batch { position: self.computed, tokens, n_logits, is_long };
                forward(&self.model, &mut self.cache, &mut self.scratch, &batch)
            };
            match compute(&tokens) {
                // What nobody chose yet must not fail what was chosen.
                Err(e) if e.kind() == ErrorKind::InvalidModel && tokens.len() > n_new => {
                    tokens.truncate(n_new);
                    compute(&tokens)?;
                }
                computed => computed?,
            }
            if last {
                std::mem::swap(&mut self.logits, &mut self.scratch.logits);
            } else {
                self.logits.clear();
            }
            self.drafted.extend(&tokens[n_new..]);
            self.computed = end;
        }
        self.drafted_tokens += self.drafted.len() as u64;
        Ok(())
    }

    /// Makes room in the KV cache for `n` tokens and for passes over those that are not
    /// computed yet, with a draft of `n_draft` behind them. Answers how many can be
    /// computed together in what is left of the memory. All members come to the same,
    /// and if one of them has no memory, it fails for all.
    fn make_room(&mut self, n: usize, n_draft: usize) -> Result<usize> {
        let Self { model, cache, scratch, .. } = self;
        let left = model.experts.bytes_max().saturating_sub(model.kv_bytes(n));
        let n_batch = model.widths.n_batch(left);
        if scratch.n_tokens() > n_batch {
            // The cache may need what it took.
            scratch.clear();
        }
        let n_pass = n_batch.min(n - self.computed + n_draft);
        let n_logits = (1 + n_draft) * model.info().n_vocab as usize;
        let before = cache.room();
        if n <= before && n_pass <= scratch.n_tokens() && n_logits <= scratch.n_logits() {
            return Ok(n_batch);
        }
        let reserved = (cache.reserve(n))
            .and_then(|()| scratch.reserve(&model.widths, n_pass))
            .and_then(|()| scratch.reserve_logits(n_logits));
        let agreed = model.exchange.agree(reserved);
        if agreed.is_err() {
            // What members have must not tell them apart later.
            cache.truncate(before);
            *scratch = Scratch::default();
        }
        agreed.map(|()| n_batch)
    }
}

/// Fails unless a session with such a model can have a context of `n_ctx` tokens.
fn check_n_ctx(n_ctx: u32, model: &ModelInfo) -> Result<()> {
    let (max, trained) = (model.n_ctx_max, model.n_ctx_train);
    if (1..=max).contains(&n_ctx) {
        return Ok(());
    }
    let scaling = scaling_for(n_ctx.into(), model).filter(|_| n_ctx > 0);
    let way_out = scaling.map_or_else(String::new, |way| format!("; for a longer one, {way}"));
    let range = match max > trained {
        true => format!("trained for {trained} and scaled to {max}"),
        false => format!("trained for 1 to {trained}"),
    };
    Err(Error::input(format!(
        "a context of {n_ctx} tokens is not possible; the model was {range}{way_out}"
    )))
}

/// How the model could have a context of `n_ctx` tokens, if scaling it helps.
fn scaling_for(n_ctx: u64, model: &ModelInfo) -> Option<String> {
    let original = u64::from(model.n_ctx_original);
    let factor = n_ctx.checked_next_multiple_of(original)? / original;
    (factor <= ROPE_FACTOR_MAX as u64).then(|| {
        format!(
            "load it with a RoPE scaling and a factor of {factor} or more (`--rope-scaling yarn \
             --rope-factor {factor}`)"
        )
    })
}

#[cfg(test)]
mod tests {
    use rand_xoshiro::Xoshiro256PlusPlus;
    use rand_xoshiro::rand_core::{Rng, SeedableRng};

    use super::*;
    use crate::native::Folder;
    use crate::options::{LoadOptions, RopeScaling};

    fn load(name: &str) -> Rc<Model> {
        let path = moewe_fixtures::model(name);
        let (folder, name) = Folder::of(&path).unwrap();
        Rc::new(Model::load(&folder, &name, u64::MAX, &LoadOptions::default()).unwrap())
    }

    /// What is said of the memory for batches is what they take: no vector grows
    /// beyond the room that was made for it.
    #[test]
    fn batches_take_what_they_are_said_to_take() {
        for name in [
            "qwen2moe-q4_k_m",
            "mixtral-q8_0",
            "olmoe-f16",
            "dsv3-q4_k_m",
            "deepseekv2-f16",
            "gptoss-q8_0",
            "gemma4-q4_k_m",
            "phi3-q8_0",
        ] {
            let model = load(name);
            let mut context = Context::new(model.clone(), None).unwrap();
            for n in [1, 3, 16, 17, 60, 2, 33] {
                context.feed(&(0..n).map(|i| i * 7 % 500).collect::<Vec<_>>()).unwrap();
                let (room, made) = (context.scratch.bytes(), context.scratch.made(&model.widths));
                assert_eq!(room, made, "{name}, {n} tokens");
                let said = model.widths.bytes(context.scratch.n_tokens());
                assert!(made <= said && said < 3 * made, "{name}, {n}: {made}, {said} said");
            }
            let widths = &model.widths;
            assert_eq!(widths.n_batch(0), 16);
            assert_eq!(widths.n_batch(widths.bytes(64) - widths.bytes_min()), 64);
            assert_eq!(widths.n_batch(widths.bytes(64) - widths.bytes_min() - 1), 32);
            assert_eq!(widths.n_batch(u64::MAX), crate::BATCH_MAX);
        }
    }

    /// Without scaling, a context that is too long is refused, and the way out is told.
    #[test]
    fn contexts_may_be_longer_than_trained() {
        let path = moewe_fixtures::model("qwen2moe-q8_0");
        let (folder, name) = Folder::of(&path).unwrap();
        let load = |rope_scaling| {
            let options = LoadOptions { rope_scaling, ..LoadOptions::default() };
            Rc::new(Model::load(&folder, &name, u64::MAX, &options).unwrap())
        };
        let plain = load(None);
        let trained = plain.info().n_ctx_train;
        assert_eq!(Context::new(plain.clone(), None).unwrap().n_ctx(), trained as usize);
        let error = Context::new(plain.clone(), Some(2 * trained + 1)).err().unwrap();
        assert!(error.to_string().contains("--rope-scaling yarn --rope-factor 3"), "{error}");
        let mut full = Context::new(plain.clone(), None).unwrap();
        full.feed(&[1; 10]).unwrap();
        let error = full.feed(&vec![1; trained as usize]).unwrap_err();
        assert!(error.to_string().contains("--rope-scaling yarn --rope-factor 2"), "{error}");
        let error = Context::new(plain, Some(1024 * trained + 1)).err().unwrap();
        assert!(!error.to_string().contains("--rope-factor"), "{error}");

        let scaled = load(Some(RopeScaling::Yarn { factor: 2.0 }));
        assert_eq!(scaled.info().n_ctx_train, trained);
        let context = Context::new(scaled.clone(), None).unwrap();
        assert_eq!(context.n_ctx(), 2 * trained as usize);
        let error = Context::new(scaled, Some(2 * trained + 1)).err().unwrap();
        assert!(error.to_string().contains("scaled to"), "{error}");
    }

    /// What scaling multiplies may be shorter than what the model was trained for.
    #[test]
    fn the_factor_is_that_of_the_original_context() {
        let factor = |n_ctx: u64, n_ctx_original: u32| {
            let path = moewe_fixtures::model("qwen2moe-q8_0");
            let (folder, name) = Folder::of(&path).unwrap();
            let options = LoadOptions::default();
            let model = Model::load(&folder, &name, u64::MAX, &options).unwrap();
            let info = ModelInfo { n_ctx_original, ..model.info().clone() };
            scaling_for(n_ctx, &info)
        };
        let way = factor(200_000, 32_768).unwrap();
        assert!(way.contains("--rope-factor 7"), "{way}");
        assert_eq!(factor(200_000, 0), None);
        assert!(factor(1024 * 50, 50).is_some());
        assert_eq!(factor(1024 * 50 + 1, 50), None);
    }

    /// The room that was made for logits is where the last of several batches puts them.
    #[test]
    fn batches_without_logits_leave_their_room() {
        let path = moewe_fixtures::model("qwen2moe-q8_0");
        let (folder, name) = Folder::of(&path).unwrap();
        let options = LoadOptions {
            rope_scaling: Some(RopeScaling::Yarn { factor: 1024.0 }),
            ..LoadOptions::default()
        };
        let model = Rc::new(Model::load(&folder, &name, u64::MAX, &options).unwrap());
        let mut context = Context::new(model, None).unwrap();
        context.tokens = vec![1; crate::BATCH_MAX + 1];
        context.make_room(context.tokens.len(), 0).unwrap();
        let room = context.scratch.logits.as_ptr();
        context.compute(&[]).unwrap();
        assert_eq!(context.logits.as_ptr(), room);
    }

    fn bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|x| x.to_bits()).collect()
    }

    /// Goes through a text with drafts that are right, wrong, or right at
    /// first, goes back, and feeds what was drafted and what was not.
    #[test]
    fn logits_do_not_depend_on_drafts() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(3);
        let mut random = |n: usize| rng.next_u64() as usize % n;
        let plain = ["qwen2moe-q8_0", "mixtral-q4_k_m", "olmoe-f16", "dsv3-q8_0"];
        // With as many layers that hold a window, which is not full, as others; and with
        // positions that turn otherwise in long contexts.
        let special = [("gptoss-q8_0", 2), ("phi3-q8_0", 1)];
        for (name, n_caches) in plain.map(|name| (name, 1)).into_iter().chain(special) {
            let model = load(name);
            let text: Vec<u32> = (0..150).map(|_| random(500) as u32).collect();
            let mut plain = Context::new(model.clone(), None).unwrap();
            let expected: Vec<_> = (text.iter())
                .map(|&token| {
                    plain.feed(&[token]).unwrap();
                    bits(plain.logits().unwrap())
                })
                .collect();

            let mut context = Context::new(model, Some(text.len() as u32)).unwrap();
            context.feed(&text[..1]).unwrap();
            while !context.is_full() {
                let n = context.tokens().len();
                match random(12) {
                    0 => context.feed(&text[n..(n + 1 + random(5)).min(text.len())]).unwrap(),
                    1 if n > 20 => {
                        context.rewind(n - 5).unwrap();
                        assert!(context.logits().is_err());
                        context.feed(&text[n - 5..n - 3]).unwrap();
                    }
                    // The logits that the last token was chosen from are there.
                    2 => {
                        context.push(text[n]);
                        context.rewind(n).unwrap();
                    }
                    _ => context.push(text[n]),
                }
                let n = context.tokens().len();
                let mut draft = text[n..(n + random(9)).min(text.len())].to_vec();
                if random(3) == 0
                    && let Some(i) = draft.len().checked_sub(1)
                {
                    draft[random(i + 1)] ^= 1;
                }
                let (logits, tokens) = context.predict(&draft).unwrap();
                assert_eq!(tokens, &text[..n]);
                assert_eq!(bits(logits), expected[n - 1], "{name}, token {n}");
                assert_eq!(
                    context.kv_bytes(),
                    n_caches * 64 * n.div_ceil(64) as u64 * context.model.info().kv_bytes_per_token
                );
            }
            let (drafted, accepted) = (context.drafted_tokens, context.accepted_tokens);
            assert!(accepted > 40 && drafted > accepted + 10, "{accepted} of {drafted}");
        }
    }
}
