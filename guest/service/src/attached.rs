//! What the host attaches to the guest's memory.

use std::mem::ManuallyDrop;
use std::ops::Range;
use std::rc::Rc;

use moewe_engine::weights::Window;
use moewe_engine::{Error, ErrorKind, Result};
use moewe_protocol::{Host, HostError, HostErrorCode};

use crate::pages::{PagePool, Pages};

/// Pages in whose place the host has put something.
pub(crate) struct Attached {
    host: &'static dyn Host,
    pages: ManuallyDrop<Pages>,
    /// The bytes that were asked for lie here in the pages.
    start: usize,
    length: usize,
}

impl Attached {
    /// Has `attach` put `length` bytes behind the first `start` of some pages;
    /// it answers whether it put them there. `None` if the host cannot attach.
    pub fn new(
        host: &'static dyn Host,
        pages: &PagePool,
        start: usize,
        length: usize,
        attach: impl FnOnce(u64) -> Result<bool, HostError>,
    ) -> Result<Option<Self>> {
        let bytes = start.checked_add(length).filter(|&n| n > 0);
        let pages = bytes.and_then(|n| pages.take(n)).ok_or_else(|| no_memory(length))?;
        let answer = attach(pages.start().addr() as u64);
        if matches!(answer, Ok(true)) {
            let pages = ManuallyDrop::new(pages);
            return Ok(Some(Self { host, pages, start, length }));
        }
        match answer {
            Err(e) if e.code == HostErrorCode::Unsupported => Ok(None),
            Err(e) => Err(from_host(e)),
            Ok(_) => Err(Error::new(ErrorKind::Weights, "the host attached at another address")),
        }
    }
}

impl Window for Attached {
    fn bytes(&self) -> &[u8] {
        // SAFETY: `start + length` lies within the pages, which are `self`'s alone, hold
        // the file's bytes since `attach`, and are written by nobody.
        unsafe { std::slice::from_raw_parts(self.pages.start().add(self.start), self.length) }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let (start, bytes) = (self.pages.start().addr(), self.pages.len());
        // Pages that the host could not give back are lost.
        if self.host.detach(start as u64, bytes as u64).is_ok() {
            // SAFETY: nobody uses the pages, or drops them again.
            unsafe { ManuallyDrop::drop(&mut self.pages) };
        }
    }
}

/// A part of what is attached.
pub(crate) struct Part {
    whole: Rc<Attached>,
    bytes: Range<usize>,
}

impl Part {
    /// These bytes of `whole`, which it has.
    pub fn of(whole: Rc<Attached>, bytes: Range<usize>) -> Self {
        assert!(bytes.start <= bytes.end && bytes.end <= whole.length);
        Self { whole, bytes }
    }
}

impl Window for Part {
    fn bytes(&self) -> &[u8] {
        &self.whole.bytes()[self.bytes.clone()]
    }
}

pub(crate) fn from_host(error: HostError) -> Error {
    let kind = match error.code {
        HostErrorCode::OutOfMemory => ErrorKind::OutOfMemory,
        _ => ErrorKind::Weights,
    };
    Error::new(kind, error.message)
}

pub(crate) fn no_memory(bytes: usize) -> Error {
    Error::new(
        ErrorKind::OutOfMemory,
        format!(
            "no room for a window of {bytes} bytes on the weights; choose a smaller quantisation \
             or raise the memory limit"
        ),
    )
}
