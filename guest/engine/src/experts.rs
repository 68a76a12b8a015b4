//! The experts of all layers, made addressable when the router wants them.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

use crate::error::{Error, ErrorKind, Result};
use crate::quant::{Format, Matrix};
use crate::weights::{ExpertStore, Piece, Place, Source};
use crate::windows::{Layout, Shown, WindowLimits, Windows, around, pages};

/// Tensors of a packed file begin on a page, so there is less than a page between
/// neighbours. Matrices with no more between them touch.
const GAP_MAX: u64 = 4096;

/// An expert that the router picked for a token.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Choice {
    pub expert: usize,
    pub token: usize,
    pub weight: f32,
}

/// One of the three matrices of every expert in a layer.
pub(crate) struct ExpertTensor {
    pub format: Format,
    pub cols: usize,
    pub n_rows: usize,
    /// The rows that this member of the team computes.
    pub rows: Range<usize>,
    /// For each expert, the file and the offset of its matrix.
    pub places: Vec<(usize, u64)>,
}

impl ExpertTensor {
    /// Size of this member's rows; they can be addressed.
    pub fn bytes(&self) -> usize {
        self.rows.len() * self.format.row_bytes(self.cols)
    }

    /// Where this member's rows begin in a matrix.
    fn skipped(&self) -> usize {
        self.rows.start * self.format.row_bytes(self.cols)
    }

    /// This member's rows, whose bytes these are.
    pub fn matrix<'a>(&self, bytes: &'a [u8]) -> Matrix<'a> {
        Matrix::new(self.format, self.rows.len(), self.cols, bytes)
    }

    /// This member's rows of an expert whose matrix begins here.
    fn rows_at(&self, start: u64) -> Range<u64> {
        let start = start + self.skipped() as u64;
        start..start + self.bytes() as u64
    }

    /// All rows of an expert.
    fn piece(&self, expert: usize) -> Piece {
        let (file, offset) = self.places[expert];
        Piece { file, offset, length: self.n_rows as u64 * self.format.row_bytes(self.cols) as u64 }
    }
}

/// Which of an expert's matrices; they lie in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Projection {
    Gate,
    Up,
    Down,
}

const PROJECTIONS: [Projection; 3] = [Projection::Gate, Projection::Up, Projection::Down];

/// A layer's experts.
pub(crate) struct ExpertLayer {
    pub gate: ExpertTensor,
    pub up: ExpertTensor,
    pub down: ExpertTensor,
}

impl ExpertLayer {
    /// Bytes of one expert.
    pub fn expert_bytes(&self) -> u64 {
        PROJECTIONS.map(|projection| self.tensor(projection).bytes() as u64).iter().sum()
    }

    pub fn tensor(&self, projection: Projection) -> &ExpertTensor {
        match projection {
            Projection::Gate => &self.gate,
            Projection::Up => &self.up,
            Projection::Down => &self.down,
        }
    }

    /// The pieces of an expert, in the order that a slot has them.
    fn pieces_of(&self, expert: usize) -> [Piece; 3] {
        PROJECTIONS.map(|projection| self.tensor(projection).piece(expert))
    }

    /// The pieces of all experts.
    pub fn pieces(&self) -> Vec<Piece> {
        (0..self.gate.places.len()).flat_map(|expert| self.pieces_of(expert)).collect()
    }

    /// How many experts there are.
    fn n_expert(&self) -> usize {
        self.gate.places.len()
    }

    /// Windows on an expert in its files, one on all matrices that touch if they `join`.
    fn in_files(&self, expert: usize, join: bool) -> Layout {
        let pieces = self.pieces_of(expert);
        let rows = PROJECTIONS
            .map(|projection| self.tensor(projection).rows_at(pieces[projection as usize].offset));
        let touch = |a: &Piece, b: &Piece| {
            let gap = b.offset.checked_sub(a.offset + a.length);
            join && a.file == b.file && gap.is_some_and(|gap| gap < GAP_MAX)
        };
        let [gate, up, down] = &pieces;
        Layout::new(rows, [touch(gate, up), touch(up, down)])
    }

    /// Where a slot with an expert has this member's rows of each matrix.
    fn in_slot(&self, expert: usize, page_size: u64) -> [Range<u64>; 3] {
        let mut at = 0;
        PROJECTIONS.map(|projection| {
            let tensor = self.tensor(projection);
            let piece = tensor.piece(expert);
            let first = at + piece.offset % page_size;
            at = (first + piece.length).next_multiple_of(page_size);
            tensor.rows_at(first)
        })
    }

