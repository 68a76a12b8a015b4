//! Tensors: their names and shapes, and the numbers in them.

use std::io;

use moewe_gguf::{ALIGNMENT, TensorType};

use super::numbers::{Format, Numbers};

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
    /// In this format, with this standard deviation.
    Weights(Format, f32),
    /// F32, evenly spread around a middle by at most so much.
    F32 { middle: f32, spread: f32 },
}

impl Tensor {
    /// A matrix, or one for each expert, that turns a vector of magnitude 1
    /// (root mean square) into one of magnitude `gain`.
    pub fn matrix(name: &str, dims: &[u64], gain: f32) -> Self {
        let values = Values::Weights(Format::Q4K, gain / (dims[0] as f32).sqrt());
        Self { name: format!("{name}.weight"), dims: dims.to_vec(), values }
    }

    /// The same matrix in another format.
    pub fn stored_as(mut self, format: Format) -> Self {
        if let Values::Weights(own, _) = &mut self.values {
            *own = format;
        }
        self
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

    /// A bias, near 0.
    pub fn bias(name: &str, n: u64) -> Self {
        let values = Values::F32 { middle: 0.0, spread: 0.25 };
        Self { name: format!("{name}.bias"), dims: vec![n], values }
    }

    /// How its numbers are stored.
    pub fn ty(&self) -> TensorType {
        match self.values {
            Values::F32 { .. } => TensorType::F32,
            Values::Weights(format, _) => format.ty(),
        }
    }

    /// Whether it is a matrix of a layer.
    pub fn is_of_layer(&self) -> bool {
        matches!(self.values, Values::Weights(..)) && self.name.starts_with("blk.")
    }

    /// The size in bytes, with the padding behind it.
    pub fn padded_bytes(&self) -> u64 {
        self.bytes().next_multiple_of(ALIGNMENT)
    }

    /// The size in bytes.
    fn bytes(&self) -> u64 {
        let ty = self.ty();
        self.n_elements() / ty.block_len() * ty.block_bytes()
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
            Values::Weights(format, deviation) => {
                // One matrix row, or one of many experts' rows, at a time.
                let mut row = vec![0; format.bytes(self.dims[0] as usize)];
                for _ in 0..n / self.dims[0] as usize {
                    numbers.weights(format, deviation, &mut row);
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
        let padding = self.padded_bytes() - self.bytes();
        sink(&[0; ALIGNMENT as usize][..padding as usize])
    }
}
