//! What a file says of RoPE, and what of it was chosen instead.

use super::file::File;
use crate::error::{Error, Result};
use crate::options::{ROPE_FACTOR_MAX, RopeScaling};
use crate::plan::{FrequencyScaling, LongFactors, Pairs, Plan, RopePlan};

/// Reads base and scaling; keys of scaling that is not done say nothing.
pub(super) fn plan(
    file: &File<'_>,
    head_dim: usize,
    n_ctx_train: usize,
    pairs: Pairs,
) -> Result<RopePlan> {
    let keys = &file.keys;
    let dims = dims(file, "rope.dimension_count", head_dim)?;
    let base = base(file, "rope.freq_base")?;
    // The second name is that of early files. 0 scales nothing, as in llama.cpp.
    let (factor, early) = (keys.f32("rope.scaling.factor")?, keys.f32("rope.scale_linear")?);
    let factor = factor.or(early).filter(|&factor| factor != 0.0).unwrap_or(1.0);
    if factor <= 0.0 {
        return Err(Error::invalid(format!("RoPE scaling by {factor}; the file is damaged")));
    }
    let of_file = match keys.str("rope.scaling.type")? {
        Some("none") => Ok(RopeScaling::None),
        None | Some("linear") => Ok(RopeScaling::Linear { factor }),
        Some("yarn") => Ok(RopeScaling::Yarn { factor }),
        Some(other) => Err(Error::unsupported(format!(
            "RoPE scaling `{other}`: none, linear and yarn are supported"
        ))),
    };
    let mut magnitude = f64::from(keys.f32("rope.scaling.attn_factor")?.unwrap_or(1.0));
    let n_ctx = n_ctx_original(file, n_ctx_train)? as f64;
    let fast = keys.f32("rope.scaling.yarn_beta_fast")?.map_or(32.0, f64::from);
    let slow = keys.f32("rope.scaling.yarn_beta_slow")?.map_or(1.0, f64::from);
    let scaling = match file.options.rope_scaling.map_or(of_file, Ok)? {
        RopeScaling::None => FrequencyScaling::Linear { factor: 1.0 },
        RopeScaling::Linear { factor } => FrequencyScaling::Linear { factor: factor.into() },
        RopeScaling::Yarn { factor } => {
            let factor = f64::from(factor);
            // YaRN's attention temperature.
            magnitude *= 1.0 + 0.1 * libm::log(factor).max(0.0);
            FrequencyScaling::Yarn { factor, n_ctx, fast, slow, whole_pairs: true }
        }
    };
    let factors = file.has("rope_freqs.weight").then(|| "rope_freqs.weight".to_owned());
    Ok(RopePlan { dims, pairs, base, factors, long: None, scaling, magnitude })
}

/// The RoPE of layers that look at a window, where these have one of their own.
pub(super) fn of_windows(file: &File<'_>, head_dim: usize, pairs: Pairs) -> Result<RopePlan> {
    let dims = dims(file, "rope.dimension_count_swa", head_dim)?;
    Ok(RopePlan {
        dims,
        pairs,
        base: base(file, "rope.freq_base_swa")?,
        factors: None,
        long: None,
        scaling: FrequencyScaling::Linear { factor: 1.0 },
        magnitude: 1.0,
    })
}

/// Takes the factors of Phi's files, if there are any: some for short contexts, and others
/// for long ones.
pub(super) fn with_long_factors(file: &File<'_>, plan: &mut Plan) {
    let [short, long] = ["short", "long"].map(|which| format!("rope_factors_{which}.weight"));
    if file.has(&long) {
        plan.ropes[0].factors = Some(short);
        plan.ropes[0].long = Some(LongFactors { factors: long, beyond: plan.n_ctx_original });
    }
}

/// How many numbers of a head are turned.
fn dims(file: &File<'_>, key: &str, head_dim: usize) -> Result<usize> {
    let dims = file.keys.u32(key)?.unwrap_or(head_dim as u32) as usize;
    if !dims.is_multiple_of(2) || dims > head_dim {
        return Err(Error::invalid(format!(
            "`{}` is {dims} for heads of {head_dim}; the file is damaged",
            file.keys.full(key),
        )));
    }
    Ok(dims)
}

fn base(file: &File<'_>, key: &str) -> Result<f64> {
    let base = f64::from(file.keys.f32(key)?.unwrap_or(10_000.0));
    if base <= 1.0 {
        return Err(Error::invalid(format!("a RoPE base of {base}; the file is damaged")));
    }
    Ok(base)
}

/// The longest context that a model may have: what the file says, or as many times as
/// much as the model was trained for as was chosen.
pub(super) fn n_ctx_max(file: &File<'_>, n_ctx_train: usize, turns: bool) -> Result<usize> {
    let factor = match file.options.rope_scaling {
        None | Some(RopeScaling::None) => return Ok(n_ctx_train),
        Some(RopeScaling::Linear { factor } | RopeScaling::Yarn { factor }) => factor,
    };
    if !turns {
        return Err(Error::input(
            "the model has no RoPE that could be scaled; load it without RoPE scaling",
        ));
    }
    if !(1.0..=ROPE_FACTOR_MAX).contains(&factor) {
        return Err(Error::input(format!(
            "a RoPE factor of {factor}; it must be 1 to {ROPE_FACTOR_MAX}"
        )));
    }
    let scaled = n_ctx_original(file, n_ctx_train)? as f64 * f64::from(factor);
    // Positions and counts of tokens are u32.
    Ok((scaled as usize).clamp(n_ctx_train, u32::MAX as usize))
}

/// The context before a scaling that the file speaks of: what factors multiply.
pub(super) fn n_ctx_original(file: &File<'_>, n_ctx_train: usize) -> Result<usize> {
    let n = file.keys.u32("rope.scaling.original_context_length")?;
    Ok(n.map_or(n_ctx_train, |n| n as usize))
}
