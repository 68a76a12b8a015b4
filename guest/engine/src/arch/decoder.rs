//! What decoders have in common: attention and a feed-forward network or a mixture
//! in each layer, with a norm before each, and the names of all that. An architecture
//! takes of it what fits, and changes the rest in the plan.

use super::file::File;
use super::keys::COUNT_MAX;
use super::rope;
use crate::error::{Error, Result};
use crate::kv_cache::Span;
use crate::plan::{
    Activation, AttentionPlan, EmbeddingPlan, ExpertsPlan, FfnPlan, GluPlan, GroupsPlan, HeadPlan,
    LayerPlan, MixPlan, MixturePlan, NormKind, NormPlan, Pairs, Plan, QkNorm, Residual, RouterPlan,
    RowsPlan, Score, SharedPlan, VectorPlan, Weigh,
};

/// A decoder's shape.
#[derive(Clone, Copy)]
pub(super) struct Decoder<'a> {
    pub file: &'a File<'a>,
    pub n_layer: usize,
    pub n_embd: usize,
    pub n_head: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Inner width of networks that are no experts; 0 if the file does not say.
    pub n_ff: usize,
    pub n_ctx_train: usize,
    pub rms_epsilon: f32,
    /// Factor on scores.
    pub attention_scale: f32,
    /// Factor on what each half of a layer adds.
    pub residual_scale: f32,
    pub activation: Activation,
    /// Whether positions turn queries and keys.
    pub turns: bool,
}

/// The experts of a decoder.
pub(super) struct Experts {
    pub n: usize,
    pub n_used: usize,
    /// Inner width of an expert.
    pub n_ff: usize,
    /// Inner width of the expert that all tokens go through; 0 without one.
    pub n_ff_shared: usize,
    /// Whether a vector gates what that one adds.
    pub gates_shared: bool,
    /// Layers before the first that has experts.
    pub n_dense: usize,
    pub score: Score,
    pub groups: Option<GroupsPlan>,
    /// If weights are divided by their sum, what is added to it.
    pub normalize: Option<f32>,
    pub scale: f32,
    pub weigh: Weigh,
}

impl<'a> Decoder<'a> {
    /// Reads the shape from the metadata, of a model whose tokens look at all before them.
    pub fn read(file: &'a File<'a>) -> Result<Self> {
        let keys = &file.keys;
        let model = Self::windowed(file, keys.count("attention.head_count_kv")?)?;
        let window = keys.u32("attention.sliding_window")?.unwrap_or(0);
        if window > 0 && (window as usize) < model.n_ctx_train {
            return Err(Error::unsupported(format!(
                "`{}` is {window}, less than the context of {}; attention to all tokens is \
                 supported only",
                keys.full("attention.sliding_window"),
                model.n_ctx_train
            )));
        }
        Ok(model)
    }

    /// The same of a model that may look at windows, with so many KV heads.
    pub fn windowed(file: &'a File<'a>, kv_heads: Option<usize>) -> Result<Self> {
        let keys = &file.keys;
        let n_embd = keys.positive("embedding_length")?;
        let n_head = keys.positive("attention.head_count")?;
        let kv_heads = kv_heads.unwrap_or(n_head);
        let head_dim = match keys.count("attention.key_length")? {
            Some(n) => n,
            None => n_embd / n_head,
        };
        if keys.count("attention.value_length")?.unwrap_or(head_dim) != head_dim {
            return Err(Error::unsupported("heads with keys and values of different lengths"));
        }
        // Some converters write it beside the other two.
        if keys.count("attention.head_dim")?.unwrap_or(head_dim) != head_dim {
            return Err(Error::unsupported(format!(
                "`{}` is not the length of keys, {head_dim}",
                keys.full("attention.head_dim")
            )));
        }
        Self::with_heads(file, n_head, kv_heads, head_dim)
    }

    /// The same with other heads than the plain keys would say.
    pub fn with_heads(
        file: &'a File<'a>,
        n_head: usize,
        kv_heads: usize,
        head_dim: usize,
    ) -> Result<Self> {
        let keys = &file.keys;
        check_heads(n_head, kv_heads, head_dim)?;
        let n_ctx_train = keys.positive("context_length")?;
        let rms_epsilon = keys.f32("attention.layer_norm_rms_epsilon")?.filter(|e| *e >= 0.0);
        let rms_epsilon = rms_epsilon.ok_or_else(|| {
            Error::invalid(format!(
                "metadata `{}` is missing; the file is incomplete",
                keys.full("attention.layer_norm_rms_epsilon")
            ))
        })?;
        let attention_scale = keys.factor("attention.scale")?;
        let attention_scale = attention_scale.unwrap_or(1.0 / (head_dim as f32).sqrt());
        if attention_scale < 0.0 {
            return Err(Error::invalid(format!(
                "`{}` is {attention_scale}; the file is damaged",
                keys.full("attention.scale")
            )));
        }
        Ok(Self {
            file,
            n_layer: keys.positive("block_count")?,
            n_embd: keys.positive("embedding_length")?,
            n_head,
            kv_heads,
            head_dim,
            n_ff: keys.count("feed_forward_length")?.unwrap_or(0),
            n_ctx_train,
            rms_epsilon,
            attention_scale,
            residual_scale: 1.0,
            activation: Activation::Swiglu,
            turns: true,
        })
    }

