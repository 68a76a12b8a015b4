//! Kernels of the formats with blocks of 256: Q4_K, Q5_K, Q6_K.

use super::activations::Vector;
use super::blocks32::nibbles;
use super::rows::Kernel;
use super::scalar::{f16_at, u32_at};
use crate::simd::V;

/// The eight 6-bit scales and the eight 6-bit minima of a Q4_K or Q5_K block,
/// packed into 12 bytes, as four words of bytes: scales 0-3, 4-7, minima 0-3,
/// 4-7.
///
/// # Safety
/// 12 bytes must be readable at `p`.
#[inline(always)]
pub(super) unsafe fn scales_and_mins(p: *const u8) -> [u32; 4] {
    // SAFETY: the caller vouches for 12 bytes.
    let (a, b, c) = unsafe { (u32_at(p), u32_at(p.add(4)), u32_at(p.add(8))) };
    [
        a & 0x3f3f_3f3f,
        (c & 0x0f0f_0f0f) | (a >> 6 & 0x0303_0303) << 4,
        b & 0x3f3f_3f3f,
        (c >> 4 & 0x0f0f_0f0f) | (b >> 6 & 0x0303_0303) << 4,
    ]
}

/// Lane `i` of four f32, four times; `i` is known when this is compiled.
#[inline(always)]
fn lane(v: V, i: usize) -> V {
    match i {
        0 => v.lane_f32::<0>(),
        1 => v.lane_f32::<1>(),
        2 => v.lane_f32::<2>(),
        _ => v.lane_f32::<3>(),
    }
}

/// Q4_K, and with `FIVE` Q5_K: eight sub-blocks of 32, each with a scale and
/// a minimum.
pub(super) struct SubBlocks32<const FIVE: bool>;

impl<const FIVE: bool> Kernel for SubBlocks32<FIVE> {
    const ROWS: usize = 2;

    #[inline(always)]
    unsafe fn dot<const R: usize>(rows: [*const u8; R], x: Vector, cols: usize) -> [f32; R] {
        let quants = 16 + if FIVE { 32 } else { 0 };
        let mut acc = [V::splat_f32(0.0); R];
        for b in 0..cols / 256 {
            // SAFETY: the caller vouches for `cols` numbers in `x` and in
            // each row; block `b` is one of them.
            unsafe {
                let q8 = x.q8.add(b * 256);
                let dx = [V::load(x.d.add(b * 8).cast()), V::load(x.d.add(b * 8 + 4).cast())];
                let sums =
                    [V::load(x.sum32.add(b * 8).cast()), V::load(x.sum32.add(b * 8 + 4).cast())];
                for r in 0..R {
                    let block = rows[r].add(b * (quants + 128));
                    let packed = scales_and_mins(block.add(4));
                    let small = |i: usize| V::from_u8x4(packed[i]).to_f32x4();
                    let scales = [small(0).mul_f32(dx[0]), small(1).mul_f32(dx[1])];
                    let mins = small(2).mul_f32(sums[0]).madd_f32(small(3), sums[1]);
                    let mut sum = V::splat_f32(0.0);
                    let mut sub_block = |i: usize, first: V, second: V| {
                        let dot = V::dot_i8_u7(V::load(q8.add(i * 32)), first, V::splat_i32(0));
                        let dot = V::dot_i8_u7(V::load(q8.add(i * 32 + 16)), second, dot);
                        sum = sum.madd_f32(dot.to_f32x4(), lane(scales[i / 4], i % 4));
                    };
                    let bits = if FIVE {
                        [V::load(block.add(16)), V::load(block.add(32))]
                    } else {
                        [V::splat_i32(0); 2]
                    };
                    let one = V::splat_u8(1);
                    macro_rules! pair {
                        ($j:literal) => {
                            let (mut l0, mut h0) = nibbles(V::load(block.add(quants + $j * 32)));
                            let (mut l1, mut h1) =
                                nibbles(V::load(block.add(quants + $j * 32 + 16)));
                            if FIVE {
                                let fifth = |v: V| v.and(one).shl_u16::<4>();
                                l0 = l0.or(fifth(bits[0].shr_u16::<{ 2 * $j }>()));
                                l1 = l1.or(fifth(bits[1].shr_u16::<{ 2 * $j }>()));
                                h0 = h0.or(fifth(bits[0].shr_u16::<{ 2 * $j + 1 }>()));
                                h1 = h1.or(fifth(bits[1].shr_u16::<{ 2 * $j + 1 }>()));
                            }
                            sub_block(2 * $j, l0, l1);
                            sub_block(2 * $j + 1, h0, h1);
                        };
                    }
                    pair!(0);
                    pair!(1);
                    pair!(2);
                    pair!(3);
                    acc[r] = acc[r]
                        .madd_f32(sum, V::splat_f32(f16_at(block)))
                        .sub_f32(mins.mul_f32(V::splat_f32(f16_at(block.add(2)))));
                }
            }
        }
        std::array::from_fn(|r| acc[r].sum_f32())
    }
}

