//! The tensor types of GGML: one table of their names, numbers and blocks.

use std::fmt;

/// How the numbers of a tensor are stored.
///
/// The types and their block layouts are those of
/// [ggml](https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TensorType {
    id: u32,
    name: &'static str,
    block_len: u32,
    block_bytes: u32,
}

/// Mark the types whose rows are interleaved by fours or eights: `moewe`'s own,
/// with numbers that ggml is not likely to use.
const PACKED_4: u32 = 0x6d6f_0000;
const PACKED_8: u32 = 0x6d70_0000;

/// Makes a constant of each type, and the list of all.
macro_rules! types {
    ($($constant:ident: $id:expr, $name:literal, $block_len:literal, $block_bytes:literal;)*) => {
        impl TensorType {
            $(
                #[doc = concat!("`", $name, "`")]
                pub const $constant: Self = Self {
                    id: $id,
                    name: $name,
                    block_len: $block_len,
                    block_bytes: $block_bytes,
                };
            )*

            /// Every type whose size is known, so that a file can be inspected even
            /// if the engine cannot compute with it.
            pub const ALL: &[Self] = &[$(Self::$constant),*];
        }
    };
}

types! {
    F32: 0, "F32", 1, 4;
    F16: 1, "F16", 1, 2;
    Q4_0: 2, "Q4_0", 32, 18;
    Q4_1: 3, "Q4_1", 32, 20;
    Q5_0: 6, "Q5_0", 32, 22;
    Q5_1: 7, "Q5_1", 32, 24;
    Q8_0: 8, "Q8_0", 32, 34;
    Q8_1: 9, "Q8_1", 32, 36;
    Q2_K: 10, "Q2_K", 256, 84;
    Q3_K: 11, "Q3_K", 256, 110;
    Q4_K: 12, "Q4_K", 256, 144;
    Q5_K: 13, "Q5_K", 256, 176;
    Q6_K: 14, "Q6_K", 256, 210;
    Q8_K: 15, "Q8_K", 256, 292;
    IQ2_XXS: 16, "IQ2_XXS", 256, 66;
    IQ2_XS: 17, "IQ2_XS", 256, 74;
    IQ3_XXS: 18, "IQ3_XXS", 256, 98;
    IQ1_S: 19, "IQ1_S", 256, 50;
    IQ4_NL: 20, "IQ4_NL", 32, 18;
    IQ3_S: 21, "IQ3_S", 256, 110;
    IQ2_S: 22, "IQ2_S", 256, 82;
    IQ4_XS: 23, "IQ4_XS", 256, 136;
    I8: 24, "I8", 1, 1;
    I16: 25, "I16", 1, 2;
    I32: 26, "I32", 1, 4;
    I64: 27, "I64", 1, 8;
    F64: 28, "F64", 1, 8;
    IQ1_M: 29, "IQ1_M", 256, 56;
    BF16: 30, "BF16", 1, 2;
    TQ1_0: 34, "TQ1_0", 256, 54;
    TQ2_0: 35, "TQ2_0", 256, 66;
    MXFP4: 39, "MXFP4", 32, 17;
    NVFP4: 40, "NVFP4", 64, 36;
    Q1_0: 41, "Q1_0", 128, 18;
    Q2_0: 42, "Q2_0", 64, 18;
    Q4_0X4: PACKED_4 | 2, "Q4_0x4", 32, 18;
    Q4_1X4: PACKED_4 | 3, "Q4_1x4", 32, 20;
    Q5_0X4: PACKED_4 | 6, "Q5_0x4", 32, 22;
    Q5_1X4: PACKED_4 | 7, "Q5_1x4", 32, 24;
    Q8_0X4: PACKED_4 | 8, "Q8_0x4", 32, 34;
    Q4_KX4: PACKED_4 | 12, "Q4_Kx4", 256, 144;
    Q5_KX4: PACKED_4 | 13, "Q5_Kx4", 256, 176;
    Q6_KX4: PACKED_4 | 14, "Q6_Kx4", 256, 210;
    Q2_KX4: PACKED_4 | 10, "Q2_Kx4", 256, 84;
    Q3_KX4: PACKED_4 | 11, "Q3_Kx4", 256, 110;
    IQ2_XXSX4: PACKED_4 | 16, "IQ2_XXSx4", 256, 66;
    IQ2_XSX4: PACKED_4 | 17, "IQ2_XSx4", 256, 74;
    IQ3_XXSX4: PACKED_4 | 18, "IQ3_XXSx4", 256, 98;
    IQ1_SX4: PACKED_4 | 19, "IQ1_Sx4", 256, 50;
    IQ4_NLX4: PACKED_4 | 20, "IQ4_NLx4", 32, 18;
    IQ3_SX4: PACKED_4 | 21, "IQ3_Sx4", 256, 110;
    IQ2_SX4: PACKED_4 | 22, "IQ2_Sx4", 256, 82;
    IQ4_XSX4: PACKED_4 | 23, "IQ4_XSx4", 256, 136;
    IQ1_MX4: PACKED_4 | 29, "IQ1_Mx4", 256, 56;
    TQ1_0X4: PACKED_4 | 34, "TQ1_0x4", 256, 54;
    TQ2_0X4: PACKED_4 | 35, "TQ2_0x4", 256, 66;
    MXFP4X4: PACKED_4 | 39, "MXFP4x4", 32, 17;
    NVFP4X4: PACKED_4 | 40, "NVFP4x4", 64, 36;
    Q4_0X8: PACKED_8 | 2, "Q4_0x8", 32, 18;
    Q4_1X8: PACKED_8 | 3, "Q4_1x8", 32, 20;
    Q5_0X8: PACKED_8 | 6, "Q5_0x8", 32, 22;
    Q5_1X8: PACKED_8 | 7, "Q5_1x8", 32, 24;
    Q8_0X8: PACKED_8 | 8, "Q8_0x8", 32, 34;
    Q4_KX8: PACKED_8 | 12, "Q4_Kx8", 256, 144;
    Q5_KX8: PACKED_8 | 13, "Q5_Kx8", 256, 176;
    Q2_KX8: PACKED_8 | 10, "Q2_Kx8", 256, 84;
    IQ2_XXSX8: PACKED_8 | 16, "IQ2_XXSx8", 256, 66;
    IQ2_XSX8: PACKED_8 | 17, "IQ2_XSx8", 256, 74;
    IQ3_XXSX8: PACKED_8 | 18, "IQ3_XXSx8", 256, 98;
    IQ1_SX8: PACKED_8 | 19, "IQ1_Sx8", 256, 50;
    IQ4_NLX8: PACKED_8 | 20, "IQ4_NLx8", 32, 18;
    IQ3_SX8: PACKED_8 | 21, "IQ3_Sx8", 256, 110;
    IQ2_SX8: PACKED_8 | 22, "IQ2_Sx8", 256, 82;
    IQ4_XSX8: PACKED_8 | 23, "IQ4_XSx8", 256, 136;
    IQ1_MX8: PACKED_8 | 29, "IQ1_Mx8", 256, 56;
    TQ1_0X8: PACKED_8 | 34, "TQ1_0x8", 256, 54;
    TQ2_0X8: PACKED_8 | 35, "TQ2_0x8", 256, 66;
    MXFP4X8: PACKED_8 | 39, "MXFP4x8", 32, 17;
    NVFP4X8: PACKED_8 | 40, "NVFP4x8", 64, 36;
}

