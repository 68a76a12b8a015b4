//! Architectures: a file for each says which metadata and tensors its models have,
//! and what is computed of them, as a [`Plan`].

mod bailingmoe2;
mod decoder;
mod deepseek2;
mod dots1;
mod ernie4_5_moe;
mod file;
mod gemma3;
mod gemma4;
mod glm4moe;
mod gpt_oss;
mod granitemoe;
mod hunyuan_moe;
mod keys;
mod llama;
mod llama4;
mod minimax_m2;
mod olmo2;
mod olmoe;
mod phi3;
mod phimoe;
mod qwen2;
mod qwen2moe;
mod qwen3;
mod qwen3moe;
mod rope;

use std::collections::BTreeMap;

use self::file::File;
use self::keys::Keys;
use crate::error::{Error, Result};
use crate::gguf::{Metadata, TensorInfo};
use crate::options::LoadOptions;
use crate::plan::Plan;

/// An architecture's name, and what plans a model of it.
type Architecture = (&'static str, fn(&File<'_>) -> Result<Plan>);

/// All architectures that there are.
const ALL: &[Architecture] = &[
    ("llama", llama::plan),
    ("qwen2", qwen2::plan),
    ("qwen2moe", qwen2moe::plan),
    ("qwen3", qwen3::plan),
    ("qwen3moe", qwen3moe::plan),
    ("olmoe", olmoe::plan),
    ("granitemoe", granitemoe::plan),
    ("gpt-oss", gpt_oss::plan),
    ("gemma3", gemma3::plan),
    ("gemma4", gemma4::plan),
    ("llama4", llama4::plan),
    ("olmo2", olmo2::plan),
    ("phi3", phi3::plan),
    ("deepseek2", deepseek2::plan),
    ("glm4moe", glm4moe::plan),
    ("dots1", dots1::plan),
    ("minimax-m2", minimax_m2::plan),
    ("ernie4_5-moe", ernie4_5_moe::plan),
    ("bailingmoe2", bailingmoe2::plan),
    ("hunyuan-moe", hunyuan_moe::plan),
    ("phimoe", phimoe::plan),
];

