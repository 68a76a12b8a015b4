//! Drafted tokens are those that plain decoding chooses.

use moewe::{Engine, Model, ModelOptions, Sampling, Session, SessionOptions};
use moewe_engine::sampler;
use moewe_tests::smollm2;

const N_PREDICT: u64 = 48;
/// What goes on as it began, and what does not.
const PROMPTS: [&str; 2] = [
    "red, green, blue, red, green, blue, red, green, blue, red, green, blue, red,",
    "The lighthouse keeper looked out over the sea and",
];

fn session(model: &Model, sampling: &Sampling) -> Session {
    let mut options = SessionOptions::default();
    options.sampling = sampling.clone();
    model.session(options).unwrap()
}

/// Decodes a token at a time, with logits and a sampler outside the sandbox.
fn plain(session: &mut Session, prompt: &[u32], s: &Sampling) -> Vec<u32> {
    let mut sampler = sampler::Sampler::new(sampler::Sampling {
        temperature: s.temperature,
        top_k: s.top_k,
        top_p: s.top_p,
        min_p: s.min_p,
        repeat_penalty: s.repeat_penalty,
        repeat_last_n: s.repeat_last_n,
        seed: s.seed,
    })
    .unwrap();
    let mut tokens = prompt.to_vec();
    session.feed(prompt).unwrap();
    for _ in 0..N_PREDICT {
        let token = sampler.sample(&session.logits().unwrap(), &tokens).unwrap();
        session.feed(&[token]).unwrap();
        tokens.push(token);
    }
    tokens.split_off(prompt.len())
}

#[test]
fn smollm2_says_the_same_with_drafts() {
    let Some(path) = smollm2() else { return };
    let engine = Engine::new().unwrap();
    let model = Model::open(&engine, path, ModelOptions::default()).unwrap();
    let mut sampled = Sampling::default();
    sampled.seed = 11;
    for (i, prompt) in PROMPTS.into_iter().enumerate() {
        for sampling in [Sampling::greedy(), sampled.clone()] {
            let mut session = session(&model, &sampling);
            let prompt = session.tokenize(prompt, true, false).unwrap();
            let steps = session.generate(&prompt, Some(N_PREDICT));
            let tokens: Vec<u32> = steps.filter_map(|step| step.unwrap().token).collect();
            let usage = session.usage().unwrap();
            session.rewind(0).unwrap();
            let expected = plain(&mut session, &prompt, &sampling);
            assert!(!tokens.is_empty());
            assert_eq!(tokens, expected[..tokens.len()]);
            println!("{} of {} drafts accepted", usage.accepted_tokens, usage.drafted_tokens);
            if i == 0 && sampling.temperature == 0.0 {
                assert!(usage.accepted_tokens > 10, "the list was not drafted: {usage:?}");
            }
        }
    }
}
