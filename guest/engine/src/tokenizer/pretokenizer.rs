//! Splitting a text into words before merging, as the file's
//! `tokenizer.ggml.pre` names it.
//!
//! The rules are those of the models' own `tokenizer.json` files. Their one
//! use of lookahead, `\s+(?!\S)|\s+`, keeps the last space for the word that
//! follows; it is a flag here, so that all expressions run on automata in
//! linear time.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::{Anchored, Input, MatchKind};

use crate::error::{Error, Result};

/// One pass over the words found so far. What an expression does not match
/// stays a word of its own.
#[derive(Clone, Copy)]
enum Rule {
    /// Splits at matches.
    Regex(&'static str),
    /// As [`Rule::Regex`]; where the expression matches nothing, white space
    /// does, less its last character if a word follows.
    Words(&'static str),
    /// Splits white space off the end.
    TrailingSpace,
    /// Splits numbers into groups of three, counted from the right.
    DigitGroups,
    /// As [`Rule::DigitGroups`], if the number is the end of a word.
    LastDigitGroups,
}
use Rule::{DigitGroups, LastDigitGroups, Regex, TrailingSpace, Words};

/// What one name stands for.
struct Entry {
    names: &'static [&'static str],
    rules: &'static [Rule],
    options: Options,
}

/// How words become tokens.
#[derive(Clone, Copy)]
struct Options {
    /// A word that is a token is taken without merging.
    ignore_merges: bool,
    /// Whether BOS is added if the file does not say.
    add_bos: bool,
    /// Words are merged as GPT-2 writes bytes, not as characters.
    byte_level: bool,
}

const PLAIN: Options = Options { ignore_merges: false, add_bos: false, byte_level: true };
const WHOLE: Options = Options { ignore_merges: true, ..PLAIN };
const WHOLE_BOS: Options = Options { add_bos: true, ..WHOLE };
const CHARACTERS: Options = Options { byte_level: false, ..PLAIN };

const GPT2: Rule = Words(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+");
const DIGIT: Rule = Regex(r"\p{N}");
const DIGITS_3: Rule = Regex(r"\p{N}{1,3}");
const LINES: Rule = Regex(r"[^\n]+|\n+");

/// English contractions, as a group with this behind it.
macro_rules! contractions {
    ($behind:literal) => {
        concat!(r"(?:'[sS\u{17F}]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", $behind)
    };
}

/// The expression of cl100k and its many descendants.
macro_rules! cl100k {
    ($contractions:expr, $number:literal) => {
        Words(concat!(
            $contractions,
            r"[^\r\n\p{L}\p{N}]?\p{L}+|",
            $number,
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        ))
    };
}

/// The expression of o200k: words end where lower case does.
macro_rules! o200k {
    ($contractions:expr, $number:literal, $newlines:literal) => {
        o200k!($contractions, $number, $newlines, "", "")
    };
    ($contractions:expr, $number:literal, $newlines:literal, $first:literal, $but:literal) => {
        Words(concat!(
            $first,
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}",
            $but,
            r"]*[\p{Ll}\p{Lm}\p{Lo}\p{M}",
            $but,
            r"]+",
            $contractions,
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}",
            $but,
            r"]+[\p{Ll}\p{Lm}\p{Lo}\p{M}",
            $but,
            r"]*",
            $contractions,
            "|",
            $number,
            r"| ?[^\s\p{L}\p{N}]+",
            $newlines,
            r"|\s*[\r\n]+"
        ))
    };
}

/// The expression of DeepSeek V3, behind its rules for digits and CJK.
macro_rules! deepseek3 {
    ($newlines:literal, $blank:literal) => {
        Words(concat!(
            r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"##,
            r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+",
            $newlines,
            "|",
            $blank
        ))
    };
}

const LLAMA3: Rule = cl100k!(contractions!("|"), r"\p{N}{1,3}");
const QWEN2: Rule = cl100k!(contractions!("|"), r"\p{N}");
const GPT4O: Rule = o200k!(contractions!("?"), r"\p{N}{1,3}", r"[\r\n/]*");
const DEEPSEEK3: &[Rule] = &[DIGITS_3, Regex(CJK), deepseek3!(r"[\r\n]*", r"\s*[\r\n]+")];

