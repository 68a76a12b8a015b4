//! Activations, rearranged for products with many rows.

use super::activations::{ActivationBlock, Activations, BLOCK};
use super::blocks::Blocks;
use super::shape::TOKENS;
use crate::simd::V;

/// Vectors, interleaved by fours. The last one is repeated where the last
/// panel is not full.
pub(super) struct Panels {
    n: usize,
    /// `[panels][cols / 4][TOKENS][4]` as i8, or `[panels][cols / 2][TOKENS][2]`
    /// as i16.
    quants: Vec<u8>,
    /// `[panels][blocks][TOKENS]`
    scales: Vec<f32>,
    /// `[panels][blocks][TOKENS]`, as f32 and scaled for a common minimum; or
    /// `[panels][blocks][SUM_PAIRS][TOKENS]` in pairs.
    sums: Vec<i32>,
}

impl Panels {
    /// The vectors of the given tokens, for a format.
    pub fn new<B: Blocks>(x: &Activations, tokens: &[usize]) -> Self {
        let n = tokens.len().div_ceil(TOKENS);
        let numbers = n * TOKENS * x.cols();
        let mut panels = Self {
            n,
            quants: vec![0; numbers * B::UNPACKED],
            scales: vec![0.0; numbers / B::LEN],
            sums: vec![0; numbers / B::LEN * B::SUM_PAIRS.max(1)],
        };
        for (i, panel) in tokens.chunks(TOKENS).enumerate() {
            let four = std::array::from_fn(|t| x.blocks(panel[t.min(panel.len() - 1)], B::LEN));
            let quants = part_mut(&mut panels.quants, n, i).as_chunks_mut::<64>().0;
            let per_block = BLOCK * B::UNPACKED / 16;
            for (i, to) in quants.iter_mut().enumerate() {
                let (block, piece) = (i / per_block, i % per_block);
                interleave(four.map(|blocks| blocks[block].piece(B::UNPACKED == 2, piece)), to);
            }
            let four = four.map(|blocks| blocks.chunks_exact(B::LEN / BLOCK));
            let scales = part_mut(&mut panels.scales, n, i).as_chunks_mut::<TOKENS>().0;
            let sums = part_mut(&mut panels.sums, n, i).as_chunks_mut::<TOKENS>().0;
            for (i, scales) in scales.iter_mut().enumerate() {
                let four = four.clone().map(|mut blocks| blocks.nth(i).expect("a whole block"));
                *scales = four.map(|x| x[0].scale);
                match B::SUM_PAIRS {
                    0 if B::IS_MIN_COMMON => {
                        sums[i] = four.map(|x| bytemuck::cast(x[0].scaled_sum));
                    }
                    0 => sums[i] = four.map(|x| x[0].sum),
                    n => (0..n).for_each(|p| {
                        let pair = |x: &[ActivationBlock]| x[B::SUMS_AT + p / 4].pairs[p % 4];
                        sums[n * i + p] = four.map(|x| bytemuck::cast(pair(x)));
                    }),
                }
            }
        }
        panels
    }

    pub fn quants(&self, panel: usize) -> &[u8] {
        part(&self.quants, self.n, panel)
    }

    pub fn scales(&self, panel: usize) -> &[f32] {
        part(&self.scales, self.n, panel)
    }

    pub fn sums(&self, panel: usize) -> &[i32] {
        part(&self.sums, self.n, panel)
    }
}

/// Part `i` of `n` equal ones.
fn part<T>(all: &[T], n: usize, i: usize) -> &[T] {
    let len = all.len() / n;
    &all[i * len..(i + 1) * len]
}

fn part_mut<T>(all: &mut [T], n: usize, i: usize) -> &mut [T] {
    let len = all.len() / n;
    &mut all[i * len..(i + 1) * len]
}

/// Interleaves 4 bytes at a time.
fn interleave(pieces: [&[u8; 16]; TOKENS], to: &mut [u8; 64]) {
    // SAFETY: each piece holds 16 bytes.
    let pieces = pieces.map(|piece| unsafe { V::load(piece.as_ptr()) });
    for (v, to) in V::transpose_32(pieces).into_iter().zip(to.as_chunks_mut::<16>().0) {
        // SAFETY: the chunk holds 16 bytes.
        unsafe { v.store(to.as_mut_ptr()) };
    }
}
