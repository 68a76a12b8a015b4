//! Matrix times a batch of vectors.
//!
//! Eight rows are unpacked to whole numbers at a time ([`Tile`]), which all
//! vectors of the batch then use, four at a time ([`Panels`]). A lane is a
//! row, so there are no sums across lanes.

use super::blocks::Blocks;
use super::panels::Panels;
use super::rows::FourRows;
use super::shape::{GROUPS, Products, TOKENS};
use crate::simd::{V, steps};

/// Unpacked rows.
pub(super) struct Tile {
    /// Blocks in a row.
    n: usize,
    /// `STEPS` of the format, for [`steps`](crate::simd::steps).
    n_steps: usize,
    /// `[sub-blocks][steps][GROUPS][16 bytes]`, a step being what four rows'
    /// columns fill 16 bytes.
    quants: Vec<u8>,
    /// `[blocks][GROUPS][4 rows]`
    factors: [Vec<f32>; 2],
    /// `[sub-blocks][GROUPS][16 bytes]`
    scale_pairs: Vec<u8>,
    /// `[blocks][SUM_PAIRS][GROUPS][16 bytes]`
    sum_weights: Vec<u8>,
}

impl Tile {
    /// A tile for rows of `cols` numbers.
    pub fn new<B: Blocks>(cols: usize) -> Self {
        let n = cols / B::LEN;
        let n_vectors = 16 * GROUPS * n;
        Self {
            n,
            n_steps: std::hint::black_box(B::STEPS),
            quants: vec![0; 4 * GROUPS * cols * B::UNPACKED],
            factors: [true, B::MIN].map(|is| vec![0.0; if is { 4 * GROUPS * n } else { 0 }]),
            scale_pairs: vec![0; if B::IS_SCALED { n_vectors * B::N_SUB_BLOCKS } else { 0 }],
            sum_weights: vec![0; n_vectors * B::SUM_PAIRS],
        }
    }

    /// Unpacks four rows.
    ///
    /// # Safety
    /// The rows must hold as many numbers as the tile was made for, which are
    /// whole blocks.
    #[inline(never)]
    pub unsafe fn unpack<B: Blocks>(&mut self, group: usize, rows: impl FourRows) {
        // Known, it makes checks of places needless.
        assert!(group < GROUPS);
        let unit_len = B::SUB_BLOCKS * 4 * GROUPS * B::SUB_BLOCK * B::UNPACKED;
        let [factors, mins] = self.factors.each_mut().map(|f| f.as_chunks_mut::<4>().0);
        let scale_pairs = self.scale_pairs.as_chunks_mut::<16>().0;
        let sum_weights = self.sum_weights.as_chunks_mut::<16>().0;
        for (b, quants) in self.quants.chunks_exact_mut(B::UNITS * unit_len).enumerate() {
            // SAFETY: the caller vouches for the rows; block `b` is one of theirs.
            let (blocks, [factor, min], scales) = unsafe {
                let blocks = rows.behind(b * B::BYTES);
                (blocks, B::read_factors(blocks), B::scales(blocks))
            };
            factor.store_f32(&mut factors[GROUPS * b + group]);
            if B::MIN {
                min.store_f32(&mut mins[GROUPS * b + group]);
            }
            steps!(16, |i| {
                if B::IS_SCALED && i < B::N_SUB_BLOCKS {
                    let to = &mut scale_pairs[GROUPS * (B::N_SUB_BLOCKS * b + i) + group];
                    // SAFETY: the array holds 16 bytes.
                    unsafe { B::scale_pairs(scales, i).store(to.as_mut_ptr()) };
                }
                if i < B::SUM_PAIRS {
                    let to = &mut sum_weights[GROUPS * (B::SUM_PAIRS * b + i) + group];
                    // SAFETY: the array holds 16 bytes.
                    unsafe { B::sum_weights(scales, i).store(to.as_mut_ptr()) };
                }
            });
            for (unit, quants) in quants.chunks_exact_mut(unit_len).enumerate() {
                let quants = &mut quants[16 * group..];
                let put = |step: usize, q: V| {
                    // SAFETY: the slice holds 16 bytes.
                    unsafe { q.store(quants[16 * GROUPS * step..][..16].as_mut_ptr()) };
                };
                // SAFETY: the caller vouches for the rows.
                unsafe { B::unpack(blocks, unit, put) };
            }
        }
    }
}

/// The products of a tile with the first `n` vectors of a panel, or with all: three at a
/// time are no faster than four. What `out` has of other vectors means nothing.
///
/// # Safety
/// As for [`dot`].
#[inline(always)]
pub(super) unsafe fn dots<B: Blocks>(
    tile: &Tile,
    panels: &Panels,
    panel: usize,
    n: usize,
    out: &mut Products<TOKENS>,
) {
    // SAFETY: the caller vouches for the same.
    unsafe {
        match (n, &mut *out) {
            (1, [one, ..]) => dot::<B, 1>(tile, panels, panel, std::array::from_mut(one)),
            (2, [two @ .., _, _]) => dot::<B, 2>(tile, panels, panel, two),
            _ => dot::<B, TOKENS>(tile, panels, panel, out),
        }
    }
}

