//! Models as small as they can be, made of numbers without meaning.

use std::path::Path;

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
const F32: u32 = 0;
/// Tokens that are no text.
pub const CONTROL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
/// Types of metadata.
const U32: u32 = 4;
const I32: u32 = 5;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

impl Tiny {
    /// Bytes of KV cache for a token.
    pub fn kv_bytes_per_token(&self) -> u64 {
        2 * u64::from(self.n_layer * self.n_head * self.head_dim) * 4
    }

    /// Writes the model as a GGUF file, without a tokenizer.
    pub fn write(&self, path: &Path) {
        self.write_with(path, 0, &[]);
    }

    /// The same with a tokenizer for letters, digits and some signs, and a chat template.
    pub fn write_with_template(&self, path: &Path, template: &str) {
        let mut metadata = Vec::new();
        let string = |out: &mut Vec<u8>, key: &str, value: &str| {
            text(out, key);
            out.extend(STRING.to_le_bytes());
            text(out, value);
        };
        string(&mut metadata, "tokenizer.ggml.model", "gpt2");
        string(&mut metadata, "tokenizer.ggml.pre", "qwen2");
        string(&mut metadata, "tokenizer.chat_template", template);
        // As GPT-2 writes a space and a newline.
        let signs = "\u{120}\u{10a}<|>_/.,![]\'HAS".chars();
        let tokens: Vec<String> = (CONTROL.iter().map(|name| (*name).to_owned()))
            .chain(('a'..='z').chain('0'..='9').chain(signs).map(String::from))
            .chain((0..).map(|i| format!("unused{i}")))
            .take(N_VOCAB as usize)
            .collect();
        array(&mut metadata, "tokenizer.ggml.tokens", STRING, N_VOCAB);
        tokens.iter().for_each(|token| text(&mut metadata, token));
        array(&mut metadata, "tokenizer.ggml.token_type", I32, N_VOCAB);
        let control = |i: u32| if i < CONTROL.len() as u32 { 3u32 } else { 1 };
        (0..N_VOCAB).for_each(|i| metadata.extend(control(i).to_le_bytes()));
        array(&mut metadata, "tokenizer.ggml.merges", STRING, 0);
        text(&mut metadata, "tokenizer.ggml.eos_token_id");
        metadata.extend(U32.to_le_bytes());
        metadata.extend(0u32.to_le_bytes());
        self.write_with(path, 7, &metadata);
    }

    /// Writes the model with `n_more` entries of metadata more than it needs.
    fn write_with(&self, path: &Path, n_more: u64, more: &[u8]) {
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
        let counts = [
            ("block_count", self.n_layer),
            ("context_length", self.n_ctx),
            ("embedding_length", N_EMBD),
            ("feed_forward_length", N_FF),
            ("attention.head_count", self.n_head),
            ("attention.key_length", self.head_dim),
            ("attention.value_length", self.head_dim),
        ];

        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend((tensors.len() as u64).to_le_bytes());
        out.extend((counts.len() as u64 + 2 + n_more).to_le_bytes());
        text(&mut out, "general.architecture");
        out.extend(STRING.to_le_bytes());
        text(&mut out, "llama");
        text(&mut out, "llama.attention.layer_norm_rms_epsilon");
        out.extend(6u32.to_le_bytes());
        out.extend(1e-5f32.to_le_bytes());
        for (key, n) in counts {
            text(&mut out, &format!("llama.{key}"));
            out.extend(U32.to_le_bytes());
            out.extend(n.to_le_bytes());
        }
        out.extend(more);
        let mut offset = 0u64;
        for (name, dims) in &tensors {
            text(&mut out, &format!("{name}.weight"));
            out.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|&n| out.extend(u64::from(n).to_le_bytes()));
            out.extend(F32.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset += bytes(dims);
        }
        for (_, dims) in &tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            // From -0.5 to 0.5, in no obvious order.
            let number = |i: u64| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as f32 / 65536.0;
            (0..bytes(dims) / 4).for_each(|i| out.extend((number(i + 1) - 0.5).to_le_bytes()));
        }
        std::fs::write(path, out).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
}

/// Of a tensor; all are a multiple of the alignment.
fn bytes(dims: &[u32]) -> u64 {
    dims.iter().map(|&n| u64::from(n)).product::<u64>() * 4
}

/// The head of an entry that is an array.
fn array(out: &mut Vec<u8>, key: &str, of: u32, n: u32) {
    text(out, key);
    out.extend(ARRAY.to_le_bytes());
    out.extend(of.to_le_bytes());
    out.extend(u64::from(n).to_le_bytes());
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}
