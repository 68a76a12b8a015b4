//! What a model is made of, as plain data. An architecture says it
//! ([`arch`](crate::arch)); [`blocks`](crate::blocks) load it and compute, and know
//! no architecture.

use crate::kv_cache::{KvFormat, Span};

/// A model: token ids in, logits out.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plan {
    /// The context that the model was trained for, in tokens.
    pub n_ctx_train: usize,
    /// The longest context that it may have, in tokens.
    pub n_ctx_max: usize,
    /// The context that a factor of RoPE scaling multiplies; 0 without RoPE.
    pub n_ctx_original: usize,
    pub embedding: EmbeddingPlan,
    /// Each layer's attention says which of these it turns by.
    pub ropes: Vec<RopePlan>,
    pub layers: Vec<LayerPlan>,
    pub head: HeadPlan,
    /// What the names of tensors begin with that have no part in this.
    pub skipped: Vec<String>,
}

impl Plan {
    /// Width of the hidden state.
    pub fn n_embd(&self) -> usize {
        self.embedding.matrix.cols
    }

    /// Size of the vocabulary.
    pub fn n_vocab(&self) -> usize {
        self.embedding.matrix.rows
    }

    /// Whether the tensor of this name has no part in it.
    pub fn skips(&self, name: &str) -> bool {
        self.skipped.iter().any(|start| name.starts_with(start))
    }
}

/// What a token's hidden state begins as: its row, times `scale`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct EmbeddingPlan {
    pub matrix: MatrixPlan,
    pub scale: f32,
}

/// Logits: `output(norm(hidden)) * scale`, or `softcap * tanh` of that over `softcap`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HeadPlan {
    pub norm: NormPlan,
    /// If absent, the embedding serves.
    pub output: Option<MatrixPlan>,
    pub scale: f32,
    pub softcap: Option<f32>,
}

/// A layer: what mixes tokens, then what each token goes through alone.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LayerPlan {
    pub mix: Residual<MixPlan>,
    pub ffn: Residual<FfnPlan>,
    /// One number, which the hidden states are multiplied by in the end.
    pub scale: Option<VectorPlan>,
}

/// What is added to the hidden states: `after(op(before(hidden))) * scale`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Residual<T> {
    pub before: Option<NormPlan>,
    pub op: T,
    pub after: Option<NormPlan>,
    pub scale: f32,
}

/// How tokens look at those before them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum MixPlan {
    Attention(Box<AttentionPlan>),
    Latent(Box<LatentPlan>),
}

/// What is computed of each token.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum FfnPlan {
    Dense(Box<GluPlan>),
    Mixture(Box<MixturePlan>),
    Both(Box<BothPlan>),
}

/// A dense network and a mixture beside it, whose outputs are added. They have norms of
/// their own, and the mixture's router has one, too.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct BothPlan {
    pub dense: Residual<GluPlan>,
    pub router: NormPlan,
    pub mixture: Residual<MixturePlan>,
}

/// `o(softmax(q * k * scale) * v)`, head by head; `kv_heads` of keys and values are
/// shared by as many heads each ([GQA](https://arxiv.org/abs/2305.13245)).
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AttentionPlan {
    pub q: MatrixPlan,
    pub k: MatrixPlan,
    /// If absent, values are what keys are before they are normalised and turned.
    pub v: Option<MatrixPlan>,
    pub o: MatrixPlan,
    pub n_head: usize,
    pub kv_heads: usize,
    /// A multiple of four.
    pub head_dim: usize,
    pub scale: f32,
    /// Index into [`Plan::ropes`], if positions turn queries and keys.
    pub rope: Option<usize>,
    pub qk_norm: Option<QkNorm>,
    /// A norm of each head of values.
    pub v_norm: Option<NormPlan>,
    /// A further score for each head, of a value that is zero.
    pub sinks: Option<VectorPlan>,
    pub span: Span,
    pub temperature: Option<Temperature>,
    pub kv_format: KvFormat,
}

