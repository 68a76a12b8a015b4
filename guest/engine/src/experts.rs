//! The experts of all layers, made addressable when the router wants them.

use std::cell::RefCell;
use std::hash::Hash;
use std::ops::Range;
use std::rc::Rc;

use lru::LruCache;

use crate::error::{Error, ErrorKind, Result};
use crate::quant::{Format, Matrix};
use crate::weights::{ExpertStore, Piece, Place, Source, Window};

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

    fn window(&self, sources: &[Box<dyn Source>], expert: usize) -> Result<Box<dyn Window>> {
        let (file, offset) = self.places[expert];
        sources[file].window(offset + self.skipped() as u64, self.bytes())
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

    /// Where a slot with an expert has this member's rows of each matrix.
    fn ranges(&self, expert: usize, page_size: usize) -> [Range<usize>; 3] {
        let mut at = 0;
        PROJECTIONS.map(|projection| {
            let tensor = self.tensor(projection);
            let piece = tensor.piece(expert);
            let first = at + (piece.offset % page_size as u64) as usize;
            at = (first + piece.length as usize).next_multiple_of(page_size);
            let start = first + tensor.skipped();
            start..start + tensor.bytes()
        })
    }
}

/// The most windows on slots, all members of a team together: each is a mapping
/// or two, of which a process has 65530 by default.
const N_SLOT_WINDOWS_MAX: usize = 24 << 10;

/// Windows on experts, a window on each matrix: those that were used last, which
/// take at most `bytes_max`.
pub(crate) struct Windows<K: Hash + Eq> {
    bytes_max: u64,
    n_max: usize,
    bytes: u64,
    experts: LruCache<K, Rc<Shown>>,
}

/// The windows on an expert, and the ranges that they show.
struct Shown {
    ranges: [Range<usize>; 3],
    /// Absent where there are no rows.
    windows: [Option<Box<dyn Window>>; 3],
}

impl Shown {
    fn bytes(&self) -> u64 {
        self.ranges.iter().map(|range| range.len() as u64).sum()
    }
}

impl<K: Hash + Eq> Windows<K> {
    fn new(bytes_max: u64, n_max: usize) -> Self {
        Self { bytes_max, n_max, bytes: 0, experts: LruCache::unbounded() }
    }

    /// The windows on ranges of what `key` names.
    fn get(
        &mut self,
        key: K,
        ranges: [Range<usize>; 3],
        open: impl Fn(Projection) -> Result<Box<dyn Window>>,
    ) -> Result<Rc<Shown>> {
        if let Some(shown) = self.experts.get(&key)
            && shown.ranges == ranges
        {
            return Ok(shown.clone());
        }
        if let Some(other) = self.experts.pop(&key) {
            self.bytes -= other.bytes();
        }
        let bytes = ranges.iter().map(|range| range.len() as u64).sum::<u64>();
        let n = PROJECTIONS.len();
        while self.bytes + bytes > self.bytes_max || (self.experts.len() + 1) * n > self.n_max {
            let Some((_, evicted)) = self.experts.pop_lru() else { break };
            self.bytes -= evicted.bytes();
        }
        let [gate, up, down] = PROJECTIONS.map(|projection| {
            let is_empty = ranges[projection as usize].is_empty();
            if is_empty { Ok(None) } else { open(projection).map(Some) }
        });
        let shown = Rc::new(Shown { ranges, windows: [gate?, up?, down?] });
        self.bytes += bytes;
        self.experts.put(key, shown.clone());
        Ok(shown)
    }
}

/// This member's rows of an expert.
pub(crate) struct ExpertRows<'a> {
    layer: &'a ExpertLayer,
    shown: Rc<Shown>,
    /// Where the windows have them.
    ranges: [Range<usize>; 3],
}

impl ExpertRows<'_> {
    pub fn matrix(&self, projection: Projection) -> Matrix<'_> {
        let i = projection as usize;
        let bytes = self.shown.windows[i].as_ref().map_or(&[][..], |window| window.bytes());
        self.layer.tensor(projection).matrix(&bytes[self.ranges[i].clone()])
    }
}

