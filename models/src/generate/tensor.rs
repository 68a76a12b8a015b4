//! Tensors: their names and shapes, and the numbers in them.

use std::io;

use super::ALIGNMENT;
use super::numbers::{Numbers, Q4_K_BYTES, Q4_K_LEN};

/// Numbers of F32 that are made at a time.
const F32_LEN: usize = 4096;

/// A tensor of random numbers.
pub struct Tensor {
    pub name: String,
    /// The length of a row first.
    pub dims: Vec<u64>,
    values: Values,
}

enum Values {
    /// Q4_K, with this standard deviation.
    Q4K(f32),
    /// F32, evenly spread around a middle by at most so much.
    F32 { middle: f32, spread: f32 },
}

impl Tensor {
    /// A matrix, or one for each expert, that turns a vector of magnitude 1
    /// (root mean square) into one of magnitude `gain`.
    pub fn matrix(name: &str, dims: &[u64], gain: f32) -> Self {
        let values = Values::Q4K(gain / (dims[0] as f32).sqrt());
        Self { name: format!("{name}.weight"), dims: dims.to_vec(), values }
    }

    /// As [`matrix`](Self::matrix), not quantised: files keep routers so.
    pub fn router(name: &str, dims: &[u64], gain: f32) -> Self {
        // The deviation of an even spread by `s` is s / sqrt(3).
        let values = Values::F32 { middle: 0.0, spread: gain * (3.0 / dims[0] as f32).sqrt() };
        Self { name: format!("{name}.weight"), dims: dims.to_vec(), values }
    }

    /// The weight of a norm, near 1.
    pub fn norm(name: &str, n: u64) -> Self {
        let values = Values::F32 { middle: 1.0, spread: 0.25 };
        Self { name: format!("{name}.weight"), dims: vec![n], values }
    }

    /// The type as the format numbers them.
    pub fn type_id(&self) -> u32 {
        match self.values {
            Values::F32 { .. } => 0,
            Values::Q4K(_) => 12,
        }
    }

    /// The size in bytes.
    pub fn bytes(&self) -> u64 {
        match self.values {
            Values::F32 { .. } => 4 * self.n_elements(),
            Values::Q4K(_) => self.n_elements() / Q4_K_LEN as u64 * Q4_K_BYTES as u64,
        }
    }

    fn n_elements(&self) -> u64 {
        self.dims.iter().product()
    }

    /// Writes the numbers, and the padding behind them.
    pub fn write(
        &self,
        numbers: &mut Numbers,
        sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let n = self.n_elements() as usize;
        match self.values {
            Values::Q4K(deviation) => {
                // One matrix row, or one of many experts' rows, at a time.
                let mut row = vec![0; self.dims[0] as usize / Q4_K_LEN * Q4_K_BYTES];
                for _ in 0..n / self.dims[0] as usize {
                    numbers.q4_k(deviation, &mut row);
                    sink(&row)?;
                }
            }
            Values::F32 { middle, spread } => {
                let mut bytes = Vec::new();
                for start in (0..n).step_by(F32_LEN) {
                    bytes.clear();
                    for _ in start..n.min(start + F32_LEN) {
                        bytes.extend((middle + spread * numbers.even()).to_le_bytes());
                    }
                    sink(&bytes)?;
                }
            }
        }
        let padding = self.bytes().next_multiple_of(ALIGNMENT) - self.bytes();
        sink(&[0; ALIGNMENT as usize][..padding as usize])
    }
}
