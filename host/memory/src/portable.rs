//! Where files cannot be mapped into a sandbox's memory: nothing of it exists.

use std::fs::File;
use std::io;
use std::ops::Range;

use crate::MapError;

/// The unit of mapping, in bytes: of use for alignment alone.
pub fn page_size() -> u64 {
    1 << 16
}

/// A memory that can be mapped into; there is none on this platform.
pub enum Region {}

impl Region {
    /// Refuses.
    pub fn new(_: usize, _: usize) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// See Linux.
    pub fn grow(&self, _: usize) -> io::Result<()> {
        match *self {}
    }

    /// See Linux.
    pub fn as_ptr(&self) -> *mut u8 {
        match *self {}
    }

    /// See Linux.
    pub fn byte_size(&self) -> usize {
        match *self {}
    }

    /// See Linux.
    pub fn byte_capacity(&self) -> usize {
        match *self {}
    }

    /// See Linux.
    pub fn attach(&self, _: &File, _: u64, _: u64, _: u64) -> Result<u64, MapError> {
        match *self {}
    }

    /// See Linux.
    pub fn attach_part(&self, _: &File, _: u64, _: u64, _: u64) -> Result<u64, MapError> {
        match *self {}
    }

    /// See Linux.
    pub fn share(&self, _: &File, _: u64, _: u64) -> Result<(), MapError> {
        match *self {}
    }

    /// See Linux.
    pub fn detach(&self, _: u64, _: u64) -> Result<(), MapError> {
        match *self {}
    }

    /// See Linux.
    pub fn check(&self, _: u64, _: u64) -> Result<(usize, usize), MapError> {
        match *self {}
    }

    /// See Linux.
    pub fn limit_mappings(&self, _: usize) {
        match *self {}
    }

    /// See Linux.
    pub fn windows(&self) -> (usize, u64) {
        match *self {}
    }

    /// See Linux.
    pub fn is_lost(&self) -> bool {
        match *self {}
    }
}

/// Memory that guests can map; there is none on this platform.
pub enum Mapping {}

impl Mapping {
    /// See Linux.
    pub fn file(&self) -> &File {
        match *self {}
    }
}

/// Runs `f`; nothing is mapped that could be lost.
pub fn catch_faults<T>(_: Option<&Region>, f: impl FnOnce() -> T) -> T {
    f()
}

/// Refuses.
pub fn shared_memory(_: &str, _: u64) -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

/// None: there are no windows.
pub fn n_mappings_left() -> usize {
    0
}

/// Leaves all as it is.
pub fn make_present(_: Range<*const u8>) {}

/// Leaves all as it is.
pub fn map_large_blocks() {}

/// Leaves all as it is.
pub fn give_back(_: *const ()) {}
