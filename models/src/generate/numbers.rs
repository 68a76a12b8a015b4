//! Random numbers, and weights of them.

use half::f16;
use moewe_gguf::TensorType;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    F16,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

impl Format {
    /// The type of tensors in this format.
    pub fn ty(self) -> TensorType {
        match self {
            Self::F16 => TensorType::F16,
            Self::Q8_0 => TensorType::Q8_0,
            Self::Q4K => TensorType::Q4_K,
            Self::Q5K => TensorType::Q5_K,
            Self::Q6K => TensorType::Q6_K,
        }
    }

    /// What so many weights take; they are whole blocks.
    pub fn bytes(self, n: usize) -> usize {
        n / self.ty().block_len() as usize * self.block_bytes()
    }

    /// The bytes of a block.
    fn block_bytes(self) -> usize {
        self.ty().block_bytes() as usize
    }
}

/// The standard deviation of the whole numbers that a block can hold, in a row
/// around 0 and all as probable.
const Q8_0_DEVIATION: f32 = 73.899_03;
const Q4_K_DEVIATION: f32 = 4.609_772;
const Q5_K_DEVIATION: f32 = 9.233_093;
const Q6_K_DEVIATION: f32 = 18.472_95;
/// The root mean square of the scales of sub-blocks, 32 to 63.
const SCALE: f32 = 48.389_05;

/// A stream of random numbers: equal on every machine for equal seeds.
pub struct Numbers {
    random: Xoshiro256PlusPlus,
}

impl Numbers {
    pub fn new(seed: u64) -> Self {
        Self { random: Xoshiro256PlusPlus::seed_from_u64(seed) }
    }

    /// A number from -1 to 1, every one as probable as another.
    pub fn even(&mut self) -> f32 {
        (self.random.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Fills `row`, whole blocks of `format`, with weights of mean 0 and the given
    /// standard deviation.
    pub fn weights(&mut self, format: Format, deviation: f32, row: &mut [u8]) {
        for block in row.chunks_exact_mut(format.block_bytes()) {
            match format {
                Format::F16 => {
                    // The deviation of an even spread by `s` is s / sqrt(3).
                    let x = f16::from_f32(deviation * 3.0f32.sqrt() * self.even());
                    block.copy_from_slice(&x.to_le_bytes());
                }
                Format::Q8_0 => {
                    self.random.fill_bytes(&mut block[2..]);
                    block[..2].copy_from_slice(&half(deviation / Q8_0_DEVIATION));
                }
                Format::Q4K => self.q45_k(deviation / (Q4_K_DEVIATION * SCALE), 7.5, block),
                Format::Q5K => self.q45_k(deviation / (Q5_K_DEVIATION * SCALE), 15.5, block),
                Format::Q6K => {
                    self.random.fill_bytes(block);
                    // Sixteen scales, of both signs.
                    for scale in &mut block[192..208] {
                        let size = 32 | *scale & 31;
                        *scale = if *scale & 0x80 == 0 { size } else { size.wrapping_neg() };
                    }
                    block[208..].copy_from_slice(&half(deviation / (Q6_K_DEVIATION * SCALE)));
                }
            }
        }
    }

    /// A block of Q4_K or Q5_K, which differ in what is behind their scales.
    ///
    /// A weight is `d * scale * q - dmin * min`. With `min` equal to `scale`
    /// and `dmin` to `middle * d`, it is `d * scale * (q - middle)`.
    fn q45_k(&mut self, d: f32, middle: f32, block: &mut [u8]) {
        self.random.fill_bytes(block);
        block[..2].copy_from_slice(&half(d));
        block[2..4].copy_from_slice(&half(middle * d));
        // Eight scales of 6 bits, eight minima of 6 bits. The first four
        // of each fill the low bits of a byte; of the last four, the low
        // bits lie in the last bytes, and the two high bits on top of the
        // first ones.
        for i in 4..8 {
            let (first, last) = (32 | block[i] & 31, 32 | block[i + 4] & 31);
            let low = first | last >> 4 << 6;
            (block[i], block[i + 4]) = (low, low);
            block[i + 8] = (last & 15) * 0x11;
        }
    }
}

fn half(x: f32) -> [u8; 2] {
    f16::from_f32(x).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The scale of a sub-block of Q4_K or Q5_K and its minimum, as ggml unpacks
    /// them.
    fn scales(block: &[u8], i: usize) -> (f32, f32) {
        let (scale, min) = match i {
            0..4 => (block[4 + i] & 63, block[8 + i] & 63),
            _ => {
                (block[8 + i] & 15 | block[i] >> 6 << 4, block[8 + i] >> 4 | block[4 + i] >> 6 << 4)
            }
        };
        (scale.into(), min.into())
    }

    /// The weights of a block, as ggml unpacks them, in any order.
    fn unpack(format: Format, block: &[u8]) -> Vec<f32> {
        let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        let nibble = |byte: u8, i: usize| byte >> (4 * (i % 2)) & 15;
        let k = |at: usize, high: &dyn Fn(usize, usize) -> u8| -> Vec<f32> {
            let weight = |n: usize| {
                let (i, j) = (n / 32, n % 32);
                let q = nibble(block[at + i / 2 * 32 + j], i) + high(i, j);
                let (scale, min) = scales(block, i);
                half(0) * scale * f32::from(q) - half(2) * min
            };
            (0..256).map(weight).collect()
        };
        match format {
            Format::F16 => vec![half(0)],
            Format::Q8_0 => block[2..].iter().map(|&q| half(0) * f32::from(q as i8)).collect(),
            Format::Q4K => k(16, &|_, _| 0),
            Format::Q5K => k(48, &|i, j| (block[16 + j] >> i & 1) << 4),
            Format::Q6K => {
                let weight = |n: usize| {
                    let (half_block, i, j) = (n / 128, n / 32 % 4, n % 32);
                    let low = nibble(block[64 * half_block + 32 * (i % 2) + j], i / 2);
                    let high = block[128 + 32 * half_block + j] >> (2 * i) & 3;
                    let scale = block[192 + 8 * half_block + 2 * i + j / 16] as i8;
                    half(208) * f32::from(scale) * (f32::from(low | high << 4) - 32.0)
                };
                (0..256).map(weight).collect()
            }
        }
    }

    #[test]
    fn weights_have_the_mean_and_deviation_that_were_asked_for() {
        for format in [Format::F16, Format::Q8_0, Format::Q4K, Format::Q5K, Format::Q6K] {
            let mut row = vec![0; format.bytes(1 << 20)];
            Numbers::new(1).weights(format, 0.02, &mut row);
            let blocks = row.chunks_exact(format.block_bytes());
            let weights: Vec<f32> = blocks.flat_map(|block| unpack(format, block)).collect();
            assert_eq!(weights.len(), 1 << 20);
            let n = weights.len() as f64;
            let sum = |f: &dyn Fn(f64) -> f64| weights.iter().map(|&w| f(w.into())).sum::<f64>();
            let (mean, deviation) = (sum(&|w| w) / n, (sum(&|w| w * w) / n).sqrt());
            // Half a step away, where there are as many numbers above 0 as below.
            assert!(mean.abs() < 2e-4, "{format:?}: {mean}");
            assert!((deviation / 0.02 - 1.0).abs() < 0.01, "{format:?}: {deviation}");
        }
    }
}
