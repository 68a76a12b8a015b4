//! Measures the engine natively: prefill and decode of a model, in tokens per
//! second. `cargo xtask bench` compares it with the component.
//!
//! Usage: `bench MODEL N_PROMPT N_GEN REPETITIONS`. Prints a line of JSON.

use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use moewe_engine::native::Folder;
use moewe_engine::{Context, INSTRUCTIONS, Model};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, model, n_prompt, n_gen, repetitions] = args.as_slice() else {
        return Err("usage: bench MODEL N_PROMPT N_GEN REPETITIONS".into());
    };
    let (n_prompt, n_gen): (usize, usize) = (n_prompt.parse()?, n_gen.parse()?);
    let (folder, name) = Folder::of(Path::new(model))?;
    let model = Rc::new(Model::load(&folder, &name, u64::MAX)?);
    let n_vocab = model.info().n_vocab;
    let token = |i: usize| (i as u32).wrapping_mul(2_654_435_761) % n_vocab;
    let prompt: Vec<u32> = (0..n_prompt).map(token).collect();

    Context::new(model.clone(), None)?.feed(&[token(1)])?;
    let mut prefill = Vec::new();
    let mut decode = Vec::new();
    for _ in 0..repetitions.parse()? {
        if n_prompt > 0 {
            let mut context = Context::new(model.clone(), None)?;
            let start = Instant::now();
            context.feed(&prompt)?;
            prefill.push(n_prompt as f64 / start.elapsed().as_secs_f64());
        }
        if n_gen > 0 {
            let mut context = Context::new(model.clone(), None)?;
            let start = Instant::now();
            for i in 0..n_gen {
                context.feed(&[token(i)])?;
            }
            decode.push(n_gen as f64 / start.elapsed().as_secs_f64());
        }
    }
    println!(
        "{{\"instructions\": {INSTRUCTIONS:?}, \"prefill\": {prefill:?}, \"decode\": {decode:?}}}"
    );
    Ok(())
}
