//! SentencePiece's BPE: neighbours are merged by the score of the token that
//! they make ([Kudo and Richardson, 2018](https://arxiv.org/abs/1808.06226)).

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::parts::{Parts, Piece};
use super::vocab::Vocab;
use crate::error::{Error, Result};
use crate::gguf::Metadata;

/// "No symbol".
const NONE: u32 = u32::MAX;

pub(super) struct Spm {
    scores: Vec<f32>,
    /// Token of each byte, for characters that the vocabulary lacks.
    byte_tokens: Vec<Option<u32>>,
    unknown: Option<u32>,
}

struct Symbol {
    prev: u32,
    next: u32,
    start: u32,
    /// 0 for a symbol that was merged into its left neighbour.
    len: u32,
}

/// Two neighbours that make a token together.
struct Pair {
    score: f32,
    left: u32,
    right: u32,
    /// Bytes of both, to notice that one has changed since.
    len: u32,
}

impl Ord for Pair {
    /// The best score first; of equal ones the leftmost.
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Pair {}

impl Spm {
    pub fn from_metadata(metadata: &Metadata, vocab: &Vocab, unknown: Option<u32>) -> Result<Self> {
        let key = "tokenizer.ggml.scores";
        // Scores are mostly floats, but some files have integers.
        let scores: Vec<f32> = match metadata.floats(key) {
            Ok(floats) => floats.map(<[f32]>::to_vec),
            Err(_) => metadata.ints(key)?.map(|a| a.iter().map(|&x| x as f32).collect()),
        }
        .ok_or_else(|| {
            Error::invalid(format!("the tokenizer has no `{key}`; convert the model again"))
        })?;
        if scores.len() != vocab.len() {
            return Err(Error::invalid(format!(
                "`{key}` has {} entries for {} tokens; the file is damaged",
                scores.len(),
                vocab.len()
            )));
        }
        if let Some(id) = scores.iter().position(|s| s.is_nan()) {
            return Err(Error::invalid(format!("the score of token {id} is not a number")));
        }
        Ok(Self { scores, byte_tokens: byte_tokens(vocab), unknown })
    }

    /// Appends the tokens of a text whose spaces are U+2581 already.
    pub fn encode(&self, vocab: &Vocab, text: &str, out: &mut Vec<u32>) {
        let (mut symbols, mut queue) = (Vec::new(), BinaryHeap::new());
        Parts::default().merge(
            text,
            |range, pieces| self.merge(vocab, &text[range], &mut symbols, &mut queue, pieces),
            out,
            |range, token, out| match token {
                NONE => encode_bytes(&self.byte_tokens, self.unknown, &text[range], out),
                token => out.push(token),
            },
        );
    }

    /// Appends the pieces of a text, or of a part of it: tokens, or `NONE`.
    fn merge(
        &self,
        vocab: &Vocab,
        text: &str,
        symbols: &mut Vec<Symbol>,
        queue: &mut BinaryHeap<Pair>,
        pieces: &mut Vec<Piece>,
    ) {
        symbols.clear();
        queue.clear();
        symbols.extend(text.char_indices().enumerate().map(|(i, (start, c))| Symbol {
            prev: (i as u32).wrapping_sub(1),
            next: i as u32 + 1,
            start: start as u32,
            len: c.len_utf8() as u32,
        }));
        let Some(last) = symbols.last_mut() else { return };
        last.next = NONE;

        let pair = |symbols: &[Symbol], left: u32, right: u32| {
            if left == NONE || right == NONE {
                return None;
            }
            let (start, len) = (
                symbols[left as usize].start as usize,
                symbols[left as usize].len + symbols[right as usize].len,
            );
            if len as usize > vocab.longest() {
                return None;
            }
            let token = vocab.plain_token(&text[start..start + len as usize])?;
            Some(Pair { score: self.scores[token as usize], left, right, len })
        };
        queue.extend((1..symbols.len() as u32).filter_map(|i| pair(symbols, i - 1, i)));
        while let Some(Pair { left, right, len, .. }) = queue.pop() {
            let (l, r) = (left as usize, right as usize);
            if symbols[l].len == 0 || symbols[r].len == 0 || symbols[l].len + symbols[r].len != len
            {
                continue;
            }
            symbols[l].len = len;
            symbols[r].len = 0;
            let next = symbols[r].next;
            symbols[l].next = next;
            if next != NONE {
                symbols[next as usize].prev = left;
            }
            queue.extend(pair(symbols, symbols[l].prev, left));
            queue.extend(pair(symbols, left, next));
        }

        for symbol in symbols.iter().filter(|s| s.len > 0) {
            let (start, end) = (symbol.start as usize, (symbol.start + symbol.len) as usize);
            pieces.push(Piece { end, id: vocab.plain_token(&text[start..end]).unwrap_or(NONE) });
        }
    }
}

/// The tokens named `<0x00>` to `<0xFF>`; failing that, those named by the
/// byte's character. No control tokens, whatever their names are.
pub(super) fn byte_tokens(vocab: &Vocab) -> Vec<Option<u32>> {
    let by_character = |b: u8| {
        let c = char::from(b);
        vocab.plain_token(c.encode_utf8(&mut [0; 4])).filter(|_| c.is_ascii())
    };
    (0..=u8::MAX)
        .map(|b| vocab.plain_token(&format!("<0x{b:02X}>")).or_else(|| by_character(b)))
        .collect()
}

/// Appends the bytes of a piece as tokens; if one is missing, the unknown
/// token for the whole piece.
pub(super) fn encode_bytes(
    byte_tokens: &[Option<u32>],
    unknown: Option<u32>,
    piece: &str,
    out: &mut Vec<u32>,
) {
    let start = out.len();
    for byte in piece.bytes() {
        match byte_tokens[usize::from(byte)] {
            Some(token) => out.push(token),
            None => {
                out.truncate(start);
                out.extend(unknown);
                return;
            }
        }
    }
}
