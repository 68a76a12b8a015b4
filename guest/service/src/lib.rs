//! The engine as its guests offer it: [`Service`] implements
//! [`Inference`](moewe_protocol::Inference) with the engine, which it feeds from a
//! [`Platform`].

#![cfg_attr(target_arch = "wasm64", feature(simd_wasm64))]

mod attached;
mod experts;
mod pages;
mod service;
mod team;
mod weights;

pub use service::Service;

use moewe_protocol::{Host, Team};

/// What a guest runs on.
#[derive(Clone, Copy)]
pub struct Platform {
    /// Where weights come from.
    pub host: &'static dyn Host,
    /// The members that compute together, this guest among them.
    pub team: &'static dyn Team,
    /// How much can be addressed.
    pub addresses: Addresses,
}

/// How weights become addressable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addresses {
    /// Through windows, which take at most so many bytes at a time.
    Windows {
        /// Bytes of all windows together.
        bytes_max: u64,
    },
    /// As a whole, every file, or every slot of a store: there are addresses enough.
    Files,
}
