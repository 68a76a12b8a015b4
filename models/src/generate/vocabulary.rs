//! A vocabulary that writes every text: all bytes, as GPT-2 writes them, and
//! pairs of letters.

use std::ops::RangeInclusive;

use moewe_gguf::Writer;

/// Tokens that are not text.
const CONTROL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
const N_LETTERS: u32 = 52;

/// How many tokens a vocabulary can have.
pub const SIZES: RangeInclusive<u32> =
    256 + CONTROL.len() as u32 + 1..=256 + CONTROL.len() as u32 + N_LETTERS * N_LETTERS;

/// Token types of the format.
const NORMAL: i32 = 1;
const CONTROL_TYPE: i32 = 3;

/// Adds a tokenizer of `n_vocab` tokens, byte-level BPE.
pub fn write(header: &mut Writer, n_vocab: usize) {
    let mut tokens: Vec<String> = byte_characters().map(String::from).collect();
    let mut types = vec![NORMAL; tokens.len()];
    tokens.extend(CONTROL.map(String::from));
    types.resize(tokens.len(), CONTROL_TYPE);
    let mut merges = Vec::new();
    let letters = || ('a'..='z').chain('A'..='Z');
    let pairs = letters().flat_map(|first| letters().map(move |second| (first, second)));
    for (first, second) in pairs.take(n_vocab - tokens.len()) {
        tokens.push(format!("{first}{second}"));
        merges.push(format!("{first} {second}"));
    }
    types.resize(tokens.len(), NORMAL);
    header.string("tokenizer.ggml.model", "gpt2");
    header.string("tokenizer.ggml.pre", "qwen2");
    header.strings("tokenizer.ggml.tokens", &tokens);
    header.i32s("tokenizer.ggml.token_type", &types);
    header.strings("tokenizer.ggml.merges", &merges);
    header.u32("tokenizer.ggml.eos_token_id", 256);
    header.u32("tokenizer.ggml.padding_token_id", 256);
    header.bool("tokenizer.ggml.add_bos_token", false);
}

/// The characters that stand for the bytes 0 to 255: printable Latin-1 for
/// itself, the rest from U+0100 on.
fn byte_characters() -> impl Iterator<Item = char> {
    let mut shifted = '\u{100}'..;
    (0..=u8::MAX).map(move |byte| match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        _ => shifted.next().expect("there are more characters than bytes"),
    })
}