    /// The same shape with other heads.
    pub fn of_heads(&self, kv_heads: usize, head_dim: usize) -> Result<Self> {
        check_heads(self.n_head, kv_heads, head_dim)?;
        Ok(Self { kv_heads, head_dim, ..*self })
    }

    /// Leaves the last layers out that predict tokens beyond the next, if there are any.
    /// Answers what the names of their tensors begin with.
    pub fn skip_predictors(&mut self) -> Result<Vec<String>> {
        let n = self.file.keys.count("nextn_predict_layers")?.unwrap_or(0);
        let n_layer = self.n_layer.checked_sub(n).filter(|&n_layer| n_layer > 0);
        let n_layer = n_layer.ok_or_else(|| {
            Error::invalid(format!(
                "{n} of {} layers predict tokens beyond the next; the file is damaged",
                self.n_layer
            ))
        })?;
        let skipped = (n_layer..self.n_layer).map(|layer| format!("blk.{layer}.")).collect();
        self.n_layer = n_layer;
        Ok(skipped)
    }

    /// Reads of the experts, if there are any. What logits become and whether weights are
    /// normalised is what the architecture does where the file says nothing.
    pub fn experts(&self, score: Score, normalize: bool) -> Result<Option<Experts>> {
        let keys = &self.file.keys;
        let n = keys.count("expert_count")?.unwrap_or(0);
        let n_used = keys.count("expert_used_count")?.unwrap_or(0);
        if n > 0 && !(1..=n).contains(&n_used) {
            return Err(Error::invalid(format!(
                "the router picks {n_used} of {n} experts; the file is damaged"
            )));
        }
        let score = self.score()?.unwrap_or(score);
        let groups = self.groups(n, n_used, score)?;
        let experts = Experts {
            n,
            n_used,
            n_ff: keys.count("expert_feed_forward_length")?.unwrap_or(self.n_ff),
            n_ff_shared: 0,
            gates_shared: false,
            n_dense: keys.count("leading_dense_block_count")?.unwrap_or(0),
            score,
            groups,
            normalize: keys.bool("expert_weights_norm")?.unwrap_or(normalize).then_some(0.0),
            scale: keys.factor("expert_weights_scale")?.unwrap_or(1.0),
            weigh: Weigh::After,
        };
        Ok((n > 0).then_some(experts))
    }

    /// The same where all tokens share some experts, which are as wide as the others and
    /// lie together.
    pub fn with_shared(&self, experts: Option<Experts>) -> Result<Option<Experts>> {
        let n = self.file.keys.count("expert_shared_count")?.unwrap_or(0);
        Ok(experts.map(|all| Experts { n_ff_shared: n.saturating_mul(all.n_ff), ..all }))
    }

    /// What logits become, if the file says it.
    fn score(&self) -> Result<Option<Score>> {
        let key = "expert_gating_func";
        match self.file.keys.u32(key)?.unwrap_or(0) {
            0 => Ok(None),
            1 => Ok(Some(Score::Softmax)),
            2 => Ok(Some(Score::Sigmoid)),
            3 => Ok(Some(Score::SoftmaxOfPicked)),
            other => Err(Error::unsupported(format!(
                "`{}` is {other}; 1 (softmax), 2 (sigmoid) and 3 (softmax of those that are \
                 picked) are supported",
                self.file.keys.full(key)
            ))),
        }
    }

    /// The groups of `n` experts, if there are several.
    fn groups(&self, n: usize, n_used: usize, score: Score) -> Result<Option<GroupsPlan>> {
        let keys = &self.file.keys;
        let n_groups = keys.count("expert_group_count")?.unwrap_or(0);
        let groups_used = keys.count("expert_group_used_count")?.unwrap_or(n_groups);
        if n == 0 || n_groups < 2 {
            return Ok(None);
        }
        // DeepSeek-V2 takes the largest, whatever came later with sigmoids the two largest.
        let n_summed = if score == Score::Sigmoid { 2 } else { 1 };
        let len = n / n_groups;
        if len * n_groups != n
            || len < n_summed
            || !(1..=n_groups).contains(&groups_used)
            || n_used > groups_used * len
        {
            return Err(Error::invalid(format!(
                "the router picks {n_used} of {n} experts from {groups_used} of {n_groups} groups; \
                 the file is damaged"
            )));
        }
        Ok(Some(GroupsPlan { n: n_groups, n_used: groups_used, n_summed }))
    }