/// Cased letters as DeepSeek LLM lists them, after a space.
const DEEPSEEK_WORDS: &str = concat!(
    r"\s?[A-Za-z\u{B5}\u{C0}-\u{D6}\u{D8}-\u{F6}\u{F8}-\u{1BA}\u{1BC}-\u{1BF}\u{1C4}-",
    r"\u{293}\u{295}-\u{2AF}\u{370}-\u{373}\u{376}\u{377}\u{37B}-\u{37D}\u{37F}\u{386}",
    r"\u{388}-\u{38A}\u{38C}\u{38E}-\u{3A1}\u{3A3}-\u{3F5}\u{3F7}-\u{481}\u{48A}-\u{52F}",
    r"\u{531}-\u{556}\u{10A0}-\u{10C5}\u{13A0}-\u{13F5}\u{13F8}-\u{13FD}\u{1C90}-\u{1CBA}",
    r"\u{1CBD}-\u{1CBF}\u{1D00}-\u{1D2B}\u{1D6B}-\u{1D77}\u{1D79}-\u{1D9A}\u{1E00}-",
    r"\u{1F15}\u{1F18}-\u{1F1D}\u{1F20}-\u{1F45}\u{1F48}-\u{1F4D}\u{1F50}-\u{1F57}\u{1F59}",
    r"\u{1F5B}\u{1F5D}\u{1F5F}-\u{1F7D}\u{1F80}-\u{1FB4}\u{1FB6}-\u{1FBC}\u{1FBE}\u{1FC2}-",
    r"\u{1FC4}\u{1FC6}-\u{1FCC}\u{1FD0}-\u{1FD3}\u{1FD6}-\u{1FDB}\u{1FE0}-\u{1FEC}\u{1FF2}",
    r"-\u{1FF4}\u{1FF6}-\u{1FFC}\u{2102}\u{2107}\u{210A}-\u{2113}\u{2115}\u{2119}-\u{211D}",
    r"\u{2124}\u{2126}\u{2128}\u{212A}-\u{212D}\u{212F}-\u{2134}\u{2139}\u{213C}-\u{213F}",
    r"\u{2145}-\u{2149}\u{214E}\u{2183}\u{2184}\u{2C00}-\u{2C7B}\u{2C7E}-\u{2CE4}\u{2CEB}-",
    r"\u{2CEE}\u{2CF2}\u{2CF3}\u{A640}-\u{A66D}\u{A680}-\u{A69B}\u{A722}-\u{A76F}\u{A771}-",
    r"\u{A787}\u{A78B}-\u{A78E}\u{AB70}-\u{ABBF}\u{FB00}-\u{FB06}\u{FB13}-\u{FB17}\u{FF21}",
    r"-\u{FF3A}\u{FF41}-\u{FF5A}\u{10400}-\u{1044F}\u{104B0}-\u{104D3}\u{104D8}-\u{104FB}",
    r"\u{10C80}-\u{10CB2}\u{10CC0}-\u{10CF2}\u{118A0}-\u{118DF}\u{1E900}-\u{1E943}]+",
);
/// A number in the midst of a word, as Oniguruma has words, and one at a word's end.
const NUMBERS: &[&str] = &[r"\d+[\w\p{N}--[\d\u{200C}\u{200D}]]", r"\d+"];
/// Punctuation as DeepSeek LLM lists it, after a space.
const DEEPSEEK_PUNCTUATION: &str =
    r"\s?[!-/:-~\u{FF01}-\u{FF0F}\u{FF1A}-\u{FF5E}\u{2018}-\u{201F}\u{3000}-\u{3002}]+";
