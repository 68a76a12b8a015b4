//! Matrix times a batch of vectors.
//!
//! Rows are unpacked to bytes a tile at a time, which all vectors of the batch
//! then use. In a tile, four rows are interleaved: a lane is a row, and there
//! are no sums across lanes.

use super::activations::Vector;
use super::blocks::Blocks;
use super::raw::{RawBlock, RawRows};
use crate::simd::V;

/// Groups of four rows in a tile.
pub(super) const GROUPS: usize = 2;
/// Vectors that the innermost loop takes at once.
pub(super) const TOKENS: usize = 4;

/// Unpacked rows.
#[derive(Default)]
pub(super) struct Tile {
    /// Bytes of a group's numbers; of its scales or minima.
    quants_len: usize,
    scales_len: usize,
    /// `[GROUPS][sub-blocks]`, each as `Quants::unpack` has written it.
    quants: Vec<u8>,
    /// `[GROUPS][sub-blocks][4 rows]`
    scales: Vec<f32>,
    mins: Vec<f32>,
}

impl Tile {
    /// A tile for rows of `cols` numbers.
    pub fn new<B: Blocks>(cols: usize) -> Self {
        let (quants_len, scales_len) = (4 * cols * B::UNPACKED, 4 * cols / B::SUB_BLOCK);
        Self {
            quants_len,
            scales_len,
            quants: vec![0; GROUPS * quants_len],
            scales: vec![0.0; GROUPS * scales_len],
            mins: vec![0.0; if B::MIN { GROUPS * scales_len } else { 0 }],
        }
    }

    /// Unpacks four rows.
    ///
    /// # Safety
    /// The rows must hold as many numbers as the tile was made for, which are
    /// whole blocks.
    pub unsafe fn unpack<B: Blocks>(&mut self, group: usize, rows: [*const u8; 4]) {
        let quants = &mut self.quants[group * self.quants_len..][..self.quants_len];
        let range = group * self.scales_len..(group + 1) * self.scales_len;
        let mut scales = self.scales[range.clone()].as_chunks_mut::<4>().0.iter_mut();
        let mut mins =
            self.mins.get_mut(range).unwrap_or_default().as_chunks_mut::<4>().0.iter_mut();
        let sub_block_len = 4 * B::SUB_BLOCK * B::UNPACKED;
        for (b, quants) in quants.chunks_exact_mut(B::SUB_BLOCKS * sub_block_len).enumerate() {
            let blocks = rows.map(|row| row.wrapping_add(b * B::BYTES));
            // SAFETY: the caller vouches for the rows; block `b` is one of theirs.
            let header = unsafe { B::header(RawRows(blocks)) };
            for (i, quants) in quants.chunks_exact_mut(sub_block_len).enumerate() {
                // SAFETY: as above, and the chunk has the size that is written.
                unsafe { B::unpack(blocks.map(RawBlock), i, quants.as_mut_ptr()) };
                if let Some(scales) = scales.next() {
                    B::scales(header, i).store_f32(scales);
                }
                if let Some(mins) = mins.next() {
                    B::mins(header, i).store_f32(mins);
                }
            }
        }
    }

    /// The products of the first `N` groups' rows with `T` vectors, in the
    /// order that `gemv::dot_rows` has: a lane for each row.
    ///
    /// # Safety
    /// The groups must have been unpacked as this format, and each vector must
    /// hold as many numbers as the tile was made for.
    #[inline(always)]
    pub unsafe fn dot<B: Blocks, const N: usize, const T: usize>(
        &self,
        x: [Vector; T],
    ) -> [[V; N]; T] {
        let mut sums = [[V::splat_f32(0.0); N]; T];
        let quants: [*const u8; N] =
            std::array::from_fn(|g| self.quants[g * self.quants_len..].as_ptr());
        let scales: [*const f32; N] =
            std::array::from_fn(|g| self.scales[g * self.scales_len..].as_ptr());
        for i in 0..self.scales_len / 4 {
            // SAFETY: the caller vouches for the vectors, and sub-block `i` is
            // one of the tile's, whose groups have the size that `new` gave
            // them.
            unsafe {
                let at = 4 * B::SUB_BLOCK * B::UNPACKED * i;
                let part = x.map(|x| x.from(B::SUB_BLOCK * i));
                let mut dots = B::dots_unpacked(quants.map(|quants| quants.add(at)), part);
                if B::OFFSET != 0 {
                    for (x, dots) in x.iter().zip(&mut dots) {
                        let offset = x.offset::<B>(i);
                        dots.iter_mut().for_each(|dot| *dot = dot.add_i32(offset));
                    }
                }
                let scales = scales.map(|scales| V::load(scales.add(4 * i).cast()));
                for ((x, dots), sums) in x.iter().zip(dots).zip(&mut sums) {
                    let x = x.scale::<B>(i);
                    for ((scale, dot), sum) in scales.iter().zip(dots).zip(sums) {
                        *sum = sum.madd_f32(dot.to_f32x4(), scale.mul_f32(x));
                    }
                }
            }
        }
        if B::MIN {
            // SAFETY: as above.
            let mins: [[V; N]; T] = unsafe { self.dot_mins(x) };
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
    /// As for [`Tile::dot`].
    #[inline(always)]
    unsafe fn dot_mins<const N: usize, const T: usize>(&self, x: [Vector; T]) -> [[V; N]; T] {
        let mut sums = [[V::splat_f32(0.0); N]; T];
        let mins: [*const f32; N] =
            std::array::from_fn(|g| self.mins[g * self.scales_len..].as_ptr());
        for i in 0..self.scales_len / 4 {
            // SAFETY: as in `dot`.
            unsafe {
                let mins = mins.map(|mins| V::load(mins.add(4 * i).cast()));
                for (x, sums) in x.iter().zip(&mut sums) {
                    let x = x.sum(i);
                    for (mins, sum) in mins.iter().zip(sums) {
                        *sum = sum.madd_f32(*mins, x);
                    }
                }
            }
        }
        sums
    }
}
