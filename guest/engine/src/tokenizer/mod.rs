//! Text to tokens and back, as the file's `tokenizer.ggml.*` metadata says:
//! byte-level BPE (`gpt2`), BPE over characters (`gemma4`) and SentencePiece
//! (`llama`).

mod bpe;
mod bytes;
mod parts;
mod pretokenizer;
mod special;
mod spm;
mod stream;
mod vocab;

pub use stream::TextStream;

use crate::error::{Error, Result};
use crate::gguf::Metadata;
use bpe::Bpe;
use pretokenizer::PreTokenizer;
use special::{Fragment, Special};
use spm::Spm;
use vocab::{Kind, Vocab};

/// The longest text that [`Tokenizer::encode`] takes, in bytes.
pub const TEXT_BYTES_MAX: usize = 16 << 20;

/// How a vocabulary writes a space.
const SPACE: char = '\u{2581}';

/// A vocabulary, and the rules by which text becomes its tokens.
///
/// All that it needs is copied out of the metadata, in a compact form: the
/// arrays there can be dropped.
pub struct Tokenizer {
    vocab: Vocab,
    special: Special,
    model: Model,
    /// Whether a text gets a space in front.
    add_space_prefix: bool,
    token_bytes_max: usize,
}

enum Model {
    Bpe(Bpe),
    Spm(Spm),
}

impl Tokenizer {
    /// Builds the tokenizer that a file describes; `None` if it has none
    /// (`tokenizer.ggml.model` is absent, `none` or `no_vocab`), and tokens
    /// are all that such a model takes.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) for an unknown kind of
    /// tokenizer or pre-tokenizer, [`InvalidModel`](crate::ErrorKind::InvalidModel)
    /// for metadata that contradicts itself.
    pub fn from_metadata(metadata: &Metadata) -> Result<Option<Self>> {
        let Some(name) = metadata.str("tokenizer.ggml.model")? else { return Ok(None) };
        let mut add_space_prefix = false;
        let (vocab, special, model) = match name {
            "none" | "no_vocab" => return Ok(None),
            "gpt2" | "gemma4" => {
                let pre = match metadata.str("tokenizer.ggml.pre")? {
                    _ if name == "gemma4" => "gemma4",
                    None | Some("") => "default",
                    Some(pre) => pre,
                };
                let pre = PreTokenizer::new(pre)?;
                let mut vocab = Vocab::from_metadata(metadata)?;
                let special =
                    Special::from_metadata(metadata, &mut vocab, [None; 3], pre.add_bos())?;
                let bpe = Bpe::from_metadata(metadata, &mut vocab, pre, special.unknown)?;
                (vocab, special, Model::Bpe(bpe))
            }
            "llama" => {
                add_space_prefix =
                    metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
                let mut vocab = Vocab::from_metadata(metadata)?;
                let defaults = [Some(1), Some(2), Some(0)];
                let special = Special::from_metadata(metadata, &mut vocab, defaults, true)?;
                let spm = Spm::from_metadata(metadata, &vocab, special.unknown)?;
                (vocab, special, Model::Spm(spm))
            }
            other => {
                return Err(Error::unsupported(format!(
                    "tokenizer `{other}` is not supported; gpt2, gemma4 and llama are"
                )));
            }
        };
        let token_bytes_max = token_bytes_max(&vocab, &model);
        Ok(Some(Self { vocab, special, model, add_space_prefix, token_bytes_max }))
    }

    /// How many tokens the vocabulary has. Models may have more rows of
    /// logits than that, as padding.
    pub fn n_vocab(&self) -> u32 {
        self.vocab.len() as u32
    }

    /// The most bytes of a text that become one token.
    pub fn token_bytes_max(&self) -> usize {
        self.token_bytes_max
    }

    /// The token that begins a text, if the vocabulary has one.
    pub fn bos(&self) -> Option<u32> {
        self.special.bos
    }

    /// The token that ends a text, if the vocabulary has one.
    pub fn eos(&self) -> Option<u32> {
        self.special.eos
    }

    /// Whether a token ends the model's turn.
    pub fn is_end_of_generation(&self, token: u32) -> bool {
        self.special.is_end(token)
    }

    /// A token's text as the vocabulary has it, where a space is `\u{120}` or
    /// U+2581; `None` outside the vocabulary.
    pub fn token_text(&self, token: u32) -> Option<&str> {
        self.vocab.is_token(token).then(|| self.vocab.text(token))
    }

    /// The names of all control tokens.
    pub fn control_names(&self) -> impl Iterator<Item = &str> + Clone {
        let control = (0..self.n_vocab()).filter(|&id| self.vocab.kind(id).is_control());
        control.map(|id| self.vocab.text(id))
    }

    /// Turns text into tokens.
    ///
    /// User-defined tokens are found in the text wherever they stand. Control
    /// tokens are only with `parse_special`: wanted for the output of a chat
    /// template, dangerous for the words of a stranger. `add_special` adds
    /// BOS and EOS where the file asks for them; the output of a chat
    /// template has them already.
    ///
    /// Bytes that the vocabulary cannot write become its unknown token
    /// (SentencePiece) or vanish (byte-level BPE), as in the reference
    /// implementations.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a text longer than
    /// [`TEXT_BYTES_MAX`].
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>> {
        check_length(text)?;
        let mut out = Vec::new();
        if add_special && self.special.add_bos {
            out.extend(self.special.bos);
        }
        let mut after_special = true;
        self.special.split(&self.vocab, text, parse_special, |fragment| {
            self.encode_fragment(fragment, &mut after_special, &mut out);
        });
        if add_special && self.special.add_eos {
            out.extend(self.special.eos);
        }
        Ok(out)
    }

