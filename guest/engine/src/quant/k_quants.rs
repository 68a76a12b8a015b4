//! The formats with blocks of 256: Q4_K, Q5_K, Q6_K.

use super::activations::ActivationBlock;
use super::blocks::{Block, Blocks, Headers, high_f16, low_f16};
use super::blocks32::nibbles;
use super::narrow::Narrow;
use crate::simd::V;

/// Q4_K, and with `FIVE` Q5_K: eight sub-blocks of 32, each with a 6-bit scale
/// and a 6-bit minimum.
pub(super) struct SubBlocks32<const FIVE: bool>;

/// The headers of four rows.
#[derive(Clone, Copy)]
pub(super) struct Header32 {
    d: V,
    dmin: V,
    /// The 6-bit numbers as bytes, of sub-blocks 0 to 3 and 4 to 7.
    scales: [V; 2],
    mins: [V; 2],
}

impl<const FIVE: bool> SubBlocks32<FIVE> {
    const QUANTS: usize = if FIVE { 48 } else { 16 };
}

impl<const FIVE: bool> Blocks for SubBlocks32<FIVE> {
    const BYTES: usize = Self::QUANTS + 128;
    const UNITS: usize = 4;
    const SUB_BLOCKS: usize = 2;
    const SUM_PAIRS: usize = 4;
    const MIN: bool = true;

    type Header = Header32;

    #[inline(always)]
    unsafe fn header(rows: impl Headers) -> Header32 {
        // SAFETY: a block begins with two f16 and 12 bytes of scales and
        // minima.
        let (d, a, b, c) = unsafe { (rows.words(0), rows.words(4), rows.words(8), rows.words(12)) };
        let six = V::splat_i32(0x3f3f_3f3f);
        let four = V::splat_i32(0x0f0f_0f0f);
        let two = V::splat_i32(0x3030_3030);
        Header32 {
            d: low_f16(d),
            // The minimum is to be taken off.
            dmin: high_f16(d).xor(V::splat_i32(i32::MIN)),
            scales: [a.and(six), c.and(four).or(a.shr_u32(2).and(two))],
            mins: [b.and(six), c.shr_u32(4).and(four).or(b.shr_u32(2).and(two))],
        }
    }

    #[inline(always)]
    fn factors(h: Header32) -> [V; 2] {
        [h.d, h.dmin]
    }

    #[inline(always)]
    fn scale_pairs(h: Header32, i: usize) -> V {
        every_second(h.scales[i / 4], i % 2).pairs_of(i % 4 / 2)
    }

    #[inline(always)]
    fn sum_weights(h: Header32, p: usize) -> V {
        every_second(h.mins[p / 2], p % 2)
    }

    #[inline(always)]
    fn sum_pair(x: &[ActivationBlock], p: usize) -> [i16; 2] {
        x[4 * (p / 2) + p % 2].sum_pair
    }

    #[inline(always)]
    fn total([d, dmin]: [V; 2], products: V, sums: V) -> V {
        products.to_f32x4().mul_f32(d).madd_f32(dmin, sums.to_f32x4())
    }
}

/// Bytes `first` and `first + 2` of each word, as i16.
#[inline(always)]
fn every_second(words: V, first: usize) -> V {
    if first == 0 { words.and(V::splat_i32(0x00ff_00ff)) } else { words.shr_u16(8) }
}

impl<const FIVE: bool> Narrow for SubBlocks32<FIVE> {
    const BITS: u32 = if FIVE { 5 } else { 4 };
    const HIGH: usize = 2;

    #[inline(always)]
    unsafe fn quants(block: impl Block, unit: usize, i: usize) -> V {
        let (sub_block, half) = (i / 2, i % 2);
        // SAFETY: 32 bytes of fifth bits stand before the 128 of nibbles, if
        // the block has them.
        unsafe {
            let q = nibbles(block.bytes(Self::QUANTS + 32 * unit + 16 * half), sub_block);
            if !FIVE {
                return q;
            }
            let fifth = block.bytes(16 + 16 * half).shr_u16((2 * unit + sub_block) as u32);
            q.or(fifth.and(V::splat_u8(1)).shl_u16(4))
        }
    }
}

/// Q6_K: sixteen sub-blocks of 16, each with a signed scale of 8 bits.
pub(super) struct SubBlocks16;

/// The headers of four rows.
#[derive(Clone, Copy)]
pub(super) struct Header16 {
    d: V,
    /// The scales as bytes, four sub-blocks each.
    scales: [V; 4],
}

impl Blocks for SubBlocks16 {
    const BYTES: usize = 210;
    const UNITS: usize = 2;
    const SUB_BLOCKS: usize = 8;
    const SUM_PAIRS: usize = 8;
    const HEADER: usize = 192;

    type Header = Header16;

    #[inline(always)]
    unsafe fn header(rows: impl Headers) -> Header16 {
        // SAFETY: 16 bytes of scales and an f16 end a block.
        unsafe {
            let scales = std::array::from_fn(|i| rows.words(192 + 4 * i));
            Header16 { d: rows.halves(208), scales }
        }
    }

    #[inline(always)]
    fn factors(h: Header16) -> [V; 2] {
        [h.d, V::splat_f32(0.0)]
    }

    #[inline(always)]
    fn scale_pairs(h: Header16, i: usize) -> V {
        every_second_signed(h.scales[i / 4], i % 2).pairs_of(i % 4 / 2)
    }

    #[inline(always)]
    fn sum_weights(h: Header16, p: usize) -> V {
        every_second_signed(h.scales[p / 2], p % 2)
    }

    #[inline(always)]
    fn sum_pair(x: &[ActivationBlock], p: usize) -> [i16; 2] {
        x[p / 2 * 2].half_pairs[p % 2]
    }

    #[inline(always)]
    fn total([d, _]: [V; 2], products: V, sums: V) -> V {
        // What is stored is larger by 32.
        products.sub_i32(sums.shl_i32(5)).to_f32x4().mul_f32(d)
    }
}

/// Signed bytes `first` and `first + 2` of each word, as i16.
#[inline(always)]
fn every_second_signed(words: V, first: usize) -> V {
    let words = if first == 0 { words.shl_u16(8) } else { words };
    words.shr_i16(8)
}

impl Narrow for SubBlocks16 {
    const BITS: u32 = 6;
    const HIGH: usize = 4;
    const SUB_BLOCK: usize = 16;

    #[inline(always)]
    unsafe fn quants(block: impl Block, half: usize, i: usize) -> V {
        // A unit is half a block: 64 bytes of low bits, 32 of high bits.
        // SAFETY: a block begins with 128 bytes of low bits and 64 of high bits.
        unsafe {
            let low = nibbles(block.bytes(64 * half + 16 * (i % 4)), i / 4);
            let high = block.bytes(128 + 32 * half + 16 * (i % 2));
            let high = match i / 2 {
                0 => high.shl_u16(4),
                1 => high.shl_u16(2),
                2 => high,
                _ => high.shr_u16(2),
            };
            low.or(high.and(V::splat_u8(0x30)))
        }
    }
}
