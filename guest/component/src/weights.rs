//! The engine's weights, over the component's imports.

use std::rc::Rc;

use moewe_engine::weights::{ExpertStore, ExpertTable, Source, Weights, Window};
use moewe_engine::{Error, ErrorKind, Result};

use crate::attached::{Attached, from_host, no_memory};
use crate::bindings::moewe::inference::weights as host;
use crate::experts;
use crate::pages::PagePool;

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
