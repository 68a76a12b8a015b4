//! Keys and values as whole numbers of 8 bits, 32 of which share a scale: a quarter of
//! the memory, and a sixteenth of that for scales. The last numbers of a head share one
//! if there are fewer of them.
//!
//! Blocks run along a head. A panel of keys is a block after the other, each the scales
//! of its columns and then its rows. A chunk of values is a block of columns after the
//! other, each the scales of its rows and then its panels.

use super::panels::Panels;
use super::shape::{CHUNK, PANEL, place};
use crate::quant::f16;
use crate::simd::V;

/// Numbers that share a scale.
const BLOCK: usize = 32;
/// Bytes of a scale.
const SCALE: usize = size_of::<u16>();
/// The largest magnitude of a whole number.
const QUANT_MAX: f32 = 127.0;

pub(super) struct Q8_0;

impl Panels for Q8_0 {
    fn bytes(&self, n: usize) -> usize {
        n + n.div_ceil(BLOCK) * SCALE
    }

    fn max(&self) -> f32 {
        QUANT_MAX * f16::MAX
    }

    fn put_key(&self, panel: &mut [u8], column: usize, key: &[f32]) {
        let at = place(column, PANEL);
        let blocks = panel.chunks_mut(PANEL * (SCALE + BLOCK));
        for (block, x) in blocks.zip(key.chunks(BLOCK)) {
            let (scales, rows) = block.split_at_mut(PANEL * SCALE);
            let scale = put_scale(&mut scales.as_chunks_mut().0[at], x);
            for (row, &x) in rows.chunks_exact_mut(PANEL).zip(x) {
                row[at] = quantize(x, scale);
            }
        }
    }

    fn put_value(&self, values: &mut [u8], row: usize, value: &[f32]) {
        let blocks = values.chunks_mut(CHUNK * (SCALE + BLOCK));
        for (block, x) in blocks.zip(value.chunks(BLOCK)) {
            let (scales, panels) = block.split_at_mut(CHUNK * SCALE);
            let scale = put_scale(&mut scales.as_chunks_mut().0[row], x);
            for (panel, x) in panels.chunks_mut(CHUNK * PANEL).zip(x.chunks(PANEL)) {
                let row = &mut panel[row * x.len()..][..x.len()];
                for (i, &number) in x.iter().enumerate() {
                    row[place(i, x.len())] = quantize(number, scale);
                }
            }
        }
    }

    fn keys<'a>(&self, panel: &'a [u8], head_dim: usize, room: &'a mut [f32]) -> &'a [f32] {
        let room = &mut room[..head_dim * PANEL];
        let blocks = panel.chunks(PANEL * (SCALE + BLOCK));
        for (block, out) in blocks.zip(room.chunks_mut(PANEL * BLOCK)) {
            let (scales, rows) = block.split_at(PANEL * SCALE);
            // SAFETY: eight scales have 16 bytes.
            let scales = unsafe { V::load(scales.as_ptr()) };
            let scales = [f16::low(scales), f16::high(scales)];
            widen(rows, |_| [scales; 4], out);
        }
        room
    }

    fn values<'a>(
        &self,
        values: &'a [u8],
        head_dim: usize,
        column: usize,
        n_rows: usize,
        room: &'a mut [f32],
    ) -> &'a [f32] {
        let width = PANEL.min(head_dim - column);
        let n = n_rows.next_multiple_of(4) * width;
        let block = &values[column / BLOCK * CHUNK * (SCALE + BLOCK)..];
        let (scales, panels) = block.split_at(CHUNK * SCALE);
        let panel = &panels[CHUNK * (column % BLOCK)..][..n];
        let room = &mut room[..n];
        if width == PANEL {
            let (scales, _) = scales.as_chunks::<8>();
            let scales_of = |four: usize| {
                // SAFETY: four scales have 8 bytes.
                let scales = f16::alone(unsafe { V::load_u16x4(scales[four].as_ptr()) });
                [0, 1, 2, 3].map(|i| [scales.splat_lane(i); 2])
            };
            widen(panel, scales_of, room);
        } else {
            let rows = room.chunks_exact_mut(width).zip(panel.chunks_exact(width));
            for ((out, row), &scale) in rows.zip(scales.as_chunks().0) {
                let scale = f16::from_bits(u16::from_le_bytes(scale));
                out.iter_mut().zip(row).for_each(|(x, &q)| *x = f32::from(q as i8) * scale);
            }
        }
        &room[..n_rows * width]
    }
}

/// A multiple of four rows of eight numbers; `scales_of` says for the number of four rows
/// what each of them is scaled by.
#[inline(always)]
fn widen(rows: &[u8], scales_of: impl Fn(usize) -> [[V; 2]; 4], out: &mut [f32]) {
    let (rows, _) = rows.as_chunks::<8>();
    let (wide, _) = out.as_chunks_mut::<4>();
    let fours = rows.as_chunks::<4>().0.iter().zip(wide.as_chunks_mut::<8>().0);
    for (four, (rows, wide)) in fours.enumerate() {
        let rows = rows.iter().zip(scales_of(four));
        for ((row, [a, b]), [low, high]) in rows.zip(wide.as_chunks_mut::<2>().0) {
            // SAFETY: a row has 8 bytes.
            let row = unsafe { V::load_i8x8(row.as_ptr()) };
            // The numbers at even places, and those at odd ones.
            row.dot_i16(V::splat_i32(1)).to_f32x4().mul_f32(a).store_f32(low);
            row.shr_i32(16).to_f32x4().mul_f32(b).store_f32(high);
        }
    }
}

/// Puts the smallest scale with which the numbers fit 8 bits, and answers it.
fn put_scale(at: &mut [u8; SCALE], x: &[f32]) -> f32 {
    let max = x.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
    let nearest = f16::to_bits(max / QUANT_MAX);
    let fits = nearest == f16::to_bits(f16::MAX) || f16::from_bits(nearest) * QUANT_MAX >= max;
    let bits = if fits { nearest } else { nearest + 1 };
    *at = bits.to_le_bytes();
    f16::from_bits(bits)
}

/// The whole number that is nearest to `x / scale`.
fn quantize(x: f32, scale: f32) -> u8 {
    let quotient = if scale == 0.0 { 0.0 } else { x / scale };
    quotient.round_ties_even().clamp(-QUANT_MAX, QUANT_MAX) as i8 as u8
}
