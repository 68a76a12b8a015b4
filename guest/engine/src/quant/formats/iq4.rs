//! The formats of 4 bits that stand for 8-bit numbers: IQ4_NL in blocks of 32, IQ4_XS in
//! blocks of 256.

use crate::quant::activations::ActivationBlock;
use crate::quant::blocks::{Blocks, Counts, Quants, weighted};
use crate::quant::f16;
use crate::quant::narrow::nibbles;
use crate::quant::packed::PackedRows;
use crate::quant::raw::RawBlock;
use crate::quant::rows::{Block, FourRows};
use crate::quant::shape::{GROUPS, Products};
use crate::quant::wide::wide_dots;
use crate::simd::{V, steps};

pub(in crate::quant) type Iq4Nl = Iq4<false>;
pub(in crate::quant) type Iq4Xs = Iq4<true>;

/// An f16 and 16 bytes of nibbles; or with `XS`, an f16, eight signed scales of 6 bits,
/// the two high ones first, and as many times 16 bytes.
pub(in crate::quant) struct Iq4<const XS: bool>;

/// What nibbles stand for.
const NUMBERS: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// What scales are stored larger by.
const SCALE_OFFSET: i32 = 32;

/// Bytes that nibbles stand for.
#[inline(always)]
fn table(bytes: impl Fn(i8) -> u8) -> V {
    let bytes = NUMBERS.map(bytes);
    // SAFETY: the array holds 16 bytes.
    unsafe { V::load(bytes.as_ptr()) }
}

/// The products of 16 numbers and activations, two neighbours summed: the sign is the
/// activation's then, as one operand has none. They fill 16 bits.
#[inline(always)]
fn dot(x: V, nibbles: V) -> V {
    let magnitudes = nibbles.lookup(table(|q| q.unsigned_abs()));
    let signs = nibbles.lookup(table(|q| if q < 0 { 0xff } else { 0 }));
    V::dot_i8_u7(x.xor(signs).sub_u8(signs), magnitudes)
}

/// Bytes 0 and 1 of each word (or 2 and 3, for 1) as i16.
#[inline(always)]
fn widen_pairs(bytes: V, i: usize) -> V {
    let first = 0x0101_0101_0101_0101 * (2 * i as u64);
    let at = V::from_u64(0x0505_0404_0101_0000 + first, 0x0d0d_0c0c_0909_0808 + first);
    at.lookup(bytes).shr_i16(8)
}

impl<const XS: bool> Iq4<XS> {
    const QUANTS: usize = if XS { 8 } else { 2 };

    /// Scale `i` of a block from the words of high and of low bits.
    fn scale([high, low]: [u32; 2], i: usize) -> i32 {
        ((low >> (4 * i) & 15) | (high >> (2 * i) & 3) << 4) as i32 - SCALE_OFFSET
    }

    /// The same of four rows' blocks.
    #[inline(always)]
    fn scales_of([high, low]: [V; 2], i: usize) -> V {
        let low = low.shr_u32(4 * i as u32).and(V::splat_i32(15));
        let high = high.shr_u32(2 * i as u32).and(V::splat_i32(3));
        low.or(high.shl_i32(4)).sub_i32(V::splat_i32(SCALE_OFFSET))
    }
}

impl<const XS: bool> Blocks for Iq4<XS> {
    const BYTES: usize = if XS { 136 } else { 18 };
    const INTERLEAVING: &'static [(usize, usize)] =
        if XS { &[(136, 4)] } else { &[(2, 2), (16, 4)] };
    const UNITS: usize = if XS { 8 } else { 1 };

    #[inline(always)]
    fn factors(words: V) -> [V; 2] {
        [f16::low(words), V::splat_f32(0.0)]
    }

    #[inline(always)]
    unsafe fn read_factors(rows: impl FourRows) -> [V; 2] {
        // SAFETY: the caller vouches for the blocks, which begin with an f16, that of `XS`
        // being part of a word.
        Self::factors(unsafe { if XS { rows.words(0) } else { rows.halves(0) } })
    }

    /// The words of high and of low bits.
    type Scales = [V; 2];

    #[inline(always)]
    unsafe fn scales(rows: impl FourRows) -> [V; 2] {
        if !XS {
            return [V::splat_i32(0); 2];
        }
        // SAFETY: 2 bytes of high bits and 4 of low ones stand behind an f16.
        unsafe { [rows.words(0).shr_u32(16), rows.words(4)] }
    }

    #[inline(always)]
    fn scale_pairs(scales: [V; 2], i: usize) -> V {
        if !XS {
            return V::splat_i32(0x0001_0001);
        }
        let scales = Self::scales_of(scales, i);
        scales.and(V::splat_i32(0xffff)).or(scales.shl_i32(16))
    }

