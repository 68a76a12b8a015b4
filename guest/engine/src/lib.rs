//! Mixture-of-experts language models from GGUF files, as a plain Rust library.
//!
//! This is the engine that the `moewe` component carries. It knows nothing of
//! WebAssembly: the same source builds natively, for tests and for measuring
//! what the sandbox costs.

pub mod chat;
pub mod error;
pub mod gguf;
pub mod sampler;
pub mod tokenizer;
pub mod weights;

pub use error::{Error, ErrorKind, Result};
