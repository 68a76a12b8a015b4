//! Products of matrices with activations.

use super::activations::Activations;
use super::blocks::{Blocks, Counts};
use super::formats::{self, Bf16, Encoding, F16, F32, Float, Format, dequantize_row, nvfp4};
use super::formats::{
    Iq1M, Iq1S, Iq2S, Iq2Xs, Iq2Xxs, Iq3S, Iq3Xxs, Iq4Nl, Iq4Xs, MxFp4, Q2K, Q3K,
};
use super::formats::{Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Tq1_0, Tq2_0};
use super::gemm::{self, Tile};
use super::gemv;
use super::pack;
use super::packed::PackedRows;
use super::panels::Panels;
use super::raw::{RawRows, fetch};
use super::rows::FourRows;
use super::shape::{GROUPS, ROWS, TOKENS};
use crate::simd::V;

/// From so many vectors on, unpacking the rows pays.
const UNPACK_MIN: usize = 4;

/// Writes the numbers that [`Matrix::multiply`] gives to where `out` begins: mostly
/// four, which take one instruction, where a copy would be a call of the host.
#[inline(always)]
pub(crate) fn put_numbers(out: &mut [f32], numbers: &[f32]) {
    match (out.first_chunk_mut::<4>(), numbers.as_array()) {
        (Some(out), Some(four)) => *out = *four,
        _ => out.iter_mut().zip(numbers).for_each(|(out, y)| *out = *y),
    }
}

/// What [`Matrix::multiply`] gives its numbers to.
type Put<'a> = &'a mut dyn FnMut(usize, usize, &[f32]);

/// A matrix in the bytes of a file: rows of `cols` numbers.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    format: Format,
    rows: usize,
    cols: usize,
    /// Bytes of a row.
    row_bytes: usize,
    bytes: &'a [u8],
}

impl<'a> Matrix<'a> {
    /// The matrix in `bytes`, which must have its size.
    pub fn new(format: Format, rows: usize, cols: usize, bytes: &'a [u8]) -> Self {
        assert_eq!(cols % format.block().0, 0, "rows must be whole blocks");
        assert_eq!(rows % format.group_rows(), 0, "rows must be whole groups");
        let row_bytes = format.row_bytes(cols);
        assert_eq!(bytes.len(), rows * row_bytes, "matrix of another size");
        Self { format, rows, cols, row_bytes, bytes }
    }

    /// Computes this matrix times the vectors of the given tokens, and gives up to
    /// four numbers at a time to `put(index in tokens, first row, numbers)`. A
    /// number does not depend on the other rows and tokens.
    pub fn multiply(
        &self,
        x: &Activations,
        tokens: &[usize],
        mut put: impl FnMut(usize, usize, &[f32]),
    ) {
        assert_eq!(x.cols(), self.cols, "vectors of another length than the matrix's rows");
        // All formats once, and not once for each that calls this.
        self.multiply_all(x, tokens, &mut put);
    }

