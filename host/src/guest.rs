//! Which guest computes a model: the one with 32-bit addresses, or the one with 64-bit ones.

use crate::weights::Weights;

/// The addresses that a guest has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Guest {
    /// 32 bits: 4 GiB. Experts beyond 3 GiB take turns in it.
    Bits32,
    /// 64 bits: as much as a model needs. Each address is checked, which makes it somewhat
    /// slower at what both can do.
    Bits64,
}

impl Guest {
    /// 32 or 64.
    pub fn bits(self) -> u32 {
        match self {
            Self::Bits32 => 32,
            Self::Bits64 => 64,
        }
    }
}

/// Bytes of weights that the 32-bit guest shows at a time.
const SHOWN_BYTES_MAX: u64 = 3 << 30;
/// All that it can address, but for what its heap takes beside weights and KV cache.
const ADDRESSED_BYTES_MAX: u64 = (4 << 30) - (256 << 20);

/// A guest, and why it is this one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Choice {
    pub guest: Guest,
    pub why: &'static str,
}

impl Choice {
    /// The guest for a model with these weights, of which a budget holds so many bytes, and
    /// a KV cache of so many bytes.
    pub fn of(weights: &Weights, budget_bytes: Option<u64>, kv_bytes: u64, has_wide: bool) -> Self {
        let weight_bytes = weights.files.bytes().min(budget_bytes.unwrap_or(u64::MAX));
        let (guest, why) = if weight_bytes > SHOWN_BYTES_MAX {
            (Guest::Bits64, "the weights take more than a 32-bit guest shows at a time, 3 GiB")
        } else if weight_bytes.saturating_add(kv_bytes) > ADDRESSED_BYTES_MAX {
            (Guest::Bits64, "weights and KV cache take more than a 32-bit guest can address")
        } else {
            (Guest::Bits32, "32-bit addresses suffice, and are faster")
        };
        match guest {
            Guest::Bits64 if !has_wide => {
                Self { guest: Guest::Bits32, why: "this build has no 64-bit guest" }
            }
            guest => Self { guest, why },
        }
    }
}
