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

/// Bytes of weights that the 32-bit guest shows at a time: its `WINDOW_BYTES_MAX`.
const SHOWN_BYTES_MAX: u64 = 3 << 30;
/// All that it can address, but for what its heap takes beside weights and KV cache.
const ADDRESSED_BYTES_MAX: u64 = (4 << 30) - (256 << 20);

/// A guest, and why it is this one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Choice {
    pub guest: Guest,
    pub why: &'static str,
    /// Whether somebody asked for it, so that nothing else is looked at.
    pub is_asked: bool,
    /// Whether 64-bit addresses would suit, and this build has no guest with them.
    pub lacks_wide: bool,
}

impl Choice {
    /// The guest that was asked for.
    pub fn asked(guest: Guest) -> Self {
        Self { guest, why: "as asked for", is_asked: true, lacks_wide: false }
    }

    /// The guest for a model with these weights and a KV cache of so many bytes, if a budget
    /// holds no more than `budget_bytes` of both.
    pub fn of(weights: &Weights, budget_bytes: Option<u64>, kv_bytes: u64, has_wide: bool) -> Self {
        let weight_bytes = weights.files.bytes();
        Self::of_bytes(weight_bytes, budget_bytes.unwrap_or(u64::MAX), kv_bytes, has_wide)
    }

    fn of_bytes(weight_bytes: u64, budget_bytes: u64, kv_bytes: u64, has_wide: bool) -> Self {
        let all_bytes = weight_bytes.saturating_add(kv_bytes).min(budget_bytes);
        let (guest, why) = if weight_bytes.min(budget_bytes) > SHOWN_BYTES_MAX {
            (Guest::Bits64, "the weights take more than a 32-bit guest shows at a time, 3 GiB")
        } else if all_bytes > ADDRESSED_BYTES_MAX {
            (Guest::Bits64, "weights and KV cache take more than a 32-bit guest can address")
        } else {
            (Guest::Bits32, "32-bit addresses suffice, and are faster")
        };
        match guest {
            Guest::Bits64 if !has_wide => Self {
                guest: Guest::Bits32,
                why: "this build has no 64-bit guest",
                is_asked: false,
                lacks_wide: true,
            },
            guest => Self { guest, why, is_asked: false, lacks_wide: false },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn what_must_be_addressed_decides() {
        let guest = |weights, budget, kv| Choice::of_bytes(weights, budget, kv, true).guest;
        assert_eq!(guest(3 * GIB, u64::MAX, 0), Guest::Bits32);
        assert_eq!(guest(3 * GIB + 1, u64::MAX, 0), Guest::Bits64);
        assert_eq!(guest(GIB, u64::MAX, 2 * GIB), Guest::Bits32);
        assert_eq!(guest(GIB, u64::MAX, 3 * GIB), Guest::Bits64);
        assert_eq!(guest(GIB, u64::MAX, u64::MAX), Guest::Bits64);
        // A budget holds no more of both together.
        assert_eq!(guest(9 * GIB, 2 * GIB, 9 * GIB), Guest::Bits32);
        assert_eq!(guest(2 * GIB, 3 * GIB, 2 * GIB), Guest::Bits32);
        assert_eq!(guest(2 * GIB, 4 * GIB, 2 * GIB), Guest::Bits64);
    }

    #[test]
    fn without_a_wide_guest_the_other_one_computes() {
        let choice = Choice::of_bytes(9 * GIB, u64::MAX, 0, false);
        assert!(choice.guest == Guest::Bits32 && choice.lacks_wide);
        assert!(!Choice::of_bytes(GIB, u64::MAX, 0, false).lacks_wide);
    }
}
