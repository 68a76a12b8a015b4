//! Rows as a GGUF file has them, one after another.

use std::hint::black_box;

use super::rows::{Block, FourRows};
use super::scalar::{u16_at, u32_at, u64_at};
use super::shape::ROWS;
use crate::simd::V;

/// The blocks of four rows.
#[derive(Clone, Copy)]
pub(super) struct RawRows(pub [*const u8; ROWS]);

impl FourRows for RawRows {
    const ARE_APART: bool = true;

    type Quarter = RawQuarter;

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
            i32::from(unsafe { u16_at(p.add(offset)) })
        };
        V::from_i32x4(self.0.map(half))
    }

    #[inline(always)]
    unsafe fn octets(self, offset: usize) -> V {
        // SAFETY: the caller vouches for the byte.
        V::from_i32x4(self.0.map(|p| unsafe { *p.add(offset) }.into()))
    }

    #[inline(always)]
    fn whole(self, _bytes: usize) -> [*const u8; ROWS] {
        self.0
    }

    #[inline(always)]
    fn quarter(self, i: usize) -> RawQuarter {
        RawQuarter(self, i)
    }
}

/// Has the processor fetch whole rows, from the first byte to the last: it sees that they
/// are a stream, while several rows read at once come up to three times slower.
pub(super) fn fetch(rows: &[u8]) {
    const LINE: usize = 64;
    let (eights, rest) = rows.as_chunks::<{ 8 * LINE }>();
    let mut read = 0;
    for eight in eights {
        for line in eight.as_chunks::<LINE>().0 {
            read ^= line[0];
        }
    }
    rest.chunks(LINE).for_each(|line| read ^= line[0]);
    black_box(read);
}

/// Quarter `.1` of what is read of four rows' blocks.
#[derive(Clone, Copy)]
pub(super) struct RawQuarter(RawRows, usize);

impl RawQuarter {
    /// The quarter of what `read` gives of each row's block.
    #[inline(always)]
    fn of(self, read: impl Fn(RawBlock) -> V) -> V {
        V::transpose_32(self.0.0.map(|row| read(RawBlock(row))))[self.1]
    }
}

impl Block for RawQuarter {
    #[inline(always)]
    unsafe fn bytes(self, offset: usize) -> V {
        // SAFETY: the caller vouches for the bytes.
        self.of(|block| unsafe { block.bytes(offset) })
    }

    #[inline(always)]
    unsafe fn wide_bytes(self, offset: usize) -> V {
        // SAFETY: the caller vouches for the bytes.
        self.of(|block| unsafe { block.wide_bytes(offset) })
    }

    #[inline(always)]
    unsafe fn fifth_bits(self, offset: usize, i: usize) -> V {
        // SAFETY: the caller vouches for the u32.
        self.of(|block| unsafe { block.fifth_bits(offset, i) })
    }
}

/// A block of one row.
#[derive(Clone, Copy)]
pub(super) struct RawBlock(pub *const u8);

impl RawBlock {
    /// The byte at `offset`.
    ///
    /// # Safety
    /// It must lie in the block.
    #[inline(always)]
    pub unsafe fn octet(self, offset: usize) -> u8 {
        // SAFETY: the caller vouches for it.
        unsafe { *self.0.add(offset) }
    }

    /// The u16 at `offset`.
    ///
    /// # Safety
    /// It must lie in the block.
    #[inline(always)]
    pub unsafe fn half(self, offset: usize) -> u16 {
        // SAFETY: the caller vouches for it.
        unsafe { u16_at(self.0.add(offset)) }
    }

    /// The u32 at `offset`.
    ///
    /// # Safety
    /// It must lie in the block.
    #[inline(always)]
    pub unsafe fn word(self, offset: usize) -> u32 {
        // SAFETY: the caller vouches for it.
        unsafe { u32_at(self.0.add(offset)) }
    }

    /// The u64 at `offset`.
    ///
    /// # Safety
    /// It must lie in the block.
    #[inline(always)]
    pub unsafe fn long(self, offset: usize) -> u64 {
        // SAFETY: the caller vouches for it.
        unsafe { u64_at(self.0.add(offset)) }
    }

    /// The 16 bits at `offset`, as 0xff or 0 in a byte each. The two bytes behind them
    /// are read, too.
    ///
    /// # Safety
    /// All four must lie in the block.
    #[inline(always)]
    pub unsafe fn masks(self, offset: usize) -> V {
        // SAFETY: the caller vouches for the bytes.
        let bits = unsafe { V::load_splat_32(self.0.add(offset)) };
        let select = V::from_u64(0x8040_2010_0804_0201, 0x8040_2010_0804_0201);
        bits.spread_u16(0).and(select).eq_u8(select)
    }
}

impl Block for RawBlock {
    #[inline(always)]
    unsafe fn bytes(self, offset: usize) -> V {
        // SAFETY: the caller vouches for the bytes.
        unsafe { V::load(self.0.add(offset)) }
    }

    #[inline(always)]
    unsafe fn wide_bytes(self, offset: usize) -> V {
        // SAFETY: the caller vouches for the bytes.
        unsafe { V::load_i8x8(self.0.add(offset)) }
    }

    #[inline(always)]
    unsafe fn fifth_bits(self, offset: usize, i: usize) -> V {
        // SAFETY: the caller vouches for the u32.
        let bits = unsafe { V::load_splat_32(self.0.add(offset)) };
        let select = V::from_u64(0x8040_2010_0804_0201, 0x8040_2010_0804_0201);
        bits.spread_u16(i).and(select).eq_u8(select).and(V::splat_u8(0x10))
    }
}
