//! The tensor formats that the engine computes with.
//!
//! Weights stay as the file has them. Activations are quantised to 8 bits
//! once for each matrix ([`Activations`]), and a kernel for each format
//! multiplies the two. Layouts: ggml's `block_q4_0` to `block_q6_K`.

mod activations;
mod blocks;
mod blocks32;
mod bytes;
mod dequantize;
mod floats;
mod gemm;
mod gemv;
mod k_quants;
mod matrix;
mod narrow;
mod panels;
mod raw;
mod scalar;

pub(crate) use activations::Activations;
pub(crate) use dequantize::dequantize_row;
pub(crate) use matrix::Matrix;

use crate::gguf::TensorType;

/// A tensor format with a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

impl Format {
    /// The format of a tensor type, if the engine has it.
    pub fn from_type(ty: TensorType) -> Option<Self> {
        Some(match ty.name() {
            "F32" => Self::F32,
            "F16" => Self::F16,
            "BF16" => Self::Bf16,
            "Q4_0" => Self::Q4_0,
            "Q4_1" => Self::Q4_1,
            "Q5_0" => Self::Q5_0,
            "Q5_1" => Self::Q5_1,
            "Q8_0" => Self::Q8_0,
            "Q4_K" => Self::Q4K,
            "Q5_K" => Self::Q5K,
            "Q6_K" => Self::Q6K,
            _ => return None,
        })
    }

    /// Numbers in a block, and bytes of a block.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
        }
    }

    /// Bytes of a row of `cols` numbers; `cols` must be whole blocks.
    pub fn row_bytes(self, cols: usize) -> usize {
        let (len, bytes) = self.block();
        cols / len * bytes
    }
}
