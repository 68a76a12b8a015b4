//! Random numbers, and weights of them.

use half::f16;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

/// Numbers in a block of Q4_K.
pub const Q4_K_LEN: usize = 256;
/// Bytes of a block of Q4_K.
pub const Q4_K_BYTES: usize = 144;

/// The standard deviation of weights of Q4_K as they are made here, in units
/// of the block's scale: that of the numbers -7.5 to 7.5, times the root mean
/// square of the sub-blocks' scales, 32 to 63.
const Q4_K_DEVIATION: f32 = 4.609_772 * 48.389_05;

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

    /// Fills `row`, blocks of Q4_K, with weights of mean 0 and the given
    /// standard deviation.
    ///
    /// A weight is `d * scale * q - dmin * min`. With `min` equal to `scale`
    /// and `dmin` to `7.5 * d`, it is `d * scale * (q - 7.5)`.
    pub fn q4_k(&mut self, deviation: f32, row: &mut [u8]) {
        let d = deviation / Q4_K_DEVIATION;
        let (d, dmin) = (f16::from_f32(d), f16::from_f32(7.5 * d));
        for block in row.chunks_exact_mut(Q4_K_BYTES) {
            self.random.fill_bytes(block);
            block[..2].copy_from_slice(&d.to_le_bytes());
            block[2..4].copy_from_slice(&dmin.to_le_bytes());
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_have_the_mean_and_deviation_that_were_asked_for() {
        let mut row = vec![0; 4096 * Q4_K_BYTES];
        Numbers::new(1).q4_k(0.02, &mut row);
        let mut weights = Vec::new();
        for block in row.chunks_exact(Q4_K_BYTES) {
            let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
            for i in 0..8 {
                // As ggml unpacks them.
                let (scale, min) = match i {
                    0..4 => (block[4 + i] & 63, block[8 + i] & 63),
                    _ => (
                        block[8 + i] & 15 | block[i] >> 6 << 4,
                        block[8 + i] >> 4 | block[4 + i] >> 6 << 4,
                    ),
                };
                let quants = &block[16 + i / 2 * 32..][..32];
                weights.extend(quants.iter().map(|q| {
                    let q = if i % 2 == 0 { q & 15 } else { q >> 4 };
                    half(0) * f32::from(scale) * f32::from(q) - half(2) * f32::from(min)
                }));
            }
        }
        let n = weights.len() as f32;
        let mean = weights.iter().sum::<f32>() / n;
        let deviation = (weights.iter().map(|w| w * w).sum::<f32>() / n).sqrt();
        assert!(mean.abs() < 1e-4, "{mean}");
        assert!((deviation / 0.02 - 1.0).abs() < 0.01, "{deviation}");
    }
}
