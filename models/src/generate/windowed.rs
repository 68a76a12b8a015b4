//! Small models whose layers look at windows, and one that turns positions otherwise in
//! long contexts.

use moewe_gguf::{Value, Writer};

use super::tensor::Tensor;
use super::vocabulary;

// What all of them have.
const N_EMBD: u64 = 256;
const N_VOCAB: u64 = 512;
const N_FF: u64 = 256;
const N_HEAD: u64 = 8;
const KV_HEADS: u64 = 2;
const HEAD_DIM: u64 = 32;
const WIDTH: u64 = N_HEAD * HEAD_DIM;
const KV_WIDTH: u64 = KV_HEADS * HEAD_DIM;
const N_EXPERT: u64 = 8;

/// A model that is being described.
struct Model {
    architecture: &'static str,
    header: Writer,
    tensors: Vec<Tensor>,
}

impl Model {
    fn new(architecture: &'static str, n_layer: u32, seed: u64) -> Self {
        let mut header = Writer::default();
        header.string("general.architecture", architecture);
        header.string("general.name", &format!("random weights of seed {seed}"));
        header.u32("general.quantization_version", 2);
        let tensors = vec![
            Tensor::matrix("token_embd", &[N_EMBD, N_VOCAB], (N_EMBD as f32).sqrt()),
            Tensor::norm("output_norm", N_EMBD),
            Tensor::matrix("output", &[N_EMBD, N_VOCAB], 2.5),
        ];
        let mut model = Self { architecture, header, tensors };
        model.u32("block_count", n_layer);
        model.u32("context_length", 2048);
        model.u32("embedding_length", N_EMBD as u32);
        model.u32("feed_forward_length", N_FF as u32);
        model.u32("attention.head_count", N_HEAD as u32);
        model.f32("attention.layer_norm_rms_epsilon", 1e-6);
        model
    }

    fn u32(&mut self, key: &str, value: u32) {
        self.header.u32(&format!("{}.{key}", self.architecture), value);
    }

    fn f32(&mut self, key: &str, value: f32) {
        self.header.f32(&format!("{}.{key}", self.architecture), value);
    }

    fn value(&mut self, key: &str, value: &Value) {
        self.header.value(&format!("{}.{key}", self.architecture), value);
    }

    /// Heads of as many numbers in all layers.
    fn heads(&mut self) {
        self.u32("attention.head_count_kv", KV_HEADS as u32);
        self.u32("attention.key_length", HEAD_DIM as u32);
        self.u32("attention.value_length", HEAD_DIM as u32);
    }

    fn experts(&mut self, n_used: u32) {
        self.u32("expert_count", N_EXPERT as u32);
        self.u32("expert_used_count", n_used);
        self.u32("expert_feed_forward_length", N_FF as u32);
    }

    fn done(mut self) -> (Writer, Vec<Tensor>) {
        vocabulary::write(&mut self.header, N_VOCAB as usize);
        (self.header, self.tensors)
    }
}

/// As gpt-oss is.
pub(super) fn gpt_oss(seed: u64) -> (Writer, Vec<Tensor>) {
    let mut model = Model::new("gpt-oss", 2, seed);
    model.heads();
    model.experts(3);
    model.u32("attention.sliding_window", 16);
    model.f32("rope.freq_base", 1e4);
    for layer in 0..2 {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let norms = ["attn_norm", "post_attention_norm"];
        model.tensors.extend(norms.map(|norm| Tensor::norm(&name(norm), N_EMBD)));
        for (part, dims, gain) in [
            ("attn_q", [N_EMBD, WIDTH], 1.0),
            ("attn_k", [N_EMBD, KV_WIDTH], 1.0),
            ("attn_v", [N_EMBD, KV_WIDTH], 1.0),
            ("attn_output", [WIDTH, N_EMBD], 0.2),
        ] {
            model.tensors.push(Tensor::matrix(&name(part), &dims, gain));
            model.tensors.push(Tensor::bias(&name(part), dims[1]));
        }
        model.tensors.extend([
            Tensor::router(&name("attn_sinks"), &[N_HEAD], 1.0),
            Tensor::router(&name("ffn_gate_inp"), &[N_EMBD, N_EXPERT], 2.0),
            Tensor::bias(&name("ffn_gate_inp"), N_EXPERT),
        ]);
        for (part, rows, gain) in [
            ("ffn_gate_exps", N_FF, 1.0),
            ("ffn_up_exps", N_FF, 1.0),
            ("ffn_down_exps", N_EMBD, 0.5),
        ] {
            model.tensors.push(Tensor::matrix(&name(part), &[N_EMBD, rows, N_EXPERT], gain));
            let mut biases = Tensor::bias(&name(part), rows);
            biases.dims.push(N_EXPERT);
            model.tensors.push(biases);
        }
    }
    model.done()
}

