//! A model with its tokenizer and chat template, and sessions with it.

use std::rc::Rc;

use crate::chat::{ChatTemplate, Conversation, Message};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::model::{Model, ModelInfo};
use crate::options::LoadOptions;
use crate::sampler::{Sampler, Sampling};
use crate::speculation::Speculation;
use crate::team::{Alone, Team};
use crate::tokenizer::{TextStream, Tokenizer};
use crate::weights::{self, Weights};

/// All that a GGUF file brings: weights, tokenizer, chat template.
pub struct LanguageModel {
    model: Rc<Model>,
    tokenizer: Rc<Option<Tokenizer>>,
    /// A template that cannot be used is an error when it is wanted only.
    template: Result<Option<ChatTemplate>>,
}

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The model produced a token that ends its turn.
    EndOfGeneration,
    /// The context is full.
    ContextFull,
}

/// What [`Session::next`] brought.
#[derive(Debug, Clone, Default)]
pub struct Step {
    /// The token, already part of the session; absent at a stop.
    pub token: Option<u32>,
    /// The text that became complete with it.
    pub text: String,
    /// Present when generation ended.
    pub stop: Option<StopReason>,
}

/// A context, and how its tokens are chosen.
pub struct Session {
    context: Context,
    tokenizer: Rc<Option<Tokenizer>>,
    sampler: Sampler,
    speculation: Speculation,
    text: TextStream,
    prompt_tokens: u64,
    generated_tokens: u64,
}

impl LanguageModel {
    /// Opens the model in the file `name`; see [`Model::load`].
    pub fn load(
        weights: &dyn Weights,
        name: &str,
        window_bytes_max: u64,
        options: &LoadOptions,
    ) -> Result<Self> {
        Self::load_in_team(weights, name, window_bytes_max, options, Box::new(Alone))
    }

    /// The same for a member of a team; see [`Model::load_in_team`].
    pub fn load_in_team(
        weights: &dyn Weights,
        name: &str,
        window_bytes_max: u64,
        options: &LoadOptions,
        team: Box<dyn Team>,
    ) -> Result<Self> {
        let gguf = weights::open(weights, name)?;
        let in_file = |e: Error| Error::new(e.kind(), format!("{name}: {e}"));
        let metadata = &gguf.header.metadata;
        let tokenizer = Tokenizer::from_metadata(metadata).map_err(in_file)?;
        let template = ChatTemplate::from_metadata(metadata).map_err(in_file);
        let model =
            Model::from_gguf(weights, gguf, window_bytes_max, options, team).map_err(in_file)?;
        Ok(Self { model: Rc::new(model), tokenizer: Rc::new(tokenizer), template })
    }

    /// What the model is.
    pub fn info(&self) -> &ModelInfo {
        self.model.info()
    }

    /// Whether the file brings a chat template.
    pub fn has_chat_template(&self) -> bool {
        !matches!(self.template, Ok(None))
    }

    /// The file's tokenizer.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        (*self.tokenizer).as_ref().ok_or_else(|| {
            Error::unsupported(
                "the file brings no tokenizer; give token ids, or get the model from another source",
            )
        })
    }

    /// Writes a conversation as the model expects it: its tokens. What the
    /// messages say is text, if it names control tokens too.
    pub fn apply_chat_template(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>> {
        let conversation = self.prepare_chat(messages, add_generation_prompt)?;
        self.tokenizer()?.encode_marked(&conversation.render()?, conversation.mark)
    }

    /// The first step of that, for those who render elsewhere; what comes of it
    /// is for [`Tokenizer::encode_marked`].
    pub fn prepare_chat(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Conversation> {
        let Some(template) = self.template.as_ref().map_err(Error::clone)? else {
            return Err(Error::unsupported(
                "the file brings no chat template; use plain completion instead of chat",
            ));
        };
        let tokenizer = self.tokenizer()?;
        // More than that is more tokens than the context holds.
        let bytes_max =
            (self.info().n_ctx_max as usize).saturating_mul(tokenizer.token_bytes_max());
        template.prepare(tokenizer, messages, add_generation_prompt, bytes_max)
    }

    /// Starts a session with an empty context; see [`Context::new`].
    pub fn start(&self, n_ctx: Option<u32>, sampling: Sampling) -> Result<Session> {
        Ok(Session {
            context: Context::new(self.model.clone(), n_ctx)?,
            tokenizer: self.tokenizer.clone(),
            sampler: Sampler::new(sampling)?,
            speculation: Speculation::new(&self.model.takes),
            text: TextStream::default(),
            prompt_tokens: 0,
            generated_tokens: 0,
        })
    }
}

impl Session {
    /// Adds tokens to the context (prefill). Nothing is added if it fails. A
    /// character that the tokens before left unfinished stays so: its bytes are no
    /// part of what is generated next.
    pub fn feed(&mut self, tokens: &[u32]) -> Result<()> {
        self.context.feed(tokens)?;
        self.text = TextStream::default();
        self.prompt_tokens += tokens.len() as u64;
        Ok(())
    }

    /// Chooses the next token and adds it to the context (decode).
    #[expect(clippy::should_implement_trait, reason = "it can fail, and go on after a stop")]
    pub fn next(&mut self) -> Result<Step> {
        if self.context.is_full() {
            return Ok(self.stop(StopReason::ContextFull));
        }
        let draft = self.speculation.draft(self.context.tokens());
        let (logits, tokens) = self.context.predict(draft)?;
        let token = self.sampler.sample(logits, tokens)?;
        self.speculation.chosen(token);
        let Some(tokenizer) = &*self.tokenizer else {
            self.context.push(token);
            self.generated_tokens += 1;
            return Ok(Step { token: Some(token), ..Step::default() });
        };
        if tokenizer.is_end_of_generation(token) {
            return Ok(self.stop(StopReason::EndOfGeneration));
        }
        // Rows of padding behind the vocabulary have no text.
        let bytes = match token < tokenizer.n_vocab() {
            true => tokenizer.token_bytes(token, false)?,
            false => Vec::new(),
        };
        self.context.push(token);
        self.generated_tokens += 1;
        Ok(Step { token: Some(token), text: self.text.push(&bytes), stop: None })
    }

    fn stop(&mut self, reason: StopReason) -> Step {
        Step { token: None, text: self.text.finish(), stop: Some(reason) }
    }

    /// The logits behind the last token.
    pub fn logits(&mut self) -> Result<&[f32]> {
        self.context.logits()
    }

    /// Forgets all but the first `n` tokens. If there are no more, nothing changes.
    pub fn rewind(&mut self, n: usize) -> Result<()> {
        let shorter = n < self.context.tokens().len();
        self.context.rewind(n)?;
        if shorter {
            self.text = TextStream::default();
        }
        Ok(())
    }

    /// The context.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Tokens given to [`Session::feed`].
    pub fn prompt_tokens(&self) -> u64 {
        self.prompt_tokens
    }

    /// Tokens that came out of [`Session::next`].
    pub fn generated_tokens(&self) -> u64 {
        self.generated_tokens
    }
}
