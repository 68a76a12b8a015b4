//! Finding and opening the model that a command works with.

use std::path::PathBuf;
use std::thread;

use anyhow::Result;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::value_parser;
use indicatif::HumanBytes;
use moewe::{Engine, EngineOptions, Guest, Model, ModelOptions, Session, WeightsMode};
use moewe_models::Library;
use moewe_packed::PackedCopy;

use crate::context::ContextArgs;
use crate::memory::{MemoryArgs, memory_bytes};
use crate::print;

/// Threads beyond this many seldom help: memory is not faster for them.
const THREADS_DEFAULT_MAX: usize = 8;

/// Which model, and how its weights get into the sandbox.
#[derive(clap::Args)]
pub struct ModelArgs {
    /// A GGUF file (of a split model, the first), or the name of a known model
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,
    /// Map the weights into the sandbox, or copy them: slower to start, but
    /// proof against files that change while they are in use
    #[arg(long, value_name = "MODE", value_parser = weights(), default_value = "attach")]
    pub weights: WeightsMode,
    /// Compute with N threads; the result is the same to the bit [default: one
    /// for each processor, at most 8]
    #[arg(short = 't', long, value_name = "N", value_parser = value_parser!(u8).range(1..=64))]
    pub threads: Option<u8>,
    /// Compute in the sandbox with 32-bit addresses, or in the one with 64-bit addresses;
    /// the result is the same to the bit [default: 32 where the model fits, else 64]
    #[arg(long, value_name = "BITS", value_parser = guest())]
    pub guest: Option<Guest>,
    #[command(flatten)]
    pub context: ContextArgs,
    #[command(flatten)]
    pub memory: MemoryArgs,
}

impl ModelArgs {
    /// How many threads compute.
    pub fn threads(&self) -> usize {
        match self.threads {
            Some(n) => n.into(),
            // Elsewhere threads cannot share memory.
            None if cfg!(not(target_os = "linux")) => 1,
            None => thread::available_parallelism().map_or(1, |n| n.get().min(THREADS_DEFAULT_MAX)),
        }
    }
}

/// Reads `--weights`.
fn weights() -> impl TypedValueParser<Value = WeightsMode> {
    let modes = [("attach", "Map the file"), ("read", "Copy the bytes")];
    let modes = modes.map(|(name, help)| PossibleValue::new(name).help(help));
    PossibleValuesParser::new(modes).map(|name| match name.as_str() {
        "read" => WeightsMode::Read,
        _ => WeightsMode::Attach,
    })
}

/// Reads `--guest`.
fn guest() -> impl TypedValueParser<Value = Guest> {
    PossibleValuesParser::new(["32", "64"]).map(|bits| match bits.as_str() {
        "64" => Guest::Bits64,
        _ => Guest::Bits32,
    })
}

/// Bytes that a KV cache may have on any machine: all that a guest with 32-bit addresses
/// reaches.
const KV_BYTES_MIN: u64 = 4 << 30;

/// The engine of a process that serves one user: what a model that took its guest over could
/// learn of this process, by measuring how long its loads take, it could tell this user
/// alone, in its answers. So the speed is worth more than the guard.
pub fn engine() -> Result<Engine> {
    let mut options = EngineOptions::default();
    options.spectre_guard = false;
    Ok(Engine::with(options)?)
}

/// The file that the user means.
pub fn resolve(model: &PathBuf) -> Result<PathBuf> {
    if model.is_file() {
        return Ok(model.clone());
    }
    Ok(Library::from_env()?.resolve(model)?)
}

/// Tells on stderr which guest computes, and which file is open; if it is not the packed
/// copy, why.
pub fn print_file(model: &Model, session: &Session) {
    eprintln!("model: {}", model.path().display());
    let (guest, why) = session.guest();
    eprintln!("guest: {} bits: {why}", guest.bits());
    if let PackedCopy::Stale(copy, mismatch) = PackedCopy::of(model.path()) {
        eprintln!("model: {}", print::stale(model.path(), &copy, mismatch));
    }
}

/// Tells on stderr if weights were copied that were to be mapped.
pub fn warn_of_copies(model: &Model, args: &ModelArgs) {
    let n_bytes = model.stats().bytes_copied;
    // Elsewhere there is nothing else.
    if n_bytes > 0 && args.weights == WeightsMode::Attach && cfg!(target_os = "linux") {
        eprintln!(
            "warning: {} of weights were copied, as {} lies where files cannot be mapped; move it \
             to another file system",
            HumanBytes(n_bytes),
            model.path().display()
        );
    }
}

/// Opens the model.
pub fn open(args: &ModelArgs) -> Result<Model> {
    let path = resolve(&args.model)?;
    let mut options = ModelOptions::default();
    options.weights = args.weights;
    options.threads = args.threads();
    options.guest = args.guest;
    options.memory = args.memory.options()?;
    args.context.apply(&mut options)?;
    // One user, one model: the KV cache may have all that there is.
    options.memory_max = memory_bytes().max(KV_BYTES_MIN);
    let model = Model::open(&engine()?, path, options)?;
    if model.lacks_wide_guest() {
        eprintln!(
            "warning: the model is too large for a guest with 32-bit addresses to show as a \
             whole, and this build has no other: it will be slower"
        );
    }
    Ok(model)
}
