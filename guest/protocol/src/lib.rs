//! What the engine offers ([`Inference`]) and what it needs ([`Host`], [`Team`]), in plain
//! Rust: the WIT package `moewe:inference` without its types.
//!
//! In the 32-bit guest, whoever speaks WIT calls the engine through these traits. In the
//! 64-bit guest an engine whose memory has 64-bit addresses, which WIT's lists and strings
//! cannot lie in, is a module of its own; calls cross as messages then. Each trait is
//! defined once, and with it the messages, who sends them and who answers them.

mod host;
mod inference;
mod message;

pub use host::{
    Capabilities, Capacity, Choice, Host, HostClient, HostError, HostErrorCode, Piece, Place,
    Shape, Team, TeamError, answer_host,
};
pub use inference::{
    Conversation, Error, ErrorCode, Inference, InferenceClient, KvFormat, LoadOptions, Message,
    ModelInfo, RopeScaling, Sampling, SessionOptions, Step, StopReason, Usage, answer_inference,
};
/// Bytes that cross as a whole; those of a `Vec<u8>` would one by one.
pub use serde_bytes::ByteBuf;