/// The products of a tile with the first `T` vectors of a panel, in the order that
/// `gemv` has. They are written at the end: what a function returns, LLVM would
/// write at every turn of the loop.
///
/// # Safety
/// The tile must have been unpacked in all groups and the panels made for
/// this format, for vectors of one length; `panel` must be one of the panels.
#[inline(never)]
unsafe fn dot<B: Blocks, const T: usize>(
    tile: &Tile,
    panels: &Panels,
    panel: usize,
    out: &mut Products<T>,
) {
    let len = 4 * B::SUB_BLOCK * B::UNPACKED;
    let mut sums = [[V::splat_f32(0.0); GROUPS]; T];
    let quants = panels.quants(panel).as_ptr();
    let scales = panels.scales(panel).as_ptr();
    let mut scale_pairs = [V::splat_i32(0x0001_0001); GROUPS];
    for b in 0..tile.n {
        let mut products = [[V::splat_i32(0); GROUPS]; T];
        for i in B::N_SUB_BLOCKS * b..B::N_SUB_BLOCKS * (b + 1) {
            // SAFETY: the caller vouches for tile and panel, which have sub-block
            // `i`.
            unsafe {
                if B::IS_SCALED {
                    scale_pairs = load_groups(tile.scale_pairs.as_ptr(), i);
                }
                let rows = tile.quants.as_ptr().add(GROUPS * len * i);
                let x = quants.add(len * i);
                B::dots_unpacked(rows, x, scale_pairs, tile.n_steps, &mut products);
            }
        }
        // SAFETY: as above; they have block `b`.
        unsafe {
            let weighted = weighted::<B, T>(tile, panels, panel, b);
            let [factors, mins] = tile.factors.each_ref().map(|f| f.as_ptr());
            let factors = load_groups(factors.cast(), b);
            let mins =
                if B::MIN && !B::IS_MIN_COMMON { load_groups(mins.cast(), b) } else { factors };
            let scales = V::load(scales.add(TOKENS * b).cast());
            for t in 0..T {
                let scale = scales.splat_lane(t);
                for g in 0..GROUPS {
                    let total = B::total([factors[g], mins[g]], products[t][g], weighted[t][g]);
                    sums[t][g] = sums[t][g].madd_f32(total, scale);
                }
            }
        }
    }
    *out = if B::IS_MIN_COMMON {
        // SAFETY: the caller vouches for the same.
        add(sums, unsafe { common_mins(tile, panels, panel) })
    } else {
        sums
    };
}

fn add<const T: usize>(a: Products<T>, b: Products<T>) -> Products<T> {
    std::array::from_fn(|t| std::array::from_fn(|g| a[t][g].add_f32(b[t][g])))
}

/// The minima of all blocks, each times the sum of its activations.
///
/// # Safety
/// As for [`dot`], for a format with common minima.
#[inline(always)]
unsafe fn common_mins<const T: usize>(tile: &Tile, panels: &Panels, panel: usize) -> Products<T> {
    let mut products = [[V::splat_f32(0.0); GROUPS]; T];
    let mins = tile.factors[1].chunks(8 * 4 * GROUPS);
    for (mins, sums) in mins.zip(panels.sums(panel).chunks(8 * TOKENS)) {
        let n = sums.len() / TOKENS;
        steps!(8, n, |i| {
            // SAFETY: tile and panel have something for each of `n` blocks.
            let (mins, sums): ([V; GROUPS], V) = unsafe {
                let sums = V::load(sums.as_ptr().add(TOKENS * i).cast());
                (load_groups(mins.as_ptr().cast(), i), sums)
            };
            for (t, products) in products.iter_mut().enumerate() {
                let sum = sums.splat_lane(t);
                for (product, min) in products.iter_mut().zip(mins) {
                    *product = product.madd_f32(min, sum);
                }
            }
        });
    }
    products
}

/// The sums of the activations of block `b`, times their weights.
///
/// # Safety
/// As for [`dot`]; the block must exist.
#[inline(always)]
unsafe fn weighted<B: Blocks, const T: usize>(
    tile: &Tile,
    panels: &Panels,
    panel: usize,
    b: usize,
) -> Products<T> {
    let sums = panels.sums(panel).as_ptr();
    if B::SUM_PAIRS == 0 {
        // SAFETY: the panel has a sum for each token and block.
        let sums = unsafe { V::load(sums.add(TOKENS * b).cast()) };
        return std::array::from_fn(|t| [sums.splat_lane(t); GROUPS]);
    }
    let mut weighted = [[V::splat_i32(0); GROUPS]; T];
    for p in B::SUM_PAIRS * b..B::SUM_PAIRS * (b + 1) {
        // SAFETY: tile and panel have so many for each block.
        let (weights, sums): ([V; GROUPS], V) = unsafe {
            (load_groups(tile.sum_weights.as_ptr(), p), V::load(sums.add(TOKENS * p).cast()))
        };
        for (t, weighted) in weighted.iter_mut().enumerate() {
            let pair = sums.splat_lane(t);
            for (weighted, weights) in weighted.iter_mut().zip(weights) {
                *weighted = weighted.add_i32(weights.dot_i16(pair));
            }
        }
    }
    weighted
}

/// Vectors number `i` of the groups.
///
/// # Safety
/// They must exist.
#[inline(always)]
unsafe fn load_groups(vectors: *const u8, i: usize) -> [V; GROUPS] {
    // SAFETY: the caller vouches for it.
    std::array::from_fn(|g| unsafe { V::load(vectors.add(16 * (GROUPS * i + g))) })
}
