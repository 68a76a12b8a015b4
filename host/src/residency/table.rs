//! Where the experts of a model lie, and how a slot holds them.

use std::sync::Arc;

use super::interface::{FilePiece, Shape};
use crate::files::{WeightError, WeightErrorKind, WeightFile};

/// Limits on what a guest may describe.
const N_LAYER_MAX: u32 = 1 << 12;
const N_EXPERT_MAX: u32 = 1 << 14;
/// Of all layers together.
const N_EXPERTS_MAX: u32 = 1 << 18;
const N_PIECES_MAX: usize = 1 << 20;
const N_FILES_MAX: usize = 1 << 10;
const SLOT_BYTES_MAX: u64 = 1 << 30;

/// What a guest has said of its model so far.
pub(crate) struct Table {
    pub shape: Shape,
    pub files: Vec<Arc<WeightFile>>,
    /// For each layer, the pieces of all its experts.
    layers: Vec<Vec<FilePiece>>,
    n_pieces: usize,
    /// Bytes of the largest expert, in whole pages.
    pub slot_bytes: u64,
    page_size: u64,
}

/// Whole pages of a file, and where in a slot they go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SlotPiece {
    pub file: usize,
    pub offset: u64,
    pub length: u64,
    pub start: u64,
}

impl Table {
    pub fn new(
        files: Vec<Arc<WeightFile>>,
        shape: Shape,
        page_size: u64,
    ) -> Result<Self, WeightError> {
        if shape.n_layer > N_LAYER_MAX
            || shape.n_expert > N_EXPERT_MAX
            || shape.n_layer * shape.n_expert > N_EXPERTS_MAX
        {
            return Err(invalid(format!(
                "{} layers of {} experts are too many",
                shape.n_layer, shape.n_expert
            )));
        }
        let is_again = |i: usize| files[..i].iter().any(|file| Arc::ptr_eq(file, &files[i]));
        if files.len() > N_FILES_MAX || (1..files.len()).any(is_again) {
            return Err(invalid("there are too many files, or one of them twice"));
        }
        let layers = vec![Vec::new(); shape.n_layer as usize];
        Ok(Self { shape, files, layers, n_pieces: 0, slot_bytes: 0, page_size })
    }

    pub fn add_layer(&mut self, layer: u32, pieces: Vec<FilePiece>) -> Result<(), WeightError> {
        let n_expert = self.shape.n_expert as usize;
        let all = self.n_pieces.saturating_add(pieces.len());
        if pieces.is_empty()
            || n_expert == 0
            || !pieces.len().is_multiple_of(n_expert)
            || all > N_PIECES_MAX
        {
            let n = pieces.len();
            return Err(invalid(format!("layer {layer} has {n} pieces for {n_expert} experts")));
        }
        for piece in &pieces {
            let Some(file) = self.files.get(piece.file as usize) else {
                return Err(invalid(format!("there is no file {}", piece.file)));
            };
            file.check_range(piece.offset, piece.length)?;
        }
        let mut slot_bytes = self.slot_bytes;
        for expert in pieces.chunks(pieces.len() / n_expert) {
            let ends = slot_pieces(expert, self.page_size)
                .map(|piece| piece.start.saturating_add(piece.length));
            slot_bytes = ends.fold(slot_bytes, u64::max);
        }
        if slot_bytes > SLOT_BYTES_MAX {
            return Err(invalid(format!("an expert takes {slot_bytes} bytes")));
        }
        match self.layers.get_mut(layer as usize) {
            Some(place) if place.is_empty() => *place = pieces,
            _ => return Err(invalid(format!("layer {layer} is none, or described twice"))),
        }
        (self.n_pieces, self.slot_bytes) = (all, slot_bytes);
        Ok(())
    }

    /// Whether both describe the same model.
    pub fn is_same(&self, other: &Self) -> bool {
        self.shape.n_expert == other.shape.n_expert
            && self.shape.dense_bytes == other.shape.dense_bytes
            && self.page_size == other.page_size
            && self.files.len() == other.files.len()
            && self.files.iter().zip(&other.files).all(|(a, b)| Arc::ptr_eq(a, b))
            && self.layers == other.layers
    }

    /// The unit in which slots are made of pieces.
    pub(super) fn page_size(&self) -> u64 {
        self.page_size
    }

    /// How many experts all layers have together.
    pub fn n_experts(&self) -> u64 {
        let n = self.layers.iter().filter(|layer| !layer.is_empty()).count();
        n as u64 * u64::from(self.shape.n_expert)
    }

    /// The first layer that has experts.
    pub fn first_layer(&self) -> Option<usize> {
        self.layers.iter().position(|layer| !layer.is_empty())
    }

    /// What is to be read for an expert; nothing if there is none.
    pub(super) fn expert(&self, layer: usize, expert: usize) -> Vec<SlotPiece> {
        let pieces = self.layers.get(layer).map_or(&[][..], |pieces| pieces);
        let n = pieces.len() / self.shape.n_expert.max(1) as usize;
        let pieces = pieces.get(expert * n..(expert + 1) * n);
        slot_pieces(pieces.unwrap_or(&[]), self.page_size).collect()
    }
}

/// The pages that hold each piece, one after another.
fn slot_pieces(pieces: &[FilePiece], page: u64) -> impl Iterator<Item = SlotPiece> {
    let mut start = 0u64;
    pieces.iter().map(move |piece| {
        let skew = piece.offset % page;
        let length = skew.saturating_add(piece.length).div_ceil(page).saturating_mul(page);
        let offset = piece.offset - skew;
        let placed = SlotPiece { file: piece.file as usize, offset, length, start };
        start = start.saturating_add(length);
        placed
    })
}

pub(super) fn invalid(message: impl std::fmt::Display) -> WeightError {
    let message = format!("the experts cannot be kept: {message}");
    WeightError::new(WeightErrorKind::InvalidRange, message)
}
