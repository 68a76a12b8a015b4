//! Loading: tensors become matrices and vectors, or errors that name them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};
use crate::experts::{ExpertLayer, ExpertTensor};
use crate::gguf::TensorInfo;
use crate::hyperparameters::Hyperparameters;
use crate::model::{FeedForward, Ffn, Layer, Linear, Mixture};
use crate::quant::{Format, dequantize_row};
use crate::team::Exchange;
use crate::weights::Source;

/// A tensor that must be there.
pub(crate) fn missing(name: &str) -> Error {
    Error::invalid(format!(
        "tensor {name} is missing; the file is incomplete: get the model from another source"
    ))
}

/// Takes tensors out of the files, and checks that they fit the metadata.
pub(crate) struct Loader<'a> {
    tensors: &'a BTreeMap<String, TensorInfo>,
    sources: &'a [Box<dyn Source>],
    h: &'a Hyperparameters,
    exchange: &'a Exchange,
    used: BTreeSet<&'a str>,
    window_bytes: u64,
    window_bytes_max: u64,
}

impl<'a> Loader<'a> {
    pub fn new(
        tensors: &'a BTreeMap<String, TensorInfo>,
        sources: &'a [Box<dyn Source>],
        h: &'a Hyperparameters,
        exchange: &'a Exchange,
        window_bytes_max: u64,
    ) -> Self {
        let used = BTreeSet::new();
        Self { tensors, sources, h, exchange, used, window_bytes: 0, window_bytes_max }
    }

    /// Bytes that can be addressed besides what was loaded.
    pub fn window_bytes_left(&self) -> u64 {
        self.window_bytes_max - self.window_bytes
    }

