//! DeepSeek-V2, -V3 and -R1, Kimi-K2, Moonlight, GLM-4.7-Flash: attention over latents,
//! many small experts of which all tokens share some, and leading layers without.

use super::decoder::Decoder;
use super::file::File;
use super::keys::COUNT_MAX;
use super::rope;
use crate::error::{Error, Result};
use crate::plan::{
    FrequencyScaling, LatentHeads, LatentPlan, LatentQueryPlan, LayerPlan, MixPlan, Pairs, Plan,
    Residual, RopePlan, Score,
};

/// The most numbers that the latents of all heads have together.
const LATENTS_MAX: usize = 1 << 24;

/// Numbers of a head, and of the latents that heads share.
struct Heads {
    n: usize,
    plain_dim: usize,
    turned_dim: usize,
    value_dim: usize,
    n_latent: usize,
    /// Of queries, if they come by way of such a vector.
    rank: usize,
}

pub(super) fn plan(file: &File<'_>) -> Result<Plan> {
    let heads = Heads::read(file)?;
    let query_dim = heads.plain_dim + heads.turned_dim;
    let mut model = Decoder::with_heads(file, heads.n, 1, query_dim)?;
    let skipped = model.skip_predictors()?;
    let rope = rope::plan(file, query_dim, model.n_ctx_train, Pairs::Neighbours)?;
    let rope = with_temperature(file, rope, &mut model.attention_scale)?;

    // Files of before there were sigmoids do not say which score it is, and only models
    // with sigmoids correct it.
    let corrects = file.tensors.keys().any(|name| name.ends_with(".exp_probs_b.bias"));
    let score = if corrects { Score::Sigmoid } else { Score::Softmax };
    let experts = model.with_shared(model.experts(score, false)?)?;
    let mut plan = model.plan(Pairs::Neighbours, |layer| LayerPlan {
        mix: heads.attention(&model, layer),
        ffn: model.ffn(layer, experts.as_ref()),
        scale: None,
    })?;
    plan.ropes = vec![rope];
    plan.skipped = skipped;
    Ok(plan)
}

impl Heads {
    fn read(file: &File<'_>) -> Result<Self> {
        let keys = &file.keys;
        // Where latents are looked at as keys and values that all heads share, these have
        // the plain names. They say nothing that is not said elsewhere.
        let (key_len, value_len) =
            (keys.count("attention.key_length")?, keys.count("attention.value_length")?);
        keys.count("attention.head_count_kv")?;
        let or_missing = |n: Option<usize>, key: &str| {
            n.filter(|&n| n > 0).ok_or_else(|| {
                Error::invalid(format!(
                    "metadata `{}` is missing or 0; the file is incomplete",
                    keys.full(key)
                ))
            })
        };
        let query_dim = keys.count("attention.key_length_mla")?.or(key_len);
        let query_dim = or_missing(query_dim, "attention.key_length")?;
        let value_dim = keys.count("attention.value_length_mla")?.or(value_len);
        let value_dim = or_missing(value_dim, "attention.value_length")?;
        let turned_dim = keys.count("rope.dimension_count")?;
        let turned_dim = or_missing(turned_dim, "rope.dimension_count")?;
        let n = keys.positive("attention.head_count")?;
        let n_latent = keys.positive("attention.kv_lora_rank")?;
        let plain_dim = query_dim.checked_sub(turned_dim).filter(|&n| n > 0).ok_or_else(|| {
            Error::invalid(format!(
                "`{}` is {turned_dim} for heads of {query_dim}; the file is damaged",
                keys.full("rope.dimension_count")
            ))
        })?;
        if !n_latent.is_multiple_of(8) || !turned_dim.is_multiple_of(4) {
            return Err(Error::unsupported(format!(
                "latents of {n_latent} and {turned_dim} numbers; they must be multiples of 8 and 4"
            )));
        }
        if n * n_latent > LATENTS_MAX || n as u64 * value_dim as u64 > COUNT_MAX.into() {
            return Err(Error::invalid(format!(
                "{n} heads with latents of {n_latent} and values of {value_dim} numbers; the file \
                 is damaged"
            )));
        }
        let rank = keys.count("attention.q_lora_rank")?.unwrap_or(0);
        Ok(Self { n, plain_dim, turned_dim, value_dim, n_latent, rank })
    }