/// How experts become addressable. They may be larger than the address space:
/// windows take at most so many bytes.
pub(crate) enum Experts {
    /// By windows on the files, by layer and expert.
    Files(RefCell<Windows<(usize, usize)>>),
    /// By windows on the slots of a store, by slot.
    Stored(Box<dyn ExpertStore>, RefCell<Windows<usize>>),
}

impl Experts {
    /// Windows take at most so many bytes, for a member of a team of `team_size`.
    pub fn new(
        store: Option<Box<dyn ExpertStore>>,
        window_bytes_max: u64,
        team_size: usize,
    ) -> Self {
        match store {
            None => Self::Files(RefCell::new(Windows::new(window_bytes_max, usize::MAX))),
            Some(store) => {
                let n_max = (N_SLOT_WINDOWS_MAX / team_size).min(6 << 10);
                Self::Stored(store, RefCell::new(Windows::new(window_bytes_max, n_max)))
            }
        }
    }

    /// The most experts that can be demanded at once.
    pub fn n_demand_max(&self) -> usize {
        match self {
            Self::Files(_) => usize::MAX,
            Self::Stored(store, _) => store.n_demand_max(),
        }
    }

    /// Bytes that may be taken for the KV cache and for batches.
    pub fn bytes_max(&self) -> u64 {
        match self {
            Self::Files(_) => u64::MAX,
            Self::Stored(store, _) => store.bytes_max(),
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
        if let Self::Stored(store, _) = self {
            let choices: Vec<_> = choices.collect();
            let n = choices.chunk_by(|a, b| a.0 == b.0).count();
            let places = store.demand(index, &choices)?;
            if places.len() != n {
                let message = format!("the host has {} places for {n} experts", places.len());
                return Err(Error::new(ErrorKind::Weights, message));
            }
            demand.places = places;
        }
        Ok(demand)
    }

    /// Says that experts, ascending, may be demanded next.
    pub fn prefetch(&self, index: usize, experts: &[usize]) {
        if let Self::Stored(store, _) = self {
            store.prefetch(index, experts);
        }
    }

    /// Whether it is of use to say what may be demanded.
    pub fn prefetches(&self) -> bool {
        matches!(self, Self::Stored(..))
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
            (Experts::Stored(store, _), Some(place)) if !place.loaded => store.wait(place.slot),
            _ => Ok(()),
        }
    }

    /// This member's rows of `expert`, which is the demanded one number `i` and
    /// there.
    pub fn rows(&self, i: usize, expert: usize) -> Result<ExpertRows<'_>> {
        let layer = self.layer;
        match self.experts {
            Experts::Files(windows) => {
                let open = |projection| layer.tensor(projection).window(self.sources, expert);
                let ranges = PROJECTIONS.map(|projection| 0..layer.tensor(projection).bytes());
                let mut windows = windows.borrow_mut();
                let shown = windows.get((self.index, expert), ranges.clone(), open)?;
                Ok(ExpertRows { layer, shown, ranges })
            }
            Experts::Stored(store, windows) => {
                let slot = self.places[i].slot;
                let page_size = store.page_size();
                let ranges = layer.ranges(expert, page_size);
                let pages = ranges.clone().map(|range| {
                    range.start / page_size * page_size..range.end.next_multiple_of(page_size)
                });
                if pages[2].end > store.slot_bytes() {
                    let message = "the host's slots are smaller than an expert";
                    return Err(Error::new(ErrorKind::Weights, message));
                }
                let open = |projection| store.window(slot, pages[projection as usize].clone());
                let shown = windows.borrow_mut().get(slot, pages.clone(), open)?;
                let ranges = std::array::from_fn(|i| {
                    ranges[i].start - pages[i].start..ranges[i].end - pages[i].start
                });
                Ok(ExpertRows { layer, shown, ranges })
            }
        }
    }

    /// Gives the experts up.
    pub fn release(mut self) -> Result<()> {
        self.give_up()
    }

    fn give_up(&mut self) -> Result<()> {
        match self.experts {
            Experts::Stored(store, _) if !self.places.is_empty() => {
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
