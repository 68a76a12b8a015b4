//! How a model's contexts are kept, and how long they may be.

use crate::sandbox::bindings::exports::moewe::inference::inference as wit;

/// How the keys and values of past tokens are kept. The fewer bits, the longer the
/// contexts that fit, and the further from what the model computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum KvFormat {
    /// As they are computed: numbers of 32 bits.
    F32,
    /// Rounded to numbers of 16 bits, in half of the memory.
    #[default]
    F16,
    /// Rounded to whole numbers of 8 bits, with a scale for each 32 of them, in 0.27 of
    /// the memory.
    Q8_0,
}

impl KvFormat {
    /// All formats.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Q8_0];

    /// The name, as GGML has it, in small letters.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
        }
    }
}

/// How positions are scaled, so that contexts may be longer than those that a model was
/// trained for: as many times as long as the factor, which is 1 or more.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All positions are divided by the factor
    /// ([position interpolation](https://arxiv.org/abs/2306.15595)).
    Linear {
        /// What they are divided by.
        factor: f32,
    },
    /// Only what turns slowly is divided, and scores are a little sharper
    /// ([YaRN](https://arxiv.org/abs/2309.00071)).
    Yarn {
        /// What it is divided by.
        factor: f32,
    },
}

/// What a guest is told of them.
pub(crate) fn load_options(
    kv_format: KvFormat,
    rope_scaling: Option<RopeScaling>,
) -> wit::LoadOptions {
    let kv_format = match kv_format {
        KvFormat::F32 => wit::KvFormat::F32,
        KvFormat::F16 => wit::KvFormat::F16,
        KvFormat::Q8_0 => wit::KvFormat::Q8,
    };
    let rope_scaling = rope_scaling.map(|scaling| match scaling {
        RopeScaling::None => wit::RopeScaling::None,
        RopeScaling::Linear { factor } => wit::RopeScaling::Linear(factor),
        RopeScaling::Yarn { factor } => wit::RopeScaling::Yarn(factor),
    });
    wit::LoadOptions { kv_format, rope_scaling }
}
