//! The metadata of one architecture: its keys start with its name.

use std::cell::RefCell;
use std::collections::BTreeSet;

use crate::error::{Error, Result};
use crate::gguf::{Metadata, Value};

/// The most of anything that a model may have: heads, experts, numbers in a
/// vector. Times a batch, it fits 32 bits.
pub(super) const COUNT_MAX: u32 = 1 << 16;
/// The most layers.
const N_LAYER_MAX: u32 = 1 << 10;

/// Keys that say nothing of what is computed from tokens to logits, among them those that
/// converters write whatever the architecture, for the few that read them.
pub(super) const HARMLESS: [&str; 13] = [
    "attention.group_norm_epsilon",
    "attention.group_norm_groups",
    "attention.layer_norm_epsilon",
    "decoder_start_token_id",
    "pooling_type",
    "rescale_every_n_layers",
    "rope.scaling.finetuned",
    "swin_norm",
    "tensor_data_layout",
    "time_decay_extra_dim",
    "time_mix_extra_dim",
    "use_parallel_residual",
    "vocab_size",
];

/// Keys that ask for nothing if they have one of these values. Where an architecture
/// does what they ask for, it reads them.
pub(super) const NEUTRAL: [(&str, &[f64]); 25] = [
    ("attention.causal", &[1.0]),
    ("attention.clamp_kqv", &[0.0]),
    ("attention.max_alibi_bias", &[0.0]),
    ("attention.shared_kv_layers", &[0.0]),
    ("attn_logit_softcapping", &[0.0]),
    ("embedding_length_per_layer_input", &[0.0]),
    ("embedding_scale", &[0.0, 1.0]),
    ("expert_count", &[0.0]),
    ("expert_feed_forward_length", &[0.0]),
    // None, and softmax.
    ("expert_gating_func", &[0.0, 1.0]),
    ("expert_group_count", &[0.0, 1.0]),
    ("expert_group_used_count", &[0.0, 1.0]),
    ("expert_shared_count", &[0.0]),
    ("expert_shared_feed_forward_length", &[0.0]),
    ("expert_used_count", &[0.0]),
    ("final_logit_softcapping", &[0.0]),
    ("interleave_moe_layer_step", &[0.0, 1.0]),
    ("leading_dense_block_count", &[0.0]),
    ("logit_scale", &[0.0, 1.0]),
    ("nextn_predict_layers", &[0.0]),
    ("residual_scale", &[0.0, 1.0]),
    ("rope.scaling.yarn_attn_factor", &[1.0]),
    ("rope.scaling.yarn_ext_factor", &[1.0]),
    ("rope.scaling.yarn_log_multiplier", &[0.0]),
    ("router_logit_softcapping", &[0.0]),
];

