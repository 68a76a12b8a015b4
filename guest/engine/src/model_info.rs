//! What a model is, for those who ask.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::gguf::{Header, TensorInfo};
use crate::plan::Plan;
use crate::takes::Takes;

/// What a model is.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// The architecture as the file names it.
    pub architecture: String,
    /// The model's name, if the file has one.
    pub name: Option<String>,
    /// The quantisation that most of the weights have.
    pub quantization: &'static str,
    /// How many parameters the model has.
    pub n_params: u64,
    /// Bytes of all tensors together.
    pub weight_bytes: u64,
    /// Bytes of KV cache for each token, in layers that hold all of them.
    pub kv_bytes_per_token: u64,
    /// How many layers.
    pub n_layer: u32,
    /// Width of the hidden state.
    pub n_embd: u32,
    /// Size of the vocabulary.
    pub n_vocab: u32,
    /// The context that the model was trained for, in tokens.
    pub n_ctx_train: u32,
    /// The longest context that a session may have, in tokens: as long, or longer if
    /// positions are [scaled](crate::options::RopeScaling).
    pub n_ctx_max: u32,
    /// The context that a factor of scaling multiplies, in tokens; 0 if positions cannot
    /// be scaled.
    pub n_ctx_original: u32,
    /// Experts in a layer; 0 for a dense model.
    pub n_expert: u32,
    /// Experts that the router picks for a token.
    pub n_expert_used: u32,
}

impl ModelInfo {
    /// Of the file with this header, as it is planned, and what it takes.
    pub(crate) fn new(header: &Header, plan: &Plan, takes: &Takes) -> Result<Self> {
        let text = |key| header.metadata.str(key).map(|text| text.map(str::to_owned));
        let tensors = header.tensors.values();
        Ok(Self {
            architecture: text("general.architecture")?.unwrap_or_default(),
            name: text("general.name")?,
            quantization: quantization(&header.tensors),
            n_params: tensors.clone().map(TensorInfo::n_elements).fold(0, u64::saturating_add),
            weight_bytes: tensors.map(|tensor| tensor.size).fold(0, u64::saturating_add),
            kv_bytes_per_token: takes.state.bytes_per_token,
            n_layer: plan.layers.len() as u32,
            n_embd: plan.n_embd() as u32,
            n_vocab: plan.n_vocab() as u32,
            n_ctx_train: plan.n_ctx_train as u32,
            n_ctx_max: plan.n_ctx_max as u32,
            n_ctx_original: plan.n_ctx_original as u32,
            n_expert: takes.room.n_expert as u32,
            n_expert_used: takes.room.n_expert_used as u32,
        })
    }
}

/// The tensor type that most bytes of the weights have.
fn quantization(tensors: &BTreeMap<String, TensorInfo>) -> &'static str {
    let mut bytes = BTreeMap::new();
    for tensor in tensors.values() {
        *bytes.entry(tensor.ty.unpacked().name()).or_insert(0) += tensor.size;
    }
    bytes.into_iter().max_by_key(|(_, bytes)| *bytes).map_or("", |(name, _)| name)
}
