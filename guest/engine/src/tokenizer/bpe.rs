//! Byte pair encoding by a list of ranked merges
//! ([Sennrich et al., 2016](https://arxiv.org/abs/1508.07909)), over bytes as
//! in GPT-2 or over characters with bytes to fall back on as in Gemma 4.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::BuildHasher;
use std::ops::Range;

use foldhash::fast::FixedState;
use hashbrown::HashTable;

use super::bytes::{self, byte_char};
use super::parts::{Parts, Piece};
use super::pretokenizer::PreTokenizer;
use super::spm::{byte_tokens, encode_bytes};
use super::vocab::Vocab;
use crate::error::{Error, Result};
use crate::gguf::Metadata;

/// The most merges.
const N_MERGES_MAX: usize = 1 << 22;
/// "No symbol", "no piece".
const NONE: u32 = u32::MAX;

pub(super) struct Bpe {
    pre: PreTokenizer,
    merges: Merges,
    /// The pieces that a text starts as: one for each byte, as GPT-2 writes
    /// it; for BPE over characters the tokens `<0x00>` to `<0xFF>`.
    byte_pieces: Vec<Option<u32>>,
    unknown: Option<u32>,
}

/// The merges, by rank and by pair.
struct Merges {
    ranked: Vec<Merge>,
    by_pair: HashTable<u32>,
}

/// Two pieces, and the one that they make.
#[derive(Clone, Copy)]
struct Merge {
    left: u32,
    right: u32,
    both: u32,
}

impl Merges {
    fn from_metadata(metadata: &Metadata, vocab: &mut Vocab) -> Result<Self> {
        let key = "tokenizer.ggml.merges";
        let lines = metadata.strings(key)?.ok_or_else(|| {
            Error::invalid(format!("the tokenizer has no `{key}`; convert the model again"))
        })?;
        if lines.len() > N_MERGES_MAX {
            return Err(Error::invalid(format!(
                "`{key}` has {} entries; at most {N_MERGES_MAX} can be",
                lines.len()
            )));
        }
        let mut merges = Self {
            ranked: Vec::with_capacity(lines.len()),
            by_pair: HashTable::with_capacity(lines.len()),
        };
        let mut both = String::new();
        for (i, line) in lines.iter().enumerate() {
            // The first piece may itself start with a space.
            let space = line.bytes().skip(1).position(|b| b == b' ').map(|at| at + 1);
            let Some((left, right)) = space
                .map(|at| (&line[..at], &line[at + 1..]))
                .filter(|(_, right)| !right.is_empty())
            else {
                return Err(Error::invalid(format!(
                    "`{key}` entry {i} is {line:?}, not two pieces; the file is damaged"
                )));
            };
            both.clear();
            both.push_str(left);
            both.push_str(right);
            let merge = Merge {
                left: vocab.intern(left)?,
                right: vocab.intern(right)?,
                both: vocab.intern(&both)?,
            };
            // No text may grow into a control token.
            let forbidden = vocab.is_token(merge.both) && vocab.kind(merge.both).is_control();
            if !forbidden && merges.rank(merge.left, merge.right).is_none() {
                let ranked = &mut merges.ranked;
                let rank = ranked.len() as u32;
                ranked.push(merge);
                merges.by_pair.insert_unique(hash(merge.left, merge.right), rank, |&rank| {
                    let m = ranked[rank as usize];
                    hash(m.left, m.right)
                });
            }
        }
        Ok(merges)
    }

    fn rank(&self, left: u32, right: u32) -> Option<u32> {
        let equal = |&rank: &u32| {
            let m = self.ranked[rank as usize];
            (m.left, m.right) == (left, right)
        };
        self.by_pair.find(hash(left, right), equal).copied()
    }
}

fn hash(left: u32, right: u32) -> u64 {
    FixedState::default().hash_one(u64::from(left) << 32 | u64::from(right))
}

struct Symbol {
    prev: u32,
    next: u32,
    /// The piece; `NONE` if there is none for these bytes.
    piece: u32,
    start: u32,
    /// Whether it was merged into its left neighbour.
    gone: bool,
}

/// Memory that is used again for each word.
#[derive(Default)]
struct Scratch {
    symbols: Vec<Symbol>,
    /// Rank, then position of the left symbol: the smallest is merged first.
    queue: BinaryHeap<Reverse<u64>>,
    text: String,
    parts: Parts,
}

impl Bpe {
    pub fn from_metadata(
        metadata: &Metadata,
        vocab: &mut Vocab,
        pre: PreTokenizer,
        unknown: Option<u32>,
    ) -> Result<Self> {
        let merges = Merges::from_metadata(metadata, vocab)?;
        let byte_pieces = if pre.byte_level() {
            (0..=u8::MAX).map(|b| vocab.find(byte_char(b).encode_utf8(&mut [0; 4]))).collect()
        } else {
            byte_tokens(vocab)
        };
        vocab.shrink();
        Ok(Self { pre, merges, byte_pieces, unknown })
    }

