//! Models of random weights, for tests and measurements: no download, any
//! size, and the same bytes from the same seed everywhere.
//!
//! They compute like real ones: hidden states keep their magnitude from layer
//! to layer, the router's choices change from token to token, and the logits
//! spread as those of a trained model do. What they say is noise.

mod family;
mod latent;
mod numbers;
mod tensor;
mod vocabulary;
mod windowed;

pub use family::{Family, Quantization, generate_small};
pub use latent::{LatentShape, Layers, generate_latent};

use std::io::{BufWriter, Seek, Write};
use std::path::Path;

use moewe_gguf::Writer;
use moewe_output::Place;

use crate::part::Part;
use crate::{Error, Progress, Result, Step};
use numbers::{Format, Numbers};
use tensor::Tensor;

/// Progress is reported after so many bytes.
const REPORT_BYTES: u64 = 4 << 20;

/// The shape of a mixture of experts with the architecture `qwen3moe`
/// ([Qwen3](https://arxiv.org/abs/2505.09388)), or without experts that of a dense
/// model with the architecture `llama`.
#[derive(Clone, Debug)]
pub struct Shape {
    /// How many layers.
    pub n_layer: u32,
    /// Width of the hidden state; a multiple of 256, as all rows of Q4_K are.
    pub n_embd: u32,
    /// Heads of queries.
    pub n_head: u32,
    /// Heads of keys and values.
    pub kv_heads: u32,
    /// Numbers in a head; all heads together are a multiple of 256.
    pub head_dim: u32,
    /// Experts in a layer; 0 if it is dense.
    pub n_expert: u32,
    /// Experts that the router picks for a token; 0 if there are none.
    pub n_expert_used: u32,
    /// Inner width of an expert, or of a dense layer; a multiple of 256.
    pub n_ff_expert: u32,
    /// Size of the vocabulary: 260 to 2963 tokens.
    pub n_vocab: u32,
    /// The longest context in tokens.
    pub n_ctx: u32,
}

impl Shape {
    /// 7.7 billion parameters, of which a token uses 1.4 billion: 4.35 GB.
    /// The layers are those of Qwen3-30B-A3B with half of its experts, and
    /// half as many.
    pub const MOE_7_7B: Self = Self {
        n_layer: 24,
        n_embd: 2048,
        n_head: 32,
        kv_heads: 4,
        head_dim: 128,
        n_expert: 64,
        n_expert_used: 8,
        n_ff_expert: 768,
        n_vocab: 2048,
        n_ctx: 40_960,
    };

    /// The layers of Qwen3-30B-A3B: 29.9 billion parameters, of which a token
    /// uses 2.8 billion: 16.9 GB.
    pub const MOE_30B: Self = Self { n_layer: 48, n_expert: 128, ..Self::MOE_7_7B };

    /// As many layers and experts as [`MOE_30B`](Self::MOE_30B) in 0.7 GB: what counts
    /// experts, and not bytes, can be tried with it.
    pub const MANY: Self = Self {
        n_embd: 256,
        n_head: 4,
        kv_heads: 2,
        head_dim: 64,
        n_ff_expert: 256,
        ..Self::MOE_30B
    };

    /// The layers of [Llama 3 8B](https://arxiv.org/abs/2407.21783), and five more in
    /// place of its large vocabulary: 8.1 billion parameters, 4.86 GB.
    pub const LLAMA_8B: Self = Self {
        n_layer: 37,
        n_embd: 4096,
        n_head: 32,
        kv_heads: 8,
        head_dim: 128,
        n_expert: 0,
        n_expert_used: 0,
        n_ff_expert: 14_336,
        n_vocab: 2048,
        n_ctx: 8192,
    };