/// Plans the model in a file with these metadata and tensors.
pub(crate) fn plan(
    metadata: &Metadata,
    tensors: &BTreeMap<String, TensorInfo>,
    options: &LoadOptions,
) -> Result<Plan> {
    let file = File { keys: Keys::new(metadata)?, tensors, options };
    let name = file.keys.architecture();
    let Some((_, plan)) = ALL.iter().find(|(known, _)| *known == name) else {
        let known: Vec<_> = ALL.iter().map(|(known, _)| *known).collect();
        return Err(Error::unsupported(format!(
            "the architecture `{name}` is not supported; choose a model of one of these: {}",
            known.join(", ")
        )));
    };
    let plan = plan(&file)?;
    file.keys.all_known()?;
    Ok(plan)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::keys::{HARMLESS, NEUTRAL};
    use super::*;
    use crate::error::ErrorKind;
    use crate::gguf::{Gguf, TensorType, Value};
    use crate::kv_cache::Span;
    use crate::plan::{Deal, FfnPlan, LayerPlan, MixPlan, Pairs};

    /// The plan of a model of the architecture `qwen3` that has one head of 128 numbers,
    /// with these metadata beside or in place of what it needs.
    pub(crate) fn plan_with(pairs: &[(&str, Value)]) -> Result<Plan> {
        plan_loaded(pairs, &LoadOptions::default())
    }

    /// The same, loaded with these options.
    pub(crate) fn plan_loaded(pairs: &[(&str, Value)], options: &LoadOptions) -> Result<Plan> {
        let mut all: BTreeMap<_, _> = [
            ("embedding_length", Value::Uint(128)),
            ("attention.head_count", Value::Uint(1)),
            ("block_count", Value::Uint(1)),
            ("context_length", Value::Uint(131_072)),
            ("attention.layer_norm_rms_epsilon", Value::Float(1e-6)),
            ("rope.freq_base", Value::Float(1e6)),
        ]
        .into();
        all.extend(pairs.iter().cloned());
        let mut metadata = Metadata::default();
        let name = Value::String("qwen3".to_owned());
        assert!(metadata.insert("general.architecture".to_owned(), name));
        for (key, value) in all {
            assert!(metadata.insert(format!("qwen3.{key}"), value));
        }
        let embedding = TensorInfo {
            name: "token_embd.weight".to_owned(),
            dims: [128, 4, 1, 1],
            ty: TensorType::from_id(0).unwrap(),
            file: 0,
            offset: 0,
            size: 2048,
        };
        plan(&metadata, &[(embedding.name.clone(), embedding)].into(), options)
    }

    /// Fails unless these metadata are refused as not supported, in these words.
    #[track_caller]
    fn refused(pairs: &[(&str, Value)], words: &str) {
        let error = plan_with(pairs).expect_err("metadata that ask for what is not done");
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }

    #[test]
    fn a_key_that_nobody_reads_is_refused() {
        for value in [Value::Uint(1), Value::Float(0.0), Value::Bool(false)] {
            refused(&[("attention.magic", value)], "metadata `qwen3.attention.magic` is not known");
        }
        let text = Value::String("linear".to_owned());
        refused(&[("attention.causal", text)], "metadata `qwen3.attention.causal` is not known");
    }

    #[test]
    fn harmless_keys_change_nothing() {
        let plain = plan_with(&[]).unwrap();
        for key in HARMLESS {
            for value in [Value::Uint(3), Value::Bool(false), Value::String(String::new())] {
                assert_eq!(plan_with(&[(key, value)]).unwrap(), plain, "{key}");
            }
        }
    }

    #[test]
    fn what_is_not_done_is_refused_unless_it_asks_for_nothing() {
        let plain = plan_with(&[]).unwrap();
        for (key, values) in NEUTRAL {
            for &x in values {
                assert_eq!(plan_with(&[(key, Value::Float(x))]).unwrap(), plain, "{key} = {x}");
                let n = Value::Uint(x as u64);
                assert_eq!(plan_with(&[(key, n)]).unwrap(), plain, "{key} = {x}");
            }
            for x in [0.5, 2.0, -1.0] {
                let words = format!("metadata `qwen3.{key}` is {x}, which is not supported");
                refused(&[(key, Value::Float(x))], &words);
            }
        }
        assert_eq!(plan_with(&[("attention.causal", Value::Bool(true))]).unwrap(), plain);
        let words = "`qwen3.attention.causal` is 0, which is not supported in the architecture";
        refused(&[("attention.causal", Value::Bool(false))], words);
    }

    #[test]
    fn a_window_may_be_as_long_as_the_context() {
        let plain = plan_with(&[]).unwrap();
        let window = |n| ("attention.sliding_window", Value::Uint(n));
        for n in [0, 131_072, 1 << 20] {
            assert_eq!(plan_with(&[window(n)]).unwrap(), plain);
        }
        refused(&[window(4096)], "`qwen3.attention.sliding_window` is 4096, less than the context");
    }

    #[test]
    fn the_scale_of_scores_is_the_files() {
        let scale = |x| {
            let plan = plan_with(&[("attention.scale", Value::Float(x))]).unwrap();
            let MixPlan::Attention(attention) = &plan.layers[0].mix.op else { panic!() };
            attention.scale
        };
        assert_eq!(scale(0.0), 1.0 / 128f32.sqrt());
        assert_eq!(scale(0.25), 0.25);
        assert!(plan_with(&[("attention.scale", Value::Float(-1.0))]).is_err());
    }

    /// The plan of a small model.
    fn plan_of(name: &str) -> Plan {
        let path = moewe_fixtures::model(&format!("{name}-q4_k_m"));
        let header = Gguf::read(&path).unwrap().header;
        plan(&header.metadata, &header.tensors, &LoadOptions::default()).unwrap()
    }

    #[test]
    fn plans_say_what_sets_families_apart() {
        struct Facts {
            pairs: Pairs,
            /// Numbers that are normalised together of queries, and of keys.
            qk_norm: Option<(usize, usize)>,
            qkv_bias: bool,
            normalize: bool,
            /// Whether there is a shared expert, and whether it has a gate.
            shared: Option<bool>,
            scales: [f32; 4],
        }
        let plain = Facts {
            pairs: Pairs::Halves,
            qk_norm: None,
            qkv_bias: false,
            normalize: false,
            shared: None,
            scales: [1.0; 4],
        };
        let families = [
            ("mixtral", Facts { pairs: Pairs::Neighbours, normalize: true, ..plain }),
            ("qwen2moe", Facts { qkv_bias: true, shared: Some(true), ..plain }),
            ("qwen3moe", Facts { qk_norm: Some((64, 64)), normalize: true, ..plain }),
            ("olmoe", Facts { qk_norm: Some((256, 256)), ..plain }),
            (
                "granitemoe",
                Facts {
                    pairs: Pairs::Neighbours,
                    normalize: true,
                    shared: Some(false),
                    scales: [3.0, 0.5, 0.5, 0.5],
                    ..plain
                },
            ),
        ];
        for (name, facts) in families {
            let plan = plan_of(name);
            assert_eq!((plan.layers.len(), plan.n_embd(), plan.n_vocab()), (2, 256, 512), "{name}");
            assert_eq!(plan.embedding.matrix.deal, Deal::Whole);
            assert_eq!(plan.ropes[0].pairs, facts.pairs, "{name}");
            for layer in &plan.layers {
                let MixPlan::Attention(attention) = &layer.mix.op else { panic!("{name}") };
                let qk_norm = attention.qk_norm.as_ref();
                let lens = qk_norm.map(|norm| (norm.q.len, norm.k.len));
                assert_eq!(lens, facts.qk_norm, "{name}");
                let values = attention.v.as_ref().unwrap();
                for matrix in [&attention.q, &attention.k, values] {
                    assert_eq!(matrix.bias.is_some(), facts.qkv_bias, "{name}: {}", matrix.name);
                }
                let FfnPlan::Mixture(mixture) = &layer.ffn.op else { panic!("{name} is dense") };
                assert_eq!(mixture.router.normalize.is_some(), facts.normalize, "{name}");
                let shared = mixture.shared.as_ref().map(|shared| shared.gate.is_some());
                assert_eq!(shared, facts.shared, "{name}");
                let scales =
                    [plan.embedding.scale, layer.mix.scale, layer.ffn.scale, plan.head.scale];
                assert_eq!(scales, facts.scales, "{name}");
            }
        }
    }

    #[test]
    fn layers_look_at_what_their_family_says() {
        let of = |name: &str| -> Vec<_> {
            let layer = |layer: &LayerPlan| match &layer.mix.op {
                MixPlan::Attention(attention) => (attention.span, attention.rope),
                MixPlan::Latent(_) => panic!("{name} has latents"),
            };
            plan_of(name).layers.iter().map(layer).collect()
        };
        let all = (Span::All, Some(0));
        assert_eq!(of("gptoss"), [(Span::Window(16), Some(0)), all]);
        let window = (Span::Window(24), Some(1));
        assert_eq!(of("gemma3"), [window, window, window, window, window, all]);
        assert_eq!(of("gemma4"), [window, all]);
        // Its contexts are no longer than a chunk.
        assert_eq!(of("llama4"), [all, all, all, (Span::All, None)]);
    }
}
