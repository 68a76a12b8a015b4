//! Other inputs, made of inputs.

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

use crate::target::Target;

/// Numbers that programs stumble over.
const NUMBERS: [u64; 16] = [
    0,
    1,
    2,
    31,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 40,
    1 << 60,
    1 << 63,
    u64::MAX,
];

/// Makes inputs: the same ones from the same seed.
pub struct Mutator {
    random: Xoshiro256PlusPlus,
}

impl Mutator {
    pub fn new(seed: u64) -> Self {
        Self { random: Xoshiro256PlusPlus::seed_from_u64(seed) }
    }

    /// A number from 0 to `n - 1`; 0 if there is none.
    fn below(&mut self, n: usize) -> usize {
        (self.random.next_u64() % n.max(1) as u64) as usize
    }

    /// A short length more often than a long one.
    fn length(&mut self, max: usize) -> usize {
        let max = max.min(1 << self.below(12));
        1 + self.below(max)
    }

    /// One of the pool with a few changes, or, now and then, noise.
    pub fn input(&mut self, pool: &[Vec<u8>], target: &Target) -> Vec<u8> {
        let from = self.below(pool.len());
        let mut input = match self.below(16) {
            0 => {
                let mut noise = vec![0; self.length(target.len_max)];
                self.random.fill_bytes(&mut noise);
                noise
            }
            _ => pool[from].clone(),
        };
        for _ in 0..1 << self.below(5) {
            let other = &pool[self.below(pool.len())];
            self.change(&mut input, other, target.words);
        }
        input.truncate(target.len_max);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, other: &[u8], words: &[&str]) {
        let at = self.below(input.len());
        let length = self.length(input.len()).min(input.len() - at);
        match self.below(11) {
            0 if length > 0 => input[at] ^= 1 << self.below(8),
            1 if length > 0 => input[at] = self.random.next_u64() as u8,
            2 if length > 0 => input[at] = input[at].wrapping_add_signed(self.below(9) as i8 - 4),
            3 => drop(input.drain(at..at + length)),
            // A piece twice, elsewhere.
            4 => {
                let piece = input[at..at + length].to_vec();
                let to = self.below(input.len() + 1);
                input.splice(to..to, piece);
            }
            5 => {
                let number = NUMBERS[self.below(NUMBERS.len())].to_le_bytes();
                let width = 1 << self.below(4);
                let end = input.len().min(at + width);
                input[at..end].copy_from_slice(&number[..end - at]);
            }
            6 => {
                let mut noise = vec![0; self.length(64)];
                self.random.fill_bytes(&mut noise);
                input.splice(at..at, noise);
            }
            7 | 8 if !words.is_empty() => {
                let word = words[self.below(words.len())].bytes();
                // In the place of another, or between two.
                let end =
                    at + if self.below(2) == 0 { 0 } else { word.len().min(input.len() - at) };
                input.splice(at..end, word);
            }
            9 => input.truncate(at),
            _ if !other.is_empty() => {
                let start = self.below(other.len());
                let end = start + self.length(other.len()).min(other.len() - start);
                input.splice(at..at + length, other[start..end].iter().copied());
            }
            _ => {}
        }
    }
}
