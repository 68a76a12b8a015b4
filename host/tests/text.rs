//! Text into a session and out of it, with a model whose tokens are mostly bytes.

use moewe::{Engine, ErrorKind, Model, ModelOptions, Sampling, Session, SessionOptions};
use moewe_models::Silent;
use moewe_models::generate::{Shape, generate};

/// The least vocabulary: all bytes, three control tokens, a pair of letters.
const SHAPE: Shape = Shape {
    n_layer: 1,
    n_embd: 256,
    n_head: 8,
    kv_heads: 2,
    head_dim: 32,
    n_expert: 2,
    n_expert_used: 1,
    n_ff_expert: 256,
    n_vocab: 260,
    n_ctx: 4096,
};
const PROMPT: [u32; 3] = [72, 105, 33];
/// Bytes of the longest name of a control token.
const TOKEN_BYTES_MAX: u64 = 13;

fn model() -> (tempfile::TempDir, Model) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bytes.gguf");
    generate(&path, &SHAPE, 1, &mut Silent).unwrap();
    let model = Model::open(&Engine::new().unwrap(), &path, ModelOptions::default()).unwrap();
    (folder, model)
}

/// A session behind a token that begins a character.
fn amid_a_character(model: &Model) -> Session {
    let mut options = SessionOptions::default();
    let mut sampling = Sampling::default();
    (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) = (2.0, 0, 1.0, 0.0);
    options.sampling = sampling;
    let mut session = model.session(options).unwrap();
    session.feed(&PROMPT).unwrap();
    for _ in 0..1000 {
        let step = session.next().unwrap();
        if step.token.is_some_and(|token| (0xc2..0xf5).contains(&token)) {
            return session;
        }
    }
    panic!("no token begins a character");
}

#[test]
fn a_rewind_to_the_end_keeps_the_start_of_a_character() {
    let (_folder, model) = model();
    let (mut plain, mut rewound) = (amid_a_character(&model), amid_a_character(&model));
    let n_tokens = rewound.usage().unwrap().context_tokens;
    rewound.rewind(n_tokens).unwrap();
    assert_eq!(rewound.next().unwrap(), plain.next().unwrap());
}

#[test]
fn an_answer_does_not_begin_with_the_rest_of_the_last_one() {
    let (_folder, model) = model();
    let mut session = amid_a_character(&model);
    // Going on without a prompt completes the character, or shows that it is none.
    let mut answer = amid_a_character(&model);
    assert_eq!(answer.generate(&[], Some(0)).count(), 1);
    let step = answer.next().unwrap();
    let second = step.token.unwrap();
    if second < 0x80 {
        assert_eq!(step.text, format!("\u{fffd}{}", char::from(second as u8)));
    }

    session.feed(&PROMPT).unwrap();
    let step = session.next().unwrap();
    let expected = match step.token.unwrap() {
        byte @ 0..0x80 => char::from(byte as u8).to_string(),
        0xc2..0xf5 | 256..259 => String::new(),
        0x80..256 => "\u{fffd}".to_owned(),
        _ => "aa".to_owned(),
    };
    assert_eq!(step.text, expected);
}

#[test]
fn a_text_that_no_context_could_hold_is_refused() {
    let (_folder, model) = model();
    assert_eq!(u64::from(model.info().token_bytes_max), TOKEN_BYTES_MAX);
    let mut options = SessionOptions::default();
    options.n_ctx = Some(8);
    let mut session = model.session(options).unwrap();
    assert_eq!(session.text_bytes_max(), 8 * TOKEN_BYTES_MAX);
    let mut tokenize = |n| session.tokenize(&"a".repeat(n), true, true);
    assert_eq!(tokenize(104).unwrap().len(), 52);
    let error = tokenize(105).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ContextFull);
    let message = error.to_string();
    assert!(message.contains("104 bytes") && message.contains("context of 8 tokens"), "{message}");
    assert!(message.contains("up to 4096"), "{message}");
    assert!(!session.tokenize("Hi", true, true).unwrap().is_empty(), "the session goes on");
}
