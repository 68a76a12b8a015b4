//! Numbers that are looked up, several at a time, in a codebook.
//!
//! Vectors cannot do that, so every row is decoded by itself, 16 numbers at a time.
//! Packed rows lie block by block, whole: one stream still, and what is summed across
//! lanes at the end of a block is little.

use std::marker::PhantomData;

use super::activations::ActivationBlock;
use super::blocks::{Blocks, Counts, Quants};
use super::f16;
use super::narrow::{byte_dots, min, products_max};
use super::packed::PackedRows;
use super::raw::RawBlock;
use super::rows::FourRows;
use super::shape::{GROUPS, Products, ROWS, load_step};
use crate::simd::{V, steps};

/// A format of blocks of 256, whose numbers are looked up. A weight is
/// `d * UNIT * scale * (FACTOR * number - OFFSET)`, and `d * UNIT * scale * number` if
/// numbers have signs.
pub(super) trait LookedUp {
    /// Bytes of a block.
    const BYTES: usize;
    /// Numbers in a sub-block, which share a scale: 32 or 16.
    const SUB_BLOCK: usize;
    /// Whether numbers have signs.
    const SIGNED: bool = false;
    /// The largest magnitude: below 64 if there are signs.
    const LARGEST: usize;
    const UNIT: f32 = 1.0;
    const FACTOR: i32 = 1;
    const OFFSET: i32;

    /// The f16 `d` of a block.
    ///
    /// # Safety
    /// The block must be whole.
    #[inline(always)]
    unsafe fn d(block: RawBlock) -> u16 {
        // SAFETY: the caller vouches for the block, which mostly begins with it.
        unsafe { block.half(0) }
    }

    /// The scales of the sub-blocks, as i16; where there are 16, first those with even
    /// numbers, then those with odd ones.
    ///
    /// # Safety
    /// The block must be whole.
    unsafe fn scales(block: RawBlock) -> [V; 2];

    /// Numbers `16 * i` to `16 * i + 15` of a block as bytes: their magnitudes, and 0xff
    /// where they are negative.
    ///
    /// # Safety
    /// The block must be whole.
    unsafe fn numbers(block: RawBlock, i: usize) -> [V; 2];

    /// Writes a block as floats.
    fn dequantize(block: &[u8], out: &mut [f32]);
}

/// A format `L` as blocks.
pub(super) struct Codes<L>(PhantomData<L>);

impl<L: LookedUp> Codes<L> {
    /// What numbers are larger by when they are unpacked, so that they are not negative.
    const OFFSET: i32 = if L::SIGNED { L::LARGEST as i32 } else { L::OFFSET };

    /// Products that can be summed in 16 bits, of unpacked numbers.
    const PRODUCTS_MAX: usize = products_max(if L::SIGNED { 2 * L::LARGEST } else { L::LARGEST });

    /// The blocks of four rows.
    #[inline(always)]
    fn blocks(rows: impl FourRows) -> [RawBlock; ROWS] {
        rows.whole(L::BYTES).map(RawBlock)
    }
}

/// The sums of the activations `x`, times the scales, partly summed.
///
/// # Safety
/// `x` must be a block of 256 numbers.
#[inline(always)]
unsafe fn weighted<L: LookedUp>([even, odd]: [V; 2], x: *const ActivationBlock) -> V {
    // SAFETY: the caller vouches for it.
    let pairs = |i: usize| unsafe { (*x.add(i)).load_pairs() };
    match L::SUB_BLOCK {
        32 => even.swap_inner_i16().dot_i16(pairs(0)),
        _ => {
            let (low, high) = (V::low_32(even, odd), V::high_32(even, odd));
            low.dot_i16(pairs(1)).add_i32(high.dot_i16(pairs(2)))
        }
    }
}