/// Multi-head latent attention ([DeepSeek-V2](https://arxiv.org/abs/2405.04434)): of a
/// token, one short vector is kept for all heads, of which each makes its key and value.
/// The key is that and some numbers that positions turn, and they are the same for all
/// heads.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LatentPlan {
    pub q: LatentQueryPlan,
    /// Gives the latent, then the numbers that are turned.
    pub latent: MatrixPlan,
    /// Of the latent alone.
    pub norm: NormPlan,
    pub heads: LatentHeads,
    pub o: MatrixPlan,
    pub n_head: usize,
    /// Numbers of a head's key that are made of the latent.
    pub plain_dim: usize,
    /// Numbers of a head's key that are turned.
    pub turned_dim: usize,
    /// Numbers of a head's value.
    pub value_dim: usize,
    pub scale: f32,
    /// Index into [`Plan::ropes`].
    pub rope: Option<usize>,
    pub kv_format: KvFormat,
}

impl LatentPlan {
    /// Numbers of the latent without those that are turned.
    pub fn n_latent(&self) -> usize {
        self.norm.len
    }

    /// Numbers of a head's query.
    pub fn query_dim(&self) -> usize {
        self.plain_dim + self.turned_dim
    }
}

/// What gives the queries of all heads: of each the numbers that meet the latent, then
/// those that are turned.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum LatentQueryPlan {
    Whole(MatrixPlan),
    /// By way of a short vector.
    LowRank {
        down: MatrixPlan,
        norm: NormPlan,
        up: MatrixPlan,
    },
}

/// Tensors with a matrix for each head.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum LatentHeads {
    /// `k` makes of a query what meets the latent, `v` a value of a mixture of latents.
    Apart { k: String, v: String },
    /// As in files from before 2025: a matrix that makes key and value of the latent.
    Joint(String),
}

/// Norms of queries and keys: over a head each, or over all heads together, as their
/// length says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct QkNorm {
    pub q: NormPlan,
    pub k: NormPlan,
    /// Whether they come when positions have turned queries and keys; over a head each
    /// then.
    pub turned: bool,
}

/// Queries at position `i` are multiplied by `1 + scale * ln(1 + floor((i + 1) / n_ctx))`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Temperature {
    pub n_ctx: usize,
    pub scale: f32,
}

/// A gated linear unit: `down(activation(gate(x), up(x)))`
/// ([GLU variants](https://arxiv.org/abs/2002.05202)).
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GluPlan {
    pub gate: MatrixPlan,
    pub up: MatrixPlan,
    pub down: MatrixPlan,
    pub activation: Activation,
}

/// What becomes of the products with the matrices `gate` and `up`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Activation {
    /// `gate * sigmoid(gate) * up`.
    Swiglu,
    /// `gelu(gate) * up`, with the hyperbolic tangent in place of the error function.
    Geglu,
    /// `g * sigmoid(alpha * g) * (u + 1)`, where `g` is `gate`, but `limit` at most, and
    /// `u` is `up`, but between `-limit` and `limit`.
    ClampedSwiglu { alpha: f32, limit: f32 },
}

impl GluPlan {
    /// Inner width.
    pub fn n_ff(&self) -> usize {
        self.down.cols
    }
}

/// A mixture of experts, each a gated linear unit.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct MixturePlan {
    pub router: RouterPlan,
    pub weigh: Weigh,
    pub n_expert: usize,
    pub gate: ExpertsPlan,
    pub up: ExpertsPlan,
    pub down: ExpertsPlan,
    pub activation: Activation,
    pub shared: Option<SharedPlan>,
}

impl MixturePlan {
    /// Inner width of an expert.
    pub fn n_ff(&self) -> usize {
        self.down.cols
    }
}

/// The expert that every token goes through.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SharedPlan {
    pub glu: GluPlan,
    /// A vector; what the expert adds is weighed by the sigmoid of its product with the
    /// token.
    pub gate: Option<VectorPlan>,
}

/// Which experts a token goes through, and how they are weighed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RouterPlan {
    /// Gives the logits, with its bias.
    pub matrix: MatrixPlan,
    /// What logits become.
    pub score: Score,
    /// What is added to the scores where experts are picked, and not where they are
    /// weighed ([Wang et al.](https://arxiv.org/abs/2408.15664)).
    pub correction: Option<VectorPlan>,
    pub groups: Option<GroupsPlan>,
    /// Experts that are picked: those with the largest scores.
    pub n_used: usize,
    /// If the weights of those are divided by their sum, what is added to it.
    pub normalize: Option<f32>,
    /// Factor on the weights.
    pub scale: f32,
    /// A further factor for each expert.
    pub scales: Option<VectorPlan>,
}