    /// Whether spaces are written U+2581 in the vocabulary.
    pub fn escapes_spaces(&self) -> bool {
        !self.pre.byte_level()
    }

    /// Appends the tokens of a text.
    pub fn encode(&self, vocab: &Vocab, text: &str, out: &mut Vec<u32>) {
        let mut scratch = Scratch::default();
        let mut start = 0;
        for end in self.pre.split(text) {
            self.encode_word(vocab, &text[start..end], &mut scratch, out);
            start = end;
        }
    }

    fn encode_word(&self, vocab: &Vocab, word: &str, scratch: &mut Scratch, out: &mut Vec<u32>) {
        if self.pre.takes_whole(word) {
            scratch.text.clear();
            if self.pre.byte_level() {
                bytes::encode(word, &mut scratch.text);
            } else {
                scratch.text.push_str(word);
            }
            if let Some(token) = vocab.plain_token(&scratch.text) {
                out.push(token);
                return;
            }
        }
        let Scratch { symbols, queue, parts, .. } = scratch;
        parts.merge(
            word,
            |range, pieces| self.merge(vocab, word, range, symbols, queue, pieces),
            out,
            |range, piece, out| self.emit(vocab, piece, word, range, out),
        );
    }

    /// Appends the pieces of a part of a word.
    fn merge(
        &self,
        vocab: &Vocab,
        word: &str,
        part: Range<usize>,
        symbols: &mut Vec<Symbol>,
        queue: &mut BinaryHeap<Reverse<u64>>,
        pieces: &mut Vec<Piece>,
    ) {
        symbols.clear();
        queue.clear();
        let symbol = |i: usize, start: usize, piece: Option<u32>| Symbol {
            prev: (i as u32).wrapping_sub(1),
            next: i as u32 + 1,
            piece: piece.unwrap_or(NONE),
            start: start as u32,
            gone: false,
        };
        if self.pre.byte_level() {
            // The bytes of a character need not be in the same part.
            let bytes = word.as_bytes()[part.clone()].iter().enumerate();
            symbols.extend(bytes.map(|(i, &b)| symbol(i, i, self.byte_pieces[usize::from(b)])));
        } else {
            symbols.extend(
                word[part.clone()].char_indices().enumerate().map(|(i, (start, c))| {
                    symbol(i, start, vocab.find(c.encode_utf8(&mut [0; 4])))
                }),
            );
        }
        let Some(last) = symbols.last_mut() else { return };
        last.next = NONE;

        for i in 1..symbols.len() as u32 {
            queue.extend(self.pair(symbols, i - 1));
        }
        while let Some(Reverse(entry)) = queue.pop() {
            let (rank, left) = ((entry >> 32) as usize, entry as u32);
            let (merge, l) = (self.merges.ranked[rank], left as usize);
            let right = symbols[l].next;
            if symbols[l].gone
                || right == NONE
                || symbols[l].piece != merge.left
                || symbols[right as usize].piece != merge.right
            {
                continue;
            }
            symbols[l].piece = merge.both;
            let r = &mut symbols[right as usize];
            r.gone = true;
            let next = r.next;
            symbols[l].next = next;
            if next != NONE {
                symbols[next as usize].prev = left;
            }
            queue.extend(self.pair(symbols, symbols[l].prev));
            queue.extend(self.pair(symbols, left));
        }

        let mut at = 0;
        while at != NONE {
            let symbol = &symbols[at as usize];
            let end = symbols.get(symbol.next as usize).map_or(part.len(), |s| s.start as usize);
            pieces.push(Piece { end, id: symbol.piece });
            at = symbol.next;
        }
    }

    /// The entry in the queue for a symbol and its right neighbour.
    fn pair(&self, symbols: &[Symbol], left: u32) -> Option<Reverse<u64>> {
        let l = symbols.get(left as usize)?;
        let r = symbols.get(l.next as usize)?;
        let rank = self.merges.rank(l.piece, r.piece)?;
        Some(Reverse(u64::from(rank) << 32 | u64::from(left)))
    }

    /// Appends a piece, or what it consists of if it is no token. Bytes that
    /// the vocabulary does not know vanish, as in the reference
    /// implementation, unless there is a way to write them.
    fn emit(&self, vocab: &Vocab, piece: u32, word: &str, range: Range<usize>, out: &mut Vec<u32>) {
        if piece != NONE && vocab.is_token(piece) && !vocab.kind(piece).is_control() {
            out.push(piece);
        } else if !self.pre.byte_level() {
            encode_bytes(&self.byte_pieces, self.unknown, &word[range], out);
        } else {
            let tokens =
                word.as_bytes()[range].iter().filter_map(|&b| self.byte_pieces[usize::from(b)]);
            out.extend(tokens.filter(|&t| vocab.is_token(t) && !vocab.kind(t).is_control()));
        }
    }
}
