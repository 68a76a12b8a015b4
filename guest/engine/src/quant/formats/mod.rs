//! The formats: each in a file of its own, or with those that differ by a constant.

mod codebooks;
mod floats;
mod iq1_m;
mod iq1_s;
mod iq2_s;
mod iq2_xs;
mod iq2_xxs;
mod iq3_s;
mod iq3_xxs;
mod iq4;
mod mxfp4;
pub(super) mod nvfp4;
mod q2_k;
mod q3_k;
mod q4_k_q5_k;
mod q4_q5;
mod q6_k;
mod q8_0;
mod tq1_0;
mod tq2_0;

pub(super) use floats::{Bf16, F16, F32, Float, dot_rows};
pub(super) use iq1_m::Iq1M;
pub(super) use iq1_s::Iq1S;
pub(super) use iq2_s::Iq2S;
pub(super) use iq2_xs::Iq2Xs;
pub(super) use iq2_xxs::Iq2Xxs;
pub(super) use iq3_s::Iq3S;
pub(super) use iq3_xxs::Iq3Xxs;
pub(super) use iq4::{Iq4Nl, Iq4Xs};
pub(super) use mxfp4::MxFp4;
pub(super) use q2_k::Q2K;
pub(super) use q3_k::Q3K;
pub(super) use q4_k_q5_k::{Q4K, Q5K};
pub(super) use q4_q5::{Q4_0, Q4_1, Q5_0, Q5_1};
pub(super) use q6_k::Q6K;
pub(super) use q8_0::Q8_0;
pub(super) use tq1_0::Tq1_0;
pub(super) use tq2_0::Tq2_0;

use super::blocks::Blocks;
use crate::gguf::TensorType;

/// A tensor format with a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Format {
    pub(super) encoding: Encoding,
    /// Rows of a matrix that are interleaved: 1, 4 or 8.
    group_rows: usize,
}

/// How the numbers of a row are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq1S,
    Iq1M,
    Iq2Xxs,
    Iq2Xs,
    Iq2S,
    Iq3Xxs,
    Iq3S,
    Iq4Nl,
    Iq4Xs,
    Tq1_0,
    Tq2_0,
    MxFp4,
    NvFp4,
}

/// What is to be known of an encoding, besides its kernels.
struct Layout {
    block_len: usize,
    block_bytes: usize,
    /// See [`Blocks::INTERLEAVING`]; empty for what is not packed.
    interleaving: &'static [(usize, usize)],
    /// Writes a block, which must be whole, as floats.
    dequantize: fn(&[u8], &mut [f32]),
}

impl Layout {
    fn floats<F: Float>() -> Self {
        Self {
            block_len: 1,
            block_bytes: F::BYTES,
            interleaving: &[],
            dequantize: floats::dequantize::<F>,
        }
    }

    fn blocks<B: Blocks>() -> Self {
        Self {
            block_len: B::LEN,
            block_bytes: B::BYTES,
            interleaving: B::INTERLEAVING,
            dequantize: B::dequantize,
        }
    }
}

impl Encoding {
    fn layout(self) -> Layout {
        match self {
            Self::F32 => Layout::floats::<F32>(),
            Self::F16 => Layout::floats::<F16>(),
            Self::Bf16 => Layout::floats::<Bf16>(),
            Self::Q4_0 => Layout::blocks::<Q4_0>(),
            Self::Q4_1 => Layout::blocks::<Q4_1>(),
            Self::Q5_0 => Layout::blocks::<Q5_0>(),
            Self::Q5_1 => Layout::blocks::<Q5_1>(),
            Self::Q8_0 => Layout::blocks::<Q8_0>(),
            Self::Q2K => Layout::blocks::<Q2K>(),
            Self::Q3K => Layout::blocks::<Q3K>(),
            Self::Q4K => Layout::blocks::<Q4K>(),
            Self::Q5K => Layout::blocks::<Q5K>(),
            Self::Q6K => Layout::blocks::<Q6K>(),
            Self::Iq1S => Layout::blocks::<Iq1S>(),
            Self::Iq1M => Layout::blocks::<Iq1M>(),
            Self::Iq2Xxs => Layout::blocks::<Iq2Xxs>(),
            Self::Iq2Xs => Layout::blocks::<Iq2Xs>(),
            Self::Iq2S => Layout::blocks::<Iq2S>(),
            Self::Iq3Xxs => Layout::blocks::<Iq3Xxs>(),
            Self::Iq3S => Layout::blocks::<Iq3S>(),
            Self::Iq4Nl => Layout::blocks::<Iq4Nl>(),
            Self::Iq4Xs => Layout::blocks::<Iq4Xs>(),
            Self::Tq1_0 => Layout::blocks::<Tq1_0>(),
            Self::Tq2_0 => Layout::blocks::<Tq2_0>(),
            Self::MxFp4 => Layout::blocks::<MxFp4>(),
            Self::NvFp4 => Layout {
                block_len: nvfp4::LEN,
                block_bytes: nvfp4::BYTES,
                interleaving: &[(nvfp4::BYTES, nvfp4::BYTES)],
                dequantize: nvfp4::dequantize,
            },
        }
    }
}

