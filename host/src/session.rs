//! A context: the tokens so far, in a sandbox of its own.

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::guest::Guest;
use crate::info::ModelInfo;
use crate::sandbox::bindings::exports::moewe::inference::inference as wit;
use crate::sandbox::{self, CancelHandle, Sandbox};
use crate::weights::WeightStats;

/// How the next token is chosen from the logits. The steps are taken in the
/// order of the fields from `repeat_penalty` on.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Sampling {
    /// Logits of recent tokens are divided by it if positive, multiplied if
    /// negative; 1, the default, changes nothing.
    pub repeat_penalty: f32,
    /// How many recent tokens the penalty looks at; 64 by default.
    pub repeat_last_n: u32,
    /// Keep the `top_k` most probable tokens; 0 keeps all; 40 by default.
    pub top_k: u32,
    /// Keep the smallest set whose probabilities add up to `top_p`; 1 keeps
    /// all; 0.95 by default.
    pub top_p: f32,
    /// Keep tokens at least `min_p` times as probable as the best; 0 keeps
    /// all; 0.05 by default.
    pub min_p: f32,
    /// What the logits are divided by; 0 takes the most probable token, and
    /// then all else but the penalty is ignored; 0.8 by default.
    pub temperature: f32,
    /// Equal seeds give equal tokens; 0 by default.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            temperature: 0.8,
            seed: 0,
        }
    }
}

impl Sampling {
    /// Always the most probable token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }
}