    fn multiply_all(&self, x: &Activations, tokens: &[usize], put: Put<'_>) {
        match self.format.encoding {
            Encoding::F32 => self.floats::<F32>(x, tokens, put),
            Encoding::F16 => self.floats::<F16>(x, tokens, put),
            Encoding::Bf16 => self.floats::<Bf16>(x, tokens, put),
            Encoding::Q4_0 => self.blocks::<Q4_0>(x, tokens, put),
            Encoding::Q4_1 => self.blocks::<Q4_1>(x, tokens, put),
            Encoding::Q5_0 => self.blocks::<Q5_0>(x, tokens, put),
            Encoding::Q5_1 => self.blocks::<Q5_1>(x, tokens, put),
            Encoding::Q8_0 => self.blocks::<Q8_0>(x, tokens, put),
            Encoding::Q2K => self.blocks::<Q2K>(x, tokens, put),
            Encoding::Q3K => self.blocks::<Q3K>(x, tokens, put),
            Encoding::Q4K => self.blocks::<Q4K>(x, tokens, put),
            Encoding::Q5K => self.blocks::<Q5K>(x, tokens, put),
            Encoding::Q6K => self.blocks::<Q6K>(x, tokens, put),
            Encoding::Iq1S => self.blocks::<Iq1S>(x, tokens, put),
            Encoding::Iq1M => self.blocks::<Iq1M>(x, tokens, put),
            Encoding::Iq2Xxs => self.blocks::<Iq2Xxs>(x, tokens, put),
            Encoding::Iq2Xs => self.blocks::<Iq2Xs>(x, tokens, put),
            Encoding::Iq2S => self.blocks::<Iq2S>(x, tokens, put),
            Encoding::Iq3Xxs => self.blocks::<Iq3Xxs>(x, tokens, put),
            Encoding::Iq3S => self.blocks::<Iq3S>(x, tokens, put),
            Encoding::Iq4Nl => self.blocks::<Iq4Nl>(x, tokens, put),
            Encoding::Iq4Xs => self.blocks::<Iq4Xs>(x, tokens, put),
            Encoding::Tq1_0 => self.blocks::<Tq1_0>(x, tokens, put),
            Encoding::Tq2_0 => self.blocks::<Tq2_0>(x, tokens, put),
            Encoding::MxFp4 => self.blocks::<MxFp4>(x, tokens, put),
            Encoding::NvFp4 => self.nvfp4(x, tokens, put),
        }
    }

    fn blocks<B: Blocks>(&self, x: &Activations, tokens: &[usize], put: Put<'_>) {
        match self.format.group_rows() {
            1 if tokens.len() >= UNPACK_MIN => {
                self.tiles::<B, _>(|first| RawRows(self.four_rows(first)), x, tokens, put);
            }
            1 => self.raw::<B>(x, tokens, put),
            ROWS => self.packed::<B, 1>(x, tokens, put),
            _ => self.packed::<B, 2>(x, tokens, put),
        }
    }

    fn raw<B: Blocks>(&self, x: &Activations, tokens: &[usize], put: Put<'_>) {
        let counts = Counts::of::<B>();
        let mut room = gemv::Run::new();
        for first in (0..self.rows).step_by(4) {
            for (i, &token) in tokens.iter().enumerate() {
                let x = x.blocks(token, B::LEN);
                // SAFETY: the rows hold `cols` numbers, which `new` has checked
                // to be whole blocks; so does the vector.
                let y = unsafe { gemv::dot_raw::<B>(self.four_rows(first), x, counts, &mut room) };
                self.put(first, i, y.to_f32(), put);
            }
        }
    }

    /// For `N` times four rows that are interleaved.
    fn packed<B: Blocks, const N: usize>(&self, x: &Activations, tokens: &[usize], put: Put<'_>) {
        let group_rows = N * ROWS;
        let group_bytes = group_rows * self.row_bytes;
        let group = |first: usize| self.bytes[first / group_rows * group_bytes..].as_ptr();
        if tokens.len() >= UNPACK_MIN {
            let four_rows = |first: usize| {
                // Behind the end, the last four again.
                let first = first.min(self.rows - ROWS);
                PackedRows::<N>(group(first), first % group_rows / ROWS)
            };
            return self.tiles::<B, _>(four_rows, x, tokens, put);
        }
        let counts = Counts::of::<B>();
        for first in (0..self.rows).step_by(group_rows) {
            for (i, &token) in tokens.iter().enumerate() {
                // SAFETY: the rows hold `cols` numbers, which `new` has checked
                // to be whole blocks; so does the vector.
                let y = unsafe {
                    gemv::dot_packed::<B, N>(group(first), x.blocks(token, B::LEN), counts)
                };
                for (g, y) in y.into_iter().enumerate() {
                    self.put(first + ROWS * g, i, y.to_f32(), put);
                }
            }
        }
    }

