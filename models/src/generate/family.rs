//! Small models of every family of mixtures of experts that the engine computes,
//! for tests that compare ways of computing.

use std::path::Path;

use moewe_gguf::Writer;

use super::latent::{LatentShape, Layers};
use super::numbers::Format;
use super::tensor::Tensor;
use super::{Shape, vocabulary, windowed, write};
use crate::{Progress, Result};

/// What the layers of a model have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Architecture `llama`.
    Mixtral,
    /// Biases of q, k and v, and a shared expert with a gate of its own.
    Qwen2Moe,
    /// Norms of each head.
    Qwen3Moe,
    /// Norms of all heads together, and as many KV heads as heads.
    Olmoe,
    /// Factors on what is added up, and a shared expert without a gate.
    GraniteMoe,
    /// Attention over latents, a layer without experts before the others, groups of
    /// experts, and sigmoids that are corrected.
    DeepSeekV3,
    /// The same with a softmax, no groups, queries that are made of the hidden states, and
    /// one matrix that makes keys and values.
    DeepSeekV2Lite,
    /// Biases of all matrices, attention sinks, and a window in every second layer.
    GptOss,
    /// No experts; norms behind what is added, too, and windows in five layers of six.
    Gemma3,
    /// The same with a mixture beside the dense network of each layer.
    Gemma4,
    /// Layers without RoPE, and experts whose weight multiplies what goes into them.
    Llama4,
    /// No experts; matrices that share tensors, and factors of RoPE for long contexts.
    Phi3,
}

/// How the matrices are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    /// All in F16.
    F16,
    /// All in Q8_0.
    Q8_0,
    /// Most in Q4_K, some in Q5_K, Q6_K and Q8_0.
    Q4KM,
}

/// Width of the hidden state.
const N_EMBD: u64 = 256;
/// Inner width of a shared expert.
const N_FF_SHARED: u64 = 512;

impl Family {
    /// Its metadata and its tensors.
    fn model(self, seed: u64) -> (Writer, Vec<Tensor>) {
        let (architecture, shape) = match self {
            Self::Mixtral => ("llama", self.shape()),
            Self::Qwen2Moe => ("qwen2moe", self.shape()),
            Self::Qwen3Moe => ("qwen3moe", self.shape()),
            Self::Olmoe => ("olmoe", self.shape()),
            Self::GraniteMoe => ("granitemoe", self.shape()),
            Self::DeepSeekV3 => return LatentShape::SMALL.model(seed),
            Self::DeepSeekV2Lite => return LatentShape::SMALL_LITE.model(seed),
            Self::GptOss => return windowed::gpt_oss(seed),
            Self::Gemma3 => return windowed::gemma3(seed),
            Self::Gemma4 => return windowed::gemma4(seed),
            Self::Llama4 => return windowed::llama4(seed),
            Self::Phi3 => return windowed::phi3(seed),
        };
        let mut header = shape.metadata_of(architecture, seed);
        if self.has_shared() {
            let key = format!("{architecture}.expert_shared_feed_forward_length");
            header.u32(&key, N_FF_SHARED as u32);
        }
        if self == Self::GraniteMoe {
            header.f32("granitemoe.embedding_scale", 3.0);
            header.f32("granitemoe.attention.scale", 0.1);
            header.f32("granitemoe.residual_scale", 0.5);
            header.f32("granitemoe.logit_scale", 2.0);
        }
        vocabulary::write(&mut header, shape.n_vocab as usize);
        let mut tensors = shape.tensors();
        (0..shape.n_layer).for_each(|layer| self.adapt(layer, &mut tensors));
        (header, tensors)
    }

    /// The shape of one whose heads have keys and values of their own.
    fn shape(self) -> Shape {
        let all = Shape {
            n_layer: 2,
            n_embd: N_EMBD as u32,
            n_head: 8,
            kv_heads: 2,
            head_dim: 32,
            n_expert: 8,
            n_expert_used: 3,
            n_ff_expert: 256,
            n_vocab: 512,
            n_ctx: 2048,
        };
        match self {
            Self::Mixtral => Shape { n_expert_used: 2, n_ff_expert: 512, ..all },
            Self::Qwen3Moe => Shape { head_dim: 64, ..all },
            Self::Olmoe => Shape { n_head: 4, kv_heads: 4, head_dim: 64, ..all },
            _ => all,
        }
    }

    /// Whether all tokens share an expert.
    fn has_shared(self) -> bool {
        matches!(self, Self::Qwen2Moe | Self::GraniteMoe)
    }

    /// What a layer has beside, or in place of, what the generator gives all models.
    fn adapt(self, layer: u32, tensors: &mut Vec<Tensor>) {
        let shape = self.shape();
        let [width, kv_width] =
            [shape.n_head, shape.kv_heads].map(|n| u64::from(n * shape.head_dim));
        let name = |part: &str| format!("blk.{layer}.{part}");
        if self != Self::Qwen3Moe {
            tensors.retain(|tensor| {
                !["attn_q_norm.weight", "attn_k_norm.weight"].iter().any(|n| tensor.name == name(n))
            });
        }
        if self == Self::Olmoe {
            tensors.push(Tensor::norm(&name("attn_q_norm"), width));
            tensors.push(Tensor::norm(&name("attn_k_norm"), kv_width));
        }
        if self == Self::Qwen2Moe {
            tensors.extend([
                Tensor::bias(&name("attn_q"), width),
                Tensor::bias(&name("attn_k"), kv_width),
                Tensor::bias(&name("attn_v"), kv_width),
                Tensor::router(&name("ffn_gate_inp_shexp"), &[N_EMBD], 1.0),
            ]);
        }
        if self.has_shared() {
            tensors.extend([
                Tensor::matrix(&name("ffn_gate_shexp"), &[N_EMBD, N_FF_SHARED], 1.0),
                Tensor::matrix(&name("ffn_up_shexp"), &[N_EMBD, N_FF_SHARED], 1.0),
                Tensor::matrix(&name("ffn_down_shexp"), &[N_FF_SHARED, N_EMBD], 0.7),
            ]);
        }
    }
}

impl Quantization {
    /// The format of a tensor that is a matrix.
    fn format(self, tensor: &str) -> Format {
        let is_one_of = |parts: &[&str]| parts.iter().any(|part| tensor.contains(part));
        match self {
            Self::F16 => Format::F16,
            Self::Q8_0 => Format::Q8_0,
            Self::Q4KM if tensor == "output.weight" => Format::Q6K,
            // Rows of `attn_k_b` are no multiple of 256.
            Self::Q4KM if is_one_of(&["attn_k.", "attn_v.", "attn_k_b."]) => Format::Q8_0,
            Self::Q4KM if is_one_of(&["attn_output."]) => Format::Q5K,
            Self::Q4KM => Format::Q4K,
        }
    }
}

/// Writes a small model: 2 to 6 layers, a vocabulary of 512 tokens, 2 to 8 MB. A file
/// that is there is replaced once all is written.
///
/// # Errors
///
/// The disk may fail.
pub fn generate_small(
    path: &Path,
    family: Family,
    quantization: Quantization,
    seed: u64,
    progress: &mut dyn Progress,
) -> Result<()> {
    let (header, tensors) = family.model(seed);
    let stored = |tensor: Tensor| {
        let format = quantization.format(&tensor.name);
        tensor.stored_as(format)
    };
    let tensors: Vec<Tensor> = tensors.into_iter().map(stored).collect();
    write(path, header, &tensors, Layers::Random, seed, progress)
}