    /// Turns the output of a [chat template](crate::chat) into tokens, as
    /// [`Tokenizer::encode`] does with `parse_special` and without `add_special`:
    /// the template writes all control tokens itself. A name that is broken by
    /// marks is text, and so are the marks' neighbours; the marks go.
    ///
    /// # Errors
    /// As for [`Tokenizer::encode`].
    pub fn encode_marked(&self, text: &str, mark: char) -> Result<Vec<u32>> {
        check_length(text)?;
        let mut out = Vec::new();
        let mut after_special = true;
        self.special.split(&self.vocab, text, true, |fragment| match fragment {
            Fragment::Text(text) if text.contains(mark) => {
                let text = text.replace(mark, "");
                self.special.split(&self.vocab, &text, false, |fragment| {
                    self.encode_fragment(fragment, &mut after_special, &mut out);
                });
            }
            fragment => self.encode_fragment(fragment, &mut after_special, &mut out),
        });
        Ok(out)
    }

    fn encode_fragment(
        &self,
        fragment: Fragment<'_>,
        after_special: &mut bool,
        out: &mut Vec<u32>,
    ) {
        match fragment {
            Fragment::Token(token) => out.push(token),
            Fragment::Text(text) => self.encode_text(text, *after_special, out),
        }
        *after_special = matches!(fragment, Fragment::Token(_));
    }

    fn encode_text(&self, text: &str, after_special: bool, out: &mut Vec<u32>) {
        let escaped = |space_in_front: bool| -> String {
            let n_spaces = text.bytes().filter(|&b| b == b' ').count();
            let mut escaped = String::with_capacity(text.len() + SPACE.len_utf8() + 2 * n_spaces);
            escaped.extend(space_in_front.then_some(SPACE));
            escaped.extend(text.chars().map(|c| if c == ' ' { SPACE } else { c }));
            escaped
        };
        match &self.model {
            Model::Spm(spm) => {
                let escaped = escaped(self.add_space_prefix && after_special);
                spm.encode(&self.vocab, &escaped, out);
            }
            Model::Bpe(bpe) if bpe.escapes_spaces() => {
                bpe.encode(&self.vocab, &escaped(false), out);
            }
            Model::Bpe(bpe) => bpe.encode(&self.vocab, text, out),
        }
    }

    /// The bytes that a token stands for, which need not be whole characters:
    /// see [`TextStream`]. Control tokens are empty unless `special` asks for
    /// their names.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a token outside
    /// the vocabulary.
    pub fn token_bytes(&self, token: u32, special: bool) -> Result<Vec<u8>> {
        let Some(text) = self.token_text(token) else {
            return Err(Error::input(format!(
                "token {token} is outside the vocabulary of {} tokens",
                self.vocab.len()
            )));
        };
        Ok(match self.vocab.kind(token) {
            Kind::Control | Kind::Unknown if !special => Vec::new(),
            Kind::Control | Kind::VisibleControl | Kind::Unknown | Kind::UserDefined => {
                text.as_bytes().to_vec()
            }
            Kind::Unused => Vec::new(),
            Kind::Byte => match byte_value(text) {
                Some(byte) => vec![byte],
                None => text.as_bytes().to_vec(),
            },
            Kind::Normal => match &self.model {
                Model::Bpe(bpe) if !bpe.escapes_spaces() => bytes::decode(text),
                _ => text.replace(SPACE, " ").into_bytes(),
            },
        })
    }

    /// Turns tokens into text. Bytes that are not UTF-8 become U+FFFD; a space
    /// that [`Tokenizer::encode`] put in front goes. `special` shows control
    /// tokens by their names.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a token outside
    /// the vocabulary.
    pub fn decode(&self, tokens: &[u32], special: bool) -> Result<String> {
        let mut bytes = Vec::new();
        let mut at_start = self.add_space_prefix;
        for &token in tokens {
            let piece = self.token_bytes(token, special)?;
            let skip = usize::from(at_start && piece.first() == Some(&b' '));
            at_start &= piece.is_empty();
            bytes.extend_from_slice(&piece[skip..]);
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// The most bytes of a text that become one token. A character that a vocabulary
/// lacks may become its unknown token.
fn token_bytes_max(vocab: &Vocab, model: &Model) -> usize {
    let byte_level = matches!(model, Model::Bpe(bpe) if !bpe.escapes_spaces());
    let mut longest = char::MAX.len_utf8();
    for id in 0..vocab.len() as u32 {
        let text = vocab.text(id);
        // Most need not be looked at: it has no more bytes than the vocabulary's text.
        if text.len() > longest {
            let n = match vocab.kind(id) {
                Kind::Byte => 1,
                Kind::Normal | Kind::Unused if byte_level => text.chars().count(),
                Kind::Normal | Kind::Unused => {
                    let n_spaces = text.chars().filter(|&c| c == SPACE).count();
                    text.len() - (SPACE.len_utf8() - 1) * n_spaces
                }
                _ => text.len(),
            };
            longest = longest.max(n);
        }
    }
    longest
}

fn check_length(text: &str) -> Result<()> {
    if text.len() <= TEXT_BYTES_MAX {
        return Ok(());
    }
    Err(Error::input(format!(
        "the text is {} bytes long, at most {TEXT_BYTES_MAX} can be tokenized at once; tokenize it \
         in parts",
        text.len()
    )))
}

/// The value of a byte token: `<0x0A>`.
fn byte_value(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(hex, 16).ok()
}
