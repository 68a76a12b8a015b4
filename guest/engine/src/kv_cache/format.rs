//! The formats of keys and values.

use super::f16::F16;
use super::f32::F32;
use super::panels::Panels;
use super::q8_0::Q8_0;

/// How the keys and values of past tokens are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum KvFormat {
    /// As they are computed.
    F32,
    /// Rounded to 16 bits, in half of the memory.
    #[default]
    F16,
    /// Rounded to 8 bits, with a scale for each 32 of them, in 0.27 of the memory.
    Q8_0,
}

impl KvFormat {
    /// Bytes of a key or a value of `n` numbers.
    pub(crate) fn bytes(self, n: usize) -> usize {
        self.panels().bytes(n)
    }

    pub(super) fn panels(self) -> &'static dyn Panels {
        match self {
            Self::F32 => &F32,
            Self::F16 => &F16,
            Self::Q8_0 => &Q8_0,
        }
    }
}
