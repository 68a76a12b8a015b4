//! The experts of all layers, made addressable when the router wants them.

use std::cell::RefCell;
use std::rc::Rc;

use lru::LruCache;

use crate::error::Result;
use crate::quant::{Format, Matrix};
use crate::weights::{Source, Window};

/// One of the three matrices of every expert in a layer.
pub(crate) struct ExpertTensor {
    pub format: Format,
    pub rows: usize,
    pub cols: usize,
    /// For each expert, the file and the offset of its matrix.
    pub places: Vec<(usize, u64)>,
}

impl ExpertTensor {
    /// Size of the matrix; it can be addressed.
    pub fn bytes(&self) -> usize {
        self.rows * self.format.row_bytes(self.cols)
    }

    fn window(&self, sources: &[Box<dyn Source>], expert: usize) -> Result<Box<dyn Window>> {
        let (file, offset) = self.places[expert];
        sources[file].window(offset, self.bytes())
    }
}

/// A layer's experts: gate, up and down projections.
pub(crate) type ExpertLayer = [ExpertTensor; 3];

/// One expert's windows.
pub(crate) struct Expert([Box<dyn Window>; 3]);

impl Expert {
    /// Gate, up and down projection of this expert of `layer`.
    pub fn matrices(&self, layer: &ExpertLayer) -> [Matrix<'_>; 3] {
        std::array::from_fn(|i| {
            let t = &layer[i];
            Matrix::new(t.format, t.rows, t.cols, self.0[i].bytes())
        })
    }
}

/// Windows on the experts used last. A model's experts may be larger than the
/// address space: windows take at most `bytes_max`.
pub(crate) struct ExpertWindows {
    bytes_max: u64,
    state: RefCell<State>,
}

struct State {
    bytes: u64,
    /// By layer and expert.
    windows: LruCache<(usize, usize), Rc<Expert>>,
}

impl ExpertWindows {
    pub fn new(bytes_max: u64) -> Self {
        let state = State { bytes: 0, windows: LruCache::unbounded() };
        Self { bytes_max, state: RefCell::new(state) }
    }

    /// Makes an expert addressable.
    pub fn get(
        &self,
        sources: &[Box<dyn Source>],
        layers: &ExpertLayer,
        layer: usize,
        expert: usize,
    ) -> Result<Rc<Expert>> {
        let state = &mut *self.state.borrow_mut();
        if let Some(found) = state.windows.get(&(layer, expert)) {
            return Ok(found.clone());
        }
        let bytes: u64 = layers.iter().map(|t| t.bytes() as u64).sum();
        while state.bytes + bytes > self.bytes_max {
            let Some((_, evicted)) = state.windows.pop_lru() else { break };
            state.bytes -= evicted.0.iter().map(|w| w.bytes().len() as u64).sum::<u64>();
        }
        let [gate, up, down] = layers;
        let windows = [
            gate.window(sources, expert)?,
            up.window(sources, expert)?,
            down.window(sources, expert)?,
        ];
        state.bytes += bytes;
        let opened = Rc::new(Expert(windows));
        state.windows.put((layer, expert), opened.clone());
        Ok(opened)
    }
}
