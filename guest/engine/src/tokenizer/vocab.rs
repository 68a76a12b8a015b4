//! The tokens of a vocabulary: text, kind, and the way back from text to id.

use foldhash::fast::FixedState;
use hashbrown::HashTable;
use std::hash::BuildHasher;

use crate::error::{Error, Result};
use crate::gguf::Metadata;

/// The most tokens in a vocabulary.
const N_TOKENS_MAX: usize = 1 << 21;
/// The most bytes in the name of a token. The longest known ones are runs of
/// 512 spaces.
const TOKEN_BYTES_MAX: usize = 1 << 14;
/// The most bytes that all pieces take together.
const TEXT_BYTES_MAX: usize = 1 << 28;

/// What a token is, as `tokenizer.ggml.token_type` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    Unknown,
    /// Structure, not text: hidden from readers, and read from text only if
    /// the caller trusts the text.
    Control,
    /// As [`Kind::Control`], but readers see it.
    VisibleControl,
    /// Text that is always one token.
    UserDefined,
    Unused,
    /// One byte, named `<0x0A>`.
    Byte,
}

impl Kind {
    fn from_id(id: i64) -> Self {
        match id {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            6 => Self::Byte,
            _ => Self::Unused,
        }
    }

    /// Whether a stranger's words must never turn into this token.
    pub fn is_control(self) -> bool {
        matches!(self, Self::Unknown | Self::Control | Self::VisibleControl)
    }
}

/// All pieces of text that the tokenizer deals in, interned: the tokens, with
/// their ids, and behind them pieces that only merges know.
pub(super) struct Vocab {
    text: String,
    ends: Vec<u32>,
    kinds: Vec<Kind>,
    by_text: HashTable<u32>,
    longest: usize,
}

impl Vocab {
    pub fn from_metadata(metadata: &Metadata) -> Result<Self> {
        let tokens = metadata.strings("tokenizer.ggml.tokens")?.ok_or_else(|| {
            Error::invalid("the file has a tokenizer, but no `tokenizer.ggml.tokens`; get it anew")
        })?;
        let n = tokens.len();
        if n == 0 || n > N_TOKENS_MAX {
            return Err(Error::invalid(format!(
                "the vocabulary has {n} tokens; 1 to {N_TOKENS_MAX} can be"
            )));
        }
        let kinds = match metadata.ints("tokenizer.ggml.token_type")? {
            None => vec![Kind::Normal; n],
            Some(ids) if ids.len() == n => ids.iter().map(|&id| Kind::from_id(id)).collect(),
            Some(ids) => {
                return Err(Error::invalid(format!(
                    "`tokenizer.ggml.token_type` has {} entries for {n} tokens; the file is damaged",
                    ids.len()
                )));
            }
        };
        let mut vocab = Self {
            text: String::with_capacity(tokens.iter().map(str::len).sum()),
            ends: Vec::with_capacity(n),
            kinds,
            by_text: HashTable::with_capacity(n),
            longest: 0,
        };
        for token in tokens.iter() {
            if token.len() > TOKEN_BYTES_MAX {
                return Err(Error::invalid(format!(
                    "token {} is {} bytes long; at most {TOKEN_BYTES_MAX} can be",
                    vocab.ends.len(),
                    token.len()
                )));
            }
            vocab.longest = vocab.longest.max(token.len());
            vocab.append(token)?;
        }
        Ok(vocab)
    }

    /// Appends a piece. Of equal ones the first is found by its text; none is
    /// found by an empty text.
    fn append(&mut self, piece: &str) -> Result<u32> {
        if self.text.len() + piece.len() > TEXT_BYTES_MAX {
            return Err(Error::invalid(format!(
                "the vocabulary's texts take more than {TEXT_BYTES_MAX} bytes"
            )));
        }
        let id = self.ends.len() as u32;
        self.text.push_str(piece);
        self.ends.push(self.text.len() as u32);
        if !piece.is_empty() && self.find(piece).is_none() {
            let (text, ends) = (&self.text, &self.ends);
            self.by_text.insert_unique(hash(piece), id, |&id| hash(get(text, ends, id)));
        }
        Ok(id)
    }

    /// The piece with this text, added if there is none yet.
    pub fn intern(&mut self, piece: &str) -> Result<u32> {
        match self.find(piece) {
            Some(id) => Ok(id),
            None => self.append(piece),
        }
    }

    /// The piece with this text.
    pub fn find(&self, piece: &str) -> Option<u32> {
        let equal = |&id: &u32| get(&self.text, &self.ends, id) == piece;
        self.by_text.find(hash(piece), equal).copied()
    }

    /// The token with this text, of whatever kind.
    pub fn token(&self, text: &str) -> Option<u32> {
        self.find(text).filter(|&id| self.is_token(id))
    }

    /// The token with this text, unless it is a control token.
    pub fn plain_token(&self, text: &str) -> Option<u32> {
        self.token(text).filter(|&id| !self.kind(id).is_control())
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.kinds.len()
    }

    /// Bytes of the longest token.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// Whether a piece is a token.
    pub fn is_token(&self, id: u32) -> bool {
        (id as usize) < self.len()
    }

    /// What a token is.
    pub fn kind(&self, id: u32) -> Kind {
        self.kinds[id as usize]
    }

    pub fn set_kind(&mut self, id: u32, kind: Kind) {
        self.kinds[id as usize] = kind;
    }

    /// The text of a piece as the file has it.
    pub fn text(&self, id: u32) -> &str {
        get(&self.text, &self.ends, id)
    }

    /// Gives back memory that was reserved while loading.
    pub fn shrink(&mut self) {
        self.text.shrink_to_fit();
        self.ends.shrink_to_fit();
    }
}

fn get<'a>(text: &'a str, ends: &[u32], id: u32) -> &'a str {
    let start = if id == 0 { 0 } else { ends[id as usize - 1] as usize };
    &text[start..ends[id as usize] as usize]
}

fn hash(piece: &str) -> u64 {
    FixedState::default().hash_one(piece)
}