    /// What a layer adds first.
    fn attention(&self, model: &Decoder<'_>, layer: usize) -> Residual<MixPlan> {
        let (file, n_embd) = (model.file, model.n_embd);
        let name = |part: &str| format!("blk.{layer}.{part}");
        let width = self.n * (self.plain_dim + self.turned_dim);
        let q = match self.rank {
            0 => LatentQueryPlan::Whole(file.matrix(&name("attn_q"), width, n_embd)),
            rank => LatentQueryPlan::LowRank {
                down: file.matrix(&name("attn_q_a"), rank, n_embd),
                norm: model.norm(&name("attn_q_a_norm"), rank),
                up: file.matrix(&name("attn_q_b"), width, rank),
            },
        };
        let joint = name("attn_kv_b.weight");
        let heads = match file.has(&joint) {
            true => LatentHeads::Joint(joint),
            false => LatentHeads::Apart { k: name("attn_k_b.weight"), v: name("attn_v_b.weight") },
        };
        Residual {
            before: Some(model.norm(&name("attn_norm"), n_embd)),
            op: MixPlan::Latent(Box::new(LatentPlan {
                q,
                latent: file.matrix(
                    &name("attn_kv_a_mqa"),
                    self.n_latent + self.turned_dim,
                    n_embd,
                ),
                norm: model.norm(&name("attn_kv_a_norm"), self.n_latent),
                heads,
                o: file.matrix(&name("attn_output"), n_embd, self.n * self.value_dim),
                n_head: self.n,
                plain_dim: self.plain_dim,
                turned_dim: self.turned_dim,
                value_dim: self.value_dim,
                scale: model.attention_scale,
                rope: Some(0),
                kv_format: file.options.kv_format,
            })),
            after: None,
            scale: model.residual_scale,
        }
    }
}

