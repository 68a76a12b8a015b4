//! A model: its weights, open and checked.

use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};

use crate::error::{Error, ErrorKind, Result};
use crate::experts::{ExpertLayer, Experts};
use crate::forward::Widths;
use crate::gguf::{Gguf, TensorInfo};
use crate::hyperparameters::Hyperparameters;
use crate::kv_cache::CHUNK;
use crate::loader::{Loader, missing};
use crate::quant::{Format, Matrix};
use crate::rope::Rope;
use crate::speculation::DRAFT_MAX;
use crate::team::{Alone, Exchange, Team};
use crate::weights::{self, ExpertTable, Source, Weights, Window};

/// The most entries of a vocabulary.
const N_VOCAB_MAX: u64 = 1 << 21;

/// The layouts of packed files that the kernels are written for: they differ in
/// what they say of the original.
const PACKED_VERSIONS: RangeInclusive<u32> = 2..=3;

/// What a heap may lose between what is allocated, and what is short-lived: the text of a
/// prompt, its tokens.
const HEAP_LOSS_BYTES: u64 = 2 << 20;

/// What a model is.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// The architecture as the file names it.
    pub architecture: String,
    /// The model's name, if the file has one.
    pub name: Option<String>,
    /// The quantisation that most of the weights have.
    pub quantization: &'static str,
    /// How many parameters the model has.
    pub n_params: u64,
    /// Bytes of all tensors together.
    pub weight_bytes: u64,
    /// Bytes of KV cache for each token.
    pub kv_bytes_per_token: u64,
    /// How many layers.
    pub n_layer: u32,
    /// Width of the hidden state.
    pub n_embd: u32,
    /// Size of the vocabulary.
    pub n_vocab: u32,
    /// The context that the model was trained for, in tokens.
    pub n_ctx_train: u32,
    /// Experts in a layer; 0 for a dense model.
    pub n_expert: u32,
    /// Experts that the router picks for a token.
    pub n_expert_used: u32,
}

/// Rows of a matrix of weights, addressable.
pub(crate) struct Linear {
    pub format: Format,
    pub cols: usize,
    pub n_rows: usize,
    /// The rows that are addressable.
    pub rows: Range<usize>,
    /// Absent if there are no rows.
    pub window: Option<Box<dyn Window>>,
    /// `[n_rows]`
    pub bias: Option<Vec<f32>>,
}

impl Linear {
    /// Some of the rows, and their bias.
    pub fn part(&self, rows: Range<usize>) -> (Matrix<'_>, Option<&[f32]>) {
        let row_bytes = self.format.row_bytes(self.cols);
        let bytes = self.window.as_ref().map_or(&[][..], |w| w.bytes());
        let (from, to) = (rows.start - self.rows.start, rows.end - self.rows.start);
        let bytes = &bytes[from * row_bytes..to * row_bytes];
        let bias = self.bias.as_ref().map(|bias| &bias[rows.clone()]);
        (Matrix::new(self.format, rows.len(), self.cols, bytes), bias)
    }

    /// Writes a row as floats.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let (matrix, _) = self.part(self.rows.clone());
        matrix.dequantize_row(row - self.rows.start, out);
    }
}

/// A feed-forward network: `down(swiglu(gate(x), up(x)))`.
pub(crate) struct FeedForward {
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
}

/// A mixture of experts.
pub(crate) struct Mixture {
    pub router: Linear,
    pub experts: ExpertLayer,
    /// The shared expert and the vector that gates it.
    pub shared: Option<(FeedForward, Vec<f32>)>,
}

/// What a layer does after attention.
pub(crate) enum Ffn {
    Dense(Box<FeedForward>),
    Mixture(Box<Mixture>),
}

pub(crate) struct Layer {
    pub attn_norm: Vec<f32>,
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub o: Linear,
    /// RMSNorm of queries and keys: over a head (Qwen3) or over all heads
    /// (OLMoE), as their length says.
    pub q_norm: Option<Vec<f32>>,
    pub k_norm: Option<Vec<f32>>,
    pub ffn_norm: Vec<f32>,
    pub ffn: Ffn,
}

impl Layer {
    /// Bytes of one expert, if the layer has any.
    fn expert_bytes(&self) -> Option<u64> {
        match &self.ffn {
            Ffn::Dense(_) => None,
            Ffn::Mixture(m) => Some(m.experts.expert_bytes()),
        }
    }
}

