//! A model: its weights, open and checked.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, ErrorKind, Result};
use crate::experts::{ExpertLayer, ExpertTensor, ExpertWindows};
use crate::gguf::{Gguf, TensorInfo};
use crate::hyperparameters::Hyperparameters;
use crate::quant::{Format, Matrix, dequantize_row};
use crate::rope::Rope;
use crate::weights::{Source, Weights, Window};

/// The most entries of a vocabulary.
const N_VOCAB_MAX: u64 = 1 << 21;

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

/// A matrix of weights, addressable.
pub(crate) struct Linear {
    format: Format,
    rows: usize,
    cols: usize,
    window: Box<dyn Window>,
    pub bias: Option<Vec<f32>>,
}

impl Linear {
    pub fn matrix(&self) -> Matrix<'_> {
        Matrix::new(self.format, self.rows, self.cols, self.window.bytes())
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Writes a row as floats.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        dequantize_row(self.format, self.matrix().row(row), out);
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
    Dense(FeedForward),
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
            Ffn::Mixture(m) => Some(m.experts.iter().map(|t| t.bytes() as u64).sum()),
        }
    }
}

/// A model whose weights are open. Sessions share it.
pub struct Model {
    pub(crate) h: Hyperparameters,
    pub(crate) rope: Rope,
    pub(crate) embedding: Linear,
    pub(crate) layers: Vec<Layer>,
    pub(crate) output_norm: Vec<f32>,
    /// Absent if the embedding serves as the output matrix too.
    pub(crate) output: Option<Linear>,
    pub(crate) windows: ExpertWindows,
    pub(crate) sources: Vec<Box<dyn Source>>,
    info: ModelInfo,
}

impl Model {
    /// Opens the model in the file `name`; of a split model, in the first of
    /// its files. At most `window_bytes_max` bytes of weights are addressable
    /// at a time: dense weights always are, experts take turns if they must.
    pub fn load(weights: &dyn Weights, name: &str, window_bytes_max: u64) -> Result<Self> {
        let gguf = Gguf::open(weights, name)?;
        Self::from_gguf(gguf, window_bytes_max)
            .map_err(|e| Error::new(e.kind(), format!("{name}: {e}")))
    }

    /// The model in files that are open already.
    pub(crate) fn from_gguf(gguf: Gguf, window_bytes_max: u64) -> Result<Self> {
        let metadata = gguf.header.metadata;
        let (h, keys) = Hyperparameters::from_metadata(&metadata)?;
        let sources = gguf.sources;
        let mut loader = Loader {
            tensors: &gguf.header.tensors,
            sources: &sources,
            used: BTreeSet::new(),
            window_bytes: 0,
            window_bytes_max,
        };

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
        let embedding = loader.linear("token_embd", n_vocab, h.n_embd)?;
        let output = match loader.has("output.weight") {
            true => Some(loader.linear("output", n_vocab, h.n_embd)?),
            false => None,
        };
        let output_norm = loader.vector("output_norm.weight", h.n_embd)?;
        let factors = match loader.tensors.get("rope_freqs.weight") {
            Some(t) => {
                let n = t.dims[0].min(h.head_dim as u64) as usize;
                Some(loader.vector("rope_freqs.weight", n)?)
            }
            None => None,
        };
        let rope = Rope::new(&h, &keys, factors.as_deref())?;
        let layers = (0..h.n_layer).map(|i| loader.layer(i, &h)).collect::<Result<Vec<_>>>()?;

        if let Some(unused) =
            loader.tensors.keys().find(|name| !loader.used.contains(name.as_str()))
        {
            return Err(Error::unsupported(format!(
                "tensor {unused} has no place in the architecture `{}` as it is known here; the \
                 model would not compute what it was trained for",
                metadata.str("general.architecture")?.unwrap_or_default()
            )));
        }
        let left = window_bytes_max - loader.window_bytes;
        let expert_bytes = layers.iter().filter_map(Layer::expert_bytes).max().unwrap_or(0);
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
        let windows = ExpertWindows::new(left);
        let tensors = loader.tensors.values();
        let kv_numbers = 2 * h.n_layer as u64 * h.kv_heads as u64 * h.head_dim as u64;
        let info = ModelInfo {
            architecture: metadata.str("general.architecture")?.unwrap_or_default().to_owned(),
            name: metadata.str("general.name")?.map(str::to_owned),
            quantization: quantization(&gguf.header.tensors),
            n_params: tensors.clone().map(TensorInfo::n_elements).fold(0, u64::saturating_add),
            weight_bytes: tensors.map(|t| t.size).fold(0, u64::saturating_add),
            kv_bytes_per_token: kv_numbers * size_of::<f32>() as u64,
            n_layer: h.n_layer as u32,
            n_embd: h.n_embd as u32,
            n_vocab: n_vocab as u32,
            n_ctx_train: h.n_ctx_train as u32,
            n_expert: h.n_expert as u32,
            n_expert_used: h.n_expert_used as u32,
        };
        Ok(Self { h, rope, embedding, layers, output_norm, output, windows, sources, info })
    }

