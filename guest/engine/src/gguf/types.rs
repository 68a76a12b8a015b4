//! The tensor types of GGML, as numbers in a GGUF file.

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

const fn t(id: u32, name: &'static str, block_len: u32, block_bytes: u32) -> TensorType {
    TensorType { id, name, block_len, block_bytes }
}

/// Mark the types whose rows are interleaved by fours or eights: `moewe`'s own,
/// with numbers that ggml is not likely to use.
const PACKED_4: u32 = 0x6d6f_0000;
const PACKED_8: u32 = 0x6d70_0000;

/// Every type whose size is known, so that a file can be inspected even if
/// the engine cannot compute with it.
const TYPES: &[TensorType] = &[
    t(0, "F32", 1, 4),
    t(1, "F16", 1, 2),
    t(2, "Q4_0", 32, 18),
    t(3, "Q4_1", 32, 20),
    t(6, "Q5_0", 32, 22),
    t(7, "Q5_1", 32, 24),
    t(8, "Q8_0", 32, 34),
    t(9, "Q8_1", 32, 36),
    t(10, "Q2_K", 256, 84),
    t(11, "Q3_K", 256, 110),
    t(12, "Q4_K", 256, 144),
    t(13, "Q5_K", 256, 176),
    t(14, "Q6_K", 256, 210),
    t(15, "Q8_K", 256, 292),
    t(16, "IQ2_XXS", 256, 66),
    t(17, "IQ2_XS", 256, 74),
    t(18, "IQ3_XXS", 256, 98),
    t(19, "IQ1_S", 256, 50),
    t(20, "IQ4_NL", 32, 18),
    t(21, "IQ3_S", 256, 110),
    t(22, "IQ2_S", 256, 82),
    t(23, "IQ4_XS", 256, 136),
    t(24, "I8", 1, 1),
    t(25, "I16", 1, 2),
    t(26, "I32", 1, 4),
    t(27, "I64", 1, 8),
    t(28, "F64", 1, 8),
    t(29, "IQ1_M", 256, 56),
    t(30, "BF16", 1, 2),
    t(34, "TQ1_0", 256, 54),
    t(35, "TQ2_0", 256, 66),
    t(39, "MXFP4", 32, 17),
    t(PACKED_4 | 2, "Q4_0x4", 32, 18),
    t(PACKED_4 | 3, "Q4_1x4", 32, 20),
    t(PACKED_4 | 6, "Q5_0x4", 32, 22),
    t(PACKED_4 | 7, "Q5_1x4", 32, 24),
    t(PACKED_4 | 8, "Q8_0x4", 32, 34),
    t(PACKED_4 | 12, "Q4_Kx4", 256, 144),
    t(PACKED_4 | 13, "Q5_Kx4", 256, 176),
    t(PACKED_4 | 14, "Q6_Kx4", 256, 210),
    t(PACKED_8 | 2, "Q4_0x8", 32, 18),
    t(PACKED_8 | 3, "Q4_1x8", 32, 20),
    t(PACKED_8 | 6, "Q5_0x8", 32, 22),
    t(PACKED_8 | 7, "Q5_1x8", 32, 24),
    t(PACKED_8 | 8, "Q8_0x8", 32, 34),
    t(PACKED_8 | 12, "Q4_Kx8", 256, 144),
    t(PACKED_8 | 13, "Q5_Kx8", 256, 176),
];

impl TensorType {
    /// The type with this number in a GGUF file.
    pub fn from_id(id: u32) -> Option<Self> {
        TYPES.iter().copied().find(|t| t.id == id)
    }

    /// The number in a GGUF file.
    pub fn id(self) -> u32 {
        self.id
    }

    /// The type with the same blocks and so many rows interleaved.
    pub fn packed(self, group_rows: u64) -> Option<Self> {
        let is_it = |ty: &Self| ty.is_packed() && ty.unpacked() == self;
        TYPES.iter().copied().find(|ty| is_it(ty) && ty.group_rows() == group_rows)
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
