//! Tokenizers, on any text and on any vocabulary.
//!
//! With a vocabulary that can write all bytes, text comes back as it was. With any
//! vocabulary, tokens are those that there are, a stranger's text makes no control
//! tokens, and bytes in pieces make the same text as at once.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use arbitrary::{Arbitrary, Result, Unstructured};
use moewe_engine::ErrorKind;
use moewe_engine::tokenizer::{TextStream, Tokenizer};
use moewe_gguf::{Error, Gguf, Metadata, Writer};

use crate::made_up::{is_odd, number};
use crate::memory;
use crate::target::{Target, check_message, reached};

/// See the module.
pub const TARGET: Target = Target {
    name: "tokenizer",
    fuzz,
    seeds,
    words: &[
        "<|end|>",
        "<tool>",
        "\u{2581}",
        "<0x0A>",
        "  ",
        "\r\n",
        "\u{1f98a}",
        "e\u{301}",
        "\u{4f60}\u{597d}",
        "the then",
        "1234567",
        "'s",
    ],
    len_max: 2048,
};

/// One pre-tokenizer of each kind.
const PRE: [&str; 26] = [
    "default",
    "gpt-2",
    "smollm",
    "llama-bpe",
    "qwen2",
    "glm4",
    "dbrx",
    "laguna",
    "qwen35",
    "minicpm5",
    "bailingmoe",
    "seed-coder",
    "exaone-moe",
    "tekken",
    "gpt-4o",
    "kimi-k2",
    "youtu",
    "deepseek-v3",
    "afmoe",
    "spark2_5",
    "deepseek-llm",
    "deepseek-coder",
    "falcon",
    "poro-chat",
    "viking",
    "ufakzeka",
];
/// Types of tokens.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER: i32 = 4;
const BYTE: i32 = 6;

fn seeds() -> Vec<Vec<u8>> {
    let text =
        "The quick (brown) fox can't jump 32.3 metres,\r\n  right?\t\u{4f60}\u{597d} e\u{301}";
    let texts = (0..4 * PRE.len() as u8).step_by(4).map(|i| [&[i], text.as_bytes()].concat());
    let others = (1..4u8).map(|i| [&[i], text.as_bytes()].concat());
    let vocabularies = (1..8u8).map(|step| {
        (0..=200u8).map(|i| if i == 0 { 3 } else { i.wrapping_mul(step * 5) }).collect()
    });
    texts.chain(others).chain(vocabularies).collect()
}

/// See the module.
///
/// # Panics
///
/// If a promise is broken.
pub fn fuzz(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else { return };
    stream(rest);
    let pre = PRE[usize::from(first / 4) % PRE.len()];
    match first % 4 {
        0 => round_trip(pre, &String::from_utf8_lossy(rest)),
        1 => round_trip("llama", &String::from_utf8_lossy(rest)),
        2 => round_trip("gemma4", &String::from_utf8_lossy(rest)),
        _ => {
            let _ = any_vocabulary(&mut Unstructured::new(rest));
        }
    }
}

/// Bytes in pieces make the same text as at once.
fn stream(bytes: &[u8]) {
    let mut stream = TextStream::default();
    let (mut text, mut rest) = (String::new(), bytes);
    while let Some(&first) = rest.first() {
        let (piece, behind) = rest.split_at(rest.len().min(1 + usize::from(first % 5)));
        text += &stream.push(piece);
        rest = behind;
    }
    text += &stream.finish();
    assert_eq!(text, String::from_utf8_lossy(bytes));
}

thread_local! {
    /// Sound tokenizers, which take their time to build.
    static TOKENIZERS: RefCell<BTreeMap<String, Rc<Tokenizer>>> =
        const { RefCell::new(BTreeMap::new()) };
}

fn metadata(writer: &Writer) -> Metadata {
    let bytes = writer.bytes();
    let gguf = Gguf::open("made-up.gguf", |_| Ok::<_, Error>(&bytes[..]));
    gguf.unwrap_or_else(|error| panic!("a header that is sound: {error}")).header.metadata
}

/// A tokenizer that can write everything.
fn sound(kind: &str) -> Rc<Tokenizer> {
    TOKENIZERS.with_borrow_mut(|all| {
        let make =
            || Rc::new(Tokenizer::from_metadata(&metadata(&vocabulary(kind))).unwrap().unwrap());
        all.entry(kind.to_owned()).or_insert_with(make).clone()
    })
}

