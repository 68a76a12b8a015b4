//! Models as small as they can be, made of numbers without meaning.

use std::path::Path;

use moewe_gguf::{TensorType, Writer};

/// The shape of a dense model of architecture `llama`.
pub struct Tiny {
    /// Layers.
    pub n_layer: u32,
    /// Query heads, each with a KV head of its own.
    pub n_head: u32,
    /// Numbers of a head.
    pub head_dim: u32,
    /// Tokens that it can hold.
    pub n_ctx: u32,
}

/// Entries of the vocabulary.
pub const N_VOCAB: u32 = 64;
const N_EMBD: u32 = 32;
const N_FF: u32 = 32;
/// Feed-forward networks without experts.
const FFN: [(&str, &[u32]); 3] =
    [("ffn_gate", &[N_EMBD, N_FF]), ("ffn_up", &[N_EMBD, N_FF]), ("ffn_down", &[N_FF, N_EMBD])];
/// Tokens that are no text.
pub const CONTROL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

impl Tiny {
    /// Bytes of KV cache for a token, in 16 bits a number.
    pub fn kv_bytes_per_token(&self) -> u64 {
        2 * u64::from(self.n_layer * self.n_head * self.head_dim) * 2
    }

    /// Writes the model as a GGUF file, without a tokenizer.
    pub fn write(&self, path: &Path) {
        write_with(path, self.metadata(), &self.tensors(&FFN));
    }

    /// The same with a tokenizer for letters, digits and some signs, and a chat template.
    pub fn write_with_template(&self, path: &Path, template: &str) {
        let mut header = self.metadata();
        header.string("tokenizer.ggml.model", "gpt2");
        header.string("tokenizer.ggml.pre", "qwen2");
        header.string("tokenizer.chat_template", template);
        // As GPT-2 writes a space and a newline.
        let signs = "\u{120}\u{10a}<|>_/.,![]\'HAS".chars();
        let tokens: Vec<String> = (CONTROL.iter().map(|name| (*name).to_owned()))
            .chain(('a'..='z').chain('0'..='9').chain(signs).map(String::from))
            .chain((0..).map(|i| format!("unused{i}")))
            .take(N_VOCAB as usize)
            .collect();
        header.strings("tokenizer.ggml.tokens", &tokens);
        let kind = |i: usize| if i < CONTROL.len() { 3 } else { 1 };
        let kinds: Vec<i32> = (0..tokens.len()).map(kind).collect();
        header.i32s("tokenizer.ggml.token_type", &kinds);
        header.strings("tokenizer.ggml.merges", [""; 0]);
        header.u32("tokenizer.ggml.eos_token_id", 0);
        write_with(path, header, &self.tensors(&FFN));
    }

    /// Writes the model with `n_expert` experts in each layer, of which a token uses
    /// `n_expert_used`, in place of its feed-forward networks.
    pub fn write_with_experts(&self, path: &Path, n_expert: u32, n_expert_used: u32) {
        let mut header = self.metadata();
        header.u32("llama.expert_count", n_expert);
        header.u32("llama.expert_used_count", n_expert_used);
        let experts = [
            ("ffn_gate_inp", &[N_EMBD, n_expert][..]),
            ("ffn_gate_exps", &[N_EMBD, N_FF, n_expert]),
            ("ffn_up_exps", &[N_EMBD, N_FF, n_expert]),
            ("ffn_down_exps", &[N_FF, N_EMBD, n_expert]),
        ];
        write_with(path, header, &self.tensors(&experts));
    }

    fn metadata(&self) -> Writer {
        let mut header = Writer::default();
        header.string("general.architecture", "llama");
        header.f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
        for (key, n) in [
            ("block_count", self.n_layer),
            ("context_length", self.n_ctx),
            ("embedding_length", N_EMBD),
            ("feed_forward_length", N_FF),
            ("attention.head_count", self.n_head),
            ("attention.key_length", self.head_dim),
            ("attention.value_length", self.head_dim),
        ] {
            header.u32(&format!("llama.{key}"), n);
        }
        header
    }

    /// The tensors, with these feed-forward networks in each layer.
    fn tensors(&self, ffn: &[(&str, &[u32])]) -> Vec<(String, Vec<u32>)> {
        let width = self.n_head * self.head_dim;
        let attention = [
            ("attn_norm", &[N_EMBD][..]),
            ("attn_q", &[N_EMBD, width]),
            ("attn_k", &[N_EMBD, width]),
            ("attn_v", &[N_EMBD, width]),
            ("attn_output", &[width, N_EMBD]),
            ("ffn_norm", &[N_EMBD]),
        ];
        let ends = [("token_embd", &[N_EMBD, N_VOCAB][..]), ("output_norm", &[N_EMBD])];
        let ends = ends.map(|(name, dims)| (name.to_owned(), dims.to_vec()));
        let layers = (0..self.n_layer).flat_map(|i| {
            let of_layer = attention.iter().chain(ffn);
            of_layer.map(move |(name, dims)| (format!("blk.{i}.{name}"), dims.to_vec()))
        });
        ends.into_iter().chain(layers).collect()
    }
}

/// Writes a file of these metadata and tensors.
fn write_with(path: &Path, mut header: Writer, tensors: &[(String, Vec<u32>)]) {
    let mut data = Vec::new();
    for (name, dims) in tensors {
        let dims: Vec<u64> = dims.iter().copied().map(u64::from).collect();
        // All are a multiple of the alignment.
        let size = header.tensor(&format!("{name}.weight"), &dims, TensorType::F32);
        // From -0.5 to 0.5, in no obvious order.
        let number = |i: u64| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as f32 / 65536.0;
        (0..size / 4).for_each(|i| data.extend((number(i + 1) - 0.5).to_le_bytes()));
    }
    let out = [header.padded(), data].concat();
    std::fs::write(path, out).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}
