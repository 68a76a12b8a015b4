//! Run mixture-of-experts language models in a WebAssembly sandbox.
//!
//! ```no_run
//! use std::io::Write as _;
//!
//! use moewe::{Engine, Message, Model, ModelOptions, SessionOptions};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let engine = Engine::new()?;
//!     let model = Model::open(&engine, "qwen3-30b-a3b-q4_k_m.gguf", ModelOptions::default())?;
//!     let mut session = model.session(SessionOptions::default())?;
//!
//!     let messages = [Message::new("user", "What do seagulls eat?")];
//!     let prompt = session.apply_chat_template(&messages, true)?;
//!     for step in session.generate(&prompt, Some(200)) {
//!         print!("{}", step?.text);
//!         std::io::stdout().flush()?;
//!     }
//!     println!();
//!     Ok(())
//! }
//! ```
//!
//! The model runs in a guest, a WebAssembly component that this crate embeds.
//! Nothing that is in a model's file, and nothing that a text makes the engine
//! do, reaches beyond the guest's own memory. Every [`Session`] has a sandbox of
//! its own; the weights are mapped from the file into each of them, so that they
//! are in memory once (see [`WeightsMode`]).
//!
//! An [`Engine`] is made once, a [`Model`] once for a file, and a [`Session`]
//! for every conversation. All calls block; [`Session::generate_stream`] serves
//! async programs.
//!
//! A call computes on the thread of its caller, whose stack must have 1 MiB left:
//! what Rust gives the threads that it starts is enough. The thread of a stream,
//! and those of a session with several, are this crate's own.

mod compiled;
mod context;
mod engine;
mod error;
mod files;
mod generate;
mod guest;
mod info;
mod model;
#[cfg(target_os = "linux")]
mod residency;
#[cfg(not(target_os = "linux"))]
#[path = "residency/portable.rs"]
mod residency;
mod sandbox;
mod session;
mod weights;

pub use context::{KvFormat, RopeScaling};
pub use engine::{Engine, EngineOptions};
pub use error::{Error, ErrorKind, Result};
pub use generate::{Generation, TokenStream};
pub use guest::Guest;
pub use info::ModelInfo;
pub use model::{Model, ModelOptions};
pub use moewe_residency::{Key as ExpertKey, PolicyKind};
pub use residency::{ExpertStats, MemoryNeeds, MemoryOptions, Prefetch};
pub use sandbox::CancelHandle;
pub use session::{Message, Sampling, Session, SessionOptions, Step, StopReason, Usage};
pub use weights::{WeightStats, WeightsMode};
