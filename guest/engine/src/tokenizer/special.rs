//! Tokens with a meaning of their own: which ones end a generation, which
//! are read from text, which are shown.

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

use super::vocab::{Kind, Vocab};
use crate::error::{Error, Result};
use crate::gguf::Metadata;

/// Tokens that end a generation in the models that have them.
const END_NAMES: &[&str] = &[
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "</s>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<end_of_utterance>",
    "<\u{FF5C}end\u{2581}of\u{2581}sentence\u{FF5C}>",
    "[e~[",
    // Padding and separators of fill-in-the-middle training: whatever comes
    // behind them belongs to another file.
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
];

/// Tokens of fill-in-the-middle prompts, which some files take for text.
const FIM_NAMES: &[&str] = &[
    "<|fim_prefix|>",
    "<fim-prefix>",
    "<fim_prefix>",
    "<\u{FF5C}fim\u{2581}begin\u{FF5C}>",
    "<PRE>",
    "\u{2581}<PRE>",
    "<|code_prefix|>",
    "<|prefix|>",
    "<|fim_suffix|>",
    "<fim-suffix>",
    "<fim_suffix>",
    "<\u{FF5C}fim\u{2581}hole\u{FF5C}>",
    "<SUF>",
    "\u{2581}<SUF>",
    "<|code_suffix|>",
    "<|suffix|>",
    "<|fim_middle|>",
    "<fim-middle>",
    "<fim_middle>",
    "<\u{FF5C}fim\u{2581}end\u{FF5C}>",
    "<MID>",
    "\u{2581}<MID>",
    "<|code_middle|>",
    "<|middle|>",
];

