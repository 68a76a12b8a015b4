//! Four rows interleaved, as `moewe pack` writes them.
//!
//! A block of four rows takes the place of four blocks of one row each: the
//! same bytes in another order, so that one load brings something of each row
//! and no sums across lanes are left.

use super::activations::ActivationBlock;
use super::blocks::{Block, FourRows, low_f16};
use super::narrow::{Narrow, products_max};
use super::{Encoding, Format};
use crate::gguf::TensorType;
use crate::simd::V;

/// Rows that are interleaved.
pub(crate) const ROWS: usize = 4;

/// How a block is cut for interleaving: runs of bytes, and the size of the
/// pieces that alternate between the rows in each. Empty for what is not
/// packed.
fn interleaving(encoding: Encoding) -> &'static [(usize, usize)] {
    match encoding {
        Encoding::F32 | Encoding::F16 | Encoding::Bf16 => &[],
        Encoding::Q4_0 => &[(2, 2), (16, 4)],
        Encoding::Q4_1 => &[(20, 4)],
        Encoding::Q5_0 => &[(2, 2), (20, 4)],
        Encoding::Q5_1 => &[(24, 4)],
        Encoding::Q8_0 => &[(34, 2)],
        Encoding::Q4K => &[(144, 4)],
        Encoding::Q5K => &[(176, 4)],
        Encoding::Q6K => &[(208, 4), (2, 2)],
    }
}

/// Interleaves rows of a matrix of type `ty` into `out`, which has their size:
/// rows of `row_bytes` bytes, a multiple of four of them.
///
/// # Panics
///
/// If the type cannot be packed ([`TensorType::packed`]), or a size is wrong.
pub fn pack(ty: TensorType, row_bytes: usize, rows: &[u8], out: &mut [u8]) {
    let format = Format::from_type(ty).filter(|format| !format.packed);
    let format = format.expect("a type that can be packed");
    let runs = interleaving(format.encoding);
    let (_, block_bytes) = format.block();
    assert!(!runs.is_empty(), "a type that can be packed");
    assert!(row_bytes.is_multiple_of(block_bytes) && rows.len() == out.len());
    assert!(rows.len().is_multiple_of(ROWS * row_bytes));
    let groups = rows.chunks_exact(ROWS * row_bytes).zip(out.chunks_exact_mut(ROWS * row_bytes));
    for (rows, out) in groups {
        let mut to = 0;
        for block in (0..row_bytes).step_by(block_bytes) {
            let mut at = block;
            for &(len, piece) in runs {
                for at in (at..at + len).step_by(piece) {
                    for row in 0..ROWS {
                        let from = &rows[row * row_bytes + at..][..piece];
                        out[to..to + piece].copy_from_slice(from);
                        to += piece;
                    }
                }
                at += len;
            }
        }
    }
}

/// Takes row `row` out of four interleaved ones, `group`, into `out`.
pub(super) fn unpack_row(format: Format, group: &[u8], row: usize, out: &mut [u8]) {
    let (_, block_bytes) = format.block();
    assert!(format.packed && row < ROWS && group.len() == ROWS * out.len());
    for (group, out) in
        group.chunks_exact(ROWS * block_bytes).zip(out.chunks_exact_mut(block_bytes))
    {
        let mut at = 0;
        for &(len, piece) in interleaving(format.encoding) {
            for at in (at..at + len).step_by(piece) {
                out[at..at + piece].copy_from_slice(&group[ROWS * at + row * piece..][..piece]);
            }
            at += len;
        }
    }
}

/// The blocks of four interleaved rows.
#[derive(Clone, Copy)]
pub(super) struct PackedRows(pub *const u8);

impl FourRows for PackedRows {
    #[inline(always)]
    unsafe fn behind(self, offset: usize) -> Self {
        // SAFETY: the caller vouches for the blocks there.
        Self(unsafe { self.0.add(ROWS * offset) })
    }

    #[inline(always)]
    unsafe fn words(self, offset: usize) -> V {
        // SAFETY: the caller vouches for the words.
        unsafe { V::load(self.0.add(ROWS * offset)) }
    }