/// As Gemma 3 is.
pub(super) fn gemma3(seed: u64) -> (Writer, Vec<Tensor>) {
    let mut model = Model::new("gemma3", 6, seed);
    model.heads();
    model.u32("attention.sliding_window", 24);
    model.f32("rope.freq_base", 1e6);
    model.f32("rope.freq_base_swa", 1e4);
    for layer in 0..6 {
        gemma(&mut model, layer, HEAD_DIM, KV_HEADS);
        let name = |part: &str| format!("blk.{layer}.{part}");
        let v = Tensor::matrix(&name("attn_v"), &[N_EMBD, KV_WIDTH], 1.0);
        model.tensors.push(v);
    }
    model.done()
}

/// As Gemma 4 is: in the second layer, heads are longer, and keys are values.
pub(super) fn gemma4(seed: u64) -> (Writer, Vec<Tensor>) {
    let mut model = Model::new("gemma4", 2, seed);
    model.experts(3);
    model.value("attention.head_count_kv", &Value::Ints(vec![2, 1]));
    for (key, n) in [("", 64), ("_swa", 32)] {
        model.u32(&format!("attention.key_length{key}"), n);
        model.u32(&format!("attention.value_length{key}"), n);
        model.u32(&format!("rope.dimension_count{key}"), n);
    }
    model.u32("attention.sliding_window", 24);
    model.value("attention.sliding_window_pattern", &Value::Bools(vec![true, false]));
    model.f32("rope.freq_base", 1e6);
    model.f32("rope.freq_base_swa", 1e4);
    model.f32("final_logit_softcapping", 30.0);
    model.tensors.push(Tensor::norm("rope_freqs", 32));
    gemma(&mut model, 0, 32, 2);
    gemma(&mut model, 1, 64, 1);
    model.tensors.push(Tensor::matrix("blk.0.attn_v", &[N_EMBD, 64], 1.0));
    for layer in 0..2 {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let norms = ["post_ffw_norm_1", "post_ffw_norm_2", "pre_ffw_norm_2"];
        model.tensors.extend(norms.map(|norm| Tensor::norm(&name(norm), N_EMBD)));
        let mut router_scale = Tensor::norm("", N_EMBD);
        router_scale.name = name("ffn_gate_inp.scale");
        let mut expert_scales = Tensor::norm("", N_EXPERT);
        expert_scales.name = name("ffn_down_exps.scale");
        model.tensors.extend([
            router_scale,
            expert_scales,
            Tensor::norm(&name("layer_output_scale"), 1),
            Tensor::router(&name("ffn_gate_inp"), &[N_EMBD, N_EXPERT], 16.0),
            Tensor::matrix(&name("ffn_gate_up_exps"), &[N_EMBD, 2 * N_FF, N_EXPERT], 1.0),
            Tensor::matrix(&name("ffn_down_exps"), &[N_FF, N_EMBD, N_EXPERT], 0.7),
        ]);
    }
    model.done()
}

