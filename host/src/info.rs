//! What a model is.

/// What a model is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelInfo {
    /// The architecture as the file names it: `llama`, `qwen3moe`.
    pub architecture: String,
    /// The model's name, if the file has one.
    pub name: Option<String>,
    /// The quantisation that most of the weights have: `Q4_K`.
    pub quantization: String,
    /// How many parameters the model has.
    pub n_params: u64,
    /// Bytes of all tensors together.
    pub weight_bytes: u64,
    /// Bytes of KV cache that one token of context costs, in the format of
    /// [`ModelOptions::kv_format`](crate::ModelOptions::kv_format).
    pub kv_bytes_per_token: u64,
    /// How many layers.
    pub n_layer: u32,
    /// Width of the hidden state.
    pub n_embd: u32,
    /// Size of the vocabulary, and so of the logits.
    pub n_vocab: u32,
    /// The context the model was trained for, in tokens.
    pub n_ctx_train: u32,
    /// The longest context that a session may have, in tokens: as long, or longer if
    /// [`ModelOptions::rope_scaling`](crate::ModelOptions::rope_scaling) says so.
    pub n_ctx_max: u32,
    /// The most bytes of a text that become one token; 0 if the file brings no
    /// tokenizer.
    pub token_bytes_max: u32,
    /// Experts in a layer; 0 for a dense model.
    pub n_expert: u32,
    /// Experts that the router picks for a token.
    pub n_expert_used: u32,
    /// Whether the file brings a chat template.
    pub has_chat_template: bool,
}