    /// What the model is.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// The matrix that turns a hidden state into logits.
    pub(crate) fn output(&self) -> &Linear {
        self.output.as_ref().unwrap_or(&self.embedding)
    }
}

/// The tensor type that most bytes of the weights have.
fn quantization(tensors: &BTreeMap<String, TensorInfo>) -> &'static str {
    let mut bytes = BTreeMap::new();
    for tensor in tensors.values() {
        *bytes.entry(tensor.ty.name()).or_insert(0) += tensor.size;
    }
    bytes.into_iter().max_by_key(|(_, bytes)| *bytes).map_or("", |(name, _)| name)
}

fn missing(name: &str) -> Error {
    Error::invalid(format!(
        "tensor {name} is missing; the file is incomplete: get the model from another source"
    ))
}

struct Loader<'a> {
    tensors: &'a BTreeMap<String, TensorInfo>,
    sources: &'a [Box<dyn Source>],
    used: BTreeSet<&'a str>,
    window_bytes: u64,
    window_bytes_max: u64,
}

impl<'a> Loader<'a> {
    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A tensor of this shape in a format that can be computed with.
    fn tensor(&mut self, name: &str, dims: &[usize]) -> Result<(&'a TensorInfo, Format)> {
        let (name, tensor) = self.tensors.get_key_value(name).ok_or_else(|| missing(name))?;
        self.used.insert(name);
        let mut expected = [1; 4];
        expected.iter_mut().zip(dims).for_each(|(e, &d)| *e = d as u64);
        if tensor.dims != expected {
            return Err(Error::invalid(format!(
                "tensor {name} has shape {:?} where the metadata asks for {expected:?}; the file \
                 is damaged: download it again",
                tensor.dims
            )));
        }
        let format = Format::from_type(tensor.ty).ok_or_else(|| {
            Error::unsupported(format!(
                "tensor {name} is quantised as {}, which is not supported; get the model in \
                 Q4_K_M, Q5_K_M, Q6_K, Q8_0 or F16",
                tensor.ty
            ))
        })?;
        Ok((tensor, format))
    }

    /// The size of a matrix, if one window can have it.
    fn addressable(&self, tensor: &TensorInfo, bytes: u64) -> Result<usize> {
        let max = self.window_bytes_max.min(isize::MAX as u64);
        usize::try_from(bytes).ok().filter(|_| bytes <= max).ok_or_else(|| {
            let message = format!(
                "tensor {} has a matrix of {bytes} bytes, more than the {max} that can be \
                 addressed; choose a smaller quantisation",
                tensor.name
            );
            Error::new(ErrorKind::OutOfMemory, message)
        })
    }

    /// A matrix, with its bias if there is one.
    fn linear(&mut self, name: &str, rows: usize, cols: usize) -> Result<Linear> {
        let (tensor, format) = self.tensor(&format!("{name}.weight"), &[cols, rows])?;
        self.window_bytes = self.window_bytes.saturating_add(tensor.size);
        if self.window_bytes > self.window_bytes_max {
            return Err(Error::new(
                ErrorKind::OutOfMemory,
                format!(
                    "the weights that every token needs take more than the {} bytes that can be \
                     addressed; choose a smaller quantisation",
                    self.window_bytes_max
                ),
            ));
        }
        let bytes = self.addressable(tensor, tensor.size)?;
        let window = self.sources[tensor.file].window(tensor.offset, bytes)?;
        let bias = format!("{name}.bias");
        let bias = if self.has(&bias) { Some(self.vector(&bias, rows)?) } else { None };
        Ok(Linear { format, rows, cols, window, bias })
    }

    /// A vector, as floats.
    fn vector(&mut self, name: &str, n: usize) -> Result<Vec<f32>> {
        let (tensor, format) = self.tensor(name, &[n])?;
        let bytes = self.addressable(tensor, tensor.size)?;
        let window = self.sources[tensor.file].window(tensor.offset, bytes)?;
        let mut out = vec![0.0; n];
        dequantize_row(format, window.bytes(), &mut out);
        if out.iter().any(|x| !x.is_finite()) {
            return Err(Error::invalid(format!(
                "tensor {name} holds numbers that are not finite; the file is damaged"
            )));
        }
        Ok(out)
    }