/// Q6_K: sixteen sub-blocks of 16, each with a signed scale; stored numbers
/// are 32 too large.
pub(super) struct SubBlocks16;

impl Kernel for SubBlocks16 {
    const ROWS: usize = 2;

    #[inline(always)]
    unsafe fn dot<const R: usize>(rows: [*const u8; R], x: Vector, cols: usize) -> [f32; R] {
        let mut acc = [V::splat_f32(0.0); R];
        for b in 0..cols / 256 {
            // SAFETY: the caller vouches for `cols` numbers in `x` and in
            // each row; block `b` is one of them.
            unsafe {
                let q8 = x.q8.add(b * 256);
                for r in 0..R {
                    let block = rows[r].add(b * 210);
                    let mut sum = V::splat_f32(0.0);
                    let mut shift = V::splat_f32(0.0);
                    // Half a block at a time: 64 bytes of low bits, 32 of
                    // high bits, 8 scales.
                    for half in 0..2 {
                        let ql = block.add(half * 64);
                        let qh = block.add(128 + half * 32);
                        let q8 = q8.add(half * 128);
                        let d = x.d.add(b * 8 + half * 4);
                        let sum16 = x.sum16.add(b * 16 + half * 8);
                        let packed = block.add(192 + half * 8);
                        let scales: [V; 2] = std::array::from_fn(|i| {
                            V::from_i8x4(u32_at(packed.add(4 * i))).to_f32x4()
                        });
                        for (i, scales) in scales.into_iter().enumerate() {
                            let sums = V::load(sum16.add(4 * i).cast());
                            shift = shift.madd_f32(scales, sums);
                        }
                        let dx = V::load(d.cast());
                        let mut sub_block = |i: usize, q: V| {
                            let dot = V::dot_i8_u7(V::load(q8.add(i * 16)), q, V::splat_i32(0));
                            let scale = lane(scales[i / 4], i % 4).mul_f32(lane(dx, i / 2));
                            sum = sum.madd_f32(dot.to_f32x4(), scale);
                        };
                        for i in 0..2 {
                            let (a, c) = nibbles(V::load(ql.add(i * 16)));
                            let (b, d) = nibbles(V::load(ql.add(32 + i * 16)));
                            let high = V::load(qh.add(i * 16));
                            let top = V::splat_u8(0x30);
                            sub_block(i, a.or(high.shl_u16::<4>().and(top)));
                            sub_block(i + 2, b.or(high.shl_u16::<2>().and(top)));
                            sub_block(i + 4, c.or(high.and(top)));
                            sub_block(i + 6, d.or(high.shr_u16::<2>().and(top)));
                        }
                    }
                    let d = V::splat_f32(f16_at(block.add(208)));
                    acc[r] = acc[r].madd_f32(sum.sub_f32(shift.mul_f32(V::splat_f32(32.0))), d);
                }
            }
        }
        std::array::from_fn(|r| acc[r].sum_f32())
    }
}