    /// Four rows from `first` on; behind the end, the last one again.
    #[inline(always)]
    fn four_rows(&self, first: usize) -> [*const u8; 4] {
        std::array::from_fn(|i| self.row((first + i).min(self.rows - 1)).as_ptr())
    }

    fn floats<F: Float>(&self, x: &Activations, tokens: &[usize], put: Put<'_>) {
        for first in (0..self.rows).step_by(4) {
            let rows = self.four_rows(first);
            let (pairs, rest) = tokens.as_chunks::<2>();
            let mut two = [[0.0; 4]; 2];
            for (i, pair) in pairs.iter().enumerate() {
                let x = pair.map(|token| x.vector(token));
                // SAFETY: the rows hold `cols` numbers, and so do the vectors.
                unsafe { formats::dot_rows::<F, 2>(rows, x, &mut two) };
                self.put(first, 2 * i, two[0], put);
                self.put(first, 2 * i + 1, two[1], put);
            }
            for &token in rest {
                let [one, _] = &mut two;
                // SAFETY: as above.
                unsafe {
                    formats::dot_rows::<F, 1>(rows, [x.vector(token)], std::array::from_mut(one));
                }
                self.put(first, tokens.len() - 1, *one, put);
            }
        }
    }

    fn nvfp4(&self, x: &Activations, tokens: &[usize], put: Put<'_>) {
        let group_rows = self.format.group_rows();
        let step = group_rows * nvfp4::BYTES;
        let blocks = |token: usize| x.blocks(token, nvfp4::LEN);
        let (fours, rest) = tokens.as_chunks::<4>();
        let mut y = [[0.0; 4]; 4];
        for first in (0..self.rows).step_by(4) {
            let rows = match group_rows {
                1 => self.four_rows(first),
                _ => {
                    let group = &self.bytes[first / group_rows * group_rows * self.row_bytes..];
                    let row = |r: usize| group[(first % group_rows + r) * nvfp4::BYTES..].as_ptr();
                    std::array::from_fn(row)
                }
            };
            for (i, &four) in fours.iter().enumerate() {
                // SAFETY: the rows hold `cols` numbers, which `new` has checked to be whole
                // blocks, and so do the vectors.
                unsafe { nvfp4::dot_rows::<4>(rows, step, four.map(blocks), &mut y) };
                for (t, y) in y.into_iter().enumerate() {
                    self.put(first, 4 * i + t, y, put);
                }
            }
            for (i, &token) in rest.iter().enumerate() {
                let [one, ..] = &mut y;
                // SAFETY: as above.
                unsafe {
                    nvfp4::dot_rows::<1>(rows, step, [blocks(token)], std::array::from_mut(one));
                }
                self.put(first, 4 * fours.len() + i, *one, put);
            }
        }
    }

    /// Unpacks rows for all vectors; `rows` gives four rows of this matrix.
    fn tiles<B: Blocks, R: FourRows>(
        &self,
        rows: impl Fn(usize) -> R,
        x: &Activations,
        tokens: &[usize],
        put: Put<'_>,
    ) {
        let mut tile = Tile::new::<B>(self.cols);
        let panels = Panels::new::<B>(x, tokens);
        let mut y = [[V::splat_f32(0.0); GROUPS]; TOKENS];
        for first in (0..self.rows).step_by(4 * GROUPS) {
            if R::ARE_APART {
                let n = self.rows.min(first + ROWS * GROUPS) - first;
                fetch(&self.bytes[first * self.row_bytes..][..n * self.row_bytes]);
            }
            for group in 0..GROUPS {
                // SAFETY: the rows hold `cols` numbers, which `new` has
                // checked to be whole blocks.
                unsafe { tile.unpack::<B>(group, rows(first + 4 * group)) };
            }
            for panel in 0..tokens.len().div_ceil(TOKENS) {
                let some = TOKENS * panel..tokens.len();
                // SAFETY: all groups were unpacked; vectors and rows have one
                // length.
                unsafe { gemm::dots::<B>(&tile, &panels, panel, some.len(), &mut y) };
                for (i, y) in some.zip(y) {
                    for (group, y) in y.into_iter().enumerate() {
                        self.put(first + 4 * group, i, y.to_f32(), put);
                    }
                }
            }
        }
    }

