//! A model: its weights, open and checked.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::arch;
use crate::blocks::{Block, Embedding, Head, Layer, Loader, Widths};
use crate::error::{Error, ErrorKind, Result};
use crate::experts::{ExpertLayer, Experts};
use crate::gguf::{Gguf, Header, Metadata, TensorInfo};
use crate::kv_cache::{CHUNK, KvCache};
use crate::options::LoadOptions;
use crate::plan::{FfnPlan, Plan, RopePlan, VectorPlan};
use crate::quant::Format;
use crate::rope::Rope;
use crate::speculation::DRAFT_MAX;
use crate::takes::Takes;
use crate::team::{Alone, Exchange, Team, checked_size};
use crate::weights::{self, ExpertTable, Piece, Source, Weights};
use crate::windows::WindowLimits;

pub use crate::model_info::ModelInfo;

/// The layouts of packed files that the kernels are written for: they differ in
/// what they say of the original.
const PACKED_VERSIONS: RangeInclusive<u32> = 2..=3;

/// What a heap may lose between what is allocated, and what is short-lived: the text of a
/// prompt, its tokens.
const HEAP_LOSS_BYTES: u64 = 2 << 20;

/// A model whose weights are open. Sessions share it.
pub struct Model {
    /// This member's place in the team that computes the model.
    pub(crate) exchange: Exchange,
    pub(crate) ropes: Vec<Rope>,
    pub(crate) embedding: Embedding,
    pub(crate) layers: Vec<Layer>,
    pub(crate) head: Head,
    pub(crate) experts: Experts,
    /// What all blocks take.
    pub(crate) takes: Takes,
    /// How much room passes need.
    pub(crate) widths: Widths,
    pub(crate) sources: Vec<Box<dyn Source>>,
    info: ModelInfo,
}

impl Model {
    /// Opens the model in the file `name`; of a split model, in the first of
    /// its files. At most `window_bytes_max` bytes of weights are addressable
    /// at a time: dense weights always are, experts take turns if they must.
    pub fn load(
        weights: &dyn Weights,
        name: &str,
        window_bytes_max: u64,
        options: &LoadOptions,
    ) -> Result<Self> {
        Self::load_in_team(weights, name, window_bytes_max, options, Box::new(Alone))
    }

    /// The same for a member of a team, which gets its share of the weights.
    /// All members must make the same calls from here on.
    pub fn load_in_team(
        weights: &dyn Weights,
        name: &str,
        window_bytes_max: u64,
        options: &LoadOptions,
        team: Box<dyn Team>,
    ) -> Result<Self> {
        let gguf = weights::open(weights, name)?;
        Self::from_gguf(weights, gguf, window_bytes_max, options, team)
            .map_err(|e| Error::new(e.kind(), format!("{name}: {e}")))
    }

    /// The model in files that are open already.
    pub(crate) fn from_gguf(
        weights: &dyn Weights,
        gguf: Gguf<Box<dyn Source>>,
        window_bytes_max: u64,
        options: &LoadOptions,
        team: Box<dyn Team>,
    ) -> Result<Self> {
        let Gguf { header, sources, names } = gguf;
        check_layout(&header.metadata)?;
        let plan = arch::plan(&header.metadata, &header.tensors, options)?;
        let takes = takes(&plan, checked_size(&*team)?);
        let exchange = Exchange::new(team, takes.exchange_len())?;
        let formats = header.tensors.values().filter_map(|tensor| Format::from_type(tensor.ty));
        let widths = Widths::new(takes.room, exchange.len(), formats);
        let (n_max, bytes_max) = (weights.n_windows_max(), window_bytes_max);
        let limits = WindowLimits { n_max, bytes_max };
        let mut loader = Loader::new(&header.tensors, &sources, &exchange, limits);
        let store = weights.expert_store(&ExpertTable {
            files: &names,
            n_layer: plan.layers.len(),
            n_expert: takes.room.n_expert,
            n_expert_used: takes.room.n_expert_used,
            dense_bytes: dense_bytes(&header),
            kv_bytes_per_token: takes.state.member_bytes_per_token,
            kv_chunk: CHUNK,
            session_bytes: session_bytes(&header.tensors, plan.n_vocab(), &widths),
            layers: pieces(&plan, &mut loader)?,
        })?;
        let embedding = Embedding::load(&plan.embedding, &mut loader)?;
        let head = Head::load(&plan.head, &plan.embedding.matrix, &mut loader)?;
        let ropes = plan.ropes.iter().map(|plan| rope(plan, &mut loader));
        let ropes = ropes.collect::<Result<Vec<_>>>()?;
        let layers = plan.layers.iter().map(|plan| Layer::load(plan, &mut loader));
        let layers = layers.collect::<Result<Vec<_>>>()?;

        if let Some(unused) = loader.unused() {
            return Err(Error::unsupported(format!(
                "tensor {unused} has no place in the architecture `{}` as it is known here; the \
                 model would not compute what it was trained for",
                header.metadata.str("general.architecture")?.unwrap_or_default()
            )));
        }
        let left = loader.limits_left();
        let mixtures = layers.iter().filter_map(Layer::experts);
        let expert_bytes = match &store {
            Some(store) => store.slot_bytes() as u64,
            None => mixtures.clone().map(ExpertLayer::expert_bytes).max().unwrap_or(0),
        };
        if expert_bytes > left.bytes_max {
            return Err(Error::new(
                ErrorKind::OutOfMemory,
                format!(
                    "an expert takes {expert_bytes} bytes, more than the {} that can be \
                     addressed besides the weights that every token needs; choose a smaller \
                     quantisation",
                    left.bytes_max
                ),
            ));
        }
        let experts = Experts::new(store, left, mixtures, exchange.size() == 1)?;
        let info = ModelInfo::new(&header, &plan, &takes)?;
        Ok(Self { exchange, ropes, embedding, layers, head, experts, takes, widths, sources, info })
    }