    #[inline(always)]
    unsafe fn halves(self, offset: usize) -> V {
        // SAFETY: the caller vouches for the f16.
        low_f16(unsafe { V::load_u16x4(self.0.add(ROWS * offset)) })
    }

    #[inline(always)]
    unsafe fn unpack<Q: Narrow>(self, unit: usize, i: usize, mut put: impl FnMut(usize, V)) {
        let pieces = Q::SUB_BLOCK / 16;
        for piece in 0..pieces {
            for c in 0..4 {
                let block = PackedBlock(self.0, c);
                // SAFETY: the caller vouches for the blocks.
                put(4 * piece + c, unsafe { Q::quants(block, unit, i * pieces + piece) });
            }
        }
    }

    #[inline(always)]
    unsafe fn unpack_bytes(self, offset: usize, mut put: impl FnMut(usize, V)) {
        for i in 0..16 {
            // SAFETY: the caller vouches for the bytes.
            put(i, unsafe { V::load_i8x8(self.0.add(ROWS * offset + 8 * i)) });
        }
    }
}

impl PackedRows {
    /// `Quants::dots` of a format of few bits.
    ///
    /// # Safety
    /// As for that.
    #[inline(always)]
    pub unsafe fn dots<Q: Narrow>(self, unit: usize, i: usize, x: *const ActivationBlock) -> V {
        let pieces = Q::SUB_BLOCK / 16;
        let mut dots = V::splat_i32(0);
        let mut sums = V::splat_i32(0);
        for piece in i * pieces..(i + 1) * pieces {
            // SAFETY: the caller vouches for the unit's activations.
            let x = unsafe { (*x.add(piece / 2)).load_q8(piece % 2) };
            for c in 0..4 {
                // SAFETY: the caller vouches for the blocks.
                let q = unsafe { Q::quants(PackedBlock(self.0, c), unit, piece) };
                sums = sums.add_i16(V::dot_i8_u7(x.splat_lane(c), q));
                // Each step adds two products to a lane.
                let step = 4 * (piece - i * pieces) + c + 1;
                if (2 * step).is_multiple_of(products_max(Q::BITS)) {
                    dots = dots.add_i32(sums.sum_pairs_i16());
                    sums = V::splat_i32(0);
                }
            }
        }
        dots
    }

    /// The products of the 32 signed bytes at `offset` of each block with a
    /// block of activations, as i32.
    ///
    /// # Safety
    /// The bytes must lie in the blocks, and `x` must be readable.
    #[inline(always)]
    pub unsafe fn dots_bytes(self, offset: usize, x: *const ActivationBlock) -> V {
        let mut dots = V::splat_i32(0);
        for i in 0..4 {
            // SAFETY: the caller vouches for the activations.
            let x = unsafe { (*x).load_q16(i) };
            for c in 0..4 {
                // SAFETY: the caller vouches for the bytes.
                let q = unsafe { V::load_i8x8(self.0.add(ROWS * offset + 32 * i + 8 * c)) };
                dots = dots.add_i32(q.dot_i16(x.splat_lane(c)));
            }
        }
        dots
    }
}

/// Piece `c` of what is read of a block: four bytes of each row.
#[derive(Clone, Copy)]
struct PackedBlock(*const u8, usize);

impl Block for PackedBlock {
    #[inline(always)]
    unsafe fn bytes(self, offset: usize) -> V {
        // SAFETY: the caller vouches for the bytes.
        unsafe { V::load(self.0.add(ROWS * offset + 16 * self.1)) }
    }

    #[inline(always)]
    unsafe fn fifth_bits(self, offset: usize, i: usize) -> V {
        // SAFETY: the caller vouches for the words.
        let bits = unsafe { V::load(self.0.add(ROWS * offset)) };
        let bits = bits.shr_u32((16 * i + 4 * self.1) as u32);
        // Bit n of four goes to bit 4 of byte n.
        let bit = |n: u32| bits.shl_i32(4 + 7 * n).and(V::splat_i32(0x10 << (8 * n)));
        bit(0).or(bit(1)).or(bit(2)).or(bit(3))
    }
}
