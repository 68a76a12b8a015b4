//! Logits agree with a model's formula, written down plainly and computed in f64.

use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;

use moewe_engine::native::Folder;
use moewe_engine::{Context, KvFormat, LoadOptions, Model};
use moewe_fixtures::{TOKENS, model};
use moewe_gguf::{Gguf, Source as _};

/// Weights by their tensors' names, and the length of their rows.
struct Weights(HashMap<String, (Vec<f64>, usize)>);

/// The factors of Granite.
#[derive(Debug, Clone, Copy)]
struct Factors {
    embedding: f64,
    attention: f64,
    residual: f64,
    /// Divides.
    logits: f64,
}

fn f16(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    let size = match exponent {
        0 => fraction * 2f64.powi(-24),
        _ => (1024.0 + fraction) * 2f64.powi(exponent - 25),
    };
    if bits >> 15 == 1 { -size } else { size }
}

impl Weights {
    /// Those of a file in F16 and F32.
    fn read(path: &Path) -> Self {
        let gguf = Gguf::read(path).unwrap();
        let decoded = gguf.header.tensors.values().map(|tensor| {
            let mut bytes = vec![0; tensor.size as usize];
            gguf.sources[tensor.file].read(tensor.offset, &mut bytes).unwrap();
            let numbers = match tensor.ty.name() {
                "F32" => {
                    let words = bytes.as_chunks::<4>().0.iter();
                    words.map(|&word| f32::from_le_bytes(word).into()).collect()
                }
                "F16" => {
                    let words = bytes.as_chunks::<2>().0.iter();
                    words.map(|&word| f16(u16::from_le_bytes(word))).collect()
                }
                other => panic!("{}: {other}", tensor.name),
            };
            (tensor.name.clone(), (numbers, tensor.dims[0] as usize))
        });
        Self(decoded.collect())
    }

    fn row(&self, name: &str, i: usize) -> &[f64] {
        let (numbers, cols) = &self.0[&format!("{name}.weight")];
        &numbers[i * cols..(i + 1) * cols]
    }

    /// `n` rows from `first` on, times a vector.
    fn rows(&self, name: &str, first: usize, n: usize, x: &[f64]) -> Vec<f64> {
        (first..first + n).map(|i| dot(self.row(name, i), x)).collect()
    }

    fn matrix(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let (numbers, cols) = &self.0[&format!("{name}.weight")];
        self.rows(name, 0, numbers.len() / cols, x)
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let rms = (dot(x, x) / x.len() as f64 + 1e-6).sqrt();
        x.iter().zip(self.row(name, 0)).map(|(x, w)| x / rms * w).collect()
    }