    #[inline(always)]
    unsafe fn partials(block: RawBlock, x: *const ActivationBlock, units: usize) -> [V; 2] {
        let words = match XS {
            // SAFETY: the caller vouches for the block, which has scales there.
            true => unsafe { [block.half(2).into(), block.word(4)] },
            false => [0; 2],
        };
        let mut products = V::splat_i32(0);
        steps!(Self::UNITS, units, |unit| {
            let scale = if XS { Self::scale(words, unit) } else { 1 };
            let scale = V::splat_i32(scale << 16 | scale & 0xffff);
            // SAFETY: the caller vouches for the block and its activations.
            let bytes = unsafe { block.bytes(Self::QUANTS + 16 * unit) };
            for half in 0..2 {
                // SAFETY: as above.
                let x = unsafe { (*x.add(unit)).load_q8(half) };
                products = products.add_i32(dot(x, nibbles(bytes, half)).dot_i16(scale));
            }
        });
        [products, V::splat_i32(0)]
    }

    #[inline(always)]
    fn total([d, _]: [V; 2], products: V, _sums: V) -> V {
        products.to_f32x4().mul_f32(d)
    }

    fn dequantize(block: &[u8], out: &mut [f32]) {
        let d = f16::first(block);
        for (i, out) in out.chunks_exact_mut(32).enumerate() {
            let scale = match XS {
                true => {
                    let low = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
                    let high = u16::from_le_bytes([block[2], block[3]]);
                    d * Self::scale([high.into(), low], i) as f32
                }
                false => d,
            };
            for (l, out) in out.iter_mut().enumerate() {
                let q = block[Self::QUANTS + 16 * i + l % 16] >> (4 * (l / 16)) & 15;
                *out = scale * f32::from(NUMBERS[usize::from(q)]);
            }
        }
    }
}

impl<const XS: bool> Quants for Iq4<XS> {
    const UNPACKED: usize = 2;
    const PACKED_STEPS: usize = 4;

    #[inline(always)]
    unsafe fn packed_sums<B: Blocks, const N: usize>(
        rows: [PackedRows<N>; N],
        x: &[ActivationBlock],
        counts: Counts,
    ) -> [[V; 2]; N] {
        // SAFETY: the caller vouches for the rows, which have scales and nibbles.
        let scales = unsafe { rows.map(|rows| B::scales(rows)) };
        let mut products = [V::splat_i32(0); N];
        steps!(B::UNITS, counts.units, |unit| {
            let pairs = scales.map(|scales| B::scale_pairs(scales, unit));
            steps!(Self::PACKED_STEPS, counts.steps, |c| {
                // SAFETY: the caller vouches for `x`, which has a block for each unit.
                let x = unsafe { x.get_unchecked(unit) };
                let x = [0, 1].map(|half| x.load_q8(half).splat_lane(c));
                for g in 0..N {
                    // SAFETY: as above.
                    let bytes = unsafe { rows[g].quarter(c).bytes(Self::QUANTS + 16 * unit) };
                    for (half, x) in x.into_iter().enumerate() {
                        let dot = dot(x, nibbles(bytes, half)).dot_i16(pairs[g]);
                        products[g] = products[g].add_i32(dot);
                    }
                }
            });
        });
        std::array::from_fn(|g| [products[g], weighted::<B>(scales[g], x)])
    }

    #[inline(always)]
    unsafe fn unpack(rows: impl FourRows, unit: usize, mut put: impl FnMut(usize, V)) {
        let quarters: [V; 4] =
            // SAFETY: the caller vouches for the rows, which have 16 bytes for each unit.
            std::array::from_fn(|c| unsafe { rows.quarter(c).bytes(Self::QUANTS + 16 * unit) });
        steps!(4, |c| {
            for half in 0..2 {
                let numbers = nibbles(quarters[c], half).lookup(table(|q| q as u8));
                put(8 * half + 2 * c, widen_pairs(numbers, 0));
                put(8 * half + 2 * c + 1, widen_pairs(numbers, 1));
            }
        });
    }

    // A step is two columns.
    const STEPS: usize = Self::SUB_BLOCK / 2;

    #[inline(always)]
    unsafe fn dots_unpacked<const T: usize>(
        rows: *const u8,
        x: *const u8,
        scale_pairs: [V; GROUPS],
        n_steps: usize,
        products: &mut Products<T>,
    ) {
        if !XS {
            // SAFETY: the caller vouches for the same.
            return unsafe { wide_dots::<Self, T>(rows, x, n_steps, products) };
        }
        let mut sums = [[V::splat_i32(0); GROUPS]; T];
        // SAFETY: as above.
        unsafe { wide_dots::<Self, T>(rows, x, n_steps, &mut sums) };
        let scales = scale_pairs.map(|pairs| pairs.shr_i32(16));
        for (products, sums) in products.iter_mut().zip(sums) {
            for ((product, sum), scale) in products.iter_mut().zip(sums).zip(scales) {
                *product = product.add_i32(sum.mul_i32(scale));
            }
        }
    }
}