    fn feed_forward(
        &mut self,
        layer: &str,
        kind: &str,
        n_embd: usize,
        n: usize,
    ) -> Result<FeedForward> {
        Ok(FeedForward {
            gate: self.linear(&format!("{layer}.ffn_gate{kind}"), n, n_embd)?,
            up: self.linear(&format!("{layer}.ffn_up{kind}"), n, n_embd)?,
            down: self.linear(&format!("{layer}.ffn_down{kind}"), n_embd, n)?,
        })
    }

    /// One matrix of each expert: slices of one tensor, or, in files from
    /// early 2024, a tensor for each.
    fn experts(&mut self, stem: &str, n: usize, rows: usize, cols: usize) -> Result<ExpertTensor> {
        let apart = |i: usize| format!("{stem}.{i}.weight");
        if self.has(&apart(0)) {
            let mut places = Vec::new();
            let mut format = None;
            for i in 0..n {
                let (tensor, f) = self.tensor(&apart(i), &[cols, rows])?;
                if *format.get_or_insert(f) != f {
                    return Err(Error::unsupported(format!(
                        "tensor {} is quantised differently from its neighbours",
                        tensor.name
                    )));
                }
                self.addressable(tensor, tensor.size)?;
                places.push((tensor.file, tensor.offset));
            }
            let format = format.ok_or_else(|| missing(stem))?;
            return Ok(ExpertTensor { format, rows, cols, places });
        }
        let (tensor, format) = self.tensor(&format!("{stem}_exps.weight"), &[cols, rows, n])?;
        let bytes = tensor.size / n as u64;
        self.addressable(tensor, bytes)?;
        let places = (0..n as u64).map(|i| (tensor.file, tensor.offset + i * bytes)).collect();
        Ok(ExpertTensor { format, rows, cols, places })
    }

    fn layer(&mut self, index: usize, h: &Hyperparameters) -> Result<Layer> {
        let name = format!("blk.{index}");
        let (width, kv_width) = (h.n_head * h.head_dim, h.kv_heads * h.head_dim);
        let ffn = if h.n_expert > 0 && self.has(&format!("{name}.ffn_gate_inp.weight")) {
            let (n, inner) = (h.n_expert, h.n_ff_expert);
            let shared = match h.n_ff_shared {
                0 => None,
                inner => Some((
                    self.feed_forward(&name, "_shexp", h.n_embd, inner)?,
                    self.vector(&format!("{name}.ffn_gate_inp_shexp.weight"), h.n_embd)?,
                )),
            };
            Ffn::Mixture(Box::new(Mixture {
                router: self.linear(&format!("{name}.ffn_gate_inp"), n, h.n_embd)?,
                experts: [
                    self.experts(&format!("{name}.ffn_gate"), n, inner, h.n_embd)?,
                    self.experts(&format!("{name}.ffn_up"), n, inner, h.n_embd)?,
                    self.experts(&format!("{name}.ffn_down"), n, h.n_embd, inner)?,
                ],
                shared,
            }))
        } else {
            Ffn::Dense(self.feed_forward(&name, "", h.n_embd, h.n_ff)?)
        };
        Ok(Layer {
            attn_norm: self.vector(&format!("{name}.attn_norm.weight"), h.n_embd)?,
            q: self.linear(&format!("{name}.attn_q"), width, h.n_embd)?,
            k: self.linear(&format!("{name}.attn_k"), kv_width, h.n_embd)?,
            v: self.linear(&format!("{name}.attn_v"), kv_width, h.n_embd)?,
            o: self.linear(&format!("{name}.attn_output"), h.n_embd, width)?,
            q_norm: self.head_norm(&format!("{name}.attn_q_norm.weight"), h.head_dim, width)?,
            k_norm: self.head_norm(&format!("{name}.attn_k_norm.weight"), h.head_dim, kv_width)?,
            ffn_norm: self.vector(&format!("{name}.ffn_norm.weight"), h.n_embd)?,
            ffn,
        })
    }

    /// The weight of a norm over each head, or over all heads together.
    fn head_norm(&mut self, name: &str, head_dim: usize, width: usize) -> Result<Option<Vec<f32>>> {
        match self.tensors.get(name) {
            None => Ok(None),
            Some(t) if t.dims[0] == width as u64 => self.vector(name, width).map(Some),
            Some(_) => self.vector(name, head_dim).map(Some),
        }
    }
}
