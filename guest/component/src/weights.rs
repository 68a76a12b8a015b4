//! The engine's weights, over the component's imports.

use std::alloc::{Layout, alloc, dealloc};
use std::any::Any;
use std::rc::Rc;

use moewe_engine::weights::{ExpertStore, ExpertTable, Source, Weights, Window};
use moewe_engine::{Error, ErrorKind, Result};

use crate::bindings::moewe::inference::weights as host;
use crate::experts;

/// The most bytes asked for in one `read`.
const READ_BYTES_MAX: usize = 1 << 20;

/// The files that the host grants.
pub(crate) struct Imports {
    capabilities: host::Capabilities,
}

impl Imports {
    pub fn new() -> Result<Self> {
        let capabilities = host::get_capabilities();
        if !capabilities.page_size.is_power_of_two() || capabilities.page_size > 1 << 24 {
            return Err(Error::new(
                ErrorKind::Weights,
                format!("the host reports pages of {} bytes", capabilities.page_size),
            ));
        }
        Ok(Self { capabilities })
    }

    /// The unit, in bytes, of attaching.
    pub fn page_size(&self) -> usize {
        self.capabilities.page_size as usize
    }
}

impl Weights for Imports {
    fn open(&self, name: &str) -> Result<Box<dyn Source>> {
        let source = host::Source::open(name).map_err(from_host)?;
        let size = source.size();
        Ok(Box::new(ImportedSource {
            source: Rc::new(source),
            size,
            capabilities: self.capabilities,
        }))
    }

    fn expert_store(&self, model: &ExpertTable<'_>) -> Result<Option<Box<dyn ExpertStore>>> {
        experts::Imported::open(model, self.page_size())
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
    capabilities: host::Capabilities,
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
        if self.capabilities.attach
            && let Some(attached) = self.attach(offset, length)?
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
    fn attach(&self, offset: u64, length: usize) -> Result<Option<Attached>> {
        let page_size = self.capabilities.page_size as usize;
        let start = (offset % page_size as u64) as usize;
        let attach = |address| {
            let first = self.source.attach(offset, length as u64, address)?;
            Ok(first == address + start as u64)
        };
        Attached::new(page_size, start, length, self.source.clone(), attach)
    }
}

/// Pages of this guest's heap in whose place the host has put something.
pub(crate) struct Attached {
    pages: *mut u8,
    layout: Layout,
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
        page_size: usize,
        start: usize,
        length: usize,
        source: Rc<dyn Any>,
        attach: impl FnOnce(u64) -> Result<bool, host::Error>,
    ) -> Result<Option<Self>> {
        let layout = length
            .checked_add(start)
            .and_then(|n| n.checked_next_multiple_of(page_size))
            .and_then(|n| Layout::from_size_align(n, page_size).ok())
            .filter(|layout| layout.size() > 0)
            .ok_or_else(|| no_memory(length))?;
        // SAFETY: the layout's size is not zero.
        let pages = unsafe { alloc(layout) };
        if pages.is_null() {
            return Err(no_memory(length));
        }
        let answer = attach(pages.addr() as u64);
        if matches!(answer, Ok(true)) {
            return Ok(Some(Self { pages, layout, start, length, _source: source }));
        }
        // SAFETY: allocated above with this layout. Should a host have attached
        // at another address, that is its own doing.
        unsafe { dealloc(pages, layout) };
        match answer {
            Err(e) if e.code == host::ErrorCode::Unsupported => Ok(None),
            Err(e) => Err(from_host(e)),
            Ok(_) => Err(Error::new(ErrorKind::Weights, "the host attached at another address")),
        }
    }
}

impl Window for Attached {
    fn bytes(&self) -> &[u8] {
        // SAFETY: `start + length` lies within the allocation, which lives as
        // long as `self`, holds the file's bytes since `attach`, and is
        // written by nobody.
        unsafe { std::slice::from_raw_parts(self.pages.add(self.start), self.length) }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let detached = host::detach(self.pages.addr() as u64, self.layout.size() as u64);
        // Pages that the host could not give back must not reach the
        // allocator: they are lost.
        if detached.is_ok() {
            // SAFETY: allocated in `new` with this layout, and plain memory
            // again.
            unsafe { dealloc(self.pages, self.layout) };
        }
    }
}
