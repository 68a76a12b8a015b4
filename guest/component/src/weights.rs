//! The engine's weights, over the component's imports.

use std::any::Any;
use std::mem::ManuallyDrop;
use std::rc::Rc;

use moewe_engine::weights::{ExpertStore, ExpertTable, Source, Weights, Window};
use moewe_engine::{Error, ErrorKind, Result};

use crate::bindings::moewe::inference::weights as host;
use crate::experts;
use crate::pages::{PagePool, Pages};

/// The most bytes asked for in one `read`.
const READ_BYTES_MAX: usize = 1 << 20;

/// The files that the host grants.
pub(crate) struct Imports {
    attach: bool,
    pages: PagePool,
}

impl Imports {
    pub fn new() -> Result<Self> {
        let capabilities = host::get_capabilities();
        let pages = PagePool::new(capabilities.page_size as usize).ok_or_else(|| {
            let message = format!("the host reports pages of {} bytes", capabilities.page_size);
            Error::new(ErrorKind::Weights, message)
        })?;
        Ok(Self { attach: capabilities.attach, pages })
    }

    /// For what is attached.
    pub fn pages(&self) -> &PagePool {
        &self.pages
    }
}

impl Weights for Imports {
    fn open(&self, name: &str) -> Result<Box<dyn Source>> {
        let source = host::Source::open(name.as_bytes()).map_err(from_host)?;
        let size = source.size();
        Ok(Box::new(ImportedSource {
            source: Rc::new(source),
            size,
            pages: self.attach.then(|| self.pages.clone()),
        }))
    }

    fn expert_store(&self, model: &ExpertTable<'_>) -> Result<Option<Box<dyn ExpertStore>>> {
        experts::Imported::open(model, &self.pages)
    }
}

pub(crate) fn from_host(error: host::Error) -> Error {
    let kind = match error.code {
        host::ErrorCode::OutOfMemory => ErrorKind::OutOfMemory,
        _ => ErrorKind::Weights,
    };
    Error::new(kind, error.message)
}

fn no_memory(bytes: usize) -> Error {
    Error::new(
        ErrorKind::OutOfMemory,
        format!(
            "no room for a window of {bytes} bytes on the weights; choose a smaller quantisation \
             or raise the memory limit"
        ),
    )
}

struct ImportedSource {
    source: Rc<host::Source>,
    size: u64,
    /// If the host attaches.
    pages: Option<PagePool>,
}

impl Source for ImportedSource {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < out.len() {
            let wanted = (out.len() - done).min(READ_BYTES_MAX);
            let bytes = self.source.read(offset + done as u64, wanted as u32).map_err(from_host)?;
            if bytes.is_empty() || bytes.len() > wanted {
                return Err(Error::new(
                    ErrorKind::Weights,
                    format!("the host read {} bytes where {wanted} were wanted", bytes.len()),
                ));
            }
            out[done..done + bytes.len()].copy_from_slice(&bytes);
            done += bytes.len();
        }
        Ok(())
    }

    fn window(&self, offset: u64, length: usize) -> Result<Box<dyn Window>> {
        if let Some(pages) = &self.pages
            && let Some(attached) = self.attach(pages, offset, length)?
        {
            return Ok(Box::new(attached));
        }
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(length).map_err(|_| no_memory(length))?;
        bytes.resize(length, 0);
        self.read(offset, &mut bytes)?;
        Ok(Box::new(Copied(bytes)))
    }

    fn prefetch(&self, offset: u64, length: u64) {
        self.source.prefetch(offset, length);
    }
}

/// Bytes that were read into this guest's own memory.
struct Copied(Vec<u8>);

impl Window for Copied {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl ImportedSource {
    /// `None` if the host cannot attach these bytes after all.
    fn attach(&self, pages: &PagePool, offset: u64, length: usize) -> Result<Option<Attached>> {
        let start = (offset % pages.page_size() as u64) as usize;
        let attach = |address| {
            let first = self.source.attach(offset, length as u64, address)?;
            Ok(first == address + start as u64)
        };
        Attached::new(pages, start, length, self.source.clone(), attach)
    }
}

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
