//! Loading: tensors become matrices and vectors, or errors that name them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::linear::Linear;
use crate::error::{Error, ErrorKind, Result};
use crate::experts::{ExpertLayer, ExpertTensor};
use crate::gguf::TensorInfo;
use crate::plan::{
    Deal, ExpertTensors, ExpertsPlan, MatrixPlan, MixturePlan, RowsPlan, VectorPlan,
};
use crate::quant::{Format, dequantize_row};
use crate::team::Exchange;
use crate::weights::Source;
use crate::windows::WindowLimits;

/// Takes tensors out of the files, and checks that they fit the plan.
pub(crate) struct Loader<'a> {
    tensors: &'a BTreeMap<String, TensorInfo>,
    sources: &'a [Box<dyn Source>],
    exchange: &'a Exchange,
    used: BTreeSet<&'a str>,
    n_windows: usize,
    window_bytes: u64,
    limits: WindowLimits,
}

impl<'a> Loader<'a> {
    pub fn new(
        tensors: &'a BTreeMap<String, TensorInfo>,
        sources: &'a [Box<dyn Source>],
        exchange: &'a Exchange,
        limits: WindowLimits,
    ) -> Self {
        let (used, n_windows, window_bytes) = (BTreeSet::new(), 0, 0);
        Self { tensors, sources, exchange, used, n_windows, window_bytes, limits }
    }

