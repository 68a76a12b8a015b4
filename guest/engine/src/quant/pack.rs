//! Interleaving rows, as packed files have them.

use super::formats::Format;
use crate::gguf::TensorType;

/// Interleaves rows of a matrix into `out`, which gets the type `ty` and has
/// their size: rows of `row_bytes` bytes, whole groups of them.
///
/// # Panics
///
/// If the type is not one of interleaved rows, or a size is wrong.
pub fn pack(ty: TensorType, row_bytes: usize, rows: &[u8], out: &mut [u8]) {
    let format = Format::from_type(ty).filter(|format| format.group_rows() > 1);
    let format = format.expect("a type of interleaved rows");
    let group_rows = format.group_rows();
    let (_, block_bytes) = format.block();
    assert!(row_bytes.is_multiple_of(block_bytes) && rows.len() == out.len());
    assert!(rows.len().is_multiple_of(group_rows * row_bytes));
    let groups =
        rows.chunks_exact(group_rows * row_bytes).zip(out.chunks_exact_mut(group_rows * row_bytes));
    for (rows, out) in groups {
        let mut to = 0;
        for block in (0..row_bytes).step_by(block_bytes) {
            let mut at = block;
            for &(len, piece) in format.interleaving() {
                for at in (at..at + len).step_by(piece) {
                    for row in 0..group_rows {
                        let from = &rows[row * row_bytes + at..][..piece];
                        out[to..to + piece].copy_from_slice(from);
                        to += piece;
                    }
                }
                at += len;
            }
        }
    }
}

/// Takes row `row` out of a group of interleaved ones into `out`.
pub(super) fn unpack_row(format: Format, group: &[u8], row: usize, out: &mut [u8]) {
    let (_, block_bytes) = format.block();
    let rows = format.group_rows();
    assert!(rows > 1 && row < rows && group.len() == rows * out.len());
    for (group, out) in
        group.chunks_exact(rows * block_bytes).zip(out.chunks_exact_mut(block_bytes))
    {
        let mut at = 0;
        for &(len, piece) in format.interleaving() {
            for at in (at..at + len).step_by(piece) {
                out[at..at + piece].copy_from_slice(&group[rows * at + row * piece..][..piece]);
            }
            at += len;
        }
    }
}
