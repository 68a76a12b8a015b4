//! Keys and values as they are computed.

use super::panels::Panels;
use super::shape::{CHUNK, PANEL};

pub(super) struct F32;

impl Panels for F32 {
    fn bytes(&self, n: usize) -> usize {
        n * size_of::<f32>()
    }

    fn max(&self) -> f32 {
        f32::INFINITY
    }

    fn put_key(&self, panel: &mut [u8], column: usize, key: &[f32]) {
        let panel: &mut [f32] = bytemuck::cast_slice_mut(panel);
        panel.chunks_exact_mut(PANEL).zip(key).for_each(|(row, &x)| row[column] = x);
    }

    fn put_value(&self, values: &mut [u8], row: usize, value: &[f32]) {
        let values: &mut [f32] = bytemuck::cast_slice_mut(values);
        for (panel, x) in values.chunks_mut(CHUNK * PANEL).zip(value.chunks(PANEL)) {
            panel[row * x.len()..][..x.len()].copy_from_slice(x);
        }
    }

    fn keys<'a>(&self, panel: &'a [u8], _: usize, _: &'a mut [f32]) -> &'a [f32] {
        bytemuck::cast_slice(panel)
    }

    fn values<'a>(
        &self,
        values: &'a [u8],
        head_dim: usize,
        column: usize,
        n_rows: usize,
        _: &'a mut [f32],
    ) -> &'a [f32] {
        let width = PANEL.min(head_dim - column);
        &bytemuck::cast_slice(values)[CHUNK * column..][..n_rows * width]
    }
}
