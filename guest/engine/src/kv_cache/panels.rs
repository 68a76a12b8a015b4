//! What a format of keys and values is.

/// How the keys and values of a chunk are kept.
///
/// They lie in panels, in the order in which attention reads them: `PANEL` columns of a
/// matrix, row by row. For the scores, the columns are positions and the rows the
/// numbers of a key; for the mixture of values, the columns are the numbers of a value
/// and the rows positions. Heads have a multiple of four numbers: where that is none of
/// `PANEL`, the last panel of values is narrower.
pub(super) trait Panels: Sync {
    /// Bytes of a key or a value of `n` numbers, a multiple of four.
    fn bytes(&self, n: usize) -> usize;

    /// The largest magnitude that a number may have.
    fn max(&self) -> f32;

    /// Puts a key in a column of a panel of keys.
    fn put_key(&self, panel: &mut [u8], column: usize, key: &[f32]);

    /// Puts a value in a row of a chunk of values.
    fn put_value(&self, values: &mut [u8], row: usize, value: &[f32]);

    /// A panel of keys `[head_dim][PANEL]`, as f32. There may be room for it in `room`.
    fn keys<'a>(&self, panel: &'a [u8], head_dim: usize, room: &'a mut [f32]) -> &'a [f32];

    /// The first `n_rows` rows of the panel of values that begins at `column`, as f32, of
    /// a chunk of values of `head_dim` numbers. There is room for it, and for the rows up
    /// to a multiple of four, in `room`.
    fn values<'a>(
        &self,
        values: &'a [u8],
        head_dim: usize,
        column: usize,
        n_rows: usize,
        room: &'a mut [f32],
    ) -> &'a [f32];
}