/// How a session is set up.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct SessionOptions {
    /// The most tokens that the session may hold; by default the context that
    /// the model was trained for. The KV cache grows as it is filled.
    pub n_ctx: Option<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`, or what else the template knows.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A message of this role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StopReason {
    /// The model produced a token that ends its turn.
    EndOfGeneration,
    /// The context is full.
    ContextFull,
    /// As many tokens came as were asked for.
    Length,
    /// [`CancelHandle::stop`] was called.
    Cancelled,
}

/// What one step of generation brought.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Step {
    /// The token, already part of the context; absent if there is none.
    pub token: Option<u32>,
    /// The text that became complete with it. Bytes of an unfinished character
    /// are kept for later steps, so it may be empty. When the model stops they
    /// become U+FFFD; [`Session::feed`] drops them, so what a generation of limited
    /// length leaves unfinished is no part of the next answer.
    pub text: String,
    /// Present when generation ended.
    pub stop: Option<StopReason>,
}

impl Step {
    /// A step that brings nothing but the end.
    pub(crate) fn end(stop: StopReason) -> Self {
        Self { token: None, text: String::new(), stop: Some(stop) }
    }
}

impl TryFrom<wit::Step> for Step {
    type Error = wasmtime::Error;

    fn try_from(step: wit::Step) -> wasmtime::Result<Self> {
        Ok(Self {
            token: step.token,
            text: sandbox::checked_text(step.text)?,
            stop: step.stop.map(|stop| match stop {
                wit::StopReason::EndOfGeneration => StopReason::EndOfGeneration,
                wit::StopReason::ContextFull => StopReason::ContextFull,
            }),
        })
    }
}

/// What a session used so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Tokens given to [`Session::feed`].
    pub prompt_tokens: u64,
    /// Tokens that came out of [`Session::next`].
    pub generated_tokens: u64,
    /// Tokens that were computed before they were chosen, because the context
    /// had repeated itself.
    pub drafted_tokens: u64,
    /// How many of the drafted tokens were chosen then.
    pub accepted_tokens: u64,
    /// Tokens in the context.
    pub context_tokens: u32,
    /// The most tokens that the context may hold.
    pub n_ctx: u32,
    /// Bytes of the KV cache, of all threads together.
    pub kv_bytes: u64,
}

/// A session: a sandbox with the model, and the tokens so far.
///
/// All methods block until the guest has answered; a session can be moved to
/// another thread, and [`generate_stream`](Self::generate_stream) does that.
///
/// Every method that calls the guest can fail with the kinds of the guest's
/// interface (`InvalidInput`, `ContextFull`, ...), and with `Stopped` if it computes,
/// after which the session goes on; and with `OutOfMemory`, `TimeLimit`, `Cancelled` or
/// `Internal` if the sandbox broke, or `Weights` if the model's files changed or cannot
/// be read any more, after which every call answers `Ended`.
pub struct Session {
    sandbox: Sandbox,
    info: Arc<ModelInfo>,
    n_ctx: u32,
    /// Why this guest computes.
    why_guest: &'static str,
}

impl Session {
    /// Tokens that the engine computes together. A long prompt that is fed in
    /// parts of this size can be stopped in between, and takes no longer.
    pub const FEED_LEN: usize = 512;

    /// Starts a session in a sandbox.
    pub(crate) fn start(sandbox: &mut Sandbox, options: &SessionOptions) -> Result<()> {
        let sampling = &options.sampling;
        let options = wit::SessionOptions {
            n_ctx: options.n_ctx,
            sampling: wit::Sampling {
                temperature: sampling.temperature,
                top_k: sampling.top_k,
                top_p: sampling.top_p,
                min_p: sampling.min_p,
                repeat_penalty: sampling.repeat_penalty,
                repeat_last_n: sampling.repeat_last_n,
                seed: sampling.seed,
            },
        };
        sandbox.start(options)
    }

    /// The session that was started in a sandbox.
    pub(crate) fn new(
        sandbox: Sandbox,
        info: Arc<ModelInfo>,
        n_ctx: Option<u32>,
        why_guest: &'static str,
    ) -> Self {
        let n_ctx = n_ctx.unwrap_or(info.n_ctx_max);
        Self { sandbox, info, n_ctx, why_guest }
    }

    /// What the model is.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Turns text into tokens.
    ///
    /// `add_special` adds what the model wants around a text (a BOS token);
    /// `parse_special` reads names of control tokens in the text as those
    /// tokens: dangerous for the words of a stranger.
    ///
    /// # Errors
    ///
    /// `ContextFull` for a text of more than
    /// [`text_bytes_max`](Self::text_bytes_max) bytes; see also [`Session`].
    pub fn tokenize(
        &mut self,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<u32>> {
        self.check_text_bytes(text.len() as u64)?;
        self.sandbox.ask(|store, guest, model| {
            guest.model().call_tokenize(store, model, text, add_special, parse_special)
        })
    }

    fn check_text_bytes(&self, n: u64) -> Result<()> {
        let (n_ctx, token_bytes_max) = (self.n_ctx, self.info.token_bytes_max);
        let text_bytes_max = self.text_bytes_max();
        // A model without a tokenizer has a better error.
        if n <= text_bytes_max || token_bytes_max == 0 {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::ContextFull,
            format!(
                "the text has more than {text_bytes_max} bytes, which is the most that a context \
                 of {n_ctx} tokens of up to {token_bytes_max} bytes holds; shorten the text{}",
                self.larger_context(n_ctx)
            ),
        ))
    }

    /// The longest text that the context could hold, in bytes: what is longer need
    /// not even be read.
    pub fn text_bytes_max(&self) -> u64 {
        u64::from(self.n_ctx) * u64::from(self.info.token_bytes_max)
    }

    /// Turns tokens into text. Bytes that are not UTF-8 become U+FFFD. `special`
    /// shows control tokens by their names.
    ///
    /// # Errors
    ///
    /// See [`Session`].
    pub fn detokenize(&mut self, tokens: &[u32], special: bool) -> Result<String> {
        self.sandbox.ask(|store, guest, model| {
            let answer = guest.model().call_detokenize(store, model, tokens, special)?;
            sandbox::checked_answer(answer)
        })
    }

    /// Writes a conversation as the model expects it: its tokens, to be fed as
    /// they are. With `add_generation_prompt` it ends where the assistant's
    /// answer begins.
    ///
    /// Whatever the messages say is text to the model, names of control tokens
    /// too. The file's chat template runs in a sandbox of its own, for 2 s and
    /// with 64 MiB at most.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the template refuses the messages or fails on them,
    /// `Unsupported` if there is none, or the engine cannot run it, or not within
    /// its limits, `ContextFull` if the messages, or what it writes, are more than a
    /// context can hold; see
    /// also [`Session`].
    pub fn apply_chat_template(
        &mut self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>> {
        let texts = messages.iter().flat_map(|m| [&m.role, &m.content]);
        self.check_text_bytes(texts.map(|text| text.len() as u64).sum())?;
        let messages: Vec<_> = messages
            .iter()
            .map(|m| wit::Message { role: m.role.clone(), content: m.content.clone() })
            .collect();
        let conversation = self.sandbox.ask(|store, guest, model| {
            guest.model().call_prepare_chat(store, model, &messages, add_generation_prompt)
        })?;
        let text = self.sandbox.render(&conversation)?;
        self.sandbox.ask(|store, guest, model| {
            guest.model().call_tokenize_chat(store, model, &text, conversation.mark)
        })
    }

    /// Adds tokens to the context (prefill). Nothing is added if it fails.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if a token is outside the vocabulary, `ContextFull` if
    /// the tokens do not fit; see also [`Session`].
    pub fn feed(&mut self, tokens: &[u32]) -> Result<()> {
        let tokens = tokens.to_vec();
        self.sandbox
            .call(move |store, guest, session| guest.session().call_feed(store, session, &tokens))
    }

    /// Chooses the next token from the logits and adds it to the context
    /// (decode). The token is computed when the logits behind it are wanted.
    /// After a stop, [`feed`](Self::feed) can go on.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if nothing was fed yet; see also [`Session`].
    #[expect(clippy::should_implement_trait, reason = "the interface of the guest calls it so")]
    pub fn next(&mut self) -> Result<Step> {
        let mut steps = self.sandbox.each(|store, guest, session| {
            Ok(match guest.session().call_next(store, session)? {
                Ok(step) => Ok(Step::try_from(step)?),
                Err(error) => Err(error),
            })
        })?;
        // Whoever chose another token is lost for what follows.
        if steps.iter().any(|step| step.token != steps[0].token) {
            return self.sandbox.end("the threads of the session chose different tokens");
        }
        Ok(steps.swap_remove(0))
    }

    /// The logits behind the last token, one for each entry of the vocabulary.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if nothing was fed yet; see also [`Session`].
    pub fn logits(&mut self) -> Result<Vec<f32>> {
        self.sandbox.call(|store, guest, session| guest.session().call_logits(store, session))
    }

    /// Forgets all but the first `n_tokens` tokens. If there were more, at least
    /// one token must be fed before the next [`next`](Self::next) or
    /// [`logits`](Self::logits); if not, nothing changes.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if there are fewer tokens; see also [`Session`].
    pub fn rewind(&mut self, n_tokens: u32) -> Result<()> {
        self.sandbox.call(move |store, guest, session| {
            guest.session().call_rewind(store, session, n_tokens)
        })
    }

    /// What the session used so far.
    ///
    /// # Errors
    ///
    /// See [`Session`].
    pub fn usage(&mut self) -> Result<Usage> {
        let mut usages = self
            .sandbox
            .each(|store, guest, session| guest.session().call_usage(store, session).map(Ok))?;
        let kv_bytes = usages.iter().fold(0_u64, |sum, u| sum.saturating_add(u.kv_bytes));
        let usage = usages.swap_remove(0);
        Ok(Usage {
            prompt_tokens: usage.prompt_tokens,
            generated_tokens: usage.generated_tokens,
            drafted_tokens: usage.drafted_tokens,
            accepted_tokens: usage.accepted_tokens,
            context_tokens: usage.context_tokens,
            n_ctx: usage.n_ctx,
            kv_bytes,
        })
    }

    /// Checks that the context has room for `n_tokens` more, so that a prompt
    /// that is fed in parts is refused as a whole.
    ///
    /// # Errors
    ///
    /// `ContextFull` if it has not; see also [`Session`].
    pub fn ensure_room(&mut self, n_tokens: usize) -> Result<()> {
        let usage = self.usage()?;
        let left = usage.n_ctx.saturating_sub(usage.context_tokens);
        if n_tokens <= left as usize {
            return Ok(());
        }
        let larger = self.larger_context(usage.n_ctx);
        Err(Error::new(
            ErrorKind::ContextFull,
            format!(
                "{n_tokens} tokens do not fit the {left} that are left of a context of {}; shorten \
                 the prompt{larger}",
                usage.n_ctx
            ),
        ))
    }

    /// The way out for what does not fit a context, if there is a larger one.
    fn larger_context(&self, n_ctx: u32) -> String {
        match self.info.n_ctx_max {
            n if n > n_ctx => format!(", or use a larger context (up to {n})"),
            _ => String::new(),
        }
    }

    /// What this session asked of the weights so far.
    pub fn stats(&self) -> WeightStats {
        self.sandbox.stats()
    }

    /// The guest that computes, and why it is this one.
    pub fn guest(&self) -> (Guest, &'static str) {
        (self.sandbox.guest(), self.why_guest)
    }

    /// A handle that ends what the session does.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.sandbox.cancel_handle().clone()
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("info", &self.info).finish_non_exhaustive()
    }
}