    /// The whole model, whose layers `layer` gives.
    pub fn plan(&self, pairs: Pairs, layer: impl Fn(usize) -> LayerPlan) -> Result<Plan> {
        let (file, n_embd, n_vocab) = (self.file, self.n_embd, self.file.n_vocab()?);
        Ok(Plan {
            n_ctx_train: self.n_ctx_train,
            n_ctx_max: rope::n_ctx_max(file, self.n_ctx_train, self.turns)?,
            n_ctx_original: match self.turns {
                true => rope::n_ctx_original(file, self.n_ctx_train)?,
                false => 0,
            },
            embedding: EmbeddingPlan {
                matrix: file.whole("token_embd", n_vocab, n_embd),
                scale: 1.0,
            },
            ropes: vec![rope::plan(file, self.head_dim, self.n_ctx_train, pairs)?],
            layers: (0..self.n_layer).map(layer).collect(),
            skipped: Vec::new(),
            head: HeadPlan {
                norm: self.norm("output_norm", n_embd),
                output: (file.has("output.weight")).then(|| file.matrix("output", n_vocab, n_embd)),
                scale: 1.0,
                softcap: None,
            },
        })
    }

    /// What a layer adds first: attention.
    pub fn attention(&self, layer: usize, qk_norm: Option<QkNorm>) -> Residual<MixPlan> {
        self.mix(layer, self.heads(layer, qk_norm))
    }

    /// What a layer adds first, whose heads these are.
    pub fn mix(&self, layer: usize, attention: AttentionPlan) -> Residual<MixPlan> {
        Residual {
            before: Some(self.norm(&format!("blk.{layer}.attn_norm"), self.n_embd)),
            op: MixPlan::Attention(Box::new(attention)),
            after: None,
            scale: self.residual_scale,
        }
    }

    /// Attention to all tokens.
    pub fn heads(&self, layer: usize, qk_norm: Option<QkNorm>) -> AttentionPlan {
        let (file, n_embd) = (self.file, self.n_embd);
        let (width, kv_width) = (self.width(), self.kv_width());
        let name = |part: &str| format!("blk.{layer}.{part}");
        AttentionPlan {
            q: file.matrix(&name("attn_q"), width, n_embd),
            k: file.matrix(&name("attn_k"), kv_width, n_embd),
            v: Some(file.matrix(&name("attn_v"), kv_width, n_embd)),
            o: file.matrix(&name("attn_output"), n_embd, width),
            n_head: self.n_head,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: self.attention_scale,
            rope: self.turns.then_some(0),
            qk_norm,
            v_norm: None,
            sinks: None,
            span: Span::All,
            temperature: None,
            kv_format: file.options.kv_format,
        }
    }

    /// What tokens look at where there is a window, if the file has one that is shorter
    /// than the longest context.
    pub fn window(&self) -> Result<Span> {
        let n = self.file.keys.u32("attention.sliding_window")?.unwrap_or(0) as usize;
        self.shorter(n, Span::Window)
    }

    /// The span of so many tokens, or of all if contexts are not longer.
    pub fn shorter(&self, n: usize, span: impl FnOnce(usize) -> Span) -> Result<Span> {
        let n_ctx_max = rope::n_ctx_max(self.file, self.n_ctx_train, self.turns)?;
        Ok(if (1..n_ctx_max).contains(&n) { span(n) } else { Span::All })
    }

    /// For each layer whether it is one of those that look at a window: all but every
    /// `period`-th if the file does not say.
    pub fn windows(&self, period: usize) -> Result<Vec<bool>> {
        self.file.keys.pattern("attention.sliding_window_pattern", self.n_layer, period)
    }

    /// Norms of queries and keys of so many numbers.
    pub fn qk_norm(&self, layer: usize, q_len: usize, k_len: usize) -> QkNorm {
        QkNorm {
            q: self.norm(&format!("blk.{layer}.attn_q_norm"), q_len),
            k: self.norm(&format!("blk.{layer}.attn_k_norm"), k_len),
            turned: false,
        }
    }

    /// What a layer adds then: a mixture if it has a router, or else a dense network.
    pub fn ffn(&self, layer: usize, experts: Option<&Experts>) -> Residual<FfnPlan> {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let has_router = self.file.has(&name("ffn_gate_inp.weight"));
        let op = match experts.filter(|experts| has_router && layer >= experts.n_dense) {
            Some(experts) => FfnPlan::Mixture(Box::new(self.mixture(layer, experts))),
            None => FfnPlan::Dense(Box::new(self.glu(layer, "", self.n_ff))),
        };
        let before = Some(self.norm(&name("ffn_norm"), self.n_embd));
        Residual { before, op, after: None, scale: self.residual_scale }
    }

