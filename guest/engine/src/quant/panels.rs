//! Activations, rearranged for products with many rows.

use super::activations::{Activations, BLOCK};
use super::blocks::Blocks;
use crate::simd::V;

/// Vectors in a panel.
pub(super) const TOKENS: usize = 4;

/// Vectors, interleaved by fours. The last one is repeated where the last
/// panel is not full.
pub(super) struct Panels {
    n: usize,
    /// `[panels][cols / 4][TOKENS][4]` as i8, or `[panels][cols / 2][TOKENS][2]`
    /// as i16.
    quants: Vec<u8>,
    /// `[panels][blocks][TOKENS]`
    scales: Vec<f32>,
    sums: Vec<f32>,
    /// `[panels][sub-blocks][TOKENS]`
    offsets: Vec<i32>,
}

impl Panels {
    /// The vectors of the given tokens, for a format.
    pub fn new<B: Blocks>(x: &Activations, tokens: &[usize]) -> Self {
        let n = tokens.len().div_ceil(TOKENS);
        let numbers = n * TOKENS * x.cols();
        let mut panels = Self {
            n,
            quants: vec![0; numbers * B::UNPACKED],
            scales: vec![0.0; numbers / BLOCK],
            sums: vec![0.0; if B::MIN { numbers / BLOCK } else { 0 }],
            offsets: vec![0; if B::OFFSET == 0 { 0 } else { numbers / B::SUB_BLOCK }],
        };
        for (i, panel) in tokens.chunks(TOKENS).enumerate() {
            let four = std::array::from_fn(|t| panel[t.min(panel.len() - 1)]);
            let quants = four.map(|t| if B::UNPACKED == 2 { x.bytes16(t) } else { x.bytes8(t) });
            interleave_pieces(quants, part_mut(&mut panels.quants, n, i));
            interleave(four.map(|t| x.scales(t)), part_mut(&mut panels.scales, n, i));
            if B::MIN {
                interleave(four.map(|t| x.sums(t)), part_mut(&mut panels.sums, n, i));
            }
            if B::OFFSET != 0 {
                let offsets = part_mut(&mut panels.offsets, n, i);
                interleave(four.map(|t| x.whole_sums(t, B::SUB_BLOCK)), offsets);
                offsets.iter_mut().for_each(|x| *x *= -B::OFFSET);
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

    pub fn sums(&self, panel: usize) -> &[f32] {
        part(&self.sums, self.n, panel)
    }

    pub fn offsets(&self, panel: usize) -> &[i32] {
        part(&self.offsets, self.n, panel)
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

fn interleave<T: Copy>(from: [&[T]; TOKENS], to: &mut [T]) {
    for (i, to) in to.as_chunks_mut::<TOKENS>().0.iter_mut().enumerate() {
        *to = from.map(|from| from[i]);
    }
}

/// Interleaves 4 bytes at a time.
fn interleave_pieces(from: [&[u8]; TOKENS], to: &mut [u8]) {
    for (i, to) in to.as_chunks_mut::<64>().0.iter_mut().enumerate() {
        let pieces = from.map(|from| {
            let piece: &[u8; 16] = &from.as_chunks().0[i];
            // SAFETY: the piece holds 16 bytes.
            unsafe { V::load(piece.as_ptr()) }
        });
        for (v, to) in V::transpose_32(pieces).into_iter().zip(to.as_chunks_mut::<16>().0) {
            // SAFETY: the chunk holds 16 bytes.
            unsafe { v.store(to.as_mut_ptr()) };
        }
    }
}