    /// Those of them that are measured with, and what they are called.
    pub const NAMED: [(&'static str, Self); 4] = [
        ("many", Self::MANY),
        ("moe-7.7b", Self::MOE_7_7B),
        ("moe-30b", Self::MOE_30B),
        ("llama-8b", Self::LLAMA_8B),
    ];

    /// Whether its layers have experts.
    #[must_use]
    pub const fn has_experts(&self) -> bool {
        self.n_expert > 0
    }

    fn check(&self) -> Result<()> {
        let counts = [self.n_layer, self.n_head, self.kv_heads, self.n_ctx];
        let rows = [self.n_embd, self.n_head.saturating_mul(self.head_dim), self.n_ff_expert];
        let lacks_used = self.has_experts() && self.n_expert_used == 0;
        let complaint = if counts.contains(&0) || lacks_used {
            "every count must be positive".to_owned()
        } else if rows.iter().any(|&n| n == 0 || !n.is_multiple_of(256)) {
            format!("rows of {rows:?} numbers; Q4_K has multiples of 256")
        } else if !self.n_head.is_multiple_of(self.kv_heads) {
            format!("{} heads cannot share {} KV heads", self.n_head, self.kv_heads)
        } else if self.n_expert_used > self.n_expert {
            format!("{} of {} experts cannot be used", self.n_expert_used, self.n_expert)
        } else if !vocabulary::SIZES.contains(&self.n_vocab) {
            format!("a vocabulary of {}; {:?} can be", self.n_vocab, vocabulary::SIZES)
        } else {
            return Ok(());
        };
        Err(Error::BadShape(complaint))
    }

    /// The metadata of the model.
    fn metadata(&self, seed: u64) -> Writer {
        let architecture = if self.has_experts() { "qwen3moe" } else { "llama" };
        let mut header = self.metadata_of(architecture, seed);
        vocabulary::write(&mut header, self.n_vocab as usize);
        header
    }

    /// The same without a vocabulary, for another architecture.
    fn metadata_of(&self, architecture: &str, seed: u64) -> Writer {
        let mut header = Writer::default();
        header.string("general.architecture", architecture);
        header.string("general.name", &format!("random weights of seed {seed}"));
        header.u32("general.quantization_version", 2);
        let mut u32 = |key: &str, value| header.u32(&format!("{architecture}.{key}"), value);
        u32("block_count", self.n_layer);
        u32("context_length", self.n_ctx);
        u32("embedding_length", self.n_embd);
        u32("feed_forward_length", self.n_ff_expert);
        u32("attention.head_count", self.n_head);
        u32("attention.head_count_kv", self.kv_heads);
        u32("attention.key_length", self.head_dim);
        u32("attention.value_length", self.head_dim);
        if self.has_experts() {
            u32("expert_count", self.n_expert);
            u32("expert_used_count", self.n_expert_used);
            u32("expert_feed_forward_length", self.n_ff_expert);
        }
        header.f32(&format!("{architecture}.attention.layer_norm_rms_epsilon"), 1e-6);
        header.f32(&format!("{architecture}.rope.freq_base"), 1e6);
        header
    }

    /// The tensors of the model, in the order of the file.
    fn tensors(&self) -> Vec<Tensor> {
        let [n_embd, n_ff, n_expert, head_dim, n_vocab] =
            [self.n_embd, self.n_ff_expert, self.n_expert, self.head_dim, self.n_vocab]
                .map(u64::from);
        let width = u64::from(self.n_head) * head_dim;
        let kv_width = u64::from(self.kv_heads) * head_dim;
        // Without training, nothing dampens small differences: were the layers
        // louder, two implementations that round differently would soon choose
        // other experts and compute other things. With these gains they agree
        // as they do on a trained model, and the layers still matter.
        let mut tensors = vec![
            Tensor::matrix("token_embd", &[n_embd, n_vocab], (n_embd as f32).sqrt()),
            Tensor::norm("output_norm", n_embd),
            Tensor::matrix("output", &[n_embd, n_vocab], 2.5),
        ];
        for layer in 0..self.n_layer {
            let name = |part: &str| format!("blk.{layer}.{part}");
            // Dense models are mostly had as Q4_K_M, which has these in half of the layers.
            let is_finer = !self.has_experts() && layer.is_multiple_of(2);
            let finer = if is_finer { Format::Q6K } else { Format::Q4K };
            tensors.extend([
                Tensor::norm(&name("attn_norm"), n_embd),
                Tensor::matrix(&name("attn_q"), &[n_embd, width], 1.0),
                Tensor::matrix(&name("attn_k"), &[n_embd, kv_width], 1.0),
                Tensor::matrix(&name("attn_v"), &[n_embd, kv_width], 1.0).stored_as(finer),
            ]);
            if self.has_experts() {
                tensors.extend([
                    Tensor::norm(&name("attn_q_norm"), head_dim),
                    Tensor::norm(&name("attn_k_norm"), head_dim),
                ]);
            }
            tensors.extend([
                Tensor::matrix(&name("attn_output"), &[width, n_embd], 0.2),
                Tensor::norm(&name("ffn_norm"), n_embd),
            ]);
            if self.has_experts() {
                tensors.extend([
                    Tensor::router(&name("ffn_gate_inp"), &[n_embd, n_expert], 2.0),
                    Tensor::matrix(&name("ffn_gate_exps"), &[n_embd, n_ff, n_expert], 1.0),
                    Tensor::matrix(&name("ffn_up_exps"), &[n_embd, n_ff, n_expert], 1.0),
                    Tensor::matrix(&name("ffn_down_exps"), &[n_ff, n_embd, n_expert], 0.7),
                ]);
            } else {
                tensors.extend([
                    Tensor::matrix(&name("ffn_gate"), &[n_embd, n_ff], 1.0),
                    Tensor::matrix(&name("ffn_up"), &[n_embd, n_ff], 1.0),
                    // One for all is as loud as eight experts that differ are together.
                    Tensor::matrix(&name("ffn_down"), &[n_ff, n_embd], 0.25).stored_as(finer),
                ]);
            }
        }
        tensors
    }
}

/// Writes a model of random weights to `path`. A file that is there is
/// replaced once all is written.
///
/// # Errors
///
/// [`Error::BadShape`] if no such model can be; the disk may fail.
pub fn generate(path: &Path, shape: &Shape, seed: u64, progress: &mut dyn Progress) -> Result<()> {
    shape.check()?;
    write(path, shape.metadata(seed), &shape.tensors(), Layers::Random, seed, progress)
}

/// Writes a file with these metadata and tensors.
fn write(
    path: &Path,
    mut header: Writer,
    tensors: &[Tensor],
    layers: Layers,
    seed: u64,
    progress: &mut dyn Progress,
) -> Result<()> {
    let bytes_total = tensors.iter().map(|t| header.tensor(&t.name, &t.dims, t.ty())).sum();

    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let write_error = || Error::io("write", path);
    let (file, part) = match Place::of(path, &[])? {
        Place::Stream(stream) => (stream, None),
        Place::File(place) => {
            let part = Part::create(&place).map_err(write_error())?;
            let part = part.ok_or_else(|| Error::Busy(Part::path_of(&place)))?;
            (part.file.try_clone().map_err(write_error())?, Some(part))
        }
    };
    let mut file = BufWriter::with_capacity(1 << 20, file);
    file.write_all(&header.padded()).map_err(write_error())?;
    progress.start(Step::Generate, &name, bytes_total);
    let mut numbers = Numbers::new(seed);
    let (mut bytes_done, mut bytes_told) = (0, 0);
    for tensor in tensors {
        if layers == Layers::Holes && tensor.is_of_layer() {
            let bytes = tensor.padded_bytes();
            bytes_done += bytes;
            file.seek_relative(bytes as i64).map_err(write_error())?;
            continue;
        }
        let mut sink = |bytes: &[u8]| {
            bytes_done += bytes.len() as u64;
            if bytes_done - bytes_told >= REPORT_BYTES {
                bytes_told = bytes_done;
                progress.at(bytes_told);
            }
            file.write_all(bytes)
        };
        tensor.write(&mut numbers, &mut sink).map_err(write_error())?;
    }
    progress.at(bytes_total);
    file.flush().map_err(write_error())?;
    if layers == Layers::Holes {
        let end = file.stream_position().map_err(write_error())?;
        file.get_ref().set_len(end).map_err(write_error())?;
    }
    part.map_or(Ok(()), Part::finish).map_err(write_error())
}