/// Metadata of one architecture. It remembers which of the keys were read.
pub(super) struct Keys<'a> {
    metadata: &'a Metadata,
    architecture: &'a str,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> Keys<'a> {
    /// The keys of the architecture that the metadata name.
    pub fn new(metadata: &'a Metadata) -> Result<Self> {
        let architecture = metadata.str("general.architecture")?.ok_or_else(|| {
            Error::invalid("metadata `general.architecture` is missing; this file is no model")
        })?;
        Ok(Self { metadata, architecture, read: RefCell::default() })
    }

    /// The architecture's name.
    pub fn architecture(&self) -> &'a str {
        self.architecture
    }

    /// The key as the file has it.
    pub fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    /// As [`full`](Self::full), for a key that is about to be read.
    fn reading(&self, key: &str) -> String {
        let full = self.full(key);
        self.read.borrow_mut().insert(full.clone());
        full
    }

    pub fn f32(&self, key: &str) -> Result<Option<f32>> {
        Ok(self.metadata.f32(&self.reading(key))?)
    }

    pub fn u32(&self, key: &str) -> Result<Option<u32>> {
        Ok(self.metadata.u32(&self.reading(key))?)
    }

    pub fn str(&self, key: &str) -> Result<Option<&'a str>> {
        Ok(self.metadata.str(&self.reading(key))?)
    }

    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        Ok(self.metadata.bool(&self.reading(key))?)
    }

    /// A factor; 0 stands for none.
    pub fn factor(&self, key: &str) -> Result<Option<f32>> {
        Ok(self.f32(key)?.filter(|&factor| factor != 0.0))
    }

    /// A count, which some files give for each layer; it must be the same for
    /// all then.
    pub fn count(&self, key: &str) -> Result<Option<usize>> {
        let full = self.reading(key);
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

    /// A count for each of `n` layers, which files may give once for all.
    pub fn counts(&self, key: &str, n: usize) -> Result<Option<Vec<usize>>> {
        let full = self.reading(key);
        let Some(Value::Ints(all)) = self.metadata.get(&full) else {
            return Ok(self.count(key)?.map(|count| vec![count; n]));
        };
        let count = |&count: &i64| u32::try_from(count).ok().filter(|&count| count <= COUNT_MAX);
        let counts: Option<Vec<_>> = all.iter().map(|n| count(n).map(|n| n as usize)).collect();
        counts.filter(|counts| counts.len() == n).map(Some).ok_or_else(|| {
            Error::invalid(format!(
                "`{full}` is no count for each of {n} layers; the file is damaged"
            ))
        })
    }

    /// For each of `n` layers, whether the pattern has it: as the file says, or all but
    /// every `period`-th, which the file may say as well.
    pub fn pattern(&self, key: &str, n: usize, period: usize) -> Result<Vec<bool>> {
        let full = self.reading(key);
        let damaged =
            || Error::invalid(format!("`{full}` says nothing of {n} layers; the file is damaged"));
        let pattern: Vec<_> = match self.metadata.get(&full) {
            Some(Value::Bools(all)) => all.clone(),
            Some(Value::Ints(all)) => all.iter().map(|&n| n != 0).collect(),
            _ => {
                let period = self.metadata.u32(&full)?.map_or(period, |period| period as usize);
                (1..=n).map(|layer| period == 0 || !layer.is_multiple_of(period)).collect()
            }
        };
        if pattern.len() == n { Ok(pattern) } else { Err(damaged()) }
    }

    /// A count that must be there.
    pub fn positive(&self, key: &str) -> Result<usize> {
        self.count(key)?.filter(|&n| n > 0).ok_or_else(|| {
            Error::invalid(format!(
                "metadata `{}` is missing or 0; the file is incomplete: get the model from another \
                 source",
                self.full(key)
            ))
        })
    }

    /// Fails if there is a key that nobody read and that may matter: the model would
    /// silently compute something else.
    pub fn all_known(&self) -> Result<()> {
        let read = self.read.borrow();
        let prefix = self.full("");
        let of_architecture = self.metadata.iter().filter_map(|(full, value)| {
            let key = full.strip_prefix(&prefix)?;
            (!read.contains(full)).then_some((full, key, value))
        });
        for (full, key, value) in of_architecture {
            let neutral = NEUTRAL.iter().find(|(name, _)| *name == key).map(|(_, values)| *values);
            let what = match (number(value), neutral) {
                (Some(x), Some(values)) if values.contains(&x) => continue,
                (Some(x), Some(_)) => format!("metadata `{full}` is {x}, which is not supported"),
                _ if HARMLESS.contains(&key) => continue,
                _ => format!("metadata `{full}` is not known here"),
            };
            return Err(Error::unsupported(format!(
                "{what} in the architecture `{}`; the model would not compute what it was trained \
                 for: get it from another source, or one of another kind",
                self.architecture
            )));
        }
        Ok(())
    }
}

fn number(value: &Value) -> Option<f64> {
    match *value {
        Value::Uint(n) => Some(n as f64),
        Value::Int(n) => Some(n as f64),
        Value::Float(x) => Some(x),
        Value::Bool(b) => Some(f64::from(u8::from(b))),
        _ => None,
    }
}
