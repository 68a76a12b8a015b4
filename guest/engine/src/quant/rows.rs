//! Whole rows: products of matrices with activations, and rows as floats.

use super::Format;
use super::activations::{Activations, Vector};
use super::blocks32::{Bytes, Nibbles};
use super::floats::{Bf16, F16, F32, Float};
use super::k_quants::{SubBlocks16, SubBlocks32, scales_and_mins};
use super::scalar::{f16_at, u32_at};

/// The product of rows of one format with a vector.
pub(super) trait Kernel {
    /// How many rows are best taken at once.
    const ROWS: usize;

    /// The products of `R` rows of `cols` numbers with `x`. A row's result
    /// does not depend on `R`.
    ///
    /// # Safety
    /// `cols` must be whole blocks of the format, each row must hold `cols`
    /// numbers, and `x` must too.
    unsafe fn dot<const R: usize>(rows: [*const u8; R], x: Vector, cols: usize) -> [f32; R];
}

/// A matrix in the bytes of a file: rows of `cols` numbers.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    format: Format,
    rows: usize,
    cols: usize,
    bytes: &'a [u8],
}

impl<'a> Matrix<'a> {
    /// The matrix in `bytes`, which must have its size.
    pub fn new(format: Format, rows: usize, cols: usize, bytes: &'a [u8]) -> Self {
        assert_eq!(cols % format.block().0, 0, "rows must be whole blocks");
        assert_eq!(bytes.len(), rows * format.row_bytes(cols), "matrix of another size");
        Self { format, rows, cols, bytes }
    }

    /// Computes this matrix times the vectors of the given tokens, and gives
    /// each number to `put(index in tokens, row, number)`.
    pub fn multiply(&self, x: &Activations, tokens: &[usize], put: impl FnMut(usize, usize, f32)) {
        match self.format {
            Format::F32 => self.with::<F32>(x, tokens, put),
            Format::F16 => self.with::<F16>(x, tokens, put),
            Format::Bf16 => self.with::<Bf16>(x, tokens, put),
            Format::Q4_0 => self.with::<Nibbles<false, false>>(x, tokens, put),
            Format::Q4_1 => self.with::<Nibbles<true, false>>(x, tokens, put),
            Format::Q5_0 => self.with::<Nibbles<false, true>>(x, tokens, put),
            Format::Q5_1 => self.with::<Nibbles<true, true>>(x, tokens, put),
            Format::Q8_0 => self.with::<Bytes>(x, tokens, put),
            Format::Q4K => self.with::<SubBlocks32<false>>(x, tokens, put),
            Format::Q5K => self.with::<SubBlocks32<true>>(x, tokens, put),
            Format::Q6K => self.with::<SubBlocks16>(x, tokens, put),
        }
    }

    fn with<K: Kernel>(
        &self,
        x: &Activations,
        tokens: &[usize],
        mut put: impl FnMut(usize, usize, f32),
    ) {
        assert_eq!(x.cols(), self.cols, "vectors of another length than the matrix's rows");
        assert!(self.format.block().0 == 1 || x.is_quantized());
        let row_bytes = self.format.row_bytes(self.cols);
        let row = |r: usize| self.bytes[r * row_bytes..(r + 1) * row_bytes].as_ptr();
        let mut first = 0;
        while first < self.rows {
            if K::ROWS == 4 && first + 4 <= self.rows {
                let rows: [_; 4] = std::array::from_fn(|i| row(first + i));
                for (i, &token) in tokens.iter().enumerate() {
                    // SAFETY: the rows hold `cols` numbers, which `new` has
                    // checked to be whole blocks; so does the vector.
                    let y = unsafe { K::dot(rows, x.vector(token), self.cols) };
                    y.iter().enumerate().for_each(|(r, &y)| put(i, first + r, y));
                }
                first += 4;
            } else if first + 2 <= self.rows {
                let rows: [_; 2] = std::array::from_fn(|i| row(first + i));
                for (i, &token) in tokens.iter().enumerate() {
                    // SAFETY: as above.
                    let y = unsafe { K::dot(rows, x.vector(token), self.cols) };
                    y.iter().enumerate().for_each(|(r, &y)| put(i, first + r, y));
                }
                first += 2;
            } else {
                for (i, &token) in tokens.iter().enumerate() {
                    // SAFETY: as above.
                    let [y] = unsafe { K::dot([row(first)], x.vector(token), self.cols) };
                    put(i, first, y);
                }
                first += 1;
            }
        }
    }

    /// The bytes of a row.
    pub fn row(&self, row: usize) -> &'a [u8] {
        let row_bytes = self.format.row_bytes(self.cols);
        &self.bytes[row * row_bytes..(row + 1) * row_bytes]
    }
}

/// Writes a row as floats.
pub(crate) fn dequantize_row(format: Format, row: &[u8], out: &mut [f32]) {
    let (len, bytes) = format.block();
    assert_eq!(row.len(), format.row_bytes(out.len()));
    for (block, out) in row.chunks_exact(bytes).zip(out.chunks_exact_mut(len)) {
        // SAFETY: a block holds the bytes that its format has.
        unsafe { dequantize_block(format, block, out) }
    }
}

