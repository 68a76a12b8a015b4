//! What a file says of RoPE.

use super::file::File;
use crate::error::{Error, Result};
use crate::plan::{Pairs, RopePlan, RopeScaling};

/// Reads base and scaling; keys of scaling that is not done say nothing.
pub(super) fn plan(
    file: &File<'_>,
    head_dim: usize,
    n_ctx_train: usize,
    pairs: Pairs,
) -> Result<RopePlan> {
    let keys = &file.keys;
    let dims = keys.u32("rope.dimension_count")?.unwrap_or(head_dim as u32) as usize;
    if !dims.is_multiple_of(2) || dims > head_dim {
        return Err(Error::invalid(format!(
            "`{}` is {dims} for heads of {head_dim}; the file is damaged",
            keys.full("rope.dimension_count"),
        )));
    }
    let base = f64::from(keys.f32("rope.freq_base")?.unwrap_or(10_000.0));
    if base <= 1.0 {
        return Err(Error::invalid(format!("a RoPE base of {base}; the file is damaged")));
    }
    // The second name is that of early files. 0 scales nothing, as in llama.cpp.
    let (factor, early) = (keys.f32("rope.scaling.factor")?, keys.f32("rope.scale_linear")?);
    let factor = f64::from(factor.or(early).filter(|&factor| factor != 0.0).unwrap_or(1.0));
    if factor <= 0.0 {
        return Err(Error::invalid(format!("RoPE scaling by {factor}; the file is damaged")));
    }
    let mut magnitude = f64::from(keys.f32("rope.scaling.attn_factor")?.unwrap_or(1.0));
    let n_ctx = keys.u32("rope.scaling.original_context_length")?;
    let fast = keys.f32("rope.scaling.yarn_beta_fast")?.map_or(32.0, f64::from);
    let slow = keys.f32("rope.scaling.yarn_beta_slow")?.map_or(1.0, f64::from);
    let scaling = match keys.str("rope.scaling.type")? {
        Some("none") => RopeScaling::Linear { factor: 1.0 },
        None | Some("linear") => RopeScaling::Linear { factor },
        Some("yarn") => {
            let n_ctx = n_ctx.map_or(n_ctx_train as f64, f64::from);
            // YaRN's attention temperature.
            magnitude *= 1.0 + 0.1 * libm::log(factor).max(0.0);
            RopeScaling::Yarn { factor, n_ctx, fast, slow }
        }
        Some(other) => {
            return Err(Error::unsupported(format!(
                "RoPE scaling `{other}`: none, linear and yarn are supported"
            )));
        }
    };
    let factors = file.has("rope_freqs.weight").then(|| "rope_freqs.weight".to_owned());
    Ok(RopePlan { dims, pairs, base, factors, scaling, magnitude })
}