    /// What the model is.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// What a session remembers, with no token yet.
    pub(crate) fn cache(&self) -> KvCache {
        KvCache::new(self.layers.iter().map(Layer::cache).collect())
    }

    /// Bytes that the KV cache of `n` tokens takes of a member, at most.
    pub(crate) fn kv_bytes(&self, n: usize) -> u64 {
        let bytes_per_token = self.takes.state.member_bytes_per_token;
        bytes_per_token.saturating_mul(n.next_multiple_of(CHUNK) as u64)
    }
}

/// Fails if the file is packed in a way that is not known here.
fn check_layout(metadata: &Metadata) -> Result<()> {
    match metadata.u32("moewe.packed.version")? {
        Some(version) if !PACKED_VERSIONS.contains(&version) => Err(Error::unsupported(format!(
            "is packed in layout {version}, not {}; pack the original model again with `moewe \
             pack`",
            PACKED_VERSIONS.end()
        ))),
        _ => Ok(()),
    }
}

/// What all blocks take together, in a team of `size` members.
fn takes(plan: &Plan, size: usize) -> Takes {
    let ends = Embedding::takes(&plan.embedding, size)
        .and(Head::takes(&plan.head, &plan.embedding.matrix));
    plan.layers.iter().map(|plan| Layer::takes(plan, size)).fold(ends, Takes::and)
}

fn rope(plan: &RopePlan, loader: &mut Loader<'_>) -> Result<Rope> {
    let factors = plan.factors.clone();
    let factors = factors.map(|name| loader.vector(&VectorPlan { name, len: plan.dims / 2 }));
    Rope::new(plan, factors.transpose()?.as_deref())
}

/// The layers that have experts, and where these lie.
fn pieces(plan: &Plan, loader: &mut Loader<'_>) -> Result<Vec<(usize, Vec<Piece>)>> {
    let mixtures = plan.layers.iter().enumerate().filter_map(|(i, layer)| match &layer.ffn.op {
        FfnPlan::Dense(_) => None,
        FfnPlan::Mixture(mixture) => Some((i, mixture)),
    });
    mixtures.map(|(i, mixture)| Ok((i, loader.experts(mixture)?.pieces()))).collect()
}

/// Bytes of the weights that every token needs.
fn dense_bytes(header: &Header) -> u64 {
    let dense = header.tensors.values().filter(|tensor| !tensor.is_expert());
    dense.map(|tensor| tensor.size).fold(0, u64::saturating_add)
}

/// Bytes that a session takes beside its KV cache: vectors, which are floats here
/// whatever the file has; the logits behind each token of a draft, in the context and
/// on their way there, and those that a sampler changes and sorts or that are asked
/// for; a pass over few tokens; and what is lost between all these.
fn session_bytes(tensors: &BTreeMap<String, TensorInfo>, n_vocab: usize, widths: &Widths) -> u64 {
    let vectors = tensors.values().filter(|tensor| tensor.dims[1] == 1);
    let numbers = vectors.map(TensorInfo::n_elements).fold(0, u64::saturating_add);
    let n_logits = (2 * (1 + DRAFT_MAX) + 4) as u64 * n_vocab as u64;
    let floats = numbers.saturating_add(n_logits).saturating_mul(size_of::<f32>() as u64);
    floats.saturating_add(widths.bytes_min()).saturating_add(HEAP_LOSS_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::KvFormat;
    use crate::takes::{Room, State};

    #[test]
    fn blocks_say_what_they_take() {
        let path = moewe_fixtures::model("qwen2moe-q8_0");
        let options = LoadOptions { kv_format: KvFormat::F32, ..LoadOptions::default() };
        let header = Gguf::read(&path).unwrap().header;
        let plan = arch::plan(&header.metadata, &header.tensors, &options).unwrap();
        let (attention, shared) = (2 * 256 * (8 + 2) * 32, 3 * 256 * 512);
        let takes_of = |member_bytes_per_token| Takes {
            // The vocabulary is as long as the shared expert is wide.
            vector_len: 512,
            token_len: 3 * 256 + 512,
            products: 2 * (attention + shared) + 512 * 256,
            expert_products: 2 * 3 * (3 * 256 * 256),
            room: Room {
                n_embd: 256,
                heads: 8 * 32,
                kv_heads: 2 * 32,
                head_dim: 32,
                n_ff: 512,
                n_ff_expert: 256,
                n_expert: 8,
                n_expert_used: 3,
            },
            state: State { bytes_per_token: 1024, member_bytes_per_token },
        };
        // Of three members, one has heads that need both KV heads.
        for (size, member_bytes_per_token) in [(1, 1024), (2, 512), (3, 1024), (8, 512)] {
            assert_eq!(takes(&plan, size), takes_of(member_bytes_per_token), "{size}");
        }
        assert_eq!(takes(&plan, 1).exchange_len(), 512 * (3 * 256 + 512));
    }
}