fn vocabulary(kind: &str) -> Writer {
    let is_byte_level = !["llama", "gemma4"].contains(&kind);
    let mut tokens: Vec<(String, i32)> = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)]
        .map(|(name, kind)| (name.to_owned(), kind))
        .to_vec();
    let words: [&[&str]; 12] = [
        &["t", "h"],
        &["th", "e"],
        &["e", "n"],
        &["the", "n"],
        &["o", "x"],
        &["a", "a"],
        &["aa", "aa"],
        &["1", "2"],
        &["12", "3"],
        &["i", "n"],
        &["in", "g"],
        &["SPACE", "the"],
    ];
    let space = if is_byte_level { "\u{120}" } else { "\u{2581}" };
    let words =
        words.map(|pair| pair.iter().map(|w| w.replace("SPACE", space)).collect::<Vec<_>>());
    if is_byte_level {
        let mut shifted = '\u{100}'..;
        tokens.extend((0..=255u8).map(|byte| match byte {
            0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => (char::from(byte).to_string(), NORMAL),
            _ => (shifted.next().expect("a character").to_string(), NORMAL),
        }));
    } else {
        tokens.extend((0..=255u8).map(|byte| (format!("<0x{byte:02X}>"), BYTE)));
        tokens.extend(('a'..='z').map(|c| (c.to_string(), NORMAL)));
        tokens.extend([space, "1", "2", "3", "\u{e9}"].map(|c| (c.to_owned(), NORMAL)));
    }
    tokens.extend(words.iter().map(|pair| (pair.concat(), NORMAL)));
    tokens.push(("<|end|>".to_owned(), CONTROL));
    // Behind a token that is found in a text, `llama` puts a space before the rest.
    if kind != "llama" {
        tokens.push(("<tool>".to_owned(), USER));
    }

    let mut writer = Writer::default();
    writer.string("tokenizer.ggml.model", if is_byte_level { "gpt2" } else { kind });
    writer.string("tokenizer.ggml.pre", kind);
    writer.strings("tokenizer.ggml.tokens", tokens.iter().map(|(token, _)| token));
    let kinds: Vec<i32> = tokens.iter().map(|(_, kind)| *kind).collect();
    writer.i32s("tokenizer.ggml.token_type", &kinds);
    let scores: Vec<f32> = (0..tokens.len()).map(|i| -(i as f32)).collect();
    writer.f32s("tokenizer.ggml.scores", &scores);
    writer.strings("tokenizer.ggml.merges", words.iter().map(|pair| pair.join(" ")));
    writer
}

/// Text comes back as it was.
fn round_trip(kind: &str, text: &str) {
    let tokenizer = sound(kind);
    // Where spaces are written as another character, that one becomes a space.
    let expected = match kind {
        "llama" | "gemma4" => text.replace('\u{2581}', " "),
        _ => text.to_owned(),
    };
    // An automaton is made as it is used.
    let bytes_max = (4 << 20) + 256 * text.len();
    let tokens = memory::bounded(bytes_max, || tokenizer.encode(text, false, false)).unwrap();
    assert_eq!(tokenizer.decode(&tokens, false).unwrap(), expected, "{kind}");
    assert!(tokens.len() <= text.len() + 1, "{kind}: {} tokens", tokens.len());
    let names = tokens.iter().map(|&token| tokenizer.token_text(token).unwrap());
    for name in names {
        assert!(!["<unk>", "<s>", "</s>", "<|end|>"].contains(&name), "{kind}: {name} in a text");
    }
    // Names of control tokens become these, and come back as names. Behind one, a
    // space is put before a text (`llama`).
    let tokens = tokenizer.encode(text, false, true).unwrap();
    if kind != "llama" {
        assert_eq!(tokenizer.decode(&tokens, true).unwrap(), expected, "{kind}");
    }
    let n_names = |name: &str| {
        tokens.iter().filter(|&&token| tokenizer.token_text(token) == Some(name)).count()
    };
    assert_eq!(n_names("<|end|>"), text.matches("<|end|>").count(), "{kind}");
    reached(kind);
    reached(["a token", "tokens"][usize::from(tokens.len() > 1)]);
    let longest = tokens.iter().filter_map(|&t| tokenizer.token_text(t)).map(str::len).max();
    reached(&"x".repeat(longest.unwrap_or(0)));
}

/// A piece of text, of few letters, so that pieces are found in each other.
fn piece(u: &mut Unstructured<'_>) -> Result<String> {
    const PIECES: [&str; 16] = [
        "a",
        "b",
        "aa",
        "ab",
        "\u{2581}",
        "\u{120}",
        "\u{10a}",
        " ",
        "<0x61>",
        "<s>",
        "<|end|>",
        "\u{e9}",
        "\u{1f98a}",
        "1",
        "\n",
        "",
    ];
    let mut text = String::new();
    for _ in 0..u.int_in_range(1..=3)? {
        text += u.choose(&PIECES)?;
    }
    if is_odd(u)? {
        text = text.repeat(u.int_in_range(1..=400)?);
    }
    Ok(text)
}

