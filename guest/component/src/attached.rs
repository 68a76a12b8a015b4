//! What the host attaches to the guest's memory.

use std::any::Any;
use std::mem::ManuallyDrop;
use std::rc::Rc;

use moewe_engine::weights::Window;
use moewe_engine::{Error, ErrorKind, Result};

use crate::bindings::moewe::inference::weights as host;
use crate::pages::{PagePool, Pages};

/// Pages in whose place the host has put something.
pub(crate) struct Attached {
    pages: ManuallyDrop<Pages>,
    /// The bytes that were asked for lie here in the pages.
    start: usize,
    length: usize,
    /// Stays open as long as the window.
    _source: Rc<dyn Any>,
}

impl Attached {
    /// Has `attach` put `length` bytes behind the first `start` of some pages;
    /// it answers whether it put them there. `None` if the host cannot attach.
    pub fn new(
        pages: &PagePool,
        start: usize,
        length: usize,
        source: Rc<dyn Any>,
        attach: impl FnOnce(u64) -> Result<bool, host::Error>,
    ) -> Result<Option<Self>> {
        let bytes = start.checked_add(length).filter(|&n| n > 0);
        let pages = bytes.and_then(|n| pages.take(n)).ok_or_else(|| no_memory(length))?;
        let answer = attach(pages.start().addr() as u64);
        if matches!(answer, Ok(true)) {
            let pages = ManuallyDrop::new(pages);
            return Ok(Some(Self { pages, start, length, _source: source }));
        }
        match answer {
            Err(e) if e.code == host::ErrorCode::Unsupported => Ok(None),
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
        if host::detach(start as u64, bytes as u64).is_ok() {
            // SAFETY: nobody uses the pages, or drops them again.
            unsafe { ManuallyDrop::drop(&mut self.pages) };
        }
    }
}

pub(crate) fn from_host(error: host::Error) -> Error {
    let kind = match error.code {
        host::ErrorCode::OutOfMemory => ErrorKind::OutOfMemory,
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
