//! What whoever loads a model may choose.

pub use crate::kv_cache::KvFormat;

/// How a model is loaded. The default is what its file says.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LoadOptions {
    /// How sessions keep keys and values.
    pub kv_format: KvFormat,
    /// What is done for contexts that are longer than those of the training; if absent,
    /// what the file says.
    pub rope_scaling: Option<RopeScaling>,
}

/// The most that a context may be stretched by.
pub(crate) const ROPE_FACTOR_MAX: f32 = 1024.0;

/// How positions are scaled, so that a context may be longer than those that the model
/// was trained for: as many times as long as its factor, which is 1 or more.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All alike ([position interpolation](https://arxiv.org/abs/2306.15595)).
    Linear {
        /// What positions are divided by.
        factor: f32,
    },
    /// Slow frequencies only, and the scores get another temperature
    /// ([YaRN](https://arxiv.org/abs/2309.00071)).
    Yarn {
        /// What positions are divided by.
        factor: f32,
    },
}