/// What layers of both Gemmas have.
fn gemma(model: &mut Model, layer: u64, head_dim: u64, kv_heads: u64) {
    let name = |part: &str| format!("blk.{layer}.{part}");
    let norms = ["attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"];
    model.tensors.extend(norms.map(|norm| Tensor::norm(&name(norm), N_EMBD)));
    let norms = ["attn_q_norm", "attn_k_norm"];
    model.tensors.extend(norms.map(|norm| Tensor::norm(&name(norm), head_dim)));
    model.tensors.extend([
        Tensor::matrix(&name("attn_q"), &[N_EMBD, N_HEAD * head_dim], 1.0),
        Tensor::matrix(&name("attn_k"), &[N_EMBD, kv_heads * head_dim], 1.0),
        Tensor::matrix(&name("attn_output"), &[N_HEAD * head_dim, N_EMBD], 0.2),
        Tensor::matrix(&name("ffn_gate"), &[N_EMBD, N_FF], 1.0),
        Tensor::matrix(&name("ffn_up"), &[N_EMBD, N_FF], 1.0),
        Tensor::matrix(&name("ffn_down"), &[N_FF, N_EMBD], 0.7),
    ]);
}

/// As Llama 4 is: every second layer has experts, and the last one looks at all tokens.
pub(super) fn llama4(seed: u64) -> (Writer, Vec<Tensor>) {
    let mut model = Model::new("llama4", 4, seed);
    model.heads();
    model.experts(1);
    model.u32("interleave_moe_layer_step", 2);
    model.f32("rope.freq_base", 5e5);
    for layer in 0..4 {
        let name = |part: &str| format!("blk.{layer}.{part}");
        llama(&mut model, layer);
        let has_experts = layer % 2 == 1;
        for (part, dims, gain) in [
            ("ffn_gate", [N_EMBD, N_FF], 1.0),
            ("ffn_up", [N_EMBD, N_FF], 1.0),
            ("ffn_down", [N_FF, N_EMBD], 0.5),
        ] {
            if has_experts {
                let experts = [dims[0], dims[1], N_EXPERT];
                let experts = Tensor::matrix(&name(&format!("{part}_exps")), &experts, gain);
                let shared = Tensor::matrix(&name(&format!("{part}_shexp")), &dims, gain);
                model.tensors.extend([experts, shared]);
            } else {
                model.tensors.push(Tensor::matrix(&name(part), &dims, gain));
            }
        }
        if has_experts {
            model.tensors.push(Tensor::router(&name("ffn_gate_inp"), &[N_EMBD, N_EXPERT], 2.0));
        }
        for (part, rows) in [("attn_q", WIDTH), ("attn_k", KV_WIDTH), ("attn_v", KV_WIDTH)] {
            model.tensors.push(Tensor::matrix(&name(part), &[N_EMBD, rows], 1.0));
        }
    }
    model.done()
}

/// As Phi-3 is; contexts of more than 64 tokens are long.
pub(super) fn phi3(seed: u64) -> (Writer, Vec<Tensor>) {
    let mut model = Model::new("phi3", 2, seed);
    model.heads();
    model.u32("rope.scaling.original_context_length", 64);
    model.f32("rope.scaling.attn_factor", 1.2);
    model.f32("rope.freq_base", 1e4);
    let factors = ["rope_factors_short", "rope_factors_long"];
    model.tensors.extend(factors.map(|factors| Tensor::norm(factors, HEAD_DIM / 2)));
    for layer in 0..2 {
        let name = |part: &str| format!("blk.{layer}.{part}");
        llama(&mut model, layer);
        model.tensors.extend([
            Tensor::matrix(&name("attn_qkv"), &[N_EMBD, WIDTH + 2 * KV_WIDTH], 1.0),
            Tensor::matrix(&name("ffn_up"), &[N_EMBD, 2 * N_FF], 1.0),
            Tensor::matrix(&name("ffn_down"), &[N_FF, N_EMBD], 0.25),
        ]);
    }
    model.done()
}

/// What layers like those of Llama have, but for queries, keys and values.
fn llama(model: &mut Model, layer: u64) {
    let name = |part: &str| format!("blk.{layer}.{part}");
    let norms = ["attn_norm", "ffn_norm"];
    model.tensors.extend(norms.map(|norm| Tensor::norm(&name(norm), N_EMBD)));
    model.tensors.push(Tensor::matrix(&name("attn_output"), &[WIDTH, N_EMBD], 0.2));
}