/// The first (`i` is 0) or the second i16 of the words `a` and of the words `b`.
#[inline(always)]
fn zip_halves(a: V, b: V, i: usize) -> V {
    let (low, high) = (V::splat_i32(0xffff), V::splat_i32(-0x1_0000));
    match i {
        0 => a.and(low).or(b.shl_i32(16)),
        _ => a.shr_u32(16).or(b.and(high)),
    }
}

impl<L: LookedUp> Blocks for Codes<L> {
    const BYTES: usize = L::BYTES;
    const INTERLEAVING: &'static [(usize, usize)] = &[(L::BYTES, L::BYTES)];
    const UNITS: usize = 8;
    const SUB_BLOCKS: usize = 32 / L::SUB_BLOCK;
    const SUM_PAIRS: usize = if L::SUB_BLOCK == 32 { 4 } else { 8 };
    const SUMS_AT: usize = if L::SUB_BLOCK == 32 { 0 } else { 1 };

    #[inline(always)]
    fn factors(words: V) -> [V; 2] {
        [f16::low(words).mul_f32(V::splat_f32(L::UNIT)), V::splat_f32(0.0)]
    }

    #[inline(always)]
    unsafe fn read_factors(rows: impl FourRows) -> [V; 2] {
        // SAFETY: the caller vouches for the blocks.
        let words = Self::blocks(rows).map(|block| unsafe { Self::factor_word(block) } as i32);
        Self::factors(V::from_i32x4(words))
    }

    #[inline(always)]
    unsafe fn factor_word(block: RawBlock) -> u32 {
        // SAFETY: the caller vouches for the block.
        unsafe { L::d(block) }.into()
    }

    /// Pairs of each vector of scales: a lane for each row.
    type Scales = [[V; 4]; 2];

    #[inline(always)]
    unsafe fn scales(rows: impl FourRows) -> [[V; 4]; 2] {
        // SAFETY: the caller vouches for the blocks.
        let scales = Self::blocks(rows).map(|block| unsafe { L::scales(block) });
        [0, 1].map(|i| V::transpose_32(scales.map(|scales| scales[i])))
    }

    #[inline(always)]
    fn scale_pairs(scales: [[V; 4]; 2], i: usize) -> V {
        match L::SUB_BLOCK {
            32 => scales[0][i / 2].pairs_of(i % 2),
            _ => scales[i % 2][i / 4].pairs_of(i % 4 / 2),
        }
    }

    #[inline(always)]
    fn sum_weights(scales: [[V; 4]; 2], p: usize) -> V {
        match L::SUB_BLOCK {
            32 => zip_halves(scales[0][p / 2 * 2], scales[0][p / 2 * 2 + 1], p % 2),
            _ => scales[p % 2][p / 2],
        }
    }

    #[inline(always)]
    unsafe fn partials(block: RawBlock, x: *const ActivationBlock, units: usize) -> [V; 2] {
        // SAFETY: the caller vouches for the block.
        let scales = unsafe { L::scales(block) };
        let mut products = V::splat_i32(0);
        steps!(Self::UNITS, units, |unit| {
            let dot = |half: usize| {
                // SAFETY: the caller vouches for the block and its activations.
                let ([numbers, signs], x) =
                    unsafe { (L::numbers(block, 2 * unit + half), (*x.add(unit)).load_q8(half)) };
                // One operand of the products has no sign, so the other one takes it.
                V::dot_i8_u7(if L::SIGNED { x.xor(signs).sub_u8(signs) } else { x }, numbers)
            };
            let dots = [dot(0), dot(1)];
            products = products.add_i32(match L::SUB_BLOCK {
                // Four products of magnitudes below 64 are less than 2^15.
                32 => dots[0].add_i16(dots[1]).dot_i16(scales[0].splat_lane_i16(unit)),
                _ => {
                    let [even, odd] = scales.map(|scales| scales.splat_lane_i16(unit));
                    dots[0].dot_i16(even).add_i32(dots[1].dot_i16(odd))
                }
            });
        });
        // Signs leave nothing to be taken off.
        let none = V::splat_i32(0);
        // SAFETY: the caller vouches for the activations.
        [products, if L::SIGNED { none } else { unsafe { weighted::<L>(scales, x) } }]
    }

