//! Where the bytes of a model come from, as the engine sees it.
//!
//! The guest implements these traits with the imports of its component, a
//! native program with [`crate::native`]. The engine never learns which.

use std::ops::Range;

use crate::error::Result;
use crate::gguf::{self, Gguf};

/// Opens the files of a model.
pub trait Weights {
    /// Opens a file by its name, without any folder.
    fn open(&self, name: &str) -> Result<Box<dyn Source>>;

    /// The store for the experts of a model, if this host keeps one; otherwise
    /// experts are made addressable by [`Source::window`].
    ///
    /// Asked for before any window.
    fn expert_store(&self, _model: &ExpertTable<'_>) -> Result<Option<Box<dyn ExpertStore>>> {
        Ok(None)
    }

    /// The most windows that there may be at a time.
    fn n_windows_max(&self) -> usize {
        usize::MAX
    }
}

/// One file of a model.
pub trait Source {
    /// The size in bytes.
    fn size(&self) -> u64;

    /// Copies exactly `out.len()` bytes from `offset`.
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()>;

    /// Makes `length` bytes from `offset` addressable, without copying where
    /// the platform can. [`ErrorKind::TooManyWindows`](crate::ErrorKind) says that
    /// others must be given back before.
    fn window(&self, offset: u64, length: usize) -> Result<Box<dyn Window>>;

    /// Says that these bytes will be wanted soon.
    fn prefetch(&self, offset: u64, length: u64);
}

impl gguf::Source for Box<dyn Source> {
    fn size(&self) -> u64 {
        (**self).size()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> gguf::Result<()> {
        Ok((**self).read(offset, out)?)
    }
}

/// Opens a model by the name of its file, of a split model by that of the first.
pub(crate) fn open(weights: &dyn Weights, name: &str) -> Result<Gguf<Box<dyn Source>>> {
    Gguf::open(name, |name| weights.open(name))
}

/// Bytes of a file that are addressable as long as the window lives.
pub trait Window {
    /// The bytes.
    fn bytes(&self) -> &[u8];
}

/// Where the experts of a model lie, and what else it takes.
pub struct ExpertTable<'a> {
    /// The names of the model's files.
    pub files: &'a [String],
    /// Layers, those without experts included.
    pub n_layer: usize,
    /// Experts in a layer.
    pub n_expert: usize,
    /// Experts that the router picks for a token.
    pub n_expert_used: usize,
    /// Bytes of the weights that every token needs.
    pub dense_bytes: u64,
    /// Bytes of KV cache for each token, of the member that has most of it.
    pub kv_bytes_per_token: u64,
    /// The KV cache grows by so many tokens.
    pub kv_chunk: usize,
    /// Bytes that each member takes for a session, beside its KV cache, if it computes
    /// few tokens together.
    pub session_bytes: u64,
    /// The layers that have experts, ascending: index, and the pieces of each
    /// expert in the order of the experts.
    pub layers: Vec<(usize, Vec<Piece>)>,
}

/// Bytes of one of a model's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Index into [`ExpertTable::files`].
    pub file: usize,
    /// Where they begin.
    pub offset: u64,
    /// How many they are.
    pub length: u64,
}

/// Experts in slots that the host fills.
///
/// A slot holds the pieces of its expert one after another, each from the next
/// page on: the first byte of a piece lies its offset modulo the page size
/// behind the start of a page. All members of a team make the same calls of
/// `demand` and `release`.
pub trait ExpertStore {
    /// Bytes of a page: a power of two.
    fn page_size(&self) -> usize;

    /// Bytes of a slot.
    fn slot_bytes(&self) -> usize;

    /// The most experts that can be demanded at once, at least 1.
    fn n_demand_max(&self) -> usize;

    /// Bytes that this member may take for its KV cache, and to compute many tokens
    /// together.
    fn bytes_max(&self) -> u64;

    /// Demands the experts of a layer that these choices of expert and token
    /// name, sorted; answers a place for each different expert.
    fn demand(&self, layer: usize, choices: &[(usize, usize)]) -> Result<Vec<Place>>;

    /// Waits until the expert that was demanded is in its slot.
    fn wait(&self, slot: usize) -> Result<()>;

    /// Makes whole pages of a slot addressable, whatever expert it holds; as for
    /// [`Source::window`], there may be too many windows.
    fn window(&self, slot: usize, pages: Range<usize>) -> Result<Box<dyn Window>>;

    /// Gives up what was demanded.
    fn release(&self) -> Result<()>;

    /// Says that these experts, ascending, may be demanded next.
    fn prefetch(&self, layer: usize, experts: &[usize]);
}

/// Where an expert is, or will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The slot.
    pub slot: usize,
    /// Whether it is there already; if not, it must be waited for.
    pub loaded: bool,
}