    /// Passes on the numbers of the rows from `first` on that exist.
    #[inline(always)]
    fn put(&self, first: usize, i: usize, y: [f32; 4], put: Put<'_>) {
        match self.rows.saturating_sub(first) {
            0 => {}
            n @ 1..4 => put(i, first, &y[..n]),
            _ => put(i, first, &y),
        }
    }

    /// Writes a row as floats.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let group_rows = self.format.group_rows();
        if group_rows == 1 {
            return dequantize_row(self.format, self.row(row), out);
        }
        let group_bytes = group_rows * self.row_bytes;
        let group = &self.bytes[row / group_rows * group_bytes..][..group_bytes];
        let mut bytes = vec![0; self.row_bytes];
        pack::unpack_row(self.format, group, row % group_rows, &mut bytes);
        dequantize_row(self.format.unpacked(), &bytes, out);
    }

    /// The bytes of a row, which must lie apart from the others.
    fn row(&self, row: usize) -> &'a [u8] {
        &self.bytes[row * self.row_bytes..(row + 1) * self.row_bytes]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::TensorType;

    /// The types of rows one after another, with their formats.
    fn formats() -> impl Iterator<Item = (TensorType, Format)> {
        let types = (0..64).filter_map(TensorType::from_id);
        types.filter_map(|ty| Some((ty, Format::from_type(ty)?)))
    }

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
            match format.encoding {
                Encoding::F32 => block[3] = 0x3e | block[3] & 0x80,
                Encoding::F16 => block[1] = 0x30 | block[1] & 0x83,
                Encoding::Bf16 => block[1] = 0x3e | block[1] & 0x80,
                Encoding::Q2K => [81, 83].iter().for_each(|&i| positive(&mut block[i])),
                Encoding::Q3K => positive(&mut block[109]),
                Encoding::Q6K => positive(&mut block[209]),
                Encoding::Tq1_0 => positive(&mut block[53]),
                Encoding::Tq2_0 => positive(&mut block[65]),
                Encoding::NvFp4 => block[..4].iter_mut().for_each(|b| *b = 0x18 | *b & 0x1f),
                Encoding::MxFp4 => block[0] = 0x78 | block[0] & 7,
                // The high bits of an f16 are the high nibble.
                Encoding::Iq1M => block[55] = 0x20 | block[55] & 0x1f,
                Encoding::Q4_1 | Encoding::Q5_1 | Encoding::Q4K | Encoding::Q5K => {
                    [1, 3].iter().for_each(|&i| positive(&mut block[i]));
                }
                _ => positive(&mut block[1]),
            }
        }
        bytes
    }

    /// `put(index in tokens, row, number)` gets each number of a product.
    fn multiply(
        matrix: &Matrix<'_>,
        x: &Activations,
        tokens: &[usize],
        mut put: impl FnMut(usize, usize, f32),
    ) {
        matrix.multiply(x, tokens, |i, first, numbers| {
            numbers.iter().enumerate().for_each(|(r, &y)| put(i, first + r, y));
        });
    }

    #[test]
    fn products_agree_with_dequantized_rows() {
        let (rows, cols) = (7, 512);
        let x: Vec<f32> = (0..2 * cols).map(|i| ((i * 37 % 101) as f32 - 50.0) / 31.0).collect();
        let mut activations = Activations::default();
        activations.set(&x, cols);
        for (_, format) in formats() {
            let bytes = matrix(format, rows, cols);
            let matrix = Matrix::new(format, rows, cols, &bytes);
            let mut got = vec![f32::NAN; 2 * rows];
            multiply(&matrix, &activations, &[1, 0], |i, row, y| got[i * rows + row] = y);
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
    fn a_number_is_the_same_alone_and_among_others() {
        let (cols, n) = (512, 11);
        let x: Vec<f32> = (0..n * cols).map(|i| ((i * 29 % 97) as f32 - 48.0) / 17.0).collect();
        let mut activations = Activations::default();
        activations.set(&x, cols);
        // A tile has eight rows: of these, the second four may be there in part or not
        // at all.
        for (format, rows) in formats().flat_map(|(_, format)| [9, 12, 13].map(|n| (format, n))) {
            let bytes = matrix(format, rows, cols);
            let all = Matrix::new(format, rows, cols, &bytes);
            let tokens: Vec<usize> = (0..n).rev().collect();
            let mut got = vec![];
            multiply(&all, &activations, &tokens, |i, row, y| got.push((tokens[i], row, y)));
            assert_eq!(got.len(), n * rows);
            for (token, row, y) in got {
                let one = Matrix::new(format, 1, cols, all.row(row));
                multiply(&one, &activations, &[token], |_, _, alone| {
                    assert_eq!(alone.to_bits(), y.to_bits(), "{format:?} {token} {row}");
                });
            }
        }
    }

    #[test]
    fn packed_rows_give_the_same_numbers() {
        let (rows, cols) = (24, 512);
        let x: Vec<f32> = (0..6 * cols).map(|i| ((i * 41 % 83) as f32 - 40.0) / 19.0).collect();
        let mut activations = Activations::default();
        activations.set(&x, cols);
        let types = formats().flat_map(|(ty, format)| {
            [4, 8].into_iter().filter_map(move |group_rows| Some((format, ty.packed(group_rows)?)))
        });
        for (format, ty) in types {
            let bytes = matrix(format, rows, cols);
            let mut packed = vec![0; bytes.len()];
            pack::pack(ty, format.row_bytes(cols), &bytes, &mut packed);
            let plain = Matrix::new(format, rows, cols, &bytes);
            let format = Format::from_type(ty).unwrap();
            let packed = Matrix::new(format, rows, cols, &packed);
            for tokens in [&[1][..], &[0, 1, 2, 3, 4, 5]] {
                let [mut want, mut got] = [vec![], vec![]];
                multiply(&plain, &activations, tokens, |i, row, y| {
                    want.push((i, row, y.to_bits()))
                });
                multiply(&packed, &activations, tokens, |i, row, y| {
                    got.push((i, row, y.to_bits()))
                });
                assert_eq!(got, want, "{format:?}");
            }
            let [mut want, mut got] = [vec![0.0; cols], vec![1.0; cols]];
            for row in 0..rows {
                plain.dequantize_row(row, &mut want);
                packed.dequantize_row(row, &mut got);
                assert_eq!(got, want, "{format:?} row {row}");
            }
        }
    }

    /// On machines with other instructions, too.
    #[test]
    fn bits_are_the_same_everywhere() {
        let (rows, cols) = (8, 512);
        let x: Vec<f32> = (0..4 * cols).map(|i| ((i * 53 % 89) as f32 - 44.0) / 23.0).collect();
        let mut activations = Activations::default();
        activations.set(&x, cols);
        let mut hash = 0xcbf2_9ce4_8422_2325;
        for (_, format) in formats() {
            let bytes = matrix(format, rows, cols);
            let matrix = Matrix::new(format, rows, cols, &bytes);
            multiply(&matrix, &activations, &[0, 1, 2, 3], |_, _, y| {
                // FNV-1a, a word at a time.
                hash = (hash ^ u64::from(y.to_bits())).wrapping_mul(0x100_0000_01b3);
            });
        }
        assert_eq!(hash, 0x7ffe_24a3_7d2e_4681);
    }
}