impl Format {
    /// The format of a tensor type, if the engine has it.
    pub fn from_type(ty: TensorType) -> Option<Self> {
        let encoding = match ty.unpacked() {
            TensorType::F32 => Encoding::F32,
            TensorType::F16 => Encoding::F16,
            TensorType::BF16 => Encoding::Bf16,
            TensorType::Q4_0 => Encoding::Q4_0,
            TensorType::Q4_1 => Encoding::Q4_1,
            TensorType::Q5_0 => Encoding::Q5_0,
            TensorType::Q5_1 => Encoding::Q5_1,
            TensorType::Q8_0 => Encoding::Q8_0,
            TensorType::Q2_K => Encoding::Q2K,
            TensorType::Q3_K => Encoding::Q3K,
            TensorType::Q4_K => Encoding::Q4K,
            TensorType::Q5_K => Encoding::Q5K,
            TensorType::Q6_K => Encoding::Q6K,
            TensorType::IQ1_S => Encoding::Iq1S,
            TensorType::IQ1_M => Encoding::Iq1M,
            TensorType::IQ2_XXS => Encoding::Iq2Xxs,
            TensorType::IQ2_XS => Encoding::Iq2Xs,
            TensorType::IQ2_S => Encoding::Iq2S,
            TensorType::IQ3_XXS => Encoding::Iq3Xxs,
            TensorType::IQ3_S => Encoding::Iq3S,
            TensorType::IQ4_NL => Encoding::Iq4Nl,
            TensorType::IQ4_XS => Encoding::Iq4Xs,
            TensorType::TQ1_0 => Encoding::Tq1_0,
            TensorType::TQ2_0 => Encoding::Tq2_0,
            TensorType::MXFP4 => Encoding::MxFp4,
            TensorType::NVFP4 => Encoding::NvFp4,
            _ => return None,
        };
        Some(Self { encoding, group_rows: ty.group_rows() as usize })
    }

    /// The format of the same rows, one after another.
    pub(super) fn unpacked(self) -> Self {
        Self { group_rows: 1, ..self }
    }

    /// Rows of a matrix that lie together, and cannot be told apart without
    /// the others.
    pub fn group_rows(self) -> usize {
        self.group_rows
    }

    /// Numbers in a block, and bytes of a block.
    pub fn block(self) -> (usize, usize) {
        let layout = self.encoding.layout();
        (layout.block_len, layout.block_bytes)
    }

    /// Bytes of a row of `cols` numbers; `cols` must be whole blocks.
    pub fn row_bytes(self, cols: usize) -> usize {
        let (len, bytes) = self.block();
        cols / len * bytes
    }

    /// How a block is cut for interleaving.
    pub(super) fn interleaving(self) -> &'static [(usize, usize)] {
        self.encoding.layout().interleaving
    }
}

/// Writes a row as floats.
pub(crate) fn dequantize_row(format: Format, row: &[u8], out: &mut [f32]) {
    assert_eq!(format.group_rows(), 1, "rows that lie together");
    assert_eq!(row.len(), format.row_bytes(out.len()));
    let Layout { block_len, block_bytes, dequantize, .. } = format.encoding.layout();
    for (block, out) in row.chunks_exact(block_bytes).zip(out.chunks_exact_mut(block_len)) {
        dequantize(block, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_have_the_sizes_that_files_give_them() {
        let types = || [0, 0x6d6f_0000, 0x6d70_0000].into_iter().flat_map(|mark| mark..mark + 64);
        let mut n = [0; 9];
        for ty in types().filter_map(TensorType::from_id) {
            let Some(format) = Format::from_type(ty) else {
                assert!(!ty.is_packed(), "{ty} has no kernel");
                continue;
            };
            let (len, bytes) = format.block();
            assert_eq!((len as u64, bytes as u64), (ty.block_len(), ty.block_bytes()), "{ty}");
            let cut: usize = format.interleaving().iter().map(|(len, _)| len).sum();
            assert_eq!(cut, if cut == 0 { 0 } else { bytes }, "{ty}");
            n[format.group_rows()] += 1;
        }
        assert_eq!((n[1], n[4], n[8]), (26, 23, 21));
    }

    /// Blocks and what ggml's `dequantize_row` functions make of them: one that its
    /// `ggml_quantize_chunk` made of numbers with a normal distribution, and some of random
    /// bytes. Each format has its number, how many blocks there are, these, and as floats
    /// what they stand for.
    #[test]
    fn blocks_stand_for_what_ggml_says() {
        let mut bytes = include_bytes!("references.bin").as_slice();
        let mut take = |n: usize| bytes.split_off(..n).unwrap();
        for _ in 0..15 {
            let [id, n] = [0; 2].map(|_| u32::from_le_bytes(take(4).try_into().unwrap()));
            let ty = TensorType::from_id(id).unwrap();
            let format = Format::from_type(ty).unwrap();
            let (len, size) = format.block();
            let (blocks, want) = (take(n as usize * size), take(n as usize * len * 4));
            let want: Vec<f32> =
                want.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
            let mut got = vec![f32::NAN; want.len()];
            dequantize_row(format, blocks, &mut got);
            assert_eq!(got, want, "{ty}");
        }
        assert!(bytes.is_empty());
    }
}
