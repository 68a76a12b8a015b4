//! Keys and values as numbers of 16 bits, half of the memory.
//!
//! WebAssembly has no instruction for them; they become f32 by shifts and a product, a
//! panel at a time, which a tile of queries shares.

use super::panels::Panels;
use super::shape::{CHUNK, PANEL, place};
use crate::quant::f16;
use crate::simd::V;

pub(super) struct F16;

impl Panels for F16 {
    fn bytes(&self, n: usize) -> usize {
        n * size_of::<u16>()
    }

    fn max(&self) -> f32 {
        f16::MAX
    }

    fn put_key(&self, panel: &mut [u8], column: usize, key: &[f32]) {
        let (numbers, _) = panel.as_chunks_mut::<2>();
        let at = place(column, PANEL);
        for (row, &x) in numbers.chunks_exact_mut(PANEL).zip(key) {
            row[at] = f16::to_bits(x).to_le_bytes();
        }
    }

    fn put_value(&self, values: &mut [u8], row: usize, value: &[f32]) {
        let (numbers, _) = values.as_chunks_mut::<2>();
        for (panel, x) in numbers.chunks_mut(CHUNK * PANEL).zip(value.chunks(PANEL)) {
            let row = &mut panel[row * x.len()..][..x.len()];
            for (i, &number) in x.iter().enumerate() {
                row[place(i, x.len())] = f16::to_bits(number).to_le_bytes();
            }
        }
    }

    fn keys<'a>(&self, panel: &'a [u8], head_dim: usize, room: &'a mut [f32]) -> &'a [f32] {
        let room = &mut room[..head_dim * PANEL];
        widen(panel, room);
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
        let panel = &values[CHUNK * self.bytes(column)..][..self.bytes(n)];
        let room = &mut room[..n];
        if width == PANEL {
            widen(panel, room);
        } else {
            let numbers = panel.as_chunks::<2>().0.iter().map(|&bytes| u16::from_le_bytes(bytes));
            room.iter_mut().zip(numbers).for_each(|(x, bits)| *x = f16::from_bits(bits));
        }
        &room[..n_rows * width]
    }
}

/// A multiple of four rows of eight numbers.
fn widen(rows: &[u8], out: &mut [f32]) {
    let (rows, _) = rows.as_chunks::<16>();
    let (wide, _) = out.as_chunks_mut::<4>();
    for (rows, wide) in rows.as_chunks::<4>().0.iter().zip(wide.as_chunks_mut::<8>().0) {
        for (row, [low, high]) in rows.iter().zip(wide.as_chunks_mut::<2>().0) {
            // SAFETY: a row has 16 bytes.
            let row = unsafe { V::load(row.as_ptr()) };
            f16::low(row).store_f32(low);
            f16::high(row).store_f32(high);
        }
    }
}
