//! Measures the engine natively: prefill and decode of a model, in tokens per
//! second. `cargo xtask bench` compares it with the component.
//!
//! Usage: `bench MODEL N_PROMPT N_GEN REPETITIONS [N_THREADS]`. Prints a line
//! of JSON.

use std::error::Error;
use std::path::Path;
use std::rc::Rc;
use std::thread;
use std::time::Instant;

use moewe_engine::native::{Folder, Member};
use moewe_engine::{Context, INSTRUCTIONS, LoadOptions, Model, Result};

/// Tokens per second of each repetition.
#[derive(Default)]
struct Samples {
    prefill: Vec<f64>,
    decode: Vec<f64>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let (args, n_threads) = match args.as_slice() {
        [args @ .., n] if args.len() == 5 => (args, n.parse()?),
        args => (args, 1),
    };
    let [_, model, n_prompt, n_gen, repetitions] = args else {
        return Err("usage: bench MODEL N_PROMPT N_GEN REPETITIONS [N_THREADS]".into());
    };
    let (n_prompt, n_gen) = (n_prompt.parse()?, n_gen.parse()?);
    let repetitions = repetitions.parse()?;
    let path = Path::new(model);
    let mut results = thread::scope(|scope| {
        let run = |member| scope.spawn(move || run(member, path, n_prompt, n_gen, repetitions));
        let threads: Vec<_> = Member::team(n_threads).into_iter().map(run).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Vec<_>>()
    });
    let Samples { prefill, decode } = results.swap_remove(0)?;
    println!(
        "{{\"instructions\": {INSTRUCTIONS:?}, \"prefill\": {prefill:?}, \"decode\": {decode:?}}}"
    );
    Ok(())
}

fn run(
    member: Member,
    path: &Path,
    n_prompt: usize,
    n_gen: usize,
    repetitions: usize,
) -> Result<Samples> {
    let (folder, name) = Folder::of(path)?;
    let model = Rc::new(Model::load_in_team(
        &folder,
        &name,
        u64::MAX,
        &LoadOptions::default(),
        Box::new(member),
    )?);
    let n_vocab = model.info().n_vocab;
    let token = |i: usize| (i as u32).wrapping_mul(2_654_435_761) % n_vocab;
    let prompt: Vec<u32> = (0..n_prompt).map(token).collect();

    Context::new(model.clone(), None)?.feed(&[token(1)])?;
    let mut samples = Samples::default();
    for _ in 0..repetitions {
        if n_prompt > 0 {
            let mut context = Context::new(model.clone(), None)?;
            let start = Instant::now();
            context.feed(&prompt)?;
            samples.prefill.push(n_prompt as f64 / start.elapsed().as_secs_f64());
        }
        if n_gen > 0 {
            let mut context = Context::new(model.clone(), None)?;
            let start = Instant::now();
            for i in 0..n_gen {
                context.feed(&[token(i)])?;
            }
            samples.decode.push(n_gen as f64 / start.elapsed().as_secs_f64());
        }
    }
    Ok(samples)
}
