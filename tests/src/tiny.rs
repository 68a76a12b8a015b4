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
/// Tokens that are no text.
pub const CONTROL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

impl Tiny {
    /// Bytes of KV cache for a token, in 16 bits a number.
    pub fn kv_bytes_per_token(&self) -> u64 {
        2 * u64::from(self.n_layer * self.n_head * self.head_dim) * 2
    }

    /// Writes the model as a GGUF file, without a tokenizer.
    pub fn write(&self, path: &Path) {
        self.write_with(path, self.metadata());
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
        self.write_with(path, header);
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

    /// Writes a file of these metadata and the tensors.
    fn write_with(&self, path: &Path, mut header: Writer) {
        let width = self.n_head * self.head_dim;
        let mut tensors = vec![
            ("token_embd".to_owned(), vec![N_EMBD, N_VOCAB]),
            ("output_norm".to_owned(), vec![N_EMBD]),
        ];
        for i in 0..self.n_layer {
            let of_layer = [
                ("attn_norm", vec![N_EMBD]),
                ("attn_q", vec![N_EMBD, width]),
                ("attn_k", vec![N_EMBD, width]),
                ("attn_v", vec![N_EMBD, width]),
                ("attn_output", vec![width, N_EMBD]),
                ("ffn_norm", vec![N_EMBD]),
                ("ffn_gate", vec![N_EMBD, N_FF]),
                ("ffn_up", vec![N_EMBD, N_FF]),
                ("ffn_down", vec![N_FF, N_EMBD]),
            ];
            tensors.extend(of_layer.map(|(name, dims)| (format!("blk.{i}.{name}"), dims)));
        }
        let mut data = Vec::new();
        for (name, dims) in &tensors {
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
}