    /// The matrices `gate` and `up` of each expert, which may be in one tensor.
    fn gate_up(&self, layer: usize, n: usize, n_ff: usize) -> (ExpertsPlan, ExpertsPlan) {
        let of = |part: &str, rows| {
            self.file.experts(&format!("blk.{layer}.ffn_{part}"), n, rows, self.n_embd)
        };
        let joint = ["ffn_gate_up_exps", "ffn_gate_up.0"];
        if !joint.iter().any(|name| self.file.has(&format!("blk.{layer}.{name}.weight"))) {
            return (of("gate", n_ff), of("up", n_ff));
        }
        let half = |first| ExpertsPlan {
            part: Some(RowsPlan { first, of: 2 * n_ff }),
            ..of("gate_up", n_ff)
        };
        (half(0), half(n_ff))
    }

    /// The experts of a layer.
    pub fn mixture(&self, layer: usize, experts: &Experts) -> MixturePlan {
        let (file, n_embd) = (self.file, self.n_embd);
        let &Experts { n, n_used, n_ff, score, groups, normalize, scale, weigh, .. } = experts;
        let name = |part: &str| format!("blk.{layer}.{part}");
        let matrix = file.whole(&name("ffn_gate_inp"), n, n_embd);
        let (gate_experts, up_experts) = self.gate_up(layer, n, n_ff);
        let correction = VectorPlan { name: name("exp_probs_b.bias"), len: n };
        let correction = file.has(&correction.name).then_some(correction);
        let gate = || file.vector(&name("ffn_gate_inp_shexp"), n_embd);
        MixturePlan {
            router: RouterPlan {
                matrix,
                score,
                correction,
                groups,
                n_used,
                normalize,
                scale,
                scales: None,
            },
            weigh,
            n_expert: n,
            gate: gate_experts,
            up: up_experts,
            down: file.experts(&name("ffn_down"), n, n_embd, n_ff),
            activation: self.activation,
            shared: (experts.n_ff_shared > 0).then(|| SharedPlan {
                glu: self.glu(layer, "_shexp", experts.n_ff_shared),
                gate: experts.gates_shared.then(gate),
            }),
        }
    }

    /// The network whose tensors have names of this kind.
    pub fn glu(&self, layer: usize, kind: &str, n_ff: usize) -> GluPlan {
        let (file, n_embd) = (self.file, self.n_embd);
        let name = |part: &str| format!("blk.{layer}.{part}{kind}");
        GluPlan {
            gate: file.matrix(&name("ffn_gate"), n_ff, n_embd),
            up: file.matrix(&name("ffn_up"), n_ff, n_embd),
            down: file.matrix(&name("ffn_down"), n_embd, n_ff),
            activation: self.activation,
        }
    }

    /// The norm with these weights; with a bias it is a LayerNorm.
    pub fn norm(&self, stem: &str, len: usize) -> NormPlan {
        let name = format!("{stem}.bias");
        let bias = self.file.has(&name).then_some(VectorPlan { name, len });
        NormPlan {
            kind: if bias.is_some() { NormKind::Layer } else { NormKind::Rms },
            len,
            weight: Some(self.file.vector(stem, len)),
            scale: 1.0,
            bias,
            epsilon: self.rms_epsilon,
        }
    }

    /// A norm without weights.
    pub fn plain_norm(&self, len: usize) -> NormPlan {
        let epsilon = self.rms_epsilon;
        NormPlan { kind: NormKind::Rms, len, weight: None, scale: 1.0, bias: None, epsilon }
    }

    /// Numbers of all heads.
    pub fn width(&self) -> usize {
        self.n_head * self.head_dim
    }

    /// Numbers of all KV heads.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// Fails unless so many heads, of so many numbers, can be computed.
fn check_heads(n_head: usize, kv_heads: usize, head_dim: usize) -> Result<()> {
    if kv_heads == 0 || !n_head.is_multiple_of(kv_heads) {
        return Err(Error::invalid(format!(
            "{n_head} heads cannot share {kv_heads} KV heads; the file is damaged"
        )));
    }
    if head_dim == 0 || !head_dim.is_multiple_of(4) {
        return Err(Error::unsupported(format!(
            "heads of {head_dim} numbers; they must be a multiple of 4"
        )));
    }
    if n_head as u64 * head_dim as u64 > COUNT_MAX.into() {
        return Err(Error::invalid(format!(
            "{n_head} heads of {head_dim} numbers are more than {COUNT_MAX} numbers; the file \
             is damaged"
        )));
    }
    Ok(())
}
