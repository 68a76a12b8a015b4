//! What the host attaches to the guest's memory.

use std::mem::{self, ManuallyDrop};
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
        match attach(pages.start().addr() as u64) {
            Ok(true) => {
                let pages = ManuallyDrop::new(pages);
                Ok(Some(Self { host, pages, start, length }))
            }
            Ok(false) => {
                // Nobody knows what lies there now.
                mem::forget(pages);
                Err(Error::new(ErrorKind::Weights, "the host attached at another address"))
            }
            Err(e) if e.code == HostErrorCode::Unsupported => Ok(None),
            Err(e) => Err(from_host(e)),
        }
    }

    /// Where the bytes that were asked for begin.
    fn first(&self) -> *const u8 {
        self.pages.start().wrapping_add(self.start)
    }
}

impl Window for Attached {
    fn bytes(&self) -> &[u8] {
        // SAFETY: the bytes lie within the pages, which stay as long as `self`, and hold
        // what the host has put there. Nobody here writes to them; the host changes those
        // of a slot, and only while the engine uses no expert in it.
        unsafe { std::slice::from_raw_parts(self.first(), self.length) }
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
        // SAFETY: `of` has checked that these are bytes of the whole, for which the same
        // holds as there. The host may change others meanwhile.
        unsafe {
            let first = self.whole.first().add(self.bytes.start);
            std::slice::from_raw_parts(first, self.bytes.len())
        }
    }
}

pub(crate) fn from_host(error: HostError) -> Error {
    let kind = match error.code {
        HostErrorCode::OutOfMemory => ErrorKind::OutOfMemory,
        HostErrorCode::TooManyWindows => ErrorKind::TooManyWindows,
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