    #[inline(always)]
    fn total([d, _]: [V; 2], products: V, sums: V) -> V {
        let times = |v: V, n: i32| if n == 1 { v } else { v.mul_i32(V::splat_i32(n)) };
        let whole = times(products, L::FACTOR).sub_i32(times(sums, Self::OFFSET));
        whole.to_f32x4().mul_f32(d)
    }

    fn dequantize(block: &[u8], out: &mut [f32]) {
        L::dequantize(block, out);
    }
}

impl<L: LookedUp> Quants for Codes<L> {
    const SUB_BLOCK: usize = L::SUB_BLOCK;
    const UNPACKED: usize = 1;
    const PACKED_STEPS: usize = ROWS;

    #[inline(always)]
    unsafe fn packed_sums<B: Blocks, const N: usize>(
        rows: [PackedRows<N>; N],
        x: &[ActivationBlock],
        counts: Counts,
    ) -> [[V; 2]; N] {
        let mut partials = [[[V::splat_i32(0); 4]; 2]; N];
        // Blocks of all rows lie one behind the other. The compiler must not see how many
        // there are: it would make a copy of the loop's body for each.
        let [first, ..] = Self::blocks(rows[0]);
        for r in 0..counts.steps * N {
            // SAFETY: the caller vouches for the rows and for `x`.
            let [products, weighted] = unsafe {
                B::partials(RawBlock(first.0.add(r * L::BYTES)), x.as_ptr(), counts.units)
            };
            let four = &mut partials[r / ROWS % N];
            four[0][r % ROWS] = products;
            four[1][r % ROWS] = weighted;
        }
        let none = V::splat_i32(0);
        partials.map(|[products, weighted]| {
            [V::sums_i32(products), if L::SIGNED { none } else { V::sums_i32(weighted) }]
        })
    }

    #[inline(always)]
    unsafe fn unpack(rows: impl FourRows, unit: usize, mut put: impl FnMut(usize, V)) {
        let offset = V::splat_u8(L::LARGEST as u8);
        for half in 0..2 {
            let four = Self::blocks(rows).map(|block| {
                // SAFETY: the caller vouches for the blocks.
                let [numbers, signs] = unsafe { L::numbers(block, 2 * unit + half) };
                match L::SIGNED {
                    true => numbers.xor(signs).sub_u8(signs).add_u8(offset),
                    false => numbers,
                }
            });
            for (c, numbers) in V::transpose_32(four).into_iter().enumerate() {
                put(4 * half + c, numbers);
            }
        }
    }

    // A step is four columns, two of them in a lane of 16 bits. Where no more fit, each
    // is widened.
    const STEPS: usize = match Self::PRODUCTS_MAX {
        2 => L::SUB_BLOCK / 4,
        n => min(n / 2, L::SUB_BLOCK / 4),
    };

    #[inline(always)]
    unsafe fn dots_unpacked<const T: usize>(
        rows: *const u8,
        x: *const u8,
        scale_pairs: [V; GROUPS],
        n_steps: usize,
        products: &mut Products<T>,
    ) {
        if Self::PRODUCTS_MAX > 2 {
            // SAFETY: the caller vouches for the same.
            return unsafe { byte_dots::<Self, T>(rows, x, scale_pairs, n_steps, products) };
        }
        steps!(Self::STEPS, n_steps, |step| {
            // SAFETY: the caller vouches for sub-blocks.
            let (w, x) = unsafe { load_step(rows, x, step) };
            for (t, products) in products.iter_mut().enumerate() {
                let x = x.splat_lane(t);
                for ((product, w), pairs) in products.iter_mut().zip(w).zip(scale_pairs) {
                    *product = product.add_i32(V::dot_i8_u7(x, w).dot_i16(pairs));
                }
            }
        });
    }
}
