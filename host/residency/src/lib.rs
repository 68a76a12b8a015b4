//! Which experts of a mixture-of-experts model lie in memory when the model is
//! larger than its memory.
//!
//! A [`Cache`] decides, and does no I/O: whoever owns the memory asks it before
//! an expert is computed, reads what it misses into the slots it names, and says
//! when a read has ended. How a victim is chosen is a [`Policy`].
//!
//! ```
//! use moewe_residency::{Cache, CacheOptions, Key, Lookup};
//!
//! let mut cache = Cache::new(24, 64, 100, CacheOptions::default());
//! for (expert, lookup) in [3, 17].into_iter().zip(cache.acquire(0, &[3, 17]).unwrap()) {
//!     if let Lookup::Miss { slot: _, .. } = lookup {
//!         // Read the expert into the slot; then:
//!         cache.loaded(Key { layer: 0, expert });
//!     }
//! }
//! // Compute, then:
//! cache.release(0, &[3, 17]);
//! ```

#![forbid(unsafe_code)]

mod cache;
mod key;
mod policy;
mod switch;
pub mod trace;

pub use cache::{Cache, CacheOptions, CacheStats, Lookup};
pub use key::Key;
pub use policy::{Blend, LayerLru, Lfu, Lru, ParsePolicyError, Policy, PolicyKind};
pub use switch::{Switch, SwitchStats};
