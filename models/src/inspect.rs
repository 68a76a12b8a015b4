//! What is in a model's file, and how much memory it needs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use moewe_engine::LoadOptions;
use moewe_engine::native::Folder;
use moewe_gguf::{Gguf, Header, TensorInfo};
use moewe_packed::PackedCopy;

use crate::Result;

/// What the headers of a model's files tell.
#[derive(Debug)]
pub struct Report {
    /// The file, of a split model the first.
    pub path: PathBuf,
    /// The headers.
    pub header: Header,
    /// The packed copy beside it.
    pub packed_copy: PackedCopy,
    /// What it needs in memory.
    pub memory: Memory,
    /// Experts of a layer.
    pub n_expert: u64,
    /// Experts of a layer that a token needs.
    pub n_expert_used: u64,
    /// Tokens of the context that the model was trained for.
    pub n_ctx_train: u64,
    /// Why the engine cannot run the model.
    pub unsupported: Option<String>,
}

/// What a model needs in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Memory {
    /// Bytes of the weights that every token needs.
    pub dense_bytes: u64,
    /// Bytes of all experts.
    pub expert_bytes: u64,
    /// Bytes of the experts that one token needs.
    pub expert_bytes_per_token: u64,
    /// Bytes of KV cache for a token, if the engine knows the architecture.
    pub kv_bytes_per_token: Option<u64>,
    /// Bytes of KV cache for the context that the model was trained for.
    pub kv_bytes_max: Option<u64>,
}

impl Report {
    /// Reads the headers of the model in `path`, of a split model the first of its
    /// files.
    ///
    /// # Errors
    ///
    /// Those of reading, and of what is no GGUF file. That the engine cannot run the
    /// model is none.
    pub fn read(path: &Path) -> Result<Self> {
        let (folder, name) = Folder::of(path)?;
        let header = Gguf::read(path)?.header;
        let metadata = &header.metadata;
        let arch = metadata.str("general.architecture")?.unwrap_or_default();
        let number = |key: &str| {
            let number = metadata.u32(&format!("{arch}.{key}"));
            number.map(|n| u64::from(n.unwrap_or_default()))
        };
        let (n_expert, n_expert_used) = (number("expert_count")?, number("expert_used_count")?);
        let n_ctx_train = number("context_length")?;

        // The engine knows best what its KV cache takes. Mapping the weights
        // to ask it reads next to nothing of them.
        let engine = moewe_engine::Model::load(&folder, &name, u64::MAX, &LoadOptions::default());
        let kv_bytes_per_token = engine.as_ref().ok().map(|m| m.info().kv_bytes_per_token);
        let (expert_bytes, dense_bytes) = (header.tensors.values())
            .map(|t| if t.is_expert() { (t.size, 0) } else { (0, t.size) })
            .fold((0_u64, 0_u64), |(a, b), (c, d)| (a.saturating_add(c), b.saturating_add(d)));
        let memory = Memory {
            dense_bytes,
            expert_bytes,
            expert_bytes_per_token: (expert_bytes / n_expert.max(1)).saturating_mul(n_expert_used),
            kv_bytes_per_token,
            kv_bytes_max: kv_bytes_per_token.map(|n| n.saturating_mul(n_ctx_train)),
        };
        Ok(Self {
            packed_copy: PackedCopy::of(path),
            path: path.to_owned(),
            memory,
            n_expert,
            n_expert_used,
            n_ctx_train,
            unsupported: engine.err().map(|e| e.to_string()),
            header,
        })
    }

    /// Numbers in all tensors.
    pub fn n_params(&self) -> u64 {
        self.header.tensors.values().fold(0, |sum, t| sum.saturating_add(t.n_elements()))
    }

    /// Whether rows are interleaved.
    pub fn is_packed(&self) -> bool {
        self.header.tensors.values().any(|t| t.ty.is_packed())
    }

    /// For each tensor type, how many tensors have it, and their bytes.
    pub fn types(&self) -> BTreeMap<&'static str, (usize, u64)> {
        let mut types = BTreeMap::new();
        for tensor in self.header.tensors.values() {
            let (n, bytes) = types.entry(tensor.ty.name()).or_insert((0, 0_u64));
            *n += 1;
            *bytes = bytes.saturating_add(tensor.size);
        }
        types
    }

    /// The tensors in the order of the files.
    pub fn tensors(&self) -> Vec<&TensorInfo> {
        let mut tensors: Vec<_> = self.header.tensors.values().collect();
        tensors.sort_by_key(|t| (t.file, t.offset));
        tensors
    }
}
