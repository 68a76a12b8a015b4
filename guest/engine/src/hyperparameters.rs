//! What a model's metadata says about its shape.

use crate::error::{Error, Result};
use crate::gguf::{Metadata, Value};

/// The most of anything that a model may have: heads, experts, numbers in a
/// vector. A product of two of them and of a batch fits 32 bits.
const COUNT_MAX: u32 = 1 << 16;
/// The most layers.
const N_LAYER_MAX: u32 = 1 << 10;

/// An architecture that the engine computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Architecture {
    /// Llama, Mistral, Mixtral, SmolLM2.
    Llama,
    Qwen2,
    Qwen2Moe,
    Qwen3,
    Qwen3Moe,
    Olmoe,
}

impl Architecture {
    const ALL: [(&str, Self); 6] = [
        ("llama", Self::Llama),
        ("qwen2", Self::Qwen2),
        ("qwen2moe", Self::Qwen2Moe),
        ("qwen3", Self::Qwen3),
        ("qwen3moe", Self::Qwen3Moe),
        ("olmoe", Self::Olmoe),
    ];

    fn from_name(name: &str) -> Result<Self> {
        Self::ALL.iter().find(|(n, _)| *n == name).map(|&(_, a)| a).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|(n, _)| *n).collect();
            Error::unsupported(format!(
                "the architecture `{name}` is not supported; choose a model of one of these: {}",
                known.join(", ")
            ))
        })
    }

    /// Whether RoPE turns neighbours (true) or the two halves of a head.
    /// Converters permute the rows of `llama` files for the former.
    pub fn rope_interleaved(self) -> bool {
        self == Self::Llama
    }

    /// Whether the router's top-k probabilities are scaled to add up to 1.
    fn normalizes_top_k(self) -> bool {
        matches!(self, Self::Llama | Self::Qwen3Moe)
    }
}

/// A model's shape.
#[derive(Debug, Clone)]
pub(crate) struct Hyperparameters {
    pub architecture: Architecture,
    pub n_layer: usize,
    pub n_embd: usize,
    pub n_head: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub n_ff: usize,
    pub n_ctx_train: usize,
    pub rms_epsilon: f32,
    pub n_expert: usize,
    pub n_expert_used: usize,
    /// Inner width of an expert.
    pub n_ff_expert: usize,
    /// Inner width of the shared expert; 0 without one.
    pub n_ff_shared: usize,
    pub normalize_top_k: bool,
    /// Factor on the experts' weights.
    pub expert_scale: f32,
}

/// Metadata of one architecture: its keys start with its name.
pub(crate) struct Keys<'a> {
    pub metadata: &'a Metadata,
    name: &'a str,
}

impl<'a> Keys<'a> {
    pub fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }

    pub fn f32(&self, key: &str) -> Result<Option<f32>> {
        Ok(self.metadata.f32(&self.key(key))?)
    }

    pub fn u32(&self, key: &str) -> Result<Option<u32>> {
        Ok(self.metadata.u32(&self.key(key))?)
    }

    pub fn str(&self, key: &str) -> Result<Option<&'a str>> {
        Ok(self.metadata.str(&self.key(key))?)
    }

    /// A count, which some files give for each layer; it must be the same for
    /// all then.
    fn count(&self, key: &str) -> Result<Option<usize>> {
        let full = self.key(key);
        let n = match self.metadata.get(&full) {
            Some(Value::Ints(all)) => {
                if all.is_empty() || all.iter().any(|n| *n != all[0]) {
                    return Err(Error::unsupported(format!(
                        "`{full}` differs from layer to layer, which is not supported"
                    )));
                }
                let n = u32::try_from(all[0]).map_err(|_| {
                    Error::invalid(format!("`{full}` is {}; the file is damaged", all[0]))
                })?;
                Some(n)
            }
            _ => self.metadata.u32(&full)?,
        };
        let max = match key {
            "context_length" => u32::MAX,
            "block_count" => N_LAYER_MAX,
            _ => COUNT_MAX,
        };
        match n {
            Some(n) if n > max => Err(Error::invalid(format!(
                "`{full}` is {n}, more than {max}; the file is damaged"
            ))),
            n => Ok(n.map(|n| n as usize)),
        }
    }

    fn positive(&self, key: &str) -> Result<usize> {
        self.count(key)?.filter(|&n| n > 0).ok_or_else(|| {
            Error::invalid(format!(
                "metadata `{}` is missing or 0; the file is incomplete: get the model from another \
                 source",
                self.key(key)
            ))
        })
    }
}

