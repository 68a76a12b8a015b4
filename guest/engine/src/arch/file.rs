//! What a model is planned from: the metadata and the tensors of its file, and what
//! whoever loads it chose.

use std::collections::BTreeMap;

use super::keys::Keys;
use crate::error::{Error, Result};
use crate::gguf::TensorInfo;
use crate::options::LoadOptions;
use crate::plan::{Deal, ExpertTensors, ExpertsPlan, MatrixPlan, RowsPlan, VectorPlan};

/// The most entries of a vocabulary.
const N_VOCAB_MAX: u64 = 1 << 21;

/// Metadata and tensors of a file, and how it is loaded.
pub(super) struct File<'a> {
    pub keys: Keys<'a>,
    pub tensors: &'a BTreeMap<String, TensorInfo>,
    pub options: &'a LoadOptions,
}

impl File<'_> {
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// How many tokens there are embeddings of.
    pub fn n_vocab(&self) -> Result<usize> {
        match self.tensors.get("token_embd.weight") {
            Some(t) if t.dims[1] > N_VOCAB_MAX => Err(Error::invalid(format!(
                "a vocabulary of {}, more than {N_VOCAB_MAX}; the file is damaged",
                t.dims[1]
            ))),
            Some(t) => Ok(t.dims[1] as usize),
            None => Err(Error::missing_tensor("token_embd.weight")),
        }
    }

    /// A matrix whose rows are dealt out, and its bias if there is one.
    pub fn matrix(&self, stem: &str, rows: usize, cols: usize) -> MatrixPlan {
        let bias = format!("{stem}.bias");
        MatrixPlan {
            name: format!("{stem}.weight"),
            rows,
            cols,
            bias: self.has(&bias).then_some(bias),
            deal: Deal::Rows,
            part: None,
        }
    }

    /// Matrices of so many rows each, which a tensor has one behind the other.
    pub fn joint<const N: usize>(
        &self,
        stem: &str,
        rows: [usize; N],
        cols: usize,
    ) -> [MatrixPlan; N] {
        let of = rows.iter().sum();
        let mut first = 0;
        rows.map(|rows| {
            let part = Some(RowsPlan { first, of });
            first += rows;
            MatrixPlan { part, ..self.matrix(stem, rows, cols) }
        })
    }

    /// A matrix that every member of a team has all of.
    pub fn whole(&self, stem: &str, rows: usize, cols: usize) -> MatrixPlan {
        MatrixPlan { deal: Deal::Whole, ..self.matrix(stem, rows, cols) }
    }

    pub fn vector(&self, stem: &str, len: usize) -> VectorPlan {
        VectorPlan { name: format!("{stem}.weight"), len }
    }

    /// One of the matrices of each of `n` experts.
    pub fn experts(&self, stem: &str, n: usize, rows: usize, cols: usize) -> ExpertsPlan {
        let tensors = match self.has(&format!("{stem}.0.weight")) {
            true => ExpertTensors::Each { stem: stem.to_owned() },
            false => ExpertTensors::One(format!("{stem}_exps.weight")),
        };
        let name = format!("{stem}_exps.bias");
        let bias = self.has(&name).then_some(MatrixPlan {
            name,
            rows: n,
            cols: rows,
            bias: None,
            deal: Deal::Whole,
            part: None,
        });
        ExpertsPlan { tensors, rows, cols, part: None, bias }
    }
}
