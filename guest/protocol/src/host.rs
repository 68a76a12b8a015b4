//! What the engine needs: the WIT interfaces `weights`, `experts` and `team`, which say
//! what each of these means.

// Members are those of WIT, where they are explained.
#![allow(missing_docs)]

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::message::interface;

/// Why a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostErrorCode {
    NotFound,
    NotPermitted,
    InvalidRange,
    Unsupported,
    Changed,
    Io,
    OutOfMemory,
    TooManyWindows,
}

/// An error, with a sentence that names the source and the way out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HostError {
    pub code: HostErrorCode,
    pub message: String,
}

/// What the host can do.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Capabilities {
    pub attach: bool,
    pub page_size: u32,
    pub n_windows_max: u32,
}

/// What a whole model takes.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Shape {
    pub n_layer: u32,
    pub n_expert: u32,
    pub n_expert_used: u32,
    pub dense_bytes: u64,
    pub kv_bytes_per_token: u64,
    pub kv_chunk: u32,
    pub session_bytes: u64,
}

/// Bytes of one of a model's files.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Piece {
    pub file: u32,
    pub offset: u64,
    pub length: u64,
}

/// What the host has room for.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Capacity {
    pub slot_bytes: u64,
    pub n_demand_max: u32,
    pub member_bytes_max: u64,
}

/// That the router picked an expert for a token.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Choice {
    pub expert: u32,
    pub token: u32,
}

/// Where an expert is, or will be.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Place {
    pub slot: u32,
    pub loaded: bool,
}

interface! {
    /// Weights, and the store of experts. Sources and stores are numbers of the host, which
    /// are valid until they are closed.
    trait Host, client HostClient, fn answer_host;

    /// `weights.get-capabilities`
    fn capabilities() -> Capabilities;
    /// `weights.detach`
    fn detach(address: u64, length: u64) -> Result<(), HostError>;
    /// `source.open`
    fn open(name: String) -> Result<u32, HostError>;
    /// `source.size`
    fn size(source: u32) -> u64;
    /// `source.read`
    fn read(source: u32, offset: u64, length: u32) -> Result<ByteBuf, HostError>;
    /// `source.attach`
    fn attach(source: u32, offset: u64, length: u64, address: u64) -> Result<u64, HostError>;
    /// `source.copied`
    fn copied(source: u32, length: u64);
    /// `source.prefetch`
    fn prefetch(source: u32, offset: u64, length: u64);
    /// Drops a source.
    fn close(source: u32);

    /// `store.open`
    fn open_store(files: Vec<String>, shape: Shape) -> Result<Option<u32>, HostError>;
    /// `store.add-layer`
    fn add_layer(store: u32, layer: u32, pieces: Vec<Piece>) -> Result<(), HostError>;
    /// `store.ready`
    fn ready(store: u32) -> Result<Capacity, HostError>;
    /// `store.demand`
    fn demand(store: u32, layer: u32, choices: Vec<Choice>) -> Result<Vec<Place>, HostError>;
    /// `store.wait`
    fn wait(store: u32, slot: u32) -> Result<(), HostError>;
    /// `store.attach`
    fn attach_slot(
        store: u32, slot: u32, offset: u64, length: u64, address: u64,
    ) -> Result<(), HostError>;
    /// `store.release`
    fn release(store: u32) -> Result<(), HostError>;
    /// `store.prefetch`
    fn prefetch_experts(store: u32, layer: u32, experts: Vec<u32>);
    /// Drops a store.
    fn close_store(store: u32);
}

/// Why a request to the team failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TeamError {
    InvalidRange,
    Unsupported,
    OutOfMemory,
    Broken,
}

/// The WIT interface `team`. Members meet hundreds of times a token, so it has numbers
/// only, and no messages.
pub trait Team {
    fn rank(&self) -> u32;
    fn size(&self) -> u32;
    fn barrier(&self) -> Result<(), TeamError>;
    fn is_stopped(&self) -> bool;
    fn share(&self, address: u64, length: u64) -> Result<(), TeamError>;
}

impl TeamError {
    /// What came of a request as a number: 0 if it did not fail.
    pub fn to_number(result: Result<(), Self>) -> u32 {
        match result {
            Ok(()) => 0,
            Err(Self::InvalidRange) => 1,
            Err(Self::Unsupported) => 2,
            Err(Self::OutOfMemory) => 3,
            Err(Self::Broken) => 4,
        }
    }

    /// What came of a request that is told as this number.
    pub fn from_number(number: u32) -> Result<(), Self> {
        match number {
            0 => Ok(()),
            1 => Err(Self::InvalidRange),
            2 => Err(Self::Unsupported),
            3 => Err(Self::OutOfMemory),
            _ => Err(Self::Broken),
        }
    }
}
