//! How much the kernels take at a time.

use crate::simd::V;

/// Rows: a lane for each. In packed files one or two times as many are interleaved.
pub(super) const ROWS: usize = 4;

/// Groups of so many rows in a tile, which is what a batch multiplies.
pub(super) const GROUPS: usize = 2;

/// Vectors in a panel, which is what a tile is multiplied with.
pub(super) const TOKENS: usize = 4;

/// Products of a tile with the first `T` vectors of a panel: a lane for each row.
pub(super) type Products<const T: usize> = [[V; GROUPS]; T];

/// What a tile and a panel have for a step.
///
/// # Safety
/// Both must have it.
#[inline(always)]
pub(super) unsafe fn load_step(rows: *const u8, x: *const u8, step: usize) -> ([V; GROUPS], V) {
    // SAFETY: the caller vouches for it.
    unsafe {
        let rows = rows.add(16 * GROUPS * step);
        (std::array::from_fn(|g| V::load(rows.add(16 * g))), V::load(x.add(16 * step)))
    }
}