/// Takes YaRN's attention temperature from sines and cosines to the scores, where the file
/// says how it grows with the logarithm of the factor: those of the numbers that are not
/// turned get it too.
fn with_temperature(file: &File<'_>, rope: RopePlan, scale: &mut f32) -> Result<RopePlan> {
    let keys = &file.keys;
    let growth = keys.factor("rope.scaling.yarn_log_multiplier")?;
    let (Some(growth), FrequencyScaling::Yarn { factor, .. }) = (growth, &rope.scaling) else {
        return Ok(rope);
    };
    let temperature = 1.0 + f64::from(growth) * libm::log(*factor).max(0.0);
    *scale = (f64::from(*scale) * temperature * temperature) as f32;
    let magnitude = keys.f32("rope.scaling.attn_factor")?.map_or(1.0, f64::from);
    Ok(RopePlan { magnitude, ..rope })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch;
    use crate::gguf::{Gguf, Value};
    use crate::options::{LoadOptions, RopeScaling};
    use crate::plan::{FfnPlan, GroupsPlan, MixturePlan};

    /// The plan of a small model with these metadata more.
    fn plan_with(name: &str, more: &[(&str, Value)], options: &LoadOptions) -> Result<Plan> {
        let path = moewe_fixtures::model(&format!("{name}-q4_k_m"));
        let mut header = Gguf::read(&path).unwrap().header;
        for (key, value) in more {
            assert!(header.metadata.insert(format!("deepseek2.{key}"), value.clone()), "{key}");
        }
        arch::plan(&header.metadata, &header.tensors, options)
    }

    fn parts(plan: &Plan) -> (&LatentPlan, &MixturePlan) {
        let FfnPlan::Dense(_) = plan.layers[0].ffn.op else { panic!("the first has experts") };
        match (&plan.layers[1].mix.op, &plan.layers[1].ffn.op) {
            (MixPlan::Latent(latent), FfnPlan::Mixture(mixture)) => (latent, mixture),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn models_differ_as_their_files_say() {
        let v3 = plan_with("dsv3", &[], &LoadOptions::default()).unwrap();
        let (latent, mixture) = parts(&v3);
        assert!(matches!(latent.q, LatentQueryPlan::LowRank { .. }));
        assert!(matches!(latent.heads, LatentHeads::Apart { .. }));
        assert_eq!((latent.plain_dim, latent.turned_dim, latent.value_dim), (64, 32, 64));
        assert_eq!((latent.n_latent(), latent.scale), (256, 1.0 / 96f32.sqrt()));
        let router = &mixture.router;
        assert_eq!((router.score, router.normalize), (Score::Sigmoid, Some(0.0)));
        assert_eq!((router.scale, router.correction.is_some()), (2.5, true));
        assert_eq!(router.groups, Some(GroupsPlan { n: 4, n_used: 2, n_summed: 2 }));
        let n_ff_shared = |mixture: &MixturePlan| mixture.shared.as_ref().unwrap().glu.n_ff();
        assert_eq!(n_ff_shared(mixture), 256);

        let lite = plan_with("deepseekv2", &[], &LoadOptions::default()).unwrap();
        let (latent, mixture) = parts(&lite);
        assert!(matches!(latent.q, LatentQueryPlan::Whole(_)));
        assert!(matches!(latent.heads, LatentHeads::Joint(_)));
        let router = &mixture.router;
        assert_eq!((router.score, router.normalize), (Score::Softmax, None));
        assert_eq!((router.correction.is_none(), router.groups), (true, None));
        assert_eq!(n_ff_shared(mixture), 512);
    }

    #[test]
    fn the_temperature_is_that_of_all_numbers_where_the_file_says_it() {
        let kind = ("rope.scaling.type", Value::String("yarn".to_owned()));
        let factor = ("rope.scaling.factor", Value::Float(32.0));
        let growth = ("rope.scaling.yarn_log_multiplier", Value::Float(0.0707));
        let plain = 1.0 / 96f64.sqrt();
        let of = |more: &[(&str, Value)], rope_scaling| {
            let options = LoadOptions { rope_scaling, ..LoadOptions::default() };
            let plan = plan_with("dsv3", more, &options).unwrap();
            (f64::from(parts(&plan).0.scale) / plain, plan.ropes[0].magnitude)
        };
        let near = |(a, b): (f64, f64), want: (f64, f64)| {
            assert!((a - want.0).abs() < 1e-6 && (b - want.1).abs() < 1e-6, "{a}, {b}: {want:?}");
        };
        let ln = 32f64.ln();
        let file = [kind.clone(), factor.clone(), growth.clone()];
        near(of(&file, None), ((1.0 + 0.0707 * ln).powi(2), 1.0));
        near(of(&[kind, factor], None), (1.0, 1.0 + 0.1 * ln));
        near(of(&[growth], None), (1.0, 1.0));
        // Another factor was chosen.
        let chosen = Some(RopeScaling::Yarn { factor: 4.0 });
        near(of(&file, chosen), ((1.0 + 0.0707 * 4f64.ln()).powi(2), 1.0));
        near(of(&file, Some(RopeScaling::None)), (1.0, 1.0));
    }

    #[test]
    fn layers_that_predict_more_are_left_out() {
        let more = [("nextn_predict_layers", Value::Uint(1))];
        let plan = plan_with("dsv3", &more, &LoadOptions::default()).unwrap();
        assert_eq!(plan.layers.len(), 1);
        assert!(plan.skips("blk.1.attn_norm.weight") && !plan.skips("blk.0.attn_norm.weight"));
        let all = [("nextn_predict_layers", Value::Uint(2))];
        let error = plan_with("dsv3", &all, &LoadOptions::default()).unwrap_err();
        assert!(error.to_string().contains("2 of 2 layers"), "{error}");
    }
}
