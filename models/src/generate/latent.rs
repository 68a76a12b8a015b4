//! Models of random weights whose attention looks at latents.

use std::path::Path;

use moewe_gguf::Writer;

use super::numbers::Format;
use super::tensor::Tensor;
use super::{vocabulary, write};
use crate::{Error, Progress, Result};

/// The shape of a mixture of experts with the architecture `deepseek2`
/// ([DeepSeek-V3](https://arxiv.org/abs/2412.19437)).
#[derive(Clone, Debug)]
pub struct LatentShape {
    /// How many layers.
    pub n_layer: u32,
    /// So many of them, the first, have no experts.
    pub n_dense: u32,
    /// Width of the hidden state.
    pub n_embd: u32,
    /// Heads of queries.
    pub n_head: u32,
    /// Width of what queries are made of; 0 if they are made of the hidden state.
    pub rank: u32,
    /// Numbers of a latent.
    pub n_latent: u32,
    /// Numbers of a head's key that are made of the latent.
    pub plain_dim: u32,
    /// Numbers of a head's key that positions turn.
    pub turned_dim: u32,
    /// Numbers of a head's value.
    pub value_dim: u32,
    /// Whether one matrix makes keys and values, as in files from before 2025.
    pub is_joint: bool,
    /// Experts in a layer.
    pub n_expert: u32,
    /// Experts that the router picks for a token.
    pub n_expert_used: u32,
    /// Groups of experts.
    pub n_group: u32,
    /// Groups that the router picks for a token.
    pub n_group_used: u32,
    /// Experts that all tokens share.
    pub n_shared: u32,
    /// Whether experts are scored by sigmoids, corrected and normalised, or by a softmax.
    pub has_sigmoids: bool,
    /// Inner width of an expert.
    pub n_ff_expert: u32,
    /// Inner width of a layer without experts.
    pub n_ff: u32,
    /// Size of the vocabulary: 260 to 2963 tokens.
    pub n_vocab: u32,
    /// The longest context in tokens.
    pub n_ctx: u32,
}

impl LatentShape {
    /// DeepSeek-V3's layers, narrower: 27 billion parameters, of which a token uses 1.6
    /// billion.
    pub const DSV3_16B: Self = Self {
        n_layer: 35,
        n_dense: 3,
        n_embd: 2048,
        n_head: 32,
        rank: 768,
        n_latent: 512,
        plain_dim: 128,
        turned_dim: 64,
        value_dim: 128,
        is_joint: false,
        n_expert: 256,
        n_expert_used: 8,
        n_group: 8,
        n_group_used: 4,
        n_shared: 1,
        has_sigmoids: true,
        n_ff_expert: 512,
        n_ff: 5120,
        n_vocab: 2048,
        n_ctx: 163_840,
    };

    /// The layers of [Kimi-K2](https://arxiv.org/abs/2507.20534).
    pub const KIMI_K2: Self = Self {
        n_layer: 61,
        n_dense: 1,
        n_embd: 7168,
        n_head: 64,
        rank: 1536,
        n_expert: 384,
        n_group: 1,
        n_group_used: 1,
        n_ff_expert: 2048,
        n_ff: 18_432,
        n_ctx: 131_072,
        ..Self::DSV3_16B
    };

