//! Rows as floats.

use super::floats::{Bf16, F16, F32, Float};
use super::scalar::{f16_at, u32_at};
use super::{Encoding, Format};

/// Writes a row as floats.
pub(crate) fn dequantize_row(format: Format, row: &[u8], out: &mut [f32]) {
    assert_eq!(format.group_rows(), 1, "rows that lie together");
    let (len, bytes) = format.block();
    assert_eq!(row.len(), format.row_bytes(out.len()));
    for (block, out) in row.chunks_exact(bytes).zip(out.chunks_exact_mut(len)) {
        // SAFETY: a block holds the bytes that its format has.
        unsafe { dequantize_block(format.encoding, block, out) }
    }
}

/// # Safety
/// `block` must hold a whole block of the format.
unsafe fn dequantize_block(encoding: Encoding, block: &[u8], out: &mut [f32]) {
    let p = block.as_ptr();
    // SAFETY: the caller vouches for a whole block, and all reads through `p`
    // stay within the fixed layout of one.
    unsafe {
        match encoding {
            Encoding::F32 => out[0] = F32::one(p),
            Encoding::F16 => out[0] = F16::one(p),
            Encoding::Bf16 => out[0] = Bf16::one(p),
            Encoding::Q4_0 => nibbles_32(f16_at(p), -8.0 * f16_at(p), 0, &block[2..], out),
            Encoding::Q4_1 => nibbles_32(f16_at(p), f16_at(p.add(2)), 0, &block[4..], out),
            Encoding::Q5_0 => {
                nibbles_32(f16_at(p), -16.0 * f16_at(p), u32_at(p.add(2)), &block[6..], out);
            }
            Encoding::Q5_1 => {
                nibbles_32(f16_at(p), f16_at(p.add(2)), u32_at(p.add(4)), &block[8..], out);
            }
            Encoding::Q8_0 => {
                let d = f16_at(p);
                out.iter_mut().zip(&block[2..]).for_each(|(o, &q)| *o = d * f32::from(q as i8));
            }
            Encoding::Q4K | Encoding::Q5K => {
                let (d, dmin) = (f16_at(p), f16_at(p.add(2)));
                let packed = scales_and_mins(p.add(4));
                let byte = |words: &[u32], i: usize| f32::from(words[i / 4].to_le_bytes()[i % 4]);
                let five = encoding == Encoding::Q5K;
                let quants = &block[if five { 48 } else { 16 }..];
                for (i, out) in out.chunks_exact_mut(32).enumerate() {
                    let scale = d * byte(&packed[..2], i);
                    let min = dmin * byte(&packed[2..], i);
                    for (l, out) in out.iter_mut().enumerate() {
                        let fifth = if five { block[16 + l] >> i & 1 } else { 0 };
                        let q = quants[i / 2 * 32 + l] >> (4 * (i % 2)) & 15 | fifth << 4;
                        *out = scale * f32::from(q) - min;
                    }
                }
            }
            Encoding::Q6K => {
                let d = f16_at(p.add(208));
                for (i, out) in out.iter_mut().enumerate() {
                    let (half, i) = (i / 128, i % 128);
                    let low = block[half * 64 + i % 64] >> (4 * (i / 64)) & 15;
                    let high = block[128 + half * 32 + i % 32] >> (2 * (i / 32)) & 3;
                    let scale = block[192 + half * 8 + i / 16] as i8;
                    *out = d * f32::from(scale) * (f32::from(low | high << 4) - 32.0);
                }
            }
        }
    }
}

fn nibbles_32(d: f32, min: f32, fifth: u32, quants: &[u8], out: &mut [f32]) {
    for (i, out) in out.iter_mut().enumerate() {
        let q = quants[i % 16] >> (4 * (i / 16)) & 15 | ((fifth >> i & 1) as u8) << 4;
        *out = d * f32::from(q) + min;
    }
}

/// The eight 6-bit scales and the eight 6-bit minima of a Q4_K or Q5_K block,
/// packed into 12 bytes, as four words of bytes: scales 0-3, 4-7, minima 0-3,
/// 4-7.
///
/// # Safety
/// 12 bytes must be readable at `p`.
unsafe fn scales_and_mins(p: *const u8) -> [u32; 4] {
    // SAFETY: the caller vouches for 12 bytes.
    let (a, b, c) = unsafe { (u32_at(p), u32_at(p.add(4)), u32_at(p.add(8))) };
    [
        a & 0x3f3f_3f3f,
        (c & 0x0f0f_0f0f) | (a >> 6 & 0x0303_0303) << 4,
        b & 0x3f3f_3f3f,
        (c >> 4 & 0x0f0f_0f0f) | (b >> 6 & 0x0303_0303) << 4,
    ]
}
