//! Rows as a GGUF file has them, one after another.

use std::marker::PhantomData;

use super::blocks::{Block, Blocks, FourRows, Headers, low_f16};
use super::narrow::Narrow;
use super::scalar::u32_at;
use crate::simd::V;

/// The blocks of four rows.
#[derive(Clone, Copy)]
pub(super) struct RawRows(pub [*const u8; 4]);

impl Headers for RawRows {
    #[inline(always)]
    unsafe fn behind(self, offset: usize) -> Self {
        // SAFETY: the caller vouches for the blocks there.
        Self(self.0.map(|p| unsafe { p.add(offset) }))
    }

    #[inline(always)]
    unsafe fn words(self, offset: usize) -> V {
        // SAFETY: the caller vouches for the words.
        V::from_i32x4(self.0.map(|p| unsafe { u32_at(p.add(offset)) } as i32))
    }

    #[inline(always)]
    unsafe fn halves(self, offset: usize) -> V {
        let half = |p: *const u8| {
            // SAFETY: the caller vouches for the two bytes.
            u16::from_le_bytes(unsafe { p.add(offset).cast::<[u8; 2]>().read() })
        };
        low_f16(V::from_i32x4(self.0.map(|p| i32::from(half(p)))))
    }
}

impl FourRows for RawRows {
    #[inline(always)]
    unsafe fn unpack<Q: Narrow>(self, unit: usize, i: usize, mut put: impl FnMut(usize, V)) {
        let pieces = Q::SUB_BLOCK / 16;
        for piece in 0..pieces {
            // SAFETY: the caller vouches for the blocks.
            let q = self.0.map(|row| unsafe { Q::quants(RawBlock(row), unit, i * pieces + piece) });
            for (j, q) in V::transpose_32(q).into_iter().enumerate() {
                put(4 * piece + j, q);
            }
        }
    }

    #[inline(always)]
    unsafe fn unpack_bytes(self, offset: usize, mut put: impl FnMut(usize, V)) {
        for i in 0..4 {
            // SAFETY: the caller vouches for the bytes.
            let q = self.0.map(|p| unsafe { RawBlock(p).wide_bytes(offset + 8 * i) });
            for (j, q) in V::transpose_32(q).into_iter().enumerate() {
                put(4 * i + j, q);
            }
        }
    }
}

/// The headers of four rows' blocks, copied out of the rows: reading them one by
/// one takes as long as what is done with them.
///
/// Of each block a vector: a u32 of each row. Or, if a header is longer, four
/// vectors, one of each row, and then a vector of the f16 that follow.
pub(super) struct RawHeaders<B>(*const V, PhantomData<B>);

impl<B> Clone for RawHeaders<B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for RawHeaders<B> {}

impl<B: Blocks> RawHeaders<B> {
    /// Vectors that a block takes: five at most.
    pub const VECTORS: usize = match B::N_SUB_BLOCKS {
        1 => 1,
        _ if Self::HAS_HALF => 5,
        _ => 4,
    };
    const HAS_HALF: bool = B::HEADER > 0;

    pub fn new(headers: *const V) -> Self {
        Self(headers, PhantomData)
    }

    /// Copies the header of row `r`'s block.
    ///
    /// # Safety
    /// The block must be whole, and `to` have room for [`VECTORS`](Self::VECTORS).
    #[inline(always)]
    pub unsafe fn put(to: *mut V, r: usize, block: *const u8) {
        // SAFETY: the caller vouches for the block and the room.
        unsafe {
            let header = block.add(B::HEADER);
            if Self::VECTORS == 1 {
                to.cast::<u32>().add(r).write(u32_at(header));
                return;
            }
            to.add(r).write(V::load(header));
            if Self::HAS_HALF {
                let half = header.add(16).cast::<[u8; 2]>().read();
                to.add(4).cast::<u32>().add(r).write(u16::from_le_bytes(half).into());
            }
        }
    }
}

impl<B: Blocks> Headers for RawHeaders<B> {
    #[inline(always)]
    unsafe fn behind(self, offset: usize) -> Self {
        // SAFETY: the caller vouches for the blocks there.
        Self(unsafe { self.0.add(offset / B::BYTES * Self::VECTORS) }, PhantomData)
    }

    #[inline(always)]
    unsafe fn words(self, offset: usize) -> V {
        // SAFETY: the caller vouches for the words.
        unsafe {
            match Self::VECTORS {
                1 => self.0.read(),
                _ => {
                    let rows = std::array::from_fn(|r| self.0.add(r).read());
                    V::transpose_32(rows)[(offset - B::HEADER) / 4]
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn halves(self, _offset: usize) -> V {
        // SAFETY: the caller vouches for the f16.
        low_f16(unsafe { self.0.add(Self::VECTORS - 1).read() })
    }
}

/// A block of one row.
#[derive(Clone, Copy)]
pub(super) struct RawBlock(pub *const u8);

impl RawBlock {
    /// The eight signed bytes from `offset`, widened to i16.
    ///
    /// # Safety
    /// They must lie in the block.
    #[inline(always)]
    pub unsafe fn wide_bytes(self, offset: usize) -> V {
        // SAFETY: the caller vouches for the bytes.
        unsafe { V::load_i8x8(self.0.add(offset)) }
    }
}

impl Block for RawBlock {
    #[inline(always)]
    unsafe fn bytes(self, offset: usize) -> V {
        // SAFETY: the caller vouches for the bytes.
        unsafe { V::load(self.0.add(offset)) }
    }

    #[inline(always)]
    unsafe fn fifth_bits(self, offset: usize, i: usize) -> V {
        // SAFETY: the caller vouches for the u32.
        let bits = unsafe { V::load_splat_32(self.0.add(offset)) };
        let select = V::from_u64(0x8040_2010_0804_0201, 0x8040_2010_0804_0201);
        bits.spread_u16(i).and(select).eq_u8(select).and(V::splat_u8(0x10))
    }
}
