//! Finding and opening the model that a command works with.

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use moewe::{Engine, Model, ModelOptions, WeightsMode};
use moewe_models::Store;

/// Which model, and how its weights get into the sandbox.
#[derive(clap::Args)]
pub struct ModelArgs {
    /// A GGUF file (of a split model, the first), or the name of a known model
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,
    /// Map the weights into the sandbox, or copy them: slower to start, but
    /// proof against files that change while they are in use
    #[arg(long, value_enum, value_name = "MODE", default_value_t = Weights::Attach)]
    pub weights: Weights,
}

/// How the weights get into the sandbox.
#[derive(Clone, Copy, ValueEnum)]
pub enum Weights {
    /// Map the file
    Attach,
    /// Copy the bytes
    Read,
}

/// The file that the user means.
pub fn resolve(model: &PathBuf) -> Result<PathBuf> {
    if model.is_file() {
        return Ok(model.clone());
    }
    Ok(Store::from_env()?.resolve(model)?)
}

/// Opens the model.
pub fn open(args: &ModelArgs) -> Result<Model> {
    let path = resolve(&args.model)?;
    let mut options = ModelOptions::default();
    options.weights = match args.weights {
        Weights::Attach => WeightsMode::Attach,
        Weights::Read => WeightsMode::Read,
    };
    // One user, one model: the KV cache may have all that can be addressed.
    options.memory_max = 4 << 30;
    Ok(Model::open(&Engine::new()?, path, options)?)
}