impl TensorType {
    /// The type with this number in a GGUF file.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|t| t.id == id)
    }

    /// The number in a GGUF file.
    pub const fn id(self) -> u32 {
        self.id
    }

    /// The type with the same blocks and so many rows interleaved.
    pub fn packed(self, group_rows: u64) -> Option<Self> {
        let is_it = |ty: &Self| ty.is_packed() && ty.unpacked() == self;
        Self::ALL.iter().copied().find(|ty| is_it(ty) && ty.group_rows() == group_rows)
    }

    /// Whether rows are interleaved.
    pub fn is_packed(self) -> bool {
        self.group_rows() > 1
    }

    /// How many rows are interleaved, or 1.
    pub fn group_rows(self) -> u64 {
        match self.mark() {
            PACKED_8 => 8,
            PACKED_4 => 4,
            _ => 1,
        }
    }

    /// The type of rows one after another.
    pub fn unpacked(self) -> Self {
        Self::from_id(self.id - self.mark()).unwrap_or(self)
    }

    fn mark(self) -> u32 {
        self.id & 0xffff_0000
    }

    /// The name that people know: `Q4_K`.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// How many numbers a block holds.
    pub fn block_len(self) -> u64 {
        self.block_len.into()
    }

    /// How many bytes a block takes.
    pub fn block_bytes(self) -> u64 {
        self.block_bytes.into()
    }

    /// The bytes of a tensor of this shape, the length of a row first; `None` if there
    /// is none, since rows are whole blocks.
    pub fn size(self, dims: &[u64]) -> Option<u64> {
        let n = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).filter(|&n| n > 0)?;
        let is_whole = dims.first().unwrap_or(&1).is_multiple_of(self.block_len());
        (n / self.block_len()).checked_mul(self.block_bytes()).filter(|_| is_whole)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl fmt::Debug for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_of_one_type() {
        for (i, ty) in TensorType::ALL.iter().enumerate() {
            assert_eq!(TensorType::from_id(ty.id()), Some(*ty));
            assert!(TensorType::ALL[..i].iter().all(|t| t.id != ty.id && t.name != ty.name));
        }
        assert_eq!(TensorType::from_id(4), None);
        assert_eq!(TensorType::from_id(PACKED_4 | TensorType::F16.id()), None);
    }

    #[test]
    fn interleaved_rows_have_the_blocks_of_others() {
        for &ty in TensorType::ALL {
            let unpacked = ty.unpacked();
            assert_eq!((ty.block_len, ty.block_bytes), (unpacked.block_len, unpacked.block_bytes));
            let x = ["", "x4", "x8"][(ty.group_rows() / 4) as usize];
            assert_eq!(ty.name(), format!("{}{x}", unpacked.name()));
        }
        assert_eq!(TensorType::Q4_K.packed(8), Some(TensorType::Q4_KX8));
        assert_eq!(TensorType::Q6_K.packed(8), None);
        assert_eq!(TensorType::F16.packed(4), None);
    }

    #[test]
    fn rows_are_whole_blocks() {
        assert_eq!(TensorType::Q4_0.size(&[64, 3]), Some(3 * 2 * 18));
        assert_eq!(TensorType::Q4_0.size(&[48, 2]), None);
        assert_eq!(TensorType::F32.size(&[5, 0]), None);
        assert_eq!(TensorType::F32.size(&[1 << 32, 1 << 32]), None);
        assert_eq!(TensorType::F32.size(&[1 << 62]), None);
    }
}