    /// What this member needs of any slot with one of the experts, for each matrix: whole
    /// pages.
    fn of_slots(&self, page_size: u64) -> [Range<u64>; 3] {
        let experts = (0..self.n_expert()).map(|expert| self.in_slot(expert, page_size));
        experts.fold([const { 0..0 }; 3], |all, rows| {
            let rows = rows.map(|rows| pages(&rows, page_size));
            PROJECTIONS.map(|i| around(&all[i as usize], &rows[i as usize]))
        })
    }
}

/// This member's rows of an expert.
pub(crate) struct ExpertRows<'a> {
    layer: &'a ExpertLayer,
    shown: Rc<Shown>,
    layout: Layout,
}

impl ExpertRows<'_> {
    pub fn matrix(&self, projection: Projection) -> Matrix<'_> {
        let bytes = self.shown.rows(&self.layout, projection as usize);
        self.layer.tensor(projection).matrix(bytes)
    }
}

/// How experts become addressable. Windows are given back when there are too many.
pub(crate) enum Experts {
    /// By windows on the files.
    Files(Files),
    /// By windows on the slots of a store.
    Stored(Stored),
}

pub(crate) struct Files {
    /// By layer and expert.
    windows: RefCell<Windows<(usize, usize)>>,
    /// Whether an expert has one window where its matrices touch.
    joins: bool,
}

pub(crate) struct Stored {
    store: Box<dyn ExpertStore>,
    /// By slot.
    windows: RefCell<Windows<usize>>,
    /// What the windows on a slot show, whatever expert is in it, and in which of them
    /// each matrix has its rows.
    spans: [Range<u64>; 3],
    window_of: [usize; 3],
    n_layers: usize,
    /// Demands in a row of which all experts were there.
    n_there: Cell<usize>,
}

/// Whether an expert has one window, rather than one for each matrix, if so large a share
/// of all can be shown at a time by either. A member of a team would have rows of others
/// in it: addresses that it does not need, and pages that seem to be its own. So it has
/// one only if more can be shown then.
fn joins(share_joined: f64, share_apart: f64, is_alone: bool) -> bool {
    share_joined > share_apart || (is_alone && share_joined == share_apart)
}

impl Files {
    fn new<'a>(
        limits: WindowLimits,
        layers: impl Iterator<Item = &'a ExpertLayer> + Clone,
        is_alone: bool,
    ) -> Self {
        let [joined, apart] = [true, false].map(|join| {
            let layouts = layers.clone().filter(|layer| layer.n_expert() > 0);
            Layout::share(limits, layouts.map(|layer| (layer.n_expert(), layer.in_files(0, join))))
        });
        let joins = joins(joined, apart, is_alone);
        Self { windows: RefCell::new(Windows::new(limits)), joins }
    }
}

impl Stored {
    fn new<'a>(
        store: Box<dyn ExpertStore>,
        limits: WindowLimits,
        layers: impl Iterator<Item = &'a ExpertLayer> + Clone,
        is_alone: bool,
    ) -> Result<Self> {
        let page_size = store.page_size() as u64;
        let of_layers = layers.clone().map(|layer| layer.of_slots(page_size));
        let apart = of_layers.fold([const { 0..0 }; 3], |all, spans| {
            PROJECTIONS.map(|i| around(&all[i as usize], &spans[i as usize]))
        });
        let joined = [apart.iter().fold(0..0, |all, span| around(&all, span)), 0..0, 0..0];
        if joined[0].end > store.slot_bytes() as u64 {
            let message = "the host's slots are smaller than an expert";
            return Err(Error::new(ErrorKind::Weights, message));
        }
        let (n_layers, n_experts) =
            layers.fold((0, 0), |(n, n_experts), layer| (n + 1, n_experts + layer.n_expert()));
        let share = |spans: &[Range<u64>; 3]| {
            let layout = Layout::within(spans.clone(), [0; 3], &[const { 0..0 }; 3]);
            Layout::share(limits, std::iter::once((n_experts, layout)))
        };
        let (spans, window_of) = match joins(share(&joined), share(&apart), is_alone) {
            true => (joined, [0; 3]),
            false => (apart, [0, 1, 2]),
        };
        let (windows, n_there) = (RefCell::new(Windows::new(limits)), Cell::new(0));
        Ok(Self { store, windows, spans, window_of, n_layers, n_there })
    }
}

