//! What happens to a session in the midst of its work: it is stopped, cancelled, out of
//! time, or its model's files change.

#[cfg(target_os = "linux")]
mod files;
mod interrupts;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use moewe::{Engine, Model, ModelOptions, Result, Sampling, Session, SessionOptions};
use moewe_models::Silent;
use moewe_models::generate::{Shape, generate};

const SHAPE: Shape = Shape {
    n_layer: 4,
    n_embd: 512,
    n_head: 8,
    kv_heads: 2,
    head_dim: 64,
    n_expert: 8,
    n_expert_used: 2,
    n_ff_expert: 512,
    n_vocab: 400,
    n_ctx: 16384,
};

const PROMPT: [u32; 5] = [50, 275, 337, 302, 273];

/// A model that nobody changes.
fn model_path() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("midst.gguf");
        generate(&path, &SHAPE, 1, &mut Silent).unwrap();
        path
    })
}

fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| Engine::new().unwrap())
}

fn open(path: &Path, change: impl FnOnce(&mut ModelOptions)) -> Model {
    let mut options = ModelOptions::default();
    change(&mut options);
    Model::open(engine(), path, options).unwrap()
}

fn greedy() -> SessionOptions {
    let mut options = SessionOptions::default();
    options.sampling = Sampling::greedy();
    // The weights are random. This has their text repeat itself, and so go on.
    options.sampling.repeat_penalty = 0.5;
    options
}

fn session(model: &Model) -> Session {
    model.session(greedy()).unwrap()
}

/// More than any machine computes while a test waits for something.
fn long_prompt() -> Vec<u32> {
    (0..16_000).map(|i| i * 37 % SHAPE.n_vocab).collect()
}

/// The tokens that a session generates, as many as are asked for.
fn tokens(session: &mut Session, prompt: &[u32], n: u64) -> Result<Vec<u32>> {
    let steps = session.generate(prompt, Some(n)).collect::<Result<Vec<_>>>()?;
    let tokens: Vec<_> = steps.into_iter().filter_map(|step| step.token).collect();
    assert_eq!(tokens.len() as u64, n);
    Ok(tokens)
}
