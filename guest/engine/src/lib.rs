//! Mixture-of-experts language models from GGUF files, as a plain Rust library.
//!
//! This is the engine that the `moewe` component carries. It knows nothing of
//! WebAssembly: the same source builds natively, for tests and for measuring
//! what the sandbox costs.

// What a 64-bit memory takes of `core::arch` is not stable yet.
#![cfg_attr(target_arch = "wasm64", feature(simd_wasm64))]

mod arch;
mod blocks;
pub mod chat;
pub mod context;
pub mod error;
mod experts;
mod forward;
mod kv_cache;
pub mod language_model;
pub mod model;
mod model_info;
#[cfg(not(target_family = "wasm"))]
pub mod native;
mod ops;
pub mod options;
mod plan;
mod quant;
mod rope;
pub mod sampler;
mod simd;
mod speculation;
mod takes;
pub mod team;
pub mod tokenizer;
pub mod weights;
mod windows;

pub use context::Context;
pub use error::{Error, ErrorKind, Result};
pub use model::Model;
use moewe_gguf as gguf;
pub use options::{KvFormat, LoadOptions, RopeScaling};
pub use quant::pack;
pub use simd::INSTRUCTIONS;
pub use takes::BATCH_MAX;