/// # Safety
/// `block` must hold a whole block of the format.
unsafe fn dequantize_block(format: Format, block: &[u8], out: &mut [f32]) {
    let p = block.as_ptr();
    // SAFETY: the caller vouches for a whole block, and all reads through `p`
    // stay within the fixed layout of one.
    unsafe {
        match format {
            Format::F32 => out[0] = F32::one(p),
            Format::F16 => out[0] = F16::one(p),
            Format::Bf16 => out[0] = Bf16::one(p),
            Format::Q4_0 => nibbles_32(f16_at(p), -8.0 * f16_at(p), 0, &block[2..], out),
            Format::Q4_1 => nibbles_32(f16_at(p), f16_at(p.add(2)), 0, &block[4..], out),
            Format::Q5_0 => {
                nibbles_32(f16_at(p), -16.0 * f16_at(p), u32_at(p.add(2)), &block[6..], out);
            }
            Format::Q5_1 => {
                nibbles_32(f16_at(p), f16_at(p.add(2)), u32_at(p.add(4)), &block[8..], out);
            }
            Format::Q8_0 => {
                let d = f16_at(p);
                out.iter_mut().zip(&block[2..]).for_each(|(o, &q)| *o = d * f32::from(q as i8));
            }
            Format::Q4K | Format::Q5K => {
                let (d, dmin) = (f16_at(p), f16_at(p.add(2)));
                let packed = scales_and_mins(p.add(4));
                let byte = |words: &[u32], i: usize| f32::from(words[i / 4].to_le_bytes()[i % 4]);
                let five = format == Format::Q5K;
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
            Format::Q6K => {
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

#[cfg(test)]
mod tests {
    use super::*;

    const FORMATS: [Format; 11] = [
        Format::F32,
        Format::F16,
        Format::Bf16,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q8_0,
        Format::Q4K,
        Format::Q5K,
        Format::Q6K,
    ];

    /// Bytes that look random, with sane floats where a format has floats.
    fn matrix(format: Format, rows: usize, cols: usize) -> Vec<u8> {
        let mut state = 12345u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let mut bytes: Vec<u8> = (0..rows * format.row_bytes(cols)).map(|_| random()).collect();
        let (_, size) = format.block();
        for block in bytes.chunks_exact_mut(size) {
            let positive = |b: &mut u8| *b = 0x20 | *b & 0x0f;
            match format {
                Format::F32 => block[3] = 0x3e | block[3] & 0x80,
                Format::F16 => block[1] = 0x30 | block[1] & 0x83,
                Format::Bf16 => block[1] = 0x3e | block[1] & 0x80,
                Format::Q4_0 | Format::Q5_0 | Format::Q8_0 => positive(&mut block[1]),
                Format::Q6K => positive(&mut block[209]),
                _ => [1, 3].iter().for_each(|&i| positive(&mut block[i])),
            }
        }
        bytes
    }

    #[test]
    fn products_agree_with_dequantized_rows() {
        let (rows, cols) = (7, 512);
        let x: Vec<f32> = (0..2 * cols).map(|i| ((i * 37 % 101) as f32 - 50.0) / 31.0).collect();
        let mut activations = Activations::default();
        activations.set(&x, cols);
        for format in FORMATS {
            let bytes = matrix(format, rows, cols);
            let matrix = Matrix::new(format, rows, cols, &bytes);
            let mut got = vec![f32::NAN; 2 * rows];
            matrix.multiply(&activations, &[1, 0], |i, row, y| got[i * rows + row] = y);
            let mut weights = vec![0.0; cols];
            for row in 0..rows {
                dequantize_row(format, matrix.row(row), &mut weights);
                for (i, x) in [&x[cols..], &x[..cols]].into_iter().enumerate() {
                    let products = || weights.iter().zip(x).map(|(w, x)| f64::from(w * x));
                    let want: f64 = products().sum();
                    let size: f64 = products().map(f64::abs).sum();
                    let error = (f64::from(got[i * rows + row]) - want).abs();
                    assert!(error < 2e-3 * size, "{format:?} row {row}: off by {error} of {size}");
                }
            }
        }
    }

    #[test]
    fn a_row_is_the_same_alone_and_among_others() {
        let cols = 256;
        let x: Vec<f32> = (0..3 * cols).map(|i| ((i * 29 % 97) as f32 - 48.0) / 17.0).collect();
        let mut activations = Activations::default();
        activations.set(&x, cols);
        for format in FORMATS {
            let bytes = matrix(format, 7, cols);
            let mut all = vec![];
            Matrix::new(format, 7, cols, &bytes)
                .multiply(&activations, &[0, 1, 2], |i, row, y| all.push((i, row, y.to_bits())));
            for (i, row, y) in all {
                let row = &bytes[row * format.row_bytes(cols)..][..format.row_bytes(cols)];
                Matrix::new(format, 1, cols, row)
                    .multiply(&activations, &[i], |_, _, alone| assert_eq!(alone.to_bits(), y));
            }
        }
    }
}