    /// A tensor that nobody asked for.
    pub fn unused(&self) -> Option<&'a str> {
        self.tensors.keys().map(String::as_str).find(|name| !self.used.contains(name))
    }

    pub fn has(&self, name: &str) -> bool {
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
        let group = format.group_rows();
        if !tensor.dims[1].is_multiple_of(group as u64) {
            return Err(Error::invalid(format!(
                "tensor {name} of type {} has {} rows, not a multiple of {group}; pack the original \
                 model again with `moewe pack`",
                tensor.ty, tensor.dims[1]
            )));
        }
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

    /// Some rows of a matrix, with their bias if there is one.
    pub fn linear(
        &mut self,
        name: &str,
        n_rows: usize,
        cols: usize,
        rows: Range<usize>,
    ) -> Result<Linear> {
        let (tensor, format) = self.tensor(&format!("{name}.weight"), &[cols, n_rows])?;
        let group = format.group_rows();
        if !rows.start.is_multiple_of(group) || !rows.len().is_multiple_of(group) {
            return Err(Error::unsupported(format!(
                "tensor {name}.weight of type {} cannot be dealt out to {} threads; compute with \
                 one, or pack the original model again with `moewe pack`",
                tensor.ty,
                self.exchange.size()
            )));
        }
        let row_bytes = format.row_bytes(cols) as u64;
        let size = row_bytes * rows.len() as u64;
        self.window_bytes = self.window_bytes.saturating_add(size);
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
        let bytes = self.addressable(tensor, size)?;
        let window = match bytes {
            0 => None,
            _ => {
                let offset = tensor.offset + row_bytes * rows.start as u64;
                Some(self.sources[tensor.file].window(offset, bytes)?)
            }
        };
        let bias = format!("{name}.bias");
        let bias = match self.has(&bias) {
            true => Some(self.vector(&bias, n_rows)?),
            false => None,
        };
        Ok(Linear { format, cols, n_rows, rows, window, bias })
    }

    /// This member's rows of a matrix.
    fn split(&mut self, name: &str, n_rows: usize, cols: usize) -> Result<Linear> {
        self.linear(name, n_rows, cols, self.exchange.rows(n_rows).mine())
    }

    /// A vector, as floats.
    pub fn vector(&mut self, name: &str, n: usize) -> Result<Vec<f32>> {
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

    fn feed_forward(&mut self, layer: &str, kind: &str, n: usize) -> Result<FeedForward> {
        let n_embd = self.h.n_embd;
        Ok(FeedForward {
            gate: self.split(&format!("{layer}.ffn_gate{kind}"), n, n_embd)?,
            up: self.split(&format!("{layer}.ffn_up{kind}"), n, n_embd)?,
            down: self.split(&format!("{layer}.ffn_down{kind}"), n_embd, n)?,
        })
    }

    /// This member's rows of one matrix of each expert. The experts are slices
    /// of one tensor, or, in files from early 2024, a tensor for each.
    fn experts(&mut self, stem: &str, n_rows: usize, cols: usize) -> Result<ExpertTensor> {
        let n = self.h.n_expert;
        let rows = self.exchange.rows(n_rows).mine();
        let apart = |i: usize| format!("{stem}.{i}.weight");
        if self.has(&apart(0)) {
            let mut places = Vec::new();
            let mut format = None;
            for i in 0..n {
                let (tensor, f) = self.tensor(&apart(i), &[cols, n_rows])?;
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
            return Ok(ExpertTensor { format, cols, n_rows, rows, places });
        }
        let (tensor, format) = self.tensor(&format!("{stem}_exps.weight"), &[cols, n_rows, n])?;
        let bytes = tensor.size / n as u64;
        self.addressable(tensor, bytes)?;
        let places = (0..n as u64).map(|i| (tensor.file, tensor.offset + i * bytes)).collect();
        Ok(ExpertTensor { format, cols, n_rows, rows, places })
    }

    /// The experts of a layer, if it has any. Nothing is made addressable yet.
    pub fn expert_layer(&mut self, index: usize) -> Result<Option<ExpertLayer>> {
        let Hyperparameters { n_embd, n_expert, n_ff_expert, .. } = *self.h;
        let layer = format!("blk.{index}");
        if n_expert == 0 || !self.has(&format!("{layer}.ffn_gate_inp.weight")) {
            return Ok(None);
        }
        Ok(Some(ExpertLayer {
            gate: self.experts(&format!("{layer}.ffn_gate"), n_ff_expert, n_embd)?,
            up: self.experts(&format!("{layer}.ffn_up"), n_ff_expert, n_embd)?,
            down: self.experts(&format!("{layer}.ffn_down"), n_embd, n_ff_expert)?,
        }))
    }

    fn mixture(&mut self, layer: &str, experts: ExpertLayer) -> Result<Mixture> {
        let Hyperparameters { n_embd, n_expert, n_ff_shared, .. } = *self.h;
        let shared = match n_ff_shared {
            0 => None,
            inner => Some((
                self.feed_forward(layer, "_shexp", inner)?,
                self.vector(&format!("{layer}.ffn_gate_inp_shexp.weight"), n_embd)?,
            )),
        };
        let router = format!("{layer}.ffn_gate_inp");
        Ok(Mixture {
            router: self.linear(&router, n_expert, n_embd, 0..n_expert)?,
            experts,
            shared,
        })
    }

    /// A layer, as far as this member needs it.
    pub fn layer(&mut self, index: usize, experts: Option<ExpertLayer>) -> Result<Layer> {
        let h = self.h;
        let name = format!("blk.{index}");
        let (width, kv_width) = (h.n_head * h.head_dim, h.kv_heads * h.head_dim);
        let ffn = match experts {
            Some(experts) => Ffn::Mixture(Box::new(self.mixture(&name, experts)?)),
            None => Ffn::Dense(Box::new(self.feed_forward(&name, "", h.n_ff)?)),
        };
        Ok(Layer {
            attn_norm: self.vector(&format!("{name}.attn_norm.weight"), h.n_embd)?,
            q: self.split(&format!("{name}.attn_q"), width, h.n_embd)?,
            k: self.split(&format!("{name}.attn_k"), kv_width, h.n_embd)?,
            v: self.split(&format!("{name}.attn_v"), kv_width, h.n_embd)?,
            o: self.split(&format!("{name}.attn_output"), h.n_embd, width)?,
            q_norm: self.head_norm(&format!("{name}.attn_q_norm.weight"), width)?,
            k_norm: self.head_norm(&format!("{name}.attn_k_norm.weight"), kv_width)?,
            ffn_norm: self.vector(&format!("{name}.ffn_norm.weight"), h.n_embd)?,
            ffn,
        })
    }

    /// The weight of a norm over each head, or over all heads together.
    fn head_norm(&mut self, name: &str, width: usize) -> Result<Option<Vec<f32>>> {
        match self.tensors.get(name) {
            None => Ok(None),
            Some(t) if t.dims[0] == width as u64 => self.vector(name, width).map(Some),
            Some(_) => self.vector(name, self.h.head_dim).map(Some),
        }
    }
}
