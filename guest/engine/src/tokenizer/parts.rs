//! Long texts, whose symbols are merged part by part.

use std::mem;
use std::ops::Range;

/// Bytes of a part: its symbols and their queue stay in the processor's caches.
const PART_BYTES: usize = 1 << 14;
/// Pieces at the end of a part that may be wrong because it was cut there.
const N_BACK_MAX: usize = 8;

/// A piece that symbols were merged into, from the end of the piece before.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    pub end: usize,
    pub id: u32,
}

/// Merges a text as if all of it was merged at once, which would take some dozen
/// bytes of memory for each byte.
///
/// Pieces are those of the whole text if each two neighbours are what their own
/// text is merged into. Were it not so, there would be a first merge across an end
/// of one of the pieces. Until then nothing has reached these two neighbours from
/// outside, so alone they would merge in the same way.
#[derive(Default)]
pub(super) struct Parts {
    part: Vec<Piece>,
    next: Vec<Piece>,
    pair: Vec<Piece>,
}

impl Parts {
    /// Appends to `out` what `emit` makes of the pieces of `text`, and of where
    /// they are in it. `merge` merges a range of it at once; where symbols are bytes,
    /// that begins and ends within characters, too.
    pub fn merge(
        &mut self,
        text: &str,
        mut merge: impl FnMut(Range<usize>, &mut Vec<Piece>),
        out: &mut Vec<u32>,
        mut emit: impl FnMut(Range<usize>, u32, &mut Vec<u32>),
    ) {
        let n_before = out.len();
        let mut part_bytes = PART_BYTES;
        let mut merge = |range: Range<usize>, pieces: &mut Vec<Piece>| {
            pieces.clear();
            merge(range, pieces);
        };
        while !self.merged(text, part_bytes, &mut merge, &mut |range, id| emit(range, id, out)) {
            // Its parts depend on one another over a long way.
            out.truncate(n_before);
            part_bytes = part_bytes.saturating_mul(8);
        }
    }

    /// Whether parts of this size give the pieces of the whole text.
    fn merged(
        &mut self,
        text: &str,
        part_bytes: usize,
        merge: &mut impl FnMut(Range<usize>, &mut Vec<Piece>),
        emit: &mut impl FnMut(Range<usize>, u32),
    ) -> bool {
        let Self { part, next, pair } = self;
        let part_from = |at: usize| at..text.ceil_char_boundary(at.saturating_add(part_bytes));
        let mut start = 0;
        merge(part_from(0), part);
        loop {
            let end = part.last().map_or(0, |piece| piece.end);
            let mut n_kept = part.len();
            if start + end < text.len() {
                let first = part.len().saturating_sub(N_BACK_MAX).max(1);
                let found = (first..part.len()).rev().find(|&n| {
                    let (from, at) = (n.checked_sub(2).map_or(0, |i| part[i].end), part[n - 1].end);
                    merge(part_from(start + at), next);
                    merge(start + from..start + at + next[0].end, pair);
                    pair.len() == 2 && pair[0].end == at - from
                });
                let Some(n) = found else { return false };
                n_kept = n;
            }
            let mut at = 0;
            for &Piece { end, id } in &part[..n_kept] {
                emit(start + at..start + end, id);
                at = end;
            }
            start += at;
            if start == text.len() {
                return true;
            }
            mem::swap(part, next);
        }
    }
}

#[cfg(test)]
mod tests {
    use rand_xoshiro::Xoshiro256PlusPlus;
    use rand_xoshiro::rand_core::{Rng, SeedableRng};

    use super::*;

    type Bytes = Vec<u8>;

    /// Merges by rank, then from the left, as slowly as it is said.
    fn merge(merges: &[(Bytes, Bytes)], mut symbols: Vec<Bytes>, pieces: &mut Vec<Piece>) {
        let rank = |pair: &[Bytes]| {
            merges.iter().position(|(left, right)| pair[0] == *left && pair[1] == *right)
        };
        while let Some((_, i)) =
            (symbols.windows(2).enumerate()).filter_map(|(i, pair)| Some((rank(pair)?, i))).min()
        {
            let right = symbols.remove(i + 1);
            symbols[i].extend(right);
        }
        let mut end = 0;
        pieces.extend(symbols.iter().map(|symbol| {
            end += symbol.len();
            Piece { end, id: symbol.len() as u32 }
        }));
    }

    #[test]
    fn parts_give_the_pieces_of_the_whole() {
        let (mut n_whole, mut n_parts) = (0, 0);
        for seed in 0..600 {
            let over_bytes = seed % 2 == 0;
            let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
            let mut random = |n: usize| rng.next_u64() as usize % n;
            let letters = &["a", "b", "\u{e9}"][..1 + random(3)];
            let symbols = |text: &str| -> Vec<Bytes> {
                match over_bytes {
                    true => text.bytes().map(|b| vec![b]).collect(),
                    false => text.chars().map(|c| c.to_string().into_bytes()).collect(),
                }
            };
            let mut known = symbols(&letters.concat());
            let merges: Vec<_> = (0..1 + random(10))
                .map(|_| {
                    let (left, right) = (random(known.len()), random(known.len()));
                    let pair = (known[left].clone(), known[right].clone());
                    known.push([&pair.0[..], &pair.1].concat());
                    pair
                })
                .collect();
            let text: String = (0..random(120)).map(|_| letters[random(letters.len())]).collect();
            let mut whole = Vec::new();
            merge(&merges, symbols(&text), &mut whole);
            let mut at = 0;
            let whole: Vec<_> = whole
                .iter()
                .map(|piece| (mem::replace(&mut at, piece.end)..piece.end, piece.id))
                .collect();
            for part_bytes in [1, 3, 8, 20, 50, 1000] {
                let mut got = Vec::new();
                let mut merge = |range: Range<usize>, pieces: &mut Vec<Piece>| {
                    pieces.clear();
                    let symbols = match over_bytes {
                        true => text.as_bytes()[range].iter().map(|&b| vec![b]).collect(),
                        false => symbols(&text[range]),
                    };
                    merge(&merges, symbols, pieces);
                };
                let mut emit = |range, id| got.push((range, id));
                if Parts::default().merged(&text, part_bytes, &mut merge, &mut emit) {
                    assert_eq!(got, whole, "{text:?} in parts of {part_bytes}, {merges:?}");
                    n_parts += usize::from(part_bytes < text.len());
                } else {
                    n_whole += 1;
                }
            }
        }
        assert!(n_parts > 1000 && n_whole > 0, "{n_parts} in parts, {n_whole} as a whole");
    }
}
