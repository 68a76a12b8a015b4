//! What the engine offers: the WIT interface `inference`, which says what each of these
//! means.

// Members are those of WIT, where they are explained.
#![allow(missing_docs)]

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::message::interface;

/// What kind of error it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorCode {
    Weights,
    InvalidModel,
    Unsupported,
    InvalidInput,
    ContextFull,
    OutOfMemory,
    Team,
    Stopped,
}

/// An error, with a sentence that names the thing and the way out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Error {
    pub code: ErrorCode,
    pub message: String,
}

/// What a model is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ModelInfo {
    pub architecture: String,
    pub name: Option<String>,
    pub quantization: String,
    pub n_params: u64,
    pub weight_bytes: u64,
    pub kv_bytes_per_token: u64,
    pub n_layer: u32,
    pub n_embd: u32,
    pub n_vocab: u32,
    pub n_ctx_train: u32,
    pub n_ctx_max: u32,
    pub token_bytes_max: u32,
    pub n_expert: u32,
    pub n_expert_used: u32,
    pub has_chat_template: bool,
}

/// One message of a conversation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Message {
    pub role: String,
    pub content: String,
}

/// A conversation, and all that has to be known to render it. Texts are UTF-8.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Conversation {
    #[serde(with = "serde_bytes")]
    pub template: Vec<u8>,
    pub messages: Vec<(ByteBuf, ByteBuf)>,
    pub add_generation_prompt: bool,
    #[serde(with = "serde_bytes")]
    pub bos: Vec<u8>,
    #[serde(with = "serde_bytes")]
    pub eos: Vec<u8>,
    pub bytes_max: u32,
    pub mark: char,
}

/// How the next token is chosen from the logits.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Sampling {
    pub temperature: f32,
    pub top_k: u32,
    pub top_p: f32,
    pub min_p: f32,
    pub repeat_penalty: f32,
    pub repeat_last_n: u32,
    pub seed: u64,
}

/// How keys and values are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvFormat {
    F32,
    F16,
    Q8,
}

/// How positions are scaled, with the factor.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum RopeScaling {
    None,
    Linear(f32),
    Yarn(f32),
}

/// How a model is loaded.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct LoadOptions {
    pub kv_format: KvFormat,
    pub rope_scaling: Option<RopeScaling>,
}

/// How a session is set up.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct SessionOptions {
    pub n_ctx: Option<u32>,
    pub sampling: Sampling,
}

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopReason {
    EndOfGeneration,
    ContextFull,
}

/// What `next` brought.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Step {
    pub token: Option<u32>,
    pub text: String,
    pub stop: Option<StopReason>,
}

/// What a session used so far.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Usage {
    pub prompt_tokens: u64,
    pub generated_tokens: u64,
    pub drafted_tokens: u64,
    pub accepted_tokens: u64,
    pub context_tokens: u32,
    pub n_ctx: u32,
    pub kv_bytes: u64,
}

interface! {
    /// The engine. Models and sessions are numbers, which are valid until they are closed.
    trait Inference, client InferenceClient, fn answer_inference;

    /// `model.load`
    fn load(name: String, options: LoadOptions) -> Result<u32, Error>;
    /// `model.info`
    fn info(model: u32) -> ModelInfo;
    /// `model.tokenize`
    fn tokenize(
        model: u32, text: String, add_special: bool, parse_special: bool,
    ) -> Result<Vec<u32>, Error>;
    /// `model.detokenize`
    fn detokenize(model: u32, tokens: Vec<u32>, special: bool) -> Result<String, Error>;
    /// `model.apply-chat-template`
    fn apply_chat_template(
        model: u32, messages: Vec<Message>, add_generation_prompt: bool,
    ) -> Result<Vec<u32>, Error>;
    /// `model.prepare-chat`
    fn prepare_chat(
        model: u32, messages: Vec<Message>, add_generation_prompt: bool,
    ) -> Result<Conversation, Error>;
    /// `model.tokenize-chat`
    fn tokenize_chat(model: u32, text: ByteBuf, mark: char) -> Result<Vec<u32>, Error>;
    /// `model.start`
    fn start(model: u32, options: SessionOptions) -> Result<u32, Error>;
    /// Drops a model; its sessions keep what they need.
    fn close_model(model: u32);

    /// `session.feed`
    fn feed(session: u32, tokens: Vec<u32>) -> Result<(), Error>;
    /// `session.next`
    fn next(session: u32) -> Result<Step, Error>;
    /// `session.logits`
    fn logits(session: u32) -> Result<Vec<f32>, Error>;
    /// `session.rewind`
    fn rewind(session: u32, n_tokens: u32) -> Result<(), Error>;
    /// `session.usage`
    fn usage(session: u32) -> Usage;
    /// Drops a session.
    fn close_session(session: u32);

    /// `render`
    fn render(conversation: Conversation) -> Result<ByteBuf, Error>;
}