/// Scripts that DeepSeek LLM keeps together: CJK, Hangul and what lies between.
const DEEPSEEK_WIDE: &str = r"[\u{4E00}-\u{9FA5}\u{800}-\u{4E00}\u{AC00}-\u{D7FF}]+";
/// CJK ideographs and Kana.
const CJK: &str = r"[\u{4E00}-\u{9FA5}\u{3040}-\u{309F}\u{30A0}-\u{30FF}]+";
/// Hangul, Chinese punctuation, Bopomofo, and CJK with Kana.
const YOUTU_SCRIPTS: &str = concat!(
    r"[\u{AC00}-\u{D7A3}\u{3131}-\u{318E}]+|[\u{FF01}\u{2026}\u{201C}\u{201D}\u{2018}",
    r"\u{2019}\u{2014}\u{FF1A}\u{FF1B}\u{FF0C}\u{3001}-\u{303F}\u{FE30}-\u{FE4F}]+|[",
    r"\u{3105}-\u{312F}]+|[\u{4E00}-\u{9FA5}\u{3040}-\u{309F}\u{30A0}-\u{30FF}]+",
);
/// Scripts that AFMoE keeps together: CJK, Kana, Thai, Lao, Khmer, Burmese, Hangul.
const AFMOE_SCRIPTS: &str = concat!(
    r"[\u{4E00}-\u{9FFF}\u{3400}-\u{4DBF}\u{8C48}-\u{FAFF}\u{3040}-\u{309F}\u{30A0}-",
    r"\u{30FF}\u{FF65}-\u{FF9F}\u{2F00}-\u{2FDF}\u{E40}-\u{E7F}\u{E80}-\u{EFF}\u{1780}-",
    r"\u{17FF}\u{1000}-\u{109F}\u{AA60}-\u{AA7F}\u{A9E0}-\u{A9FF}\u{AC00}-\u{D7AF}\u{1100}",
    r"-\u{11FF}]+",
);
/// Words between the punctuation of BLOOM and its kin.
const PORO_WORDS: &str = r" ?[^(\s|.,!?\u{2026}\u{3002}\u{FF0C}\u{3001}\u{964}\u{6D4}\u{60C})]+";

/// The names that [`PreTokenizer::new`] knows.
const TABLE: &[Entry] = &[
    Entry {
        names: &["default"],
        rules: &[Regex(r"[\p{P}$+<=>^~|]+"), GPT2, Regex(r"\p{N}+"), Regex("[0-9][0-9][0-9]")],
        options: PLAIN,
    },
    Entry {
        names: &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "exaone4",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "modern-bert",
        ],
        rules: &[GPT2],
        options: PLAIN,
    },
    Entry {
        names: &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        rules: &[DIGIT, GPT2],
        options: PLAIN,
    },
    Entry {
        names: &[
            "llama3",
            "llama-v3",
            "llama-bpe",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        rules: &[LLAMA3],
        options: WHOLE_BOS,
    },
    Entry { names: &["glm4", "glm5"], rules: &[LLAMA3], options: WHOLE },
    Entry { names: &["dbrx", "smaug-bpe", "chatglm-bpe"], rules: &[LLAMA3], options: PLAIN },
    Entry {
        names: &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "megrez",
            "grok-2",
        ],
        rules: &[QWEN2],
        options: PLAIN,
    },
    Entry { names: &["laguna"], rules: &[LINES, QWEN2], options: PLAIN },
    Entry {
        names: &["qwen35"],
        rules: &[Words(concat!(
            contractions!(""),
            r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
        ))],
        options: PLAIN,
    },
    Entry { names: &["ufakzeka"], rules: &[cl100k!("", r"\p{N}")], options: PLAIN },
    Entry {
        names: &["minicpm5"],
        rules: &[DIGITS_3, cl100k!(contractions!("|"), r"\p{N}+")],
        options: WHOLE,
    },
    Entry {
        names: &["bailingmoe", "bailingmoe2", "llada-moe"],
        rules: &[Words(concat!(
            r"'(?:[sSdDmMtT\u{17F}]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]"
        ))],
        options: PLAIN,
    },
    Entry {
        names: &["seed-coder"],
        rules: &[Words(concat!(
            contractions!(""),
            r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+"
        ))],
        options: PLAIN,
    },
    Entry {
        names: &["exaone-moe"],
        rules: &[Words(concat!(
            contractions!(""),
            r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]"
        ))],
        options: PLAIN,
    },
    Entry { names: &["tekken"], rules: &[o200k!("", r"\p{N}", r"[\r\n/]*")], options: WHOLE_BOS },
    Entry {
        names: &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"],
        rules: &[GPT4O],
        options: PLAIN,
    },
    Entry { names: &["tiny_aya", "cohere2moe"], rules: &[LastDigitGroups, GPT4O], options: PLAIN },
    Entry {
        names: &["kimi-k2"],
        rules: &[o200k!(
            contractions!("?"),
            r"\p{N}{1,3}",
            r"[\r\n]*",
            r"\p{Han}+|",
            r"&&[^\p{Han}]"
        )],
        options: PLAIN,
    },
    Entry {
        names: &["youtu"],
        rules: &[Regex(YOUTU_SCRIPTS), o200k!(contractions!("?"), r"\p{N}", r"[\r\n/]*")],
        options: WHOLE,
    },
    Entry {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        rules: DEEPSEEK3,
        options: PLAIN,
    },
    Entry {
        names: &["afmoe"],
        rules: &[DigitGroups, Regex(AFMOE_SCRIPTS), deepseek3!(r"[\r\n]*", r"\s*[\r\n]+")],
        options: PLAIN,
    },
    Entry {
        names: &["spark2_5"],
        rules: &[DIGITS_3, Regex(CJK), deepseek3!("", r"[\r\n]"), DIGIT],
        options: PLAIN,
    },
    Entry {
        names: &["deepseek-llm"],
        rules: &[
            Regex(r"[\r\n]"),
            Regex(DEEPSEEK_WORDS),
            Regex(DEEPSEEK_PUNCTUATION),
            TrailingSpace,
            Regex(DEEPSEEK_WIDE),
            Regex(r"\p{N}+"),
        ],
        options: PLAIN,
    },
    Entry {
        names: &["deepseek-coder"],
        rules: &[
            Regex(r"[\r\n]"),
            Regex(r"\s?\p{L}+"),
            Regex(r"\s?\p{P}+"),
            Regex(DEEPSEEK_WIDE),
            DIGIT,
        ],
        options: PLAIN,
    },
    Entry {
        names: &["falcon"],
        rules: &[Regex(r"[\p{P}$+<=>^~|`]+"), GPT2, Regex("[0-9][0-9][0-9]")],
        options: PLAIN,
    },
    Entry {
        names: &["poro-chat", "bloom", "gpt3-finnish"],
        rules: &[Regex(PORO_WORDS)],
        options: PLAIN,
    },
    Entry { names: &["viking"], rules: &[Regex(PORO_WORDS), DIGIT], options: PLAIN },
    Entry { names: &["gemma4"], rules: &[LINES], options: Options { add_bos: true, ..CHARACTERS } },
    Entry { names: &["sarvam-moe"], rules: &[LINES], options: CHARACTERS },
];

