//! Matrix times a batch of vectors.
//!
//! Eight rows are unpacked to whole numbers at a time ([`Tile`]), which all
//! vectors of the batch then use, four at a time ([`Panels`]). A lane is a
//! row, so there are no sums across lanes.

use super::activations::BLOCK;
use super::blocks::{Blocks, FourRows};
use super::panels::{Panels, TOKENS};
use crate::simd::V;

/// Groups of four rows in a tile.
pub(super) const GROUPS: usize = 2;

/// Products of a tile with a panel: a lane for each row.
pub(super) type Products = [[V; GROUPS]; TOKENS];

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

/// Unpacked rows.
pub(super) struct Tile {
    /// Sub-blocks in a row.
    n: usize,
    /// `STEPS` of the format, for [`steps`](crate::simd::steps).
    n_steps: usize,
    /// `[sub-blocks][steps][GROUPS][16 bytes]`, a step being what four rows'
    /// columns fill 16 bytes.
    quants: Vec<u8>,
    /// `[sub-blocks][GROUPS][4 rows]`
    scales: Vec<f32>,
    mins: Vec<f32>,
}

impl Tile {
    /// A tile for rows of `cols` numbers.
    pub fn new<B: Blocks>(cols: usize) -> Self {
        let n = cols / B::SUB_BLOCK;
        Self {
            n,
            n_steps: std::hint::black_box(B::STEPS),
            quants: vec![0; 4 * GROUPS * cols * B::UNPACKED],
            scales: vec![0.0; 4 * GROUPS * n],
            mins: vec![0.0; if B::MIN { 4 * GROUPS * n } else { 0 }],
        }
    }

    /// Unpacks four rows.
    ///
    /// # Safety
    /// The rows must hold as many numbers as the tile was made for, which are
    /// whole blocks.
    #[inline(never)]
    pub unsafe fn unpack<B: Blocks>(&mut self, group: usize, rows: impl FourRows) {
        let sub_block_len = 4 * GROUPS * B::SUB_BLOCK * B::UNPACKED;
        let unit_len = B::SUB_BLOCKS * sub_block_len;
        let blocks = self.quants.chunks_exact_mut(B::UNITS * unit_len).enumerate();
        let mut scales = self.scales.as_chunks_mut::<4>().0[group..].iter_mut().step_by(GROUPS);
        let (mins, _) = self.mins.as_chunks_mut::<4>();
        let mut mins = mins.get_mut(group..).unwrap_or_default().iter_mut().step_by(GROUPS);
        for (b, quants) in blocks {
            // SAFETY: the caller vouches for the rows; block `b` is one of theirs.
            let (blocks, header) = unsafe {
                let blocks = rows.behind(b * B::BYTES);
                (blocks, B::header(blocks))
            };
            // Each step with its constants: shifts by a variable are slow.
            macro_rules! sub_blocks {
                ($($i:literal)*) => { $(
                    if $i < B::UNITS * B::SUB_BLOCKS {
                        if let Some(scales) = scales.next() {
                            B::scales(header, $i).store_f32(scales);
                        }
                        if let Some(mins) = mins.next() {
                            B::mins(header, $i).store_f32(mins);
                        }
                    }
                )* };
            }
            sub_blocks!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
            for (unit, quants) in quants.chunks_exact_mut(unit_len).enumerate() {
                macro_rules! sub_blocks {
                    ($($i:literal)*) => { $(
                        if $i < B::SUB_BLOCKS {
                            let put = |step: usize, q: V| {
                                let at = $i * sub_block_len + 16 * (GROUPS * step + group);
                                // SAFETY: the slice holds 16 bytes.
                                unsafe { q.store(quants[at..][..16].as_mut_ptr()) };
                            };
                            // SAFETY: the caller vouches for the rows.
                            unsafe { B::unpack(blocks, unit, $i, put) };
                        }
                    )* };
                }
                sub_blocks!(0 1 2 3 4 5 6 7);
            }
        }
    }
}

/// The products of a tile with a panel, in the order that `gemv` has.
///
/// # Safety
/// The tile must have been unpacked in all groups and the panels made for
/// this format, for vectors of one length; `panel` must be one of the panels.
#[inline(never)]
pub(super) unsafe fn dot<B: Blocks>(tile: &Tile, panels: &Panels, panel: usize) -> Products {
    let len = 4 * B::SUB_BLOCK * B::UNPACKED;
    let mut sums = [[V::splat_f32(0.0); GROUPS]; TOKENS];
    let quants = panels.quants(panel).as_ptr();
    let scales = panels.scales(panel).as_ptr();
    let offsets = panels.offsets(panel).as_ptr();
    for i in 0..tile.n {
        // SAFETY: the caller vouches for tile and panel, which have sub-block
        // `i`.
        unsafe {
            let rows = tile.quants.as_ptr().add(GROUPS * len * i);
            let dots = B::dots_unpacked(rows, quants.add(len * i), tile.n_steps);
            let row_scales: [V; GROUPS] = std::array::from_fn(|g| {
                V::load(tile.scales.as_ptr().add(4 * (GROUPS * i + g)).cast())
            });
            let scales = V::load(scales.add(TOKENS * (i * B::SUB_BLOCK / BLOCK)).cast());
            let offsets = match B::OFFSET {
                0 => V::splat_i32(0),
                _ => V::load(offsets.add(TOKENS * i).cast()),
            };
            for (t, (dots, sums)) in dots.into_iter().zip(&mut sums).enumerate() {
                let (scale, offset) = (scales.splat_lane(t), offsets.splat_lane(t));
                for ((dot, sum), row_scale) in dots.into_iter().zip(sums).zip(row_scales) {
                    let dot = if B::OFFSET == 0 { dot } else { dot.add_i32(offset) };
                    *sum = sum.madd_f32(dot.to_f32x4(), row_scale.mul_f32(scale));
                }
            }
        }
    }
    if B::MIN {
        // SAFETY: as above.
        let mins = unsafe { dot_mins(tile, panels, panel) };
        for (sums, mins) in sums.iter_mut().zip(mins) {
            for (sum, mins) in sums.iter_mut().zip(mins) {
                *sum = sum.add_f32(mins);
            }
        }
    }
    sums
}

/// The minima's share of the products.
///
/// # Safety
/// As for [`dot`].
#[inline(always)]
unsafe fn dot_mins(tile: &Tile, panels: &Panels, panel: usize) -> Products {
    let mut sums = [[V::splat_f32(0.0); GROUPS]; TOKENS];
    let block_sums = panels.sums(panel).as_ptr();
    for i in 0..tile.n {
        // SAFETY: as in `dot`.
        unsafe {
            let mins: [V; GROUPS] = std::array::from_fn(|g| {
                V::load(tile.mins.as_ptr().add(4 * (GROUPS * i + g)).cast())
            });
            let block_sums = V::load(block_sums.add(TOKENS * i).cast());
            for (t, sums) in sums.iter_mut().enumerate() {
                let block_sum = block_sums.splat_lane(t);
                for (sum, mins) in sums.iter_mut().zip(mins) {
                    *sum = sum.madd_f32(mins, block_sum);
                }
            }
        }
    }
    sums
}
