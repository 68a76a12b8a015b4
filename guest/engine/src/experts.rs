//! The experts of all layers, made addressable when the router wants them.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use lru::LruCache;

use crate::error::Result;
use crate::quant::{Format, Matrix};
use crate::weights::{Source, Window};

/// One of the three matrices of every expert in a layer.
pub(crate) struct ExpertTensor {
    pub format: Format,
    pub cols: usize,
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

    /// This member's rows in a window on them.
    pub fn matrix<'a>(&self, window: &'a dyn Window) -> Matrix<'a> {
        Matrix::new(self.format, self.rows.len(), self.cols, window.bytes())
    }

    fn window(&self, sources: &[Box<dyn Source>], expert: usize) -> Result<Box<dyn Window>> {
        let (file, offset) = self.places[expert];
        let skipped = self.rows.start * self.format.row_bytes(self.cols);
        sources[file].window(offset + skipped as u64, self.bytes())
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
}

/// Windows on the matrices used last. A model's experts may be larger than the
/// address space: windows take at most `bytes_max`.
pub(crate) struct ExpertWindows {
    bytes_max: u64,
    state: RefCell<State>,
}

struct State {
    bytes: u64,
    /// By layer, expert and projection.
    windows: LruCache<(usize, usize, Projection), Rc<dyn Window>>,
}

impl ExpertWindows {
    pub fn new(bytes_max: u64) -> Self {
        let state = State { bytes: 0, windows: LruCache::unbounded() };
        Self { bytes_max, state: RefCell::new(state) }
    }

    /// Makes a matrix of the expert `expert` of layer `index` addressable;
    /// this member has rows of it.
    pub fn get(
        &self,
        sources: &[Box<dyn Source>],
        layer: &ExpertLayer,
        projection: Projection,
        index: usize,
        expert: usize,
    ) -> Result<Rc<dyn Window>> {
        let state = &mut *self.state.borrow_mut();
        let key = (index, expert, projection);
        if let Some(found) = state.windows.get(&key) {
            return Ok(found.clone());
        }
        let tensor = layer.tensor(projection);
        let bytes = tensor.bytes() as u64;
        while state.bytes + bytes > self.bytes_max {
            let Some((_, evicted)) = state.windows.pop_lru() else { break };
            state.bytes -= evicted.bytes().len() as u64;
        }
        let opened: Rc<dyn Window> = tensor.window(sources, expert)?.into();
        state.bytes += bytes;
        state.windows.put(key, opened.clone());
        Ok(opened)
    }
}