/// A model whose weights are open. Sessions share it.
pub struct Model {
    pub(crate) h: Hyperparameters,
    /// This member's place in the team that computes the model.
    pub(crate) exchange: Exchange,
    /// The heads whose attention this member computes, and the KV heads that
    /// they need: another member may need them too.
    pub(crate) heads: Range<usize>,
    pub(crate) kv_heads: Range<usize>,
    /// For each of all heads, which of those KV heads it needs; `None` if
    /// another member computes it.
    pub(crate) kv_head_of: Vec<Option<usize>>,
    pub(crate) rope: Rope,
    /// Every member has all of it.
    pub(crate) embedding: Linear,
    pub(crate) layers: Vec<Layer>,
    pub(crate) output_norm: Vec<f32>,
    /// Absent if the embedding serves as the output matrix too.
    pub(crate) output: Option<Linear>,
    pub(crate) experts: Experts,
    /// How much room passes need.
    pub(crate) widths: Widths,
    /// Bytes of KV cache that a token costs the member that has most of it.
    kv_bytes_of_member: u64,
    pub(crate) sources: Vec<Box<dyn Source>>,
    info: ModelInfo,
}

impl Model {
    /// Opens the model in the file `name`; of a split model, in the first of
    /// its files. At most `window_bytes_max` bytes of weights are addressable
    /// at a time: dense weights always are, experts take turns if they must.
    pub fn load(weights: &dyn Weights, name: &str, window_bytes_max: u64) -> Result<Self> {
        Self::load_in_team(weights, name, window_bytes_max, Box::new(Alone))
    }

    /// The same for a member of a team, which gets its share of the weights.
    /// All members must make the same calls from here on.
    pub fn load_in_team(
        weights: &dyn Weights,
        name: &str,
        window_bytes_max: u64,
        team: Box<dyn Team>,
    ) -> Result<Self> {
        let gguf = weights::open(weights, name)?;
        Self::from_gguf(weights, gguf, window_bytes_max, team)
            .map_err(|e| Error::new(e.kind(), format!("{name}: {e}")))
    }

