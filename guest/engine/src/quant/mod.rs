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
mod packed;
mod panels;
mod raw;
mod scalar;

pub(crate) use activations::Activations;
pub(crate) use dequantize::dequantize_row;
pub(crate) use matrix::{Matrix, put_numbers};
pub use packed::pack;

use crate::gguf::TensorType;

/// A tensor format with a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Format {
    encoding: Encoding,
    /// Rows of a matrix that are interleaved: 1, 4 or 8.
    group_rows: usize,
}

/// How the numbers of a row are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
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
        let encoding = match ty.unpacked().name() {
            "F32" => Encoding::F32,
            "F16" => Encoding::F16,
            "BF16" => Encoding::Bf16,
            "Q4_0" => Encoding::Q4_0,
            "Q4_1" => Encoding::Q4_1,
            "Q5_0" => Encoding::Q5_0,
            "Q5_1" => Encoding::Q5_1,
            "Q8_0" => Encoding::Q8_0,
            "Q4_K" => Encoding::Q4K,
            "Q5_K" => Encoding::Q5K,
            "Q6_K" => Encoding::Q6K,
            _ => return None,
        };
        Some(Self { encoding, group_rows: ty.group_rows() as usize })
    }

    /// Rows of a matrix that lie together, and cannot be told apart without
    /// the others.
    pub fn group_rows(self) -> usize {
        self.group_rows
    }

    /// Numbers in a block, and bytes of a block.
    pub fn block(self) -> (usize, usize) {
        match self.encoding {
            Encoding::F32 => (1, 4),
            Encoding::F16 | Encoding::Bf16 => (1, 2),
            Encoding::Q4_0 => (32, 18),
            Encoding::Q4_1 => (32, 20),
            Encoding::Q5_0 => (32, 22),
            Encoding::Q5_1 => (32, 24),
            Encoding::Q8_0 => (32, 34),
            Encoding::Q4K => (256, 144),
            Encoding::Q5K => (256, 176),
            Encoding::Q6K => (256, 210),
        }
    }

    /// Bytes of a row of `cols` numbers; `cols` must be whole blocks.
    pub fn row_bytes(self, cols: usize) -> usize {
        let (len, bytes) = self.block();
        cols / len * bytes
    }
}
