//! Architectures: a file for each says which metadata and tensors its models have,
//! and what is computed of them, as a [`Plan`].

mod decoder;
mod file;
mod keys;
mod llama;
mod olmoe;
mod qwen2;
mod qwen2moe;
mod qwen3;
mod qwen3moe;
mod rope;

use std::collections::BTreeMap;

use self::file::File;
use self::keys::Keys;
use crate::error::{Error, Result};
use crate::gguf::{Metadata, TensorInfo};
use crate::plan::Plan;

/// An architecture's name, and what plans a model of it.
type Architecture = (&'static str, fn(&File<'_>) -> Result<Plan>);

/// All architectures that there are.
const ALL: [Architecture; 6] = [
    ("llama", llama::plan),
    ("qwen2", qwen2::plan),
    ("qwen2moe", qwen2moe::plan),
    ("qwen3", qwen3::plan),
    ("qwen3moe", qwen3moe::plan),
    ("olmoe", olmoe::plan),
];

/// Plans the model in a file with these metadata and tensors.
pub(crate) fn plan(metadata: &Metadata, tensors: &BTreeMap<String, TensorInfo>) -> Result<Plan> {
    let file = File { keys: Keys::new(metadata)?, tensors };
    let name = file.keys.architecture();
    let Some((_, plan)) = ALL.iter().find(|(known, _)| *known == name) else {
        let known: Vec<_> = ALL.iter().map(|(known, _)| *known).collect();
        return Err(Error::unsupported(format!(
            "the architecture `{name}` is not supported; choose a model of one of these: {}",
            known.join(", ")
        )));
    };
    let plan = plan(&file)?;
    file.keys.all_known()?;
    Ok(plan)
}