    /// The model in files that are open already.
    pub(crate) fn from_gguf(
        weights: &dyn Weights,
        gguf: Gguf<Box<dyn Source>>,
        window_bytes_max: u64,
        team: Box<dyn Team>,
    ) -> Result<Self> {
        let metadata = gguf.header.metadata;
        match metadata.u32("moewe.packed.version")? {
            Some(version) if !PACKED_VERSIONS.contains(&version) => {
                return Err(Error::unsupported(format!(
                    "is packed in layout {version}, not {}; pack the original model again with \
                     `moewe pack`",
                    PACKED_VERSIONS.end()
                )));
            }
            _ => {}
        }
        let (h, keys) = Hyperparameters::from_metadata(&metadata)?;
        let sources = gguf.sources;
        let n_vocab = match gguf.header.tensors.get("token_embd.weight") {
            Some(t) if t.dims[1] > N_VOCAB_MAX => {
                return Err(Error::invalid(format!(
                    "a vocabulary of {}, more than {N_VOCAB_MAX}; the file is damaged",
                    t.dims[1]
                )));
            }
            Some(t) => t.dims[1] as usize,
            None => return Err(missing("token_embd.weight")),
        };
        let exchange = Exchange::new(team, h.width_max().max(n_vocab), h.token_len_max())?;
        let heads = exchange.heads(h.n_head, 1).mine();
        let group = h.n_head / h.kv_heads;
        let kv_heads = kv_heads_of(heads.clone(), group);
        let kv_head = |head| heads.contains(&head).then(|| head / group - kv_heads.start);
        let kv_head_of = (0..h.n_head).map(kv_head).collect();
        let mut loader =
            Loader::new(&gguf.header.tensors, &sources, &h, &exchange, window_bytes_max);
        let experts = (0..h.n_layer).map(|i| loader.expert_layer(i)).collect::<Result<Vec<_>>>()?;
        let kv_numbers = 2 * h.n_layer as u64 * h.kv_heads as u64 * h.head_dim as u64;
        let kv_bytes_per_token = kv_numbers * size_of::<f32>() as u64;
        let kv_heads_max = exchange.shares(h.n_head).map(|heads| kv_heads_of(heads, group).len());
        let kv_head_bytes = kv_bytes_per_token / h.kv_heads as u64;
        let kv_bytes_of_member = kv_head_bytes * kv_heads_max.max().unwrap_or_default() as u64;
        let tensors = &gguf.header.tensors;
        let n_ff = if experts.iter().any(Option::is_none) { h.n_ff } else { 0 };
        let formats = tensors.values().filter_map(|tensor| Format::from_type(tensor.ty));
        let widths = Widths::new(&h, n_ff, exchange.len(), formats);
        let layers = experts.iter().enumerate();
        let store = weights.expert_store(&ExpertTable {
            files: &gguf.names,
            n_layer: h.n_layer,
            n_expert: h.n_expert,
            n_expert_used: h.n_expert_used,
            dense_bytes: bytes_of(tensors.values().filter(|tensor| !tensor.is_expert())),
            kv_bytes_per_token: kv_bytes_of_member,
            kv_chunk: CHUNK,
            session_bytes: session_bytes(tensors, n_vocab, &widths),
            layers: layers.filter_map(|(i, layer)| Some((i, layer.as_ref()?.pieces()))).collect(),
        })?;
        let embedding = loader.linear("token_embd", n_vocab, h.n_embd, 0..n_vocab)?;
        let output = match loader.has("output.weight") {
            true => {
                Some(loader.linear("output", n_vocab, h.n_embd, exchange.rows(n_vocab).mine())?)
            }
            false => None,
        };
        let output_norm = loader.vector("output_norm.weight", h.n_embd)?;
        let factors = match gguf.header.tensors.get("rope_freqs.weight") {
            Some(t) => {
                let n = t.dims[0].min(h.head_dim as u64) as usize;
                Some(loader.vector("rope_freqs.weight", n)?)
            }
            None => None,
        };
        let rope = Rope::new(&h, &keys, factors.as_deref())?;
        let layers = (experts.into_iter().enumerate())
            .map(|(i, experts)| loader.layer(i, experts))
            .collect::<Result<Vec<_>>>()?;

        if let Some(unused) = loader.unused() {
            return Err(Error::unsupported(format!(
                "tensor {unused} has no place in the architecture `{}` as it is known here; the \
                 model would not compute what it was trained for",
                metadata.str("general.architecture")?.unwrap_or_default()
            )));
        }
        let left = loader.window_bytes_left();
        let expert_bytes = match &store {
            Some(store) => store.slot_bytes() as u64,
            None => layers.iter().filter_map(Layer::expert_bytes).max().unwrap_or(0),
        };
        if expert_bytes > left {
            return Err(Error::new(
                ErrorKind::OutOfMemory,
                format!(
                    "an expert takes {expert_bytes} bytes, more than the {left} that can be \
                     addressed besides the weights that every token needs; choose a smaller \
                     quantisation"
                ),
            ));
        }
        let experts = Experts::new(store, left, exchange.size());
        let tensors = gguf.header.tensors.values();
        let info = ModelInfo {
            architecture: metadata.str("general.architecture")?.unwrap_or_default().to_owned(),
            name: metadata.str("general.name")?.map(str::to_owned),
            quantization: quantization(&gguf.header.tensors),
            n_params: tensors.clone().map(TensorInfo::n_elements).fold(0, u64::saturating_add),
            weight_bytes: bytes_of(tensors),
            kv_bytes_per_token,
            n_layer: h.n_layer as u32,
            n_embd: h.n_embd as u32,
            n_vocab: n_vocab as u32,
            n_ctx_train: h.n_ctx_train as u32,
            n_expert: h.n_expert as u32,
            n_expert_used: h.n_expert_used as u32,
        };
        Ok(Self {
            h,
            exchange,
            heads,
            kv_heads,
            kv_head_of,
            rope,
            embedding,
            layers,
            output_norm,
            output,
            experts,
            widths,
            kv_bytes_of_member,
            sources,
            info,
        })
    }

    /// What the model is.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Bytes that the KV cache of `n` tokens takes of a member, at most.
    pub(crate) fn kv_bytes(&self, n: usize) -> u64 {
        self.kv_bytes_of_member.saturating_mul(n.next_multiple_of(CHUNK) as u64)
    }
}

/// The KV heads that heads need, of which so many share one.
fn kv_heads_of(heads: Range<usize>, group: usize) -> Range<usize> {
    match heads.is_empty() {
        true => 0..0,
        false => heads.start / group..heads.end.div_ceil(group),
    }
}

/// Bytes of these tensors.
fn bytes_of<'a>(tensors: impl Iterator<Item = &'a TensorInfo>) -> u64 {
    tensors.map(|tensor| tensor.size).fold(0, u64::saturating_add)
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

/// The tensor type that most bytes of the weights have.
fn quantization(tensors: &BTreeMap<String, TensorInfo>) -> &'static str {
    let mut bytes = BTreeMap::new();
    for tensor in tensors.values() {
        *bytes.entry(tensor.ty.unpacked().name()).or_insert(0) += tensor.size;
    }
    bytes.into_iter().max_by_key(|(_, bytes)| *bytes).map_or("", |(name, _)| name)
}
