//! Guest memory as Wasmtime makes it: files are copied, never mapped.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::MapError;

/// The unit of mapping, in bytes: of use for alignment alone.
pub(crate) fn page_size() -> u64 {
    1 << 16
}

/// A memory that can be mapped into; there is none on this platform.
pub(crate) enum Region {}

impl Region {
    pub(crate) fn attach(&self, _: &File, _: u64, _: u64, _: u64) -> Result<u64, MapError> {
        match *self {}
    }

    pub(crate) fn attach_part(&self, _: &File, _: u64, _: u64, _: u64) -> Result<u64, MapError> {
        match *self {}
    }

    pub(crate) fn share(&self, _: &File, _: u64, _: u64) -> Result<(), MapError> {
        match *self {}
    }

    pub(crate) fn detach(&self, _: u64, _: u64) -> Result<(), MapError> {
        match *self {}
    }

    pub(crate) fn check(&self, _: u64, _: u64) -> Result<(usize, usize), MapError> {
        match *self {}
    }

    pub(crate) fn windows(&self) -> (usize, u64) {
        match *self {}
    }

    pub(crate) fn is_lost(&self) -> bool {
        match *self {}
    }
}

/// Memory that guests can map; there is none on this platform.
pub(crate) enum Mapping {}

impl Mapping {
    pub(crate) fn file(&self) -> &File {
        match *self {}
    }
}

/// Runs `f`.
pub(crate) fn capture<T>(f: impl FnOnce() -> T) -> (T, Option<Arc<Region>>) {
    (f(), None)
}

/// Runs `f`; nothing is mapped that could be lost.
pub(crate) fn catch_faults<T>(_: Option<&Region>, f: impl FnOnce() -> T) -> T {
    f()
}

/// Leaves all as it is.
pub(crate) fn configure(_: &mut wasmtime::Config) {}

/// Refuses.
pub(crate) fn shared_memory(_: u64) -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}