    /// This member's place in its team.
    pub fn exchange(&self) -> &'a Exchange {
        self.exchange
    }

    /// What windows may take besides those on what was loaded.
    pub fn limits_left(&self) -> WindowLimits {
        WindowLimits {
            n_max: self.limits.n_max.saturating_sub(self.n_windows),
            bytes_max: self.limits.bytes_max - self.window_bytes,
        }
    }

    /// The tensors that nobody asked for.
    pub fn unused(&self) -> impl Iterator<Item = &'a str> {
        self.tensors.keys().map(String::as_str).filter(|name| !self.used.contains(name))
    }

    /// A tensor of this shape in a format that can be computed with.
    fn tensor(&mut self, name: &str, dims: &[usize]) -> Result<(&'a TensorInfo, Format)> {
        let (name, tensor) =
            self.tensors.get_key_value(name).ok_or_else(|| Error::missing_tensor(name))?;
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
                "tensor {name} is of type {}, which is not supported; get the model in one of \
                 the Q2_K to Q6_K, IQ1 to IQ4, TQ or FP4 formats, in Q8_0 or F16",
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
        let max = self.limits.bytes_max.min(isize::MAX as u64);
        usize::try_from(bytes).ok().filter(|_| bytes <= max).ok_or_else(|| {
            let message = format!(
                "tensor {} has a matrix of {bytes} bytes, more than the {max} that can be \
                 addressed; choose a smaller quantisation",
                tensor.name
            );
            Error::new(ErrorKind::OutOfMemory, message)
        })
    }

    /// This member's rows of a matrix, with their bias if there is one.
    pub fn linear(&mut self, plan: &MatrixPlan) -> Result<Linear> {
        let &MatrixPlan { rows: n_rows, cols, .. } = plan;
        let rows = match plan.deal {
            Deal::Rows => self.exchange.rows(n_rows).mine(),
            Deal::Whole => 0..n_rows,
        };
        let part = plan.part.unwrap_or(RowsPlan { first: 0, of: n_rows });
        let bias = plan.bias.clone().map(|name| self.vector(&VectorPlan { name, len: part.of }));
        let mut bias = bias.transpose()?;
        if let Some(bias) = &mut bias {
            bias.truncate(part.first + n_rows);
            bias.drain(..part.first);
        }
        let in_tensor = part.first + rows.start..part.first + rows.end;
        let linear = self.rows(&plan.name, &[cols, part.of], in_tensor)?;
        Ok(Linear { bias, n_rows, rows, ..linear })
    }

    /// Some rows of a tensor of these dimensions, of which the first is the length of rows.
    pub fn rows(&mut self, name: &str, dims: &[usize], rows: Range<usize>) -> Result<Linear> {
        let (tensor, format) = self.tensor(name, dims)?;
        let (cols, n_rows) = (dims[0], dims[1..].iter().product());
        let group = format.group_rows();
        if !rows.start.is_multiple_of(group) || !rows.len().is_multiple_of(group) {
            return Err(Error::unsupported(format!(
                "tensor {} of type {} cannot be dealt out to {} threads; compute with one, or pack \
                 the original model again with `moewe pack`",
                tensor.name,
                tensor.ty,
                self.exchange.size()
            )));
        }
        let row_bytes = format.row_bytes(cols) as u64;
        let size = row_bytes * rows.len() as u64;
        self.window_bytes = self.window_bytes.saturating_add(size);
        if self.window_bytes > self.limits.bytes_max {
            return Err(Error::new(
                ErrorKind::OutOfMemory,
                format!(
                    "the weights that every token needs take more than the {} bytes that can be \
                     addressed; choose a smaller quantisation",
                    self.limits.bytes_max
                ),
            ));
        }
        let bytes = self.addressable(tensor, size)?;
        let window = match bytes {
            0 => None,
            _ => {
                let offset = tensor.offset + row_bytes * rows.start as u64;
                self.n_windows += 1;
                Some(self.sources[tensor.file].window(offset, bytes)?)
            }
        };
        Ok(Linear { format, cols, n_rows, rows, window, bias: None })
    }

    /// A vector, as floats.
    pub fn vector(&mut self, plan: &VectorPlan) -> Result<Vec<f32>> {
        let (tensor, format) = self.tensor(&plan.name, &[plan.len])?;
        let bytes = self.addressable(tensor, tensor.size)?;
        let window = self.sources[tensor.file].window(tensor.offset, bytes)?;
        let mut out = vec![0.0; plan.len];
        dequantize_row(format, window.bytes(), &mut out);
        if out.iter().any(|x| !x.is_finite()) {
            return Err(Error::invalid(format!(
                "tensor {} holds numbers that are not finite; the file is damaged",
                plan.name
            )));
        }
        Ok(out)
    }

    /// The experts of a mixture. Nothing is made addressable yet.
    pub fn experts(&mut self, plan: &MixturePlan) -> Result<ExpertLayer> {
        Ok(ExpertLayer {
            gate: self.expert_tensor(&plan.gate, plan.n_expert)?,
            up: self.expert_tensor(&plan.up, plan.n_expert)?,
            down: self.expert_tensor(&plan.down, plan.n_expert)?,
        })
    }

    /// This member's rows of one matrix of each of `n` experts.
    fn expert_tensor(&mut self, plan: &ExpertsPlan, n: usize) -> Result<ExpertTensor> {
        let &ExpertsPlan { rows: n_rows, cols, .. } = plan;
        let rows = self.exchange.rows(n_rows).mine();
        let part = plan.part.unwrap_or(RowsPlan { first: 0, of: n_rows });
        let (format, places) = match &plan.tensors {
            ExpertTensors::One(name) => {
                let (tensor, format) = self.tensor(name, &[cols, part.of, n])?;
                let bytes = tensor.size / n as u64;
                self.addressable(tensor, bytes)?;
                let first = first_byte(tensor, format, &part)?;
                let place = |i: u64| (tensor.file, tensor.offset + i * bytes + first);
                (format, (0..n as u64).map(place).collect())
            }
            ExpertTensors::Each { stem } => {
                let mut places = Vec::new();
                let mut format = None;
                for i in 0..n {
                    let name = format!("{stem}.{i}.weight");
                    let (tensor, own) = self.tensor(&name, &[cols, part.of])?;
                    if *format.get_or_insert(own) != own {
                        return Err(Error::unsupported(format!(
                            "tensor {name} is quantised differently from its neighbours"
                        )));
                    }
                    self.addressable(tensor, tensor.size)?;
                    places.push((tensor.file, tensor.offset + first_byte(tensor, own, &part)?));
                }
                (format.ok_or_else(|| Error::missing_tensor(stem))?, places)
            }
        };
        Ok(ExpertTensor { format, cols, n_rows, rows, places })
    }
}

/// Where a part of the rows begins in a matrix of an expert.
fn first_byte(tensor: &TensorInfo, format: Format, part: &RowsPlan) -> Result<u64> {
    if !part.first.is_multiple_of(format.group_rows()) {
        return Err(Error::unsupported(format!(
            "tensor {} of type {} has two matrices in one group of rows; use the original model",
            tensor.name, tensor.ty
        )));
    }
    Ok(part.first as u64 * format.row_bytes(tensor.dims[0] as usize) as u64)
}