fn any_vocabulary(u: &mut Unstructured<'_>) -> Result<()> {
    let mut writer = Writer::default();
    let model = *u.choose(&["llama", "llama", "gemma4", "gpt2"])?;
    writer.string("tokenizer.ggml.model", if is_odd(u)? { "lemma" } else { model });
    if model == "gpt2" {
        // Compiling its expressions takes more than all else.
        writer.string("tokenizer.ggml.pre", if is_odd(u)? { "made up" } else { "viking" });
    }
    let tokens: Vec<String> =
        (0..u.int_in_range(1..=20)?).map(|_| piece(u)).collect::<Result<_>>()?;
    let mut types = Vec::new();
    for _ in 0..if is_odd(u)? { u.int_in_range(0..=30)? } else { tokens.len() } {
        types.push(if u.ratio(1, 3)? { u.int_in_range(0..=7)? } else { NORMAL });
    }
    writer.strings("tokenizer.ggml.tokens", &tokens);
    writer.i32s("tokenizer.ggml.token_type", &types);
    let n_scores = if is_odd(u)? { u.int_in_range(0..=30)? } else { tokens.len() };
    let mut scores = Vec::new();
    for _ in 0..n_scores {
        scores.push(if is_odd(u)? { f32::arbitrary(u)? } else { u8::arbitrary(u)?.into() });
    }
    writer.f32s("tokenizer.ggml.scores", &scores);
    let n_merges = u.int_in_range(0..=12)?;
    let merges = (0..n_merges).map(|_| Ok(format!("{} {}", piece(u)?, piece(u)?)));
    let merges = merges.collect::<Result<Vec<String>>>()?;
    writer.strings("tokenizer.ggml.merges", &merges);
    for key in ["bos", "eos", "unknown", "eot"] {
        if u.ratio(1, 2)? {
            let id = if is_odd(u)? { number(u)? as u32 } else { u.int_in_range(0..=19)? };
            writer.u32(&format!("tokenizer.ggml.{key}_token_id"), id);
        }
    }
    for key in ["add_bos_token", "add_eos_token", "add_space_prefix"] {
        if u.ratio(1, 2)? {
            writer.bool(&format!("tokenizer.ggml.{key}"), bool::arbitrary(u)?);
        }
    }
    if u.ratio(1, 8)? {
        writer.string("general.name", "Phi-3");
    }
    let metadata = metadata(&writer);
    // Automata have tables of a fixed size.
    let bytes_max = (16 << 20) + 256 * writer.raw.pairs.len();
    let tokenizer = match memory::bounded(bytes_max, || Tokenizer::from_metadata(&metadata)) {
        Ok(tokenizer) => tokenizer.expect("the metadata name a tokenizer"),
        Err(error) => {
            let kinds = [ErrorKind::InvalidModel, ErrorKind::Unsupported];
            assert!(kinds.contains(&error.kind()), "{error}");
            check_message(&error);
            return Ok(());
        }
    };
    let n_vocab = tokenizer.n_vocab();
    assert_eq!(n_vocab as usize, tokens.len());
    let error = tokenizer.token_bytes(n_vocab, true).expect_err("a token that is not there");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);

    let mut text = String::new();
    for _ in 0..u.int_in_range(0..=8)? {
        text += &piece(u)?;
    }
    for flags in 0..4 {
        let (add_special, parse_special) = (flags & 1 == 1, flags & 2 == 2);
        let bytes_max = (64 << 10) + 512 * text.len();
        let encode = || tokenizer.encode(&text, add_special, parse_special);
        let ids = memory::bounded(bytes_max, encode).expect("a short text");
        assert!(ids.len() <= 3 * text.len() + 6, "{} tokens of {text:?}", ids.len());
        assert!(ids.iter().all(|&id| id < n_vocab), "{ids:?}");
        if flags == 0 {
            let unknown = metadata.u32("tokenizer.ggml.unknown_token_id").unwrap();
            let unknown = unknown.filter(|&id| id < n_vocab).or(Some(0));
            let is_control = |&id: &u32| types[id as usize] == CONTROL && Some(id) != unknown;
            let control = ids.iter().find(|id| is_control(id));
            assert_eq!(control, None, "a control token in {text:?}: {ids:?} of {tokens:?}");
        }
        for special in [false, true] {
            let bytes: Vec<u8> =
                ids.iter().flat_map(|&id| tokenizer.token_bytes(id, special).unwrap()).collect();
            stream(&bytes);
            let decoded = tokenizer.decode(&ids, special).unwrap();
            let at_once = String::from_utf8_lossy(&bytes);
            let is_prefixed = at_once.strip_prefix(' ') == Some(&decoded);
            assert!(decoded == at_once || is_prefixed, "{decoded:?} of {at_once:?}");
        }
    }
    reached(model);
    Ok(())
}