    /// Those of them that are measured with, and what they are called.
    pub const NAMED: [(&'static str, Self); 2] =
        [("dsv3-16b", Self::DSV3_16B), ("kimi-k2", Self::KIMI_K2)];

    /// A small model as DeepSeek-V3 is.
    pub(super) const SMALL: Self = Self {
        n_layer: 2,
        n_dense: 1,
        n_embd: 256,
        n_head: 4,
        rank: 256,
        n_latent: 256,
        plain_dim: 64,
        turned_dim: 32,
        value_dim: 64,
        is_joint: false,
        n_expert: 8,
        n_expert_used: 2,
        n_group: 4,
        n_group_used: 2,
        n_shared: 1,
        has_sigmoids: true,
        n_ff_expert: 256,
        n_ff: 512,
        n_vocab: 512,
        n_ctx: 2048,
    };

    /// A small model as DeepSeek-V2-Lite is, in an early file.
    pub(super) const SMALL_LITE: Self = Self {
        rank: 0,
        is_joint: true,
        n_expert_used: 3,
        n_group: 1,
        n_group_used: 1,
        n_shared: 2,
        has_sigmoids: false,
        ..Self::SMALL
    };

    fn check(&self) -> Result<()> {
        let counts = [self.n_layer, self.n_head, self.n_ctx, self.n_expert_used, self.n_group];
        let rows = [self.n_embd, self.n_head.saturating_mul(self.value_dim), self.n_latent];
        let rows = [rows[0], rows[1], rows[2], self.n_ff_expert, self.n_ff];
        let complaint = if counts.contains(&0) {
            "every count must be positive".to_owned()
        } else if rows.iter().any(|&n| n == 0 || !n.is_multiple_of(256)) {
            format!("rows of {rows:?} numbers; Q4_K has multiples of 256")
        } else if !self.plain_dim.is_multiple_of(32) || !self.rank.is_multiple_of(256) {
            format!("rows of {} and {} numbers", self.plain_dim, self.rank)
        } else if self.n_expert_used > self.n_expert || !self.n_expert.is_multiple_of(self.n_group)
        {
            format!("{} of {} experts cannot be used", self.n_expert_used, self.n_expert)
        } else if !vocabulary::SIZES.contains(&self.n_vocab) {
            format!("a vocabulary of {}; {:?} can be", self.n_vocab, vocabulary::SIZES)
        } else {
            return Ok(());
        };
        Err(Error::BadShape(complaint))
    }

    /// The metadata and the tensors of the model.
    pub(super) fn model(&self, seed: u64) -> (Writer, Vec<Tensor>) {
        (self.metadata(seed), self.tensors())
    }

    /// The metadata of the model.
    fn metadata(&self, seed: u64) -> Writer {
        let mut header = Writer::default();
        header.string("general.architecture", "deepseek2");
        header.string("general.name", &format!("random weights of seed {seed}"));
        header.u32("general.quantization_version", 2);
        let mut u32 = |key: &str, value| header.u32(&format!("deepseek2.{key}"), value);
        u32("block_count", self.n_layer);
        u32("context_length", self.n_ctx);
        u32("embedding_length", self.n_embd);
        u32("feed_forward_length", self.n_ff);
        u32("leading_dense_block_count", self.n_dense);
        u32("attention.head_count", self.n_head);
        if self.rank > 0 {
            u32("attention.q_lora_rank", self.rank);
        }
        u32("attention.kv_lora_rank", self.n_latent);
        let key_dim = self.plain_dim + self.turned_dim;
        if self.is_joint {
            u32("attention.head_count_kv", self.n_head);
            u32("attention.key_length", key_dim);
            u32("attention.value_length", self.value_dim);
        } else {
            u32("attention.head_count_kv", 1);
            u32("attention.key_length", self.n_latent + self.turned_dim);
            u32("attention.value_length", self.n_latent);
            u32("attention.key_length_mla", key_dim);
            u32("attention.value_length_mla", self.value_dim);
        }
        u32("rope.dimension_count", self.turned_dim);
        u32("expert_count", self.n_expert);
        u32("expert_used_count", self.n_expert_used);
        u32("expert_group_count", self.n_group);
        u32("expert_group_used_count", self.n_group_used);
        u32("expert_shared_count", self.n_shared);
        u32("expert_feed_forward_length", self.n_ff_expert);
        u32("expert_gating_func", if self.has_sigmoids { 2 } else { 1 });
        header.bool("deepseek2.expert_weights_norm", self.has_sigmoids);
        let scale = if self.has_sigmoids { 2.5 } else { 1.0 };
        header.f32("deepseek2.expert_weights_scale", scale);
        header.f32("deepseek2.attention.layer_norm_rms_epsilon", 1e-6);
        header.f32("deepseek2.rope.freq_base", 1e4);
        vocabulary::write(&mut header, self.n_vocab as usize);
        header
    }

    /// The tensors of the model, in the order of the file.
    fn tensors(&self) -> Vec<Tensor> {
        let [n_embd, n_vocab] = [self.n_embd, self.n_vocab].map(u64::from);
        let mut tensors = vec![
            Tensor::matrix("token_embd", &[n_embd, n_vocab], (n_embd as f32).sqrt()),
            Tensor::norm("output_norm", n_embd),
            Tensor::matrix("output", &[n_embd, n_vocab], 2.5),
        ];
        for layer in 0..self.n_layer {
            let name = |part: &str| format!("blk.{layer}.{part}");
            tensors.push(Tensor::norm(&name("attn_norm"), n_embd));
            tensors.extend(self.attention(&name));
            tensors.push(Tensor::norm(&name("ffn_norm"), n_embd));
            match layer < self.n_dense {
                true => tensors.extend(glu(&name, "", n_embd, self.n_ff.into(), 0.25)),
                false => tensors.extend(self.mixture(&name)),
            }
        }
        tensors
    }

    fn attention(&self, name: &dyn Fn(&str) -> String) -> Vec<Tensor> {
        let [n_embd, n_head, rank, n_latent, plain, turned, value] = [
            self.n_embd,
            self.n_head,
            self.rank,
            self.n_latent,
            self.plain_dim,
            self.turned_dim,
            self.value_dim,
        ]
        .map(u64::from);
        let width = n_head * (plain + turned);
        let mut tensors = match rank {
            0 => vec![Tensor::matrix(&name("attn_q"), &[n_embd, width], 1.0)],
            _ => vec![
                Tensor::matrix(&name("attn_q_a"), &[n_embd, rank], 1.0),
                Tensor::norm(&name("attn_q_a_norm"), rank),
                Tensor::matrix(&name("attn_q_b"), &[rank, width], 1.0),
            ],
        };
        tensors.extend([
            Tensor::matrix(&name("attn_kv_a_mqa"), &[n_embd, n_latent + turned], 1.0),
            Tensor::norm(&name("attn_kv_a_norm"), n_latent),
        ]);
        if self.is_joint {
            let dims = [n_latent, n_head * (plain + value)];
            tensors.push(Tensor::matrix(&name("attn_kv_b"), &dims, 1.0));
        } else {
            // Turned over, what makes keys of latents makes longer vectors of queries.
            let gain = (plain as f32 / n_latent as f32).sqrt();
            let k = Tensor::matrix(&name("attn_k_b"), &[plain, n_latent, n_head], gain);
            tensors.push(k.stored_as(Format::Q8_0));
            tensors.push(Tensor::matrix(&name("attn_v_b"), &[n_latent, value, n_head], 1.0));
        }
        tensors.push(Tensor::matrix(&name("attn_output"), &[n_head * value, n_embd], 0.2));
        tensors
    }

    fn mixture(&self, name: &dyn Fn(&str) -> String) -> Vec<Tensor> {
        let [n_embd, n_ff, n_expert, n_shared] =
            [self.n_embd, self.n_ff_expert, self.n_expert, self.n_shared].map(u64::from);
        let mut tensors = vec![
            Tensor::router(&name("ffn_gate_inp"), &[n_embd, n_expert], 2.0),
            Tensor::matrix(&name("ffn_gate_exps"), &[n_embd, n_ff, n_expert], 1.0),
            Tensor::matrix(&name("ffn_up_exps"), &[n_embd, n_ff, n_expert], 1.0),
            Tensor::matrix(&name("ffn_down_exps"), &[n_ff, n_embd, n_expert], 0.5),
        ];
        if self.has_sigmoids {
            tensors.push(Tensor::bias(&name("exp_probs_b"), n_expert));
        }
        if n_shared > 0 {
            tensors.extend(glu(name, "_shexp", n_embd, n_ff * n_shared, 0.5));
        }
        tensors
    }
}

/// A gated linear unit of this inner width and gain.
fn glu(
    name: &dyn Fn(&str) -> String,
    kind: &str,
    n_embd: u64,
    n_ff: u64,
    gain: f32,
) -> [Tensor; 3] {
    let name = |part: &str| name(&format!("ffn_{part}{kind}"));
    [
        Tensor::matrix(&name("gate"), &[n_embd, n_ff], 1.0),
        Tensor::matrix(&name("up"), &[n_embd, n_ff], 1.0),
        Tensor::matrix(&name("down"), &[n_ff, n_embd], gain),
    ]
}

/// What is in the matrices of layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layers {
    /// Random weights.
    Random,
    /// Nothing: they are holes of the file, which take no room on the disk and are read as
    /// zeros. Embeddings and routers are random, so tokens still go through experts of their
    /// own.
    Holes,
}

/// Writes a model of random weights to `path`. A file that is there is replaced once all is
/// written.
///
/// # Errors
///
/// [`Error::BadShape`] if no such model can be; the disk may fail.
pub fn generate_latent(
    path: &Path,
    shape: &LatentShape,
    layers: Layers,
    seed: u64,
    progress: &mut dyn Progress,
) -> Result<()> {
    shape.check()?;
    let (header, tensors) = shape.model(seed);
    write(path, header, &tensors, layers, seed, progress)
}