impl Hyperparameters {
    /// Reads them from the metadata; also gives access to the architecture's
    /// other keys.
    pub fn from_metadata(metadata: &Metadata) -> Result<(Self, Keys<'_>)> {
        let name = metadata.str("general.architecture")?.ok_or_else(|| {
            Error::invalid("metadata `general.architecture` is missing; this file is no model")
        })?;
        let architecture = Architecture::from_name(name)?;
        let keys = Keys { metadata, name };
        let n_embd = keys.positive("embedding_length")?;
        let n_head = keys.positive("attention.head_count")?;
        let kv_heads = keys.count("attention.head_count_kv")?.unwrap_or(n_head);
        if kv_heads == 0 || !n_head.is_multiple_of(kv_heads) {
            return Err(Error::invalid(format!(
                "{n_head} heads cannot share {kv_heads} KV heads; the file is damaged"
            )));
        }
        let head_dim = match keys.count("attention.key_length")? {
            Some(n) => n,
            None => n_embd / n_head,
        };
        if keys.count("attention.value_length")?.unwrap_or(head_dim) != head_dim {
            return Err(Error::unsupported("heads with keys and values of different lengths"));
        }
        if head_dim == 0 || !head_dim.is_multiple_of(4) {
            return Err(Error::unsupported(format!(
                "heads of {head_dim} numbers; they must be a multiple of 4"
            )));
        }
        if n_head as u64 * head_dim as u64 > COUNT_MAX.into() {
            return Err(Error::invalid(format!(
                "{n_head} heads of {head_dim} numbers are more than {COUNT_MAX} numbers; the file \
                 is damaged"
            )));
        }
        let n_expert = keys.count("expert_count")?.unwrap_or(0);
        let n_expert_used = keys.count("expert_used_count")?.unwrap_or(0);
        if n_expert > 0 && !(1..=n_expert).contains(&n_expert_used) {
            return Err(Error::invalid(format!(
                "the router picks {n_expert_used} of {n_expert} experts; the file is damaged"
            )));
        }
        let n_ff = keys.count("feed_forward_length")?.unwrap_or(0);
        let hyperparameters = Self {
            architecture,
            n_layer: keys.positive("block_count")?,
            n_embd,
            n_head,
            kv_heads,
            head_dim,
            n_ff,
            n_ctx_train: keys.positive("context_length")?,
            rms_epsilon: keys
                .f32("attention.layer_norm_rms_epsilon")?
                .filter(|e| *e >= 0.0)
                .ok_or_else(|| {
                    Error::invalid(format!(
                        "metadata `{}` is missing; the file is incomplete",
                        keys.key("attention.layer_norm_rms_epsilon")
                    ))
                })?,
            n_expert,
            n_expert_used,
            n_ff_expert: keys.count("expert_feed_forward_length")?.unwrap_or(n_ff),
            n_ff_shared: keys.count("expert_shared_feed_forward_length")?.unwrap_or(0),
            normalize_top_k: metadata
                .bool(&keys.key("expert_weights_norm"))?
                .unwrap_or(architecture.normalizes_top_k()),
            expert_scale: keys.f32("expert_weights_scale")?.filter(|s| *s != 0.0).unwrap_or(1.0),
        };
        Ok((hyperparameters, keys))
    }

    /// The longest vector on the way through a layer.
    pub fn width_max(&self) -> usize {
        let widths = [
            self.n_embd,
            self.n_head * self.head_dim,
            self.kv_heads * self.head_dim,
            self.n_ff,
            self.n_ff_expert,
            self.n_ff_shared,
        ];
        widths.into_iter().max().unwrap_or_default()
    }

    /// The most numbers that are exchanged for a token at once.
    pub fn token_len_max(&self) -> usize {
        let mixture =
            self.n_expert_used.saturating_mul(self.n_ff_expert).saturating_add(self.n_ff_shared);
        let heads = (self.n_head + 2 * self.kv_heads) * self.head_dim;
        self.width_max().max(mixture).max(heads)
    }
}
