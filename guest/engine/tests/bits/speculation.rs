//! Drafts change how long a text takes, and nothing else.

use std::path::Path;

use moewe_engine::language_model::LanguageModel;
use moewe_engine::native::Folder;
use moewe_engine::sampler::{Sampler, Sampling};
use moewe_engine::{Context, LoadOptions};
use moewe_fixtures::model;

const GREEDY: Sampling = Sampling {
    temperature: 0.0,
    top_k: 0,
    top_p: 1.0,
    min_p: 0.0,
    repeat_penalty: 1.0,
    repeat_last_n: 64,
    seed: 0,
};

fn load(path: &Path) -> LanguageModel {
    let (folder, name) = Folder::of(path).unwrap();
    LanguageModel::load(&folder, &name, u64::MAX, &LoadOptions::default()).unwrap()
}

/// A text of few words that repeats itself, as code and lists do.
fn repetitive(n: u32) -> Vec<u32> {
    (0..n).map(|i| 40 + i % 7 * 3).collect()
}

/// The weights are random, and so is their text. A penalty below 1 has them
/// repeat themselves.
fn samplings() -> [Sampling; 3] {
    let repeating = Sampling { repeat_penalty: 0.5, ..GREEDY };
    let sampled = Sampling { temperature: 0.4, top_k: 20, seed: 7, ..repeating };
    [GREEDY, repeating, sampled]
}

#[test]
fn tokens_are_those_of_plain_decoding() {
    let mut accepted = 0;
    for name in ["mixtral-q4_k_m", "olmoe-q8_0"] {
        let model = load(&model(name));
        for sampling in samplings() {
            let mut session = model.start(None, sampling.clone()).unwrap();
            let mut plain = Context::new(session.context().model().clone(), None).unwrap();
            let mut sampler = Sampler::new(sampling).unwrap();
            session.feed(&repetitive(50)).unwrap();
            plain.feed(&repetitive(50)).unwrap();
            for _ in 0..120 {
                let recent = plain.tokens().to_vec();
                let token = sampler.sample(plain.logits().unwrap(), &recent).unwrap();
                match session.next().unwrap().token {
                    Some(next) => assert_eq!(next, token),
                    // The end of generation does not become part of the text.
                    None => continue,
                }
                plain.feed(&[token]).unwrap();
            }
            accepted += session.context().accepted_tokens();
        }
    }
    assert!(accepted > 20, "only {accepted} tokens were drafted and came true");
}

#[test]
fn a_full_context_ends_amid_drafts() {
    let model = load(&model("mixtral-q4_k_m"));
    for n_ctx in 90..96 {
        let mut session = model.start(Some(n_ctx), samplings()[1].clone()).unwrap();
        session.feed(&repetitive(60)).unwrap();
        let mut n = 60;
        while session.next().unwrap().token.is_some() {
            n += 1;
        }
        assert_eq!(n, session.context().tokens().len());
        assert!(n <= n_ctx as usize);
    }
}