    /// The network number `i` of those in the tensors of this kind.
    fn glu(&self, layer: &str, kind: &str, i: usize, n_ff: usize, x: &[f64]) -> Vec<f64> {
        let name = |part: &str| format!("{layer}.ffn_{part}{kind}");
        let gate = self.rows(&name("gate"), i * n_ff, n_ff, x);
        let up = self.rows(&name("up"), i * n_ff, n_ff, x);
        let inner = gate.iter().zip(up).map(|(g, up)| g / (1.0 + (-g).exp()) * up);
        self.rows(&name("down"), i * x.len(), x.len(), &inner.collect::<Vec<_>>())
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn softmax(x: &[f64]) -> Vec<f64> {
    let weights: Vec<_> = x.iter().map(|x| x.exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

fn add(x: &mut [f64], y: &[f64], factor: f64) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y * factor);
}

/// Turns neighbours in each head of `n` numbers.
fn turn(x: &mut [f64], n: usize, base: f64, position: usize) {
    for head in x.chunks_mut(n) {
        for (i, pair) in head.chunks_mut(2).enumerate() {
            let angle = position as f64 * base.powf(-2.0 * i as f64 / n as f64);
            let (x, y) = (pair[0], pair[1]);
            pair[0] = x * angle.cos() - y * angle.sin();
            pair[1] = x * angle.sin() + y * angle.cos();
        }
    }
}

// The shape of the model that is generated.
const HEAD_DIM: usize = 32;
/// Heads that share keys and values.
const GROUP: usize = 4;
const N_USED: usize = 3;
const N_FF: usize = 256;
const N_FF_SHARED: usize = 512;

/// Logits behind each token, as `modeling_granitemoeshared.py` of Hugging Face says.
fn granite(weights: &Weights, tokens: &[u32], factors: Factors) -> Vec<Vec<f64>> {
    let scaled = |&token: &u32| {
        let row = weights.row("token_embd", token as usize);
        row.iter().map(|x| x * factors.embedding).collect::<Vec<_>>()
    };
    let mut hidden: Vec<_> = tokens.iter().map(scaled).collect();
    for layer in ["blk.0", "blk.1"] {
        let name = |part: &str| format!("{layer}.{part}");
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for (position, hidden) in hidden.iter_mut().enumerate() {
            let x = weights.norm(&name("attn_norm"), hidden);
            let mut query = weights.matrix(&name("attn_q"), &x);
            let mut key = weights.matrix(&name("attn_k"), &x);
            turn(&mut query, HEAD_DIM, 1e6, position);
            turn(&mut key, HEAD_DIM, 1e6, position);
            keys.push(key);
            values.push(weights.matrix(&name("attn_v"), &x));
            let mut mixed = vec![0.0; query.len()];
            for (i, query) in query.chunks(HEAD_DIM).enumerate() {
                let of_head = i / GROUP * HEAD_DIM..(i / GROUP + 1) * HEAD_DIM;
                let score = |key: &Vec<f64>| dot(query, &key[of_head.clone()]) * factors.attention;
                let scores: Vec<_> = keys.iter().map(score).collect();
                for (weight, value) in softmax(&scores).into_iter().zip(&values) {
                    add(&mut mixed[i * HEAD_DIM..][..HEAD_DIM], &value[of_head.clone()], weight);
                }
            }
            add(hidden, &weights.matrix(&name("attn_output"), &mixed), factors.residual);

            let x = weights.norm(&name("ffn_norm"), hidden);
            let logits = weights.matrix(&name("ffn_gate_inp"), &x);
            let mut order: Vec<_> = (0..logits.len()).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
            order.truncate(N_USED);
            let chosen: Vec<_> = order.iter().map(|&expert| logits[expert]).collect();
            let mut out = weights.glu(layer, "_shexp", 0, N_FF_SHARED, &x);
            for (&expert, weight) in order.iter().zip(softmax(&chosen)) {
                add(&mut out, &weights.glu(layer, "_exps", expert, N_FF, &x), weight);
            }
            add(hidden, &out, factors.residual);
        }
    }
    let logits = |hidden: &Vec<f64>| {
        let logits = weights.matrix("output", &weights.norm("output_norm", hidden));
        logits.into_iter().map(|x| x / factors.logits).collect()
    };
    hidden.iter().map(logits).collect()
}

/// The largest difference of any logit.
fn difference(a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// The engine's logits behind each token.
fn engine(path: &Path, tokens: &[u32]) -> Vec<Vec<f64>> {
    let (folder, name) = Folder::of(path).unwrap();
    let options = LoadOptions { kv_format: KvFormat::F32, ..LoadOptions::default() };
    let model = Model::load(&folder, &name, u64::MAX, &options).unwrap_or_else(|e| panic!("{e}"));
    let mut context = Context::new(Rc::new(model), None).unwrap();
    let mut logits = |&token: &u32| {
        context.feed(&[token]).unwrap();
        context.logits().unwrap().iter().map(|&x| x.into()).collect()
    };
    tokens.iter().map(&mut logits).collect()
}

#[test]
fn granitemoe() {
    let path = model("granitemoe-f16");
    let weights = Weights::read(&path);
    let tokens = &TOKENS[..8];
    let got = engine(&path, tokens);

    let factors =
        Factors { embedding: 3.0, attention: f64::from(0.1f32), residual: 0.5, logits: 2.0 };
    let error = difference(&got, &granite(&weights, tokens, factors));
    println!("largest difference {error:.1e}");
    assert!(error < 1e-4, "off by {error}");
    // Each of the factors matters.
    for left_out in [
        Factors { embedding: 1.0, ..factors },
        Factors { attention: 1.0 / (HEAD_DIM as f64).sqrt(), ..factors },
        Factors { residual: 1.0, ..factors },
        Factors { logits: 1.0, ..factors },
    ] {
        let error = difference(&got, &granite(&weights, tokens, left_out));
        assert!(error > 1e-2, "{left_out:?} makes a difference of {error} only");
    }
}

// The shapes of the models with latents that are generated.
const N_HEAD: usize = 4;
const PLAIN: usize = 64;
const TURNED: usize = 32;
const VALUE: usize = 64;
const N_LATENT: usize = 256;

/// How the two of them differ.
#[derive(Debug, Clone, Copy)]
struct DeepSeek {
    is_lite: bool,
    n_used: usize,
    n_shared: usize,
}

impl DeepSeek {
    /// The experts of a token, with their weights.
    fn route(self, weights: &Weights, layer: &str, x: &[f64]) -> Vec<(usize, f64)> {
        let logits = weights.matrix(&format!("{layer}.ffn_gate_inp"), x);
        let largest = |scores: &[f64], n: usize| {
            let mut order: Vec<_> = (0..scores.len()).collect();
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
            order.truncate(n);
            order
        };
        if self.is_lite {
            let scores = softmax(&logits);
            return largest(&scores, self.n_used).into_iter().map(|i| (i, scores[i])).collect();
        }
        let scores: Vec<_> = logits.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect();
        let (correction, _) = &weights.0[&format!("{layer}.exp_probs_b.bias")];
        let mut corrected: Vec<_> = scores.iter().zip(correction).map(|(s, c)| s + c).collect();
        // Of four groups of two the best two.
        let sums: Vec<_> = corrected.chunks(2).map(|group| group.iter().sum()).collect();
        let groups = largest(&sums, 2);
        for (i, score) in corrected.iter_mut().enumerate() {
            if !groups.contains(&(i / 2)) {
                *score = f64::NEG_INFINITY;
            }
        }
        let order = largest(&corrected, self.n_used);
        let sum: f64 = order.iter().map(|&i| scores[i]).sum();
        order.into_iter().map(|i| (i, scores[i] / sum * 2.5)).collect()
    }

    /// A head's key and value of a latent, but for what is turned of the key.
    fn key_and_value(
        self,
        weights: &Weights,
        layer: &str,
        head: usize,
        latent: &[f64],
    ) -> [Vec<f64>; 2] {
        let name = |part: &str| format!("{layer}.attn_{part}");
        if self.is_lite {
            let first = head * (PLAIN + VALUE);
            let rows = |first, n| weights.rows(&name("kv_b"), first, n, latent);
            return [rows(first, PLAIN), rows(first + PLAIN, VALUE)];
        }
        let mut key = vec![0.0; PLAIN];
        for (i, x) in latent.iter().enumerate() {
            add(&mut key, weights.row(&name("k_b"), head * N_LATENT + i), *x);
        }
        [key, weights.rows(&name("v_b"), head * VALUE, VALUE, latent)]
    }

    /// Logits behind each token, as `modeling_deepseek_v3.py` of Hugging Face says.
    fn logits(self, weights: &Weights, tokens: &[u32]) -> Vec<Vec<f64>> {
        let row = |&token: &u32| weights.row("token_embd", token as usize).to_vec();
        let mut hidden: Vec<_> = tokens.iter().map(row).collect();
        for (i, layer) in ["blk.0", "blk.1"].into_iter().enumerate() {
            let name = |part: &str| format!("{layer}.{part}");
            let mut past: Vec<Vec<[Vec<f64>; 2]>> = Vec::new();
            for (position, hidden) in hidden.iter_mut().enumerate() {
                let x = weights.norm(&name("attn_norm"), hidden);
                let query = if self.is_lite {
                    weights.matrix(&name("attn_q"), &x)
                } else {
                    let low = weights.matrix(&name("attn_q_a"), &x);
                    let low = weights.norm(&name("attn_q_a_norm"), &low);
                    weights.matrix(&name("attn_q_b"), &low)
                };
                let mut latent = weights.matrix(&name("attn_kv_a_mqa"), &x);
                let mut turned = latent.split_off(N_LATENT);
                turn(&mut turned, TURNED, 1e4, position);
                let latent = weights.norm(&name("attn_kv_a_norm"), &latent);
                let of_head = |head| {
                    let [mut key, value] = self.key_and_value(weights, layer, head, &latent);
                    key.extend(&turned);
                    [key, value]
                };
                past.push((0..N_HEAD).map(of_head).collect());
                let mut mixed = vec![0.0; N_HEAD * VALUE];
                for (head, query) in query.chunks(PLAIN + TURNED).enumerate() {
                    let mut query = query.to_vec();
                    turn(&mut query[PLAIN..], TURNED, 1e4, position);
                    let scale = ((PLAIN + TURNED) as f64).sqrt();
                    let score = |heads: &Vec<[Vec<f64>; 2]>| dot(&query, &heads[head][0]) / scale;
                    let scores: Vec<_> = past.iter().map(score).collect();
                    for (weight, heads) in softmax(&scores).into_iter().zip(&past) {
                        add(&mut mixed[head * VALUE..][..VALUE], &heads[head][1], weight);
                    }
                }
                add(hidden, &weights.matrix(&name("attn_output"), &mixed), 1.0);

                let x = weights.norm(&name("ffn_norm"), hidden);
                if i == 0 {
                    add(hidden, &weights.glu(layer, "", 0, 512, &x), 1.0);
                    continue;
                }
                let mut out = weights.glu(layer, "_shexp", 0, self.n_shared * N_FF, &x);
                for (expert, weight) in self.route(weights, layer, &x) {
                    add(&mut out, &weights.glu(layer, "_exps", expert, N_FF, &x), weight);
                }
                add(hidden, &out, 1.0);
            }
        }
        let logits =
            |hidden: &Vec<f64>| weights.matrix("output", &weights.norm("output_norm", hidden));
        hidden.iter().map(logits).collect()
    }
}

#[test]
fn deepseek() {
    let v3 = DeepSeek { is_lite: false, n_used: 2, n_shared: 1 };
    let lite = DeepSeek { is_lite: true, n_used: 3, n_shared: 2 };
    for (name, model_of) in [("dsv3-f16", v3), ("deepseekv2-f16", lite)] {
        let path = model(name);
        let tokens = &TOKENS[..10];
        let error =
            difference(&engine(&path, tokens), &model_of.logits(&Weights::read(&path), tokens));
        println!("{name}: largest difference {error:.1e}");
        assert!(error < 1e-4, "{name} is off by {error}");
    }
}

/// Turns numbers at the same place in the two halves of each head.
fn turn_halves(x: &mut [f64], n: usize, base: f64, position: usize) {
    for head in x.chunks_mut(n) {
        for i in 0..n / 2 {
            let angle = position as f64 * base.powf(-2.0 * i as f64 / n as f64);
            let (x, y) = (head[i], head[i + n / 2]);
            head[i] = x * angle.cos() - y * angle.sin();
            head[i + n / 2] = x * angle.sin() + y * angle.cos();
        }
    }
}

/// What of gpt-oss may be left out, to see whether it matters.
#[derive(Debug, Clone, Copy)]
struct GptOss {
    /// Tokens that every second layer sees.
    window: usize,
    has_sinks: bool,
    /// The bound of what a gated linear unit gets.
    limit: f64,
    has_expert_biases: bool,
}

impl GptOss {
    /// The outputs of an expert.
    fn expert(self, weights: &Weights, layer: &str, expert: usize, x: &[f64]) -> Vec<f64> {
        let product = |part: &str, n: usize, x: &[f64]| {
            let name = format!("{layer}.ffn_{part}_exps");
            let mut y = weights.rows(&name, expert * n, n, x);
            if self.has_expert_biases {
                let (biases, _) = &weights.0[&format!("{name}.bias")];
                add(&mut y, &biases[expert * n..(expert + 1) * n], 1.0);
            }
            y
        };
        let (gate, up) = (product("gate", N_FF, x), product("up", N_FF, x));
        let inner = gate.iter().zip(up).map(|(gate, up)| {
            let (gate, up) = (gate.min(self.limit), up.clamp(-self.limit, self.limit));
            gate / (1.0 + (-1.702 * gate).exp()) * (up + 1.0)
        });
        product("down", x.len(), &inner.collect::<Vec<_>>())
    }

    /// Logits behind each token, as `modeling_gpt_oss.py` of Hugging Face says.
    fn logits(self, weights: &Weights, tokens: &[u32]) -> Vec<Vec<f64>> {
        let biased = |name: &str, x: &[f64]| {
            let mut y = weights.matrix(name, x);
            add(&mut y, &weights.0[&format!("{name}.bias")].0, 1.0);
            y
        };
        let row = |&token: &u32| weights.row("token_embd", token as usize).to_vec();
        let mut hidden: Vec<_> = tokens.iter().map(row).collect();
        for (layer, window) in [("blk.0", self.window), ("blk.1", usize::MAX)] {
            let name = |part: &str| format!("{layer}.{part}");
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for (position, hidden) in hidden.iter_mut().enumerate() {
                let x = weights.norm(&name("attn_norm"), hidden);
                let mut query = biased(&name("attn_q"), &x);
                let mut key = biased(&name("attn_k"), &x);
                turn_halves(&mut query, HEAD_DIM, 1e4, position);
                turn_halves(&mut key, HEAD_DIM, 1e4, position);
                keys.push(key);
                values.push(biased(&name("attn_v"), &x));
                let first = keys.len().saturating_sub(window);
                let mut mixed = vec![0.0; query.len()];
                for (i, query) in query.chunks(HEAD_DIM).enumerate() {
                    let of_head = i / GROUP * HEAD_DIM..(i / GROUP + 1) * HEAD_DIM;
                    let scale = (HEAD_DIM as f64).sqrt();
                    let score = |key: &Vec<f64>| dot(query, &key[of_head.clone()]) / scale;
                    let mut scores: Vec<_> = keys[first..].iter().map(score).collect();
                    if self.has_sinks {
                        scores.push(weights.row(&name("attn_sinks"), 0)[i]);
                    }
                    for (weight, value) in softmax(&scores).into_iter().zip(&values[first..]) {
                        let value = &value[of_head.clone()];
                        add(&mut mixed[i * HEAD_DIM..][..HEAD_DIM], value, weight);
                    }
                }
                add(hidden, &biased(&name("attn_output"), &mixed), 1.0);

                let x = weights.norm(&name("post_attention_norm"), hidden);
                let logits = biased(&name("ffn_gate_inp"), &x);
                let mut order: Vec<_> = (0..logits.len()).collect();
                order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
                order.truncate(N_USED);
                let chosen: Vec<_> = order.iter().map(|&expert| logits[expert]).collect();
                for (&expert, weight) in order.iter().zip(softmax(&chosen)) {
                    add(hidden, &self.expert(weights, layer, expert, &x), weight);
                }
            }
        }
        let logits =
            |hidden: &Vec<f64>| weights.matrix("output", &weights.norm("output_norm", hidden));
        hidden.iter().map(logits).collect()
    }
}

#[test]
fn gpt_oss() {
    let path = model("gptoss-f16");
    let (weights, tokens) = (Weights::read(&path), &TOKENS[..24]);
    let got = engine(&path, tokens);
    let formula = GptOss { window: 16, has_sinks: true, limit: 7.0, has_expert_biases: true };
    let error = difference(&got, &formula.logits(&weights, tokens));
    println!("largest difference {error:.1e}");
    assert!(error < 1e-4, "off by {error}");
    for left_out in [
        GptOss { window: usize::MAX, ..formula },
        GptOss { has_sinks: false, ..formula },
        GptOss { limit: 1.0, ..formula },
        GptOss { has_expert_biases: false, ..formula },
    ] {
        let error = difference(&got, &left_out.logits(&weights, tokens));
        assert!(error > 1e-2, "{left_out:?} makes a difference of {error} only");
    }
}
