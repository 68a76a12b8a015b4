//! The experts of all layers, made addressable when the router wants them.

use std::cell::RefCell;
use std::hash::Hash;
use std::ops::Range;
use std::rc::Rc;

use lru::LruCache;

use crate::error::{Error, ErrorKind, Result};
use crate::quant::{Format, Matrix};
use crate::weights::{ExpertStore, Piece, Place, Source, Window};

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

    /// This member's rows in a window that has them at `range`.
    pub fn matrix<'a>(&self, window: &'a dyn Window, range: Range<usize>) -> Matrix<'a> {
        Matrix::new(self.format, self.rows.len(), self.cols, &window.bytes()[range])
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

/// Which of an expert's matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Projection {
    Gate,
    Up,
    Down,
}

/// A layer's experts.
pub(crate) struct ExpertLayer {
    pub gate: ExpertTensor,
    pub up: ExpertTensor,
    pub down: ExpertTensor,
}

impl ExpertLayer {
    /// Bytes of one expert.
    pub fn expert_bytes(&self) -> u64 {
        [&self.gate, &self.up, &self.down].iter().map(|t| t.bytes() as u64).sum()
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
        [&self.gate, &self.up, &self.down].map(|tensor| tensor.piece(expert))
    }

    /// The pieces of all experts.
    pub fn pieces(&self) -> Vec<Piece> {
        (0..self.gate.places.len()).flat_map(|expert| self.pieces_of(expert)).collect()
    }

    /// Where a slot with an expert has this member's rows of a matrix.
    fn range(&self, projection: Projection, expert: usize, page_size: usize) -> Range<usize> {
        let mut at = 0;
        for (piece, of) in self.pieces_of(expert).into_iter().zip([
            Projection::Gate,
            Projection::Up,
            Projection::Down,
        ]) {
            let first = at + (piece.offset % page_size as u64) as usize;
            if of == projection {
                let tensor = self.tensor(projection);
                let start = first + tensor.skipped();
                return start..start + tensor.bytes();
            }
            at = (first + piece.length as usize).next_multiple_of(page_size);
        }
        unreachable!("a projection is one of three")
    }
}

/// The most windows on slots, all members of a team together: each is a mapping
/// or two, of which a process has 65530 by default.
const N_SLOT_WINDOWS_MAX: usize = 24 << 10;

/// Windows that were used last, which take at most `bytes_max`.
pub(crate) struct Windows<K: Hash + Eq> {
    bytes_max: u64,
    n_max: usize,
    bytes: u64,
    /// Each with the range that it shows.
    windows: LruCache<K, (Range<usize>, Rc<dyn Window>)>,
}

impl<K: Hash + Eq> Windows<K> {
    fn new(bytes_max: u64, n_max: usize) -> Self {
        Self { bytes_max, n_max, bytes: 0, windows: LruCache::unbounded() }
    }

    /// The window on a range of what `key` names.
    fn get(
        &mut self,
        key: K,
        range: Range<usize>,
        open: impl FnOnce() -> Result<Box<dyn Window>>,
    ) -> Result<Rc<dyn Window>> {
        if let Some((shown, found)) = self.windows.get(&key)
            && *shown == range
        {
            return Ok(found.clone());
        }
        if let Some(other) = self.windows.pop(&key) {
            self.bytes -= other.0.len() as u64;
        }
        let bytes = range.len() as u64;
        while self.bytes + bytes > self.bytes_max || self.windows.len() >= self.n_max {
            let Some((_, evicted)) = self.windows.pop_lru() else { break };
            self.bytes -= evicted.0.len() as u64;
        }
        let opened: Rc<dyn Window> = open()?.into();
        self.bytes += bytes;
        self.windows.put(key, (range, opened.clone()));
        Ok(opened)
    }
}

/// How experts become addressable. They may be larger than the address space:
/// windows take at most so many bytes.
pub(crate) enum Experts {
    /// By windows on the files, by layer, expert and projection.
    Files(RefCell<Windows<(usize, usize, Projection)>>),
    /// By windows on the slots of a store, by slot and projection.
    Stored(Box<dyn ExpertStore>, RefCell<Windows<(usize, Projection)>>),
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

    /// A window on a matrix of `expert`, which is the demanded one number `i`
    /// and there, and where in it this member's rows are.
    pub fn window(
        &self,
        i: usize,
        expert: usize,
        projection: Projection,
    ) -> Result<(Rc<dyn Window>, Range<usize>)> {
        let tensor = self.layer.tensor(projection);
        match self.experts {
            Experts::Files(windows) => {
                let key = (self.index, expert, projection);
                let bytes = tensor.bytes();
                let open = || tensor.window(self.sources, expert);
                Ok((windows.borrow_mut().get(key, 0..bytes, open)?, 0..bytes))
            }
            Experts::Stored(store, windows) => {
                let slot = self.places[i].slot;
                let page_size = store.page_size();
                let range = self.layer.range(projection, expert, page_size);
                let start = range.start / page_size * page_size;
                let pages = start..range.end.next_multiple_of(page_size);
                if pages.end > store.slot_bytes() {
                    let message = "the host's slots are smaller than an expert";
                    return Err(Error::new(ErrorKind::Weights, message));
                }
                let open = || store.window(slot, pages.clone());
                let window = windows.borrow_mut().get((slot, projection), pages.clone(), open)?;
                let range = range.start - start..range.end - start;
                Ok((window, range))
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