/// What the logits of experts become, by which these are picked and weighed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Score {
    /// A softmax over all ([Mixtral](https://arxiv.org/abs/2401.04088)).
    Softmax,
    /// Each its sigmoid ([DeepSeek-V3](https://arxiv.org/abs/2412.19437)).
    Sigmoid,
    /// They are picked as they are, and weighed by a softmax over those that are.
    SoftmaxOfPicked,
    /// They are picked as they are, and each is weighed by a softmax over those that it
    /// was picked from and that are hardly less than it: by this share of the larger
    /// magnitude at most ([SparseMixer](https://arxiv.org/abs/2310.00811)).
    SparseMixer { share: f32 },
}

/// Experts are picked from some groups of them only, neighbours in equal numbers
/// ([DeepSeek-V2](https://arxiv.org/abs/2405.04434)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GroupsPlan {
    pub n: usize,
    pub n_used: usize,
    /// The score of a group is the sum of so many of its largest.
    pub n_summed: usize,
}

/// Where an expert's weight has its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weigh {
    /// It multiplies what goes into the expert.
    Before,
    /// It multiplies what comes out.
    After,
}

/// A matrix of weights, with a bias if the file has one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct MatrixPlan {
    pub name: String,
    pub rows: usize,
    pub cols: usize,
    pub bias: Option<String>,
    pub deal: Deal,
    /// If the tensor has the rows of other matrices too.
    pub part: Option<RowsPlan>,
}

/// Where the rows of a matrix are in a tensor that has others too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowsPlan {
    pub first: usize,
    /// All rows of the tensor.
    pub of: usize,
}

/// What a member of a team gets of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deal {
    /// Some of the rows.
    Rows,
    /// All of it, as every member looks into it.
    Whole,
}

/// One of the matrices of each expert in a layer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ExpertsPlan {
    pub tensors: ExpertTensors,
    pub rows: usize,
    pub cols: usize,
    /// If an expert's matrix in the tensor has the rows of another one too.
    pub part: Option<RowsPlan>,
    /// A matrix with a row for each expert: its bias.
    pub bias: Option<MatrixPlan>,
}

/// The tensors that experts are in.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ExpertTensors {
    /// All in the one of this name.
    One(String),
    /// One for each, as in files from early 2024: `STEM.NUMBER.weight`.
    Each { stem: String },
}

/// A vector of weights.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct VectorPlan {
    /// The tensor.
    pub name: String,
    pub len: usize,
}

/// A norm: numbers over their magnitude, times `weight` if there is one, plus `bias`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct NormPlan {
    pub kind: NormKind,
    /// Numbers that are normalised together.
    pub len: usize,
    pub weight: Option<VectorPlan>,
    /// Factor on the weights.
    pub scale: f32,
    pub bias: Option<VectorPlan>,
    pub epsilon: f32,
}

/// What is the magnitude of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NormKind {
    /// Their root mean square ([RMSNorm](https://arxiv.org/abs/1910.07467)).
    Rms,
    /// Their standard deviation, and their mean is subtracted first
    /// ([LayerNorm](https://arxiv.org/abs/1607.06450)).
    Layer,
}

/// How positions turn queries and keys ([RoFormer](https://arxiv.org/abs/2104.09864)).
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RopePlan {
    /// Numbers of a head that are turned, an even number.
    pub dims: usize,
    pub pairs: Pairs,
    pub base: f64,
    /// A tensor that divides the frequencies, as Llama 3 has it.
    pub factors: Option<String>,
    /// What takes the place of these in long contexts.
    pub long: Option<LongFactors>,
    pub scaling: FrequencyScaling,
    /// Factor on sine and cosine.
    pub magnitude: f64,
}

/// Factors for contexts of more than `beyond` tokens
/// ([LongRoPE](https://arxiv.org/abs/2402.13753)).
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LongFactors {
    pub factors: String,
    pub beyond: usize,
}

/// Which numbers of a head are turned together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pairs {
    Neighbours,
    /// Those at the same place in the two halves of what is turned.
    Halves,
}

/// How frequencies are scaled for contexts beyond those of the training.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum FrequencyScaling {
    /// All by the same factor; 1 is none.
    Linear { factor: f64 },
    /// [YaRN](https://arxiv.org/abs/2309.00071): those that turn less than `slow` times
    /// within the original context by `factor`, those that turn more than `fast` times
    /// not at all. What is between may begin and end with whole pairs.
    Yarn { factor: f64, n_ctx: f64, fast: f64, slow: f64, whole_pairs: bool },
}
