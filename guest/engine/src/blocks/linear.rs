//! Matrices of weights.

use std::ops::Range;

use crate::ops;
use crate::quant::{Activations, Format, Matrix, put_numbers};
use crate::weights::Window;

/// Rows of a matrix of weights, addressable.
pub(crate) struct Linear {
    pub format: Format,
    pub cols: usize,
    pub n_rows: usize,
    /// The rows that are addressable.
    pub rows: Range<usize>,
    /// Absent if there are no rows.
    pub window: Option<Box<dyn Window>>,
    /// `[n_rows]`
    pub bias: Option<Vec<f32>>,
}

impl Linear {
    /// Some of the rows, and their bias.
    fn part(&self, rows: Range<usize>) -> (Matrix<'_>, Option<&[f32]>) {
        (self.matrix(rows.clone()), self.bias.as_ref().map(|bias| &bias[rows]))
    }

    /// Some of the rows; they are whole groups where rows lie together.
    pub fn matrix(&self, rows: Range<usize>) -> Matrix<'_> {
        let row_bytes = self.format.row_bytes(self.cols);
        let bytes = self.window.as_ref().map_or(&[][..], |w| w.bytes());
        let (from, to) = (rows.start - self.rows.start, rows.end - self.rows.start);
        let bytes = &bytes[from * row_bytes..to * row_bytes];
        Matrix::new(self.format, rows.len(), self.cols, bytes)
    }

    /// Writes a row as floats.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let matrix = self.matrix(self.rows.clone());
        matrix.dequantize_row(row - self.rows.start, out);
    }

    /// The products of some rows with the vectors of some tokens, plus their bias, at
    /// their places in `[tokens.len()][n_rows]`.
    pub fn multiply(
        &self,
        rows: Range<usize>,
        x: &Activations,
        tokens: &[usize],
        out: &mut Vec<f32>,
    ) {
        let n = self.n_rows;
        out.resize(tokens.len() * n, 0.0);
        if rows.is_empty() {
            return;
        }
        let (matrix, bias) = self.part(rows.clone());
        let mine = &mut out[rows.start..];
        matrix.multiply(x, tokens, |i, row, y| put_numbers(&mut mine[i * n + row..], y));
        if let Some(bias) = bias {
            out.chunks_exact_mut(n).for_each(|y| ops::add(&mut y[rows.clone()], bias));
        }
    }
}