/// A pass, compiled.
enum Pass {
    Automaton(Box<Automaton>),
    TrailingSpace,
    DigitGroups,
    LastDigitGroups(Box<Automaton>),
}

/// A lazy DFA, which builds its states as texts ask for them.
struct Automaton {
    dfa: DFA,
    cache: Mutex<Cache>,
}

/// The rules of one tokenizer, compiled.
pub(super) struct PreTokenizer {
    passes: Vec<Pass>,
    options: Options,
}

impl PreTokenizer {
    /// The rules that go by this name in `tokenizer.ggml.pre`.
    pub fn new(name: &str) -> Result<Self> {
        let Some(entry) = TABLE.iter().find(|e| e.names.contains(&name)) else {
            return Err(Error::unsupported(format!(
                "pre-tokenizer `{name}` is not known, so the text would become other tokens than \
                 those of the model's training; use a newer version, or convert the model again \
                 with a name in `tokenizer.ggml.pre` that is known and splits words in the same \
                 way, such as `llama-bpe`, `qwen2`, `gpt-4o` or `deepseek-v3`"
            )));
        };
        let passes = entry
            .rules
            .iter()
            .map(|&rule| {
                Ok(match rule {
                    Regex(main) => Pass::Automaton(Box::new(Automaton::new(&[main])?)),
                    Words(main) => Pass::Automaton(Box::new(Automaton::new(&[main, r"\s+"])?)),
                    TrailingSpace => Pass::TrailingSpace,
                    DigitGroups => Pass::DigitGroups,
                    LastDigitGroups => Pass::LastDigitGroups(Box::new(Automaton::new(NUMBERS)?)),
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self { passes, options: entry.options })
    }

    /// Whether BOS is added if the file does not say.
    pub fn add_bos(&self) -> bool {
        self.options.add_bos
    }

    /// Whether words are merged as GPT-2 writes bytes, not as characters.
    pub fn byte_level(&self) -> bool {
        self.options.byte_level
    }

    /// Whether this word is to be taken without merging, if it is a token.
    pub fn takes_whole(&self, word: &str) -> bool {
        self.options.ignore_merges || !self.options.byte_level && word.bytes().all(|b| b == b'\n')
    }

    /// The ends of the words of a text.
    pub fn split(&self, text: &str) -> Vec<usize> {
        let mut ends = vec![text.len()];
        for pass in &self.passes {
            let mut finer = Vec::with_capacity(ends.len());
            let mut start = 0;
            for end in ends {
                let word = &text[start..end];
                pass.split(word, |at| finer.push(start + at));
                if finer.last().copied().unwrap_or(0) < end {
                    finer.push(end);
                }
                start = end;
            }
            ends = finer;
        }
        ends
    }
}

impl Pass {
    /// Calls `cut` with every place to cut at, in order; the end may be left
    /// out.
    fn split(&self, word: &str, cut: impl FnMut(usize)) {
        match self {
            Self::Automaton(automaton) => automaton.split(word, cut),
            Self::TrailingSpace => {
                let at = word.trim_end().len();
                if at > 0 {
                    [at].into_iter().for_each(cut);
                }
            }
            Self::DigitGroups => split_digit_groups(word, cut),
            Self::LastDigitGroups(numbers) => split_last_digit_groups(numbers, word, cut),
        }
    }
}

impl Automaton {
    fn new(patterns: &[&str]) -> Result<Self> {
        let dfa = DFA::builder()
            .configure(
                DFA::config().match_kind(MatchKind::LeftmostFirst).skip_cache_capacity_check(true),
            )
            .build_many(patterns)
            .map_err(|e| Error::unsupported(format!("a pre-tokenizer does not compile: {e}")))?;
        let cache = Mutex::new(dfa.create_cache());
        Ok(Self { dfa, cache })
    }

    fn split(&self, word: &str, mut cut: impl FnMut(usize)) {
        let mut start = 0;
        self.matches(word, |Range { start: at, mut end }, pattern| {
            if at > start {
                cut(at);
            }
            if pattern == 1 && end < word.len() {
                let last = word[at..end].chars().next_back().map_or(0, char::len_utf8);
                if end - last > at {
                    end -= last;
                }
            }
            cut(end);
            start = end;
            end
        });
    }

    /// Calls `found` with every match and the number of its expression; it answers from
    /// where to go on.
    fn matches(&self, word: &str, mut found: impl FnMut(Range<usize>, usize) -> usize) {
        // A cache is sound whatever happened to its last user.
        let cache = &mut *self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let input = Input::new(word).anchored(Anchored::Yes);
        let mut at = 0;
        while at < word.len() {
            let end = self
                .dfa
                .try_search_fwd(cache, &input.clone().range(at..))
                .expect("the automata have no bytes that they quit at, and never give up");
            at = match end.filter(|end| end.offset() > at) {
                Some(end) => found(at..end.offset(), end.pattern().as_usize()),
                None => at + word[at..].chars().next().map_or(1, char::len_utf8),
            };
        }
    }
}

fn split_digit_groups(word: &str, mut cut: impl FnMut(usize)) {
    let mut rest = word.char_indices().peekable();
    while let Some((start, c)) = rest.next() {
        if !c.is_numeric() {
            continue;
        }
        while rest.next_if(|(_, c)| c.is_numeric()).is_some() {}
        let end = rest.peek().map_or(word.len(), |&(end, _)| end);
        cut_groups(word, start..end, &mut cut);
    }
}

fn split_last_digit_groups(numbers: &Automaton, word: &str, mut cut: impl FnMut(usize)) {
    numbers.matches(word, |range, pattern| {
        let end = range.end;
        if pattern == 1 {
            cut_groups(word, range, &mut cut);
        }
        end
    });
}

/// Cuts on both sides of a number, and between its groups of three.
fn cut_groups(word: &str, number: Range<usize>, cut: &mut impl FnMut(usize)) {
    if number.start > 0 {
        cut(number.start);
    }
    let mut n_left = word[number.clone()].chars().count();
    for (at, _) in word[number.clone()].char_indices() {
        if at > 0 && n_left.is_multiple_of(3) {
            cut(number.start + at);
        }
        n_left -= 1;
    }
    if number.end < word.len() {
        cut(number.end);
    }
}