/// Control tokens of OpenAI's Harmony format, without which an answer cannot
/// be told from the thoughts before it.
const VISIBLE_NAMES: &[&str] = &["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// The most bytes in the names of special tokens together: the automaton that
/// finds them takes dozens of times as much.
const NAME_BYTES_MAX: usize = 1 << 21;

/// The special tokens of a vocabulary.
pub(super) struct Special {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub unknown: Option<u32>,
    pub add_bos: bool,
    pub add_eos: bool,
    /// Tokens that end a generation, in order.
    ends: Vec<u32>,
    /// Finds user-defined tokens.
    user: Finder,
    /// Finds user-defined and control tokens.
    all: Finder,
    /// Whether white space behind most special tokens belongs to them, as in
    /// Phi-3.
    strips_right: bool,
}

/// Finds the leftmost, then longest, of many texts.
struct Finder {
    automaton: Option<AhoCorasick>,
    tokens: Vec<u32>,
}

impl Finder {
    fn new(vocab: &Vocab, wanted: impl Fn(Kind) -> bool) -> Result<Self> {
        let tokens: Vec<u32> = (0..vocab.len() as u32)
            .filter(|&id| wanted(vocab.kind(id)) && !vocab.text(id).is_empty())
            .collect();
        let bytes: usize = tokens.iter().map(|&id| vocab.text(id).len()).sum();
        if bytes > NAME_BYTES_MAX {
            return Err(Error::invalid(format!(
                "the names of the special tokens take {bytes} bytes, more than {NAME_BYTES_MAX}; \
                 the file is damaged"
            )));
        }
        let automaton = if tokens.is_empty() {
            None
        } else {
            let automaton = AhoCorasick::builder()
                .kind(Some(AhoCorasickKind::ContiguousNFA))
                .match_kind(MatchKind::LeftmostLongest)
                .build(tokens.iter().map(|&id| vocab.text(id)))
                .map_err(|e| Error::invalid(format!("the special tokens cannot be used: {e}")))?;
            Some(automaton)
        };
        Ok(Self { automaton, tokens })
    }
}

/// A part of a text.
pub(super) enum Fragment<'a> {
    Text(&'a str),
    Token(u32),
}

impl Special {
    /// Reads the ids from the metadata, and corrects the kinds of tokens that
    /// files are known to get wrong. `defaults` are BOS, EOS and unknown.
    pub fn from_metadata(
        metadata: &Metadata,
        vocab: &mut Vocab,
        defaults: [Option<u32>; 3],
        add_bos: bool,
    ) -> Result<Self> {
        // Files mark "none" by all kinds of ids outside the vocabulary.
        let id = |name: &str, default: Option<u32>| {
            let key = format!("tokenizer.ggml.{name}_token_id");
            let valid = |id: &u32| (*id as usize) < vocab.len();
            match metadata.get(&key) {
                None => default.filter(valid),
                Some(_) => {
                    metadata.u32(&key).ok().flatten().filter(valid).or(default.filter(valid))
                }
            }
        };
        let [bos, eos, unknown] = defaults;
        let (bos, eos, unknown) = (id("bos", bos), id("eos", eos), id("unknown", unknown));
        let named = ["eot", "eom", "fim_pad", "fim_rep", "fim_sep"].map(|name| id(name, None));

        let mut ends: Vec<u32> = eos.into_iter().chain(named.into_iter().flatten()).collect();
        for name in END_NAMES {
            if let Some(id) = vocab.token(name) {
                ends.push(id);
                vocab.set_kind(id, Kind::Control);
            }
        }
        for name in FIM_NAMES {
            if let Some(id) = vocab.token(name) {
                vocab.set_kind(id, Kind::Control);
            }
        }
        for name in VISIBLE_NAMES {
            if let Some(id) = vocab.token(name) {
                vocab.set_kind(id, Kind::VisibleControl);
            }
        }
        // Harmony and Solar end each message with <|end|>, of which a turn
        // has several.
        let has = |name| vocab.token(name).is_some();
        let calls = has("<|call|>") || has("<|calls|>");
        if let Some(end) = vocab.token("<|end|>")
            && calls
            && (has("<|return|>") || has("<|flush|>"))
        {
            ends.retain(|&id| id != end || Some(id) == eos);
            vocab.set_kind(end, Kind::VisibleControl);
        }
        // Gemma 4 took over </s> as an HTML tag.
        if let Some(tag) = vocab.token("</s>")
            && vocab.token("<|tool_response>").is_some()
        {
            ends.retain(|&id| id != tag || Some(id) == eos);
            vocab.set_kind(tag, Kind::Normal);
        }
        ends.sort_unstable();
        ends.dedup();

        let model_name = metadata.str("general.name")?.unwrap_or("").to_lowercase();
        Ok(Self {
            bos,
            eos,
            unknown,
            add_bos: metadata.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(add_bos),
            add_eos: metadata.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false),
            ends,
            user: Finder::new(vocab, |kind| kind == Kind::UserDefined)?,
            all: Finder::new(vocab, |kind| kind == Kind::UserDefined || kind.is_control())?,
            strips_right: model_name.contains("phi-3") || model_name.contains("phi3"),
        })
    }

    /// Whether a token ends a generation.
    pub fn is_end(&self, id: u32) -> bool {
        self.ends.binary_search(&id).is_ok()
    }

    /// Splits a text at special tokens; at control tokens only if asked to.
    pub fn split<'a>(
        &self,
        vocab: &Vocab,
        text: &'a str,
        control: bool,
        mut each: impl FnMut(Fragment<'a>),
    ) {
        let finder = if control { &self.all } else { &self.user };
        let mut start = 0;
        for found in finder.automaton.iter().flat_map(|a| a.find_iter(text)) {
            if found.start() < start {
                continue;
            }
            if found.start() > start {
                each(Fragment::Text(&text[start..found.start()]));
            }
            let token = finder.tokens[found.pattern().as_usize()];
            each(Fragment::Token(token));
            start = found.end();
            if self.strips_right && !matches!(vocab.text(token), "<unk>" | "<s>" | "<|endoftext|>")
            {
                let rest =
                    text[start..].trim_start_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
                start = text.len() - rest.len();
            }
        }
        if start < text.len() {
            each(Fragment::Text(&text[start..]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{Strings, Value};

    #[test]
    fn names_beyond_measure_are_refused() {
        let names = |n: usize| {
            let mut tokens = Strings::with_capacity(n).unwrap();
            (0..n).for_each(|i| tokens.push(&format!("{i:0>16000}")).unwrap());
            let mut metadata = Metadata::default();
            metadata.insert("tokenizer.ggml.tokens".to_owned(), Value::Strings(tokens));
            metadata.insert("tokenizer.ggml.token_type".to_owned(), Value::Ints(vec![4; n]));
            let mut vocab = Vocab::from_metadata(&metadata).unwrap();
            Special::from_metadata(&metadata, &mut vocab, [None; 3], false).map(|_| ())
        };
        names(2).unwrap();
        let error = names(200).unwrap_err().to_string();
        assert!(error.contains("special tokens take 3200000 bytes"), "{error}");
    }
}
