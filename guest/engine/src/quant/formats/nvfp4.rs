//! NVFP4: floats of 4 bits (E2M1), in blocks of 64, of which each 16 share a float of 8
//! bits (UE4M3).
//!
//! A sum of whole numbers with such scales would not fit 32 bits, so each 16 products are
//! summed by themselves, and scaled in f32.

use super::mxfp4::NUMBERS;
use crate::quant::activations::ActivationBlock;
use crate::quant::raw::RawBlock;
use crate::simd::V;

/// Numbers in a block.
pub(in crate::quant) const LEN: usize = 64;
/// Bytes of a block: four scales, and four times 8 of nibbles.
pub(in crate::quant) const BYTES: usize = 36;

/// 2^119: the exponents' biases differ by 120, and numbers are twice what they stand for.
const HALF_BIAS: f32 = f32::from_bits(246 << 23);

/// Half of scale `i` of four rows' blocks, of which words have all four.
#[inline(always)]
fn half_scales(words: V, i: usize) -> V {
    // What would be no number is taken for 0, as ggml does.
    let are_none = words.eq_u8(V::splat_u8(0x7f));
    let byte = |v: V| v.shr_u32(8 * i as u32).and(V::splat_i32(0xff));
    let none = byte(are_none).shl_i32(24).shr_i32(31);
    let bits = byte(words).and(V::splat_i32(0x7f)).shl_i32(20);
    bits.and(none.xor(V::splat_i32(-1))).mul_f32(V::splat_f32(HALF_BIAS))
}

/// Bytes that nibbles stand for.
#[inline(always)]
fn table(bytes: impl Fn(i8) -> u8) -> V {
    let bytes = NUMBERS.map(bytes);
    // SAFETY: the array holds 16 bytes.
    unsafe { V::load(bytes.as_ptr()) }
}

/// Magnitudes and signs, as 0xff or 0, of the numbers that share scale `i` of a block.
///
/// # Safety
/// The block must be whole.
#[inline(always)]
unsafe fn numbers(block: RawBlock, i: usize) -> [V; 2] {
    const FOUR: u64 = 0x0f0f_0f0f_0f0f_0f0f;
    // SAFETY: the caller vouches for the block.
    let bytes = unsafe { block.long(4 + 8 * i) };
    let nibbles = V::from_u64(bytes & FOUR, bytes >> 4 & FOUR);
    let magnitudes = nibbles.lookup(table(|q| q.unsigned_abs()));
    [magnitudes, nibbles.lookup(table(|q| if q < 0 { 0xff } else { 0 }))]
}

/// The products of four rows with each of the vectors `x`, of one length. The blocks of a
/// row lie `step` bytes apart. What is summed and in which order is the same for any number
/// of vectors.
///
/// # Safety
/// Each row must hold as many numbers as a vector, which are whole blocks.
#[inline(never)]
pub(in crate::quant) unsafe fn dot_rows<const T: usize>(
    rows: [*const u8; 4],
    step: usize,
    x: [&[ActivationBlock]; T],
    out: &mut [[f32; 4]; T],
) {
    let mut sums = [V::splat_f32(0.0); T];
    for b in 0..x[0].len() / 2 {
        // SAFETY: the caller vouches for the rows, which have block `b`.
        let blocks = rows.map(|row| RawBlock(unsafe { row.add(b * step) }));
        // SAFETY: as above.
        let words = V::from_i32x4(blocks.map(|block| unsafe { block.word(0) } as i32));
        for half in 0..2 {
            let mut totals = [V::splat_f32(0.0); T];
            for i in [2 * half, 2 * half + 1] {
                // SAFETY: as above.
                let numbers = blocks.map(|block| unsafe { numbers(block, i) });
                let scales = half_scales(words, i);
                for (total, x) in totals.iter_mut().zip(x) {
                    // SAFETY: the caller vouches for vectors of one length.
                    let x = unsafe { x.get_unchecked(2 * b + half) }.load_q8(i % 2);
                    let dots = numbers.map(|[magnitudes, signs]| {
                        V::dot_i8_u7(x.xor(signs).sub_u8(signs), magnitudes)
                    });
                    *total = total.madd_f32(scales, V::sums_i16::<4>(dots).to_f32x4());
                }
            }
            for ((sum, total), x) in sums.iter_mut().zip(totals).zip(x) {
                // SAFETY: as above.
                let [scale, ..] = unsafe { x.get_unchecked(2 * b + half) }.load_scale_and_sums();
                *sum = sum.madd_f32(total, scale);
            }
        }
    }
    *out = sums.map(V::to_f32);
}

/// Writes a block as floats.
pub(super) fn dequantize(block: &[u8], out: &mut [f32]) {
    for (i, out) in out.chunks_exact_mut(16).enumerate() {
        let scale = match block[i] {
            0x7f => 0.0,
            bits => f32::from_bits(u32::from(bits & 0x7f) << 20) * HALF_BIAS,
        };
        for (l, out) in out.iter_mut().enumerate() {
            let q = block[4 + 8 * i + l % 8] >> (4 * (l / 8)) & 15;
            *out = scale * f32::from(NUMBERS[usize::from(q)]);
        }
    }
}