impl Experts {
    /// The experts of these layers, of a store if there is one, for a member of a team or
    /// for one who is alone. Windows on them keep to these limits.
    pub fn new<'a>(
        store: Option<Box<dyn ExpertStore>>,
        limits: WindowLimits,
        layers: impl Iterator<Item = &'a ExpertLayer> + Clone,
        is_alone: bool,
    ) -> Result<Self> {
        Ok(match store {
            None => Self::Files(Files::new(limits, layers, is_alone)),
            Some(store) => Self::Stored(Stored::new(store, limits, layers, is_alone)?),
        })
    }

    /// The most experts that can be demanded at once.
    pub fn n_demand_max(&self) -> usize {
        match self {
            Self::Files(_) => usize::MAX,
            Self::Stored(Stored { store, .. }) => store.n_demand_max(),
        }
    }

    /// Bytes that may be taken for the KV cache and for batches.
    pub fn bytes_max(&self) -> u64 {
        match self {
            Self::Files(_) => u64::MAX,
            Self::Stored(Stored { store, .. }) => store.bytes_max(),
        }
    }

    /// Demands experts of layer `index`: those of these choices of expert and
    /// token, sorted.
    pub fn demand<'a>(
        &'a self,
        sources: &'a [Box<dyn Source>],
        layer: &'a ExpertLayer,
        index: usize,
        choices: impl Iterator<Item = (usize, usize)>,
    ) -> Result<Demand<'a>> {
        let mut demand = Demand { experts: self, sources, layer, index, places: Vec::new() };
        if let Self::Stored(Stored { store, n_there, .. }) = self {
            let choices: Vec<_> = choices.collect();
            let n = choices.chunk_by(|a, b| a.0 == b.0).count();
            let places = store.demand(index, &choices)?;
            if places.len() != n {
                let message = format!("the host has {} places for {n} experts", places.len());
                return Err(Error::new(ErrorKind::Weights, message));
            }
            let are_there = places.iter().all(|place| place.loaded);
            n_there.set(if are_there { n_there.get().saturating_add(1) } else { 0 });
            demand.places = places;
        }
        Ok(demand)
    }

    /// Says that experts, ascending, may be demanded next.
    pub fn prefetch(&self, index: usize, experts: &[usize]) {
        if let Self::Stored(Stored { store, .. }) = self {
            store.prefetch(index, experts);
        }
    }

    /// Whether it is of use to say what may be demanded: it is not if two passes through
    /// all layers found all that they demanded.
    pub fn prefetches(&self) -> bool {
        match self {
            Self::Files(_) => false,
            Self::Stored(Stored { n_layers, n_there, .. }) => n_there.get() < 2 * n_layers,
        }
    }
}

/// Experts of a layer that can be used as long as it lives.
pub(crate) struct Demand<'a> {
    experts: &'a Experts,
    sources: &'a [Box<dyn Source>],
    layer: &'a ExpertLayer,
    index: usize,
    /// Of the experts in a store.
    places: Vec<Place>,
}

impl Demand<'_> {
    /// The order in which to use `n` experts: those that are there come first.
    pub fn order(&self, n: usize) -> impl Iterator<Item = usize> {
        let late = |i: usize| self.places.get(i).is_some_and(|place| !place.loaded);
        (0..n).filter(move |&i| !late(i)).chain((0..n).filter(move |&i| late(i)))
    }

    /// Waits for the demanded expert number `i`.
    pub fn wait(&self, i: usize) -> Result<()> {
        match (self.experts, self.places.get(i)) {
            (Experts::Stored(Stored { store, .. }), Some(place)) if !place.loaded => {
                store.wait(place.slot)
            }
            _ => Ok(()),
        }
    }

    /// This member's rows of `expert`, which is the demanded one number `i` and
    /// there.
    pub fn rows(&self, i: usize, expert: usize) -> Result<ExpertRows<'_>> {
        let layer = self.layer;
        let (layout, shown) = match self.experts {
            Experts::Files(Files { windows, joins }) => {
                let layout = layer.in_files(expert, *joins);
                let open = |which: usize, span: &Range<u64>| {
                    let (file, _) = layer.tensor(PROJECTIONS[which]).places[expert];
                    self.sources[file].window(span.start, (span.end - span.start) as usize)
                };
                let shown = windows.borrow_mut().get((self.index, expert), &layout, open)?;
                (layout, shown)
            }
            Experts::Stored(Stored { store, windows, spans, window_of, .. }) => {
                let rows = layer.in_slot(expert, store.page_size() as u64);
                let layout = Layout::within(spans.clone(), *window_of, &rows);
                let slot = self.places[i].slot;
                let open = |_: usize, span: &Range<u64>| {
                    store.window(slot, span.start as usize..span.end as usize)
                };
                let shown = windows.borrow_mut().get(slot, &layout, open)?;
                (layout, shown)
            }
        };
        Ok(ExpertRows { layer, shown, layout })
    }

    /// Gives the experts up.
    pub fn release(mut self) -> Result<()> {
        self.give_up()
    }

    fn give_up(&mut self) -> Result<()> {
        match self.experts {
            Experts::Stored(Stored { store, .. }) if !self.places.is_empty() => {
                self.places.clear();
                store.release()
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Demand<'_> {
    fn drop(&mut self) {
        // Whoever did not release it has an error to tell already.
        let _ = self.give_up();
    }
}
