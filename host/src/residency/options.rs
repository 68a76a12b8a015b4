//! How a model that may not use all memory is kept.

use std::fmt;
use std::path::PathBuf;

use moewe_residency::{Key, PolicyKind};

/// How much memory a model may take, and how its experts share it.
///
/// The weights are read into memory of the process then, around the system's
/// page cache: those that every token needs at once, experts when they are
/// wanted.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct MemoryOptions {
    /// The most bytes that the process may have: what it had when the model was
    /// opened, the weights, and everything that the sessions allocate. Never
    /// exceeded; a model that cannot compute a token within it is refused.
    pub bytes: u64,
    /// Which expert makes room for another one.
    pub policy: PolicyKind,
    /// Slots below which no layer is pushed by others.
    pub layer_floor: usize,
    /// Hot experts, the hottest first, which stay once they were read: as many
    /// of them as half of the slots.
    pub pins: Vec<Key>,
    /// Whether experts are read before they are wanted.
    pub prefetch: Prefetch,
    /// A file to write a trace to: which experts each token used. It is there
    /// when [`Model::finish_trace`](crate::Model::finish_trace) is called.
    pub trace: Option<PathBuf>,
}

impl MemoryOptions {
    /// So many bytes, and the defaults for all else.
    pub fn new(bytes: u64) -> Self {
        Self {
            bytes,
            policy: PolicyKind::default(),
            layer_floor: 0,
            pins: Vec::new(),
            prefetch: Prefetch::default(),
            trace: None,
        }
    }
}

/// Whether experts are read before they are wanted, because the next layer's
/// router is expected to pick them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Prefetch {
    /// As long as it saves time, which is measured now and then.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

impl Prefetch {
    /// All of them.
    pub const ALL: &[Self] = &[Self::Auto, Self::On, Self::Off];

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        }
    }
}

impl fmt::Display for Prefetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
