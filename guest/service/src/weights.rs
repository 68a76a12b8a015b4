//! The engine's weights, over what the guest imports.

use std::cell::{Cell, OnceCell};
use std::rc::Rc;

use moewe_engine::weights::{ExpertStore, ExpertTable, Source, Weights, Window};
use moewe_engine::{Error, ErrorKind, Result};
use moewe_protocol::{Capabilities, Host};

use crate::attached::{Attached, Part, from_host, no_memory};
use crate::experts;
use crate::pages::PagePool;
use crate::{Addresses, Platform};

/// The most bytes asked for in one `read`.
const READ_BYTES_MAX: usize = 1 << 20;

/// The files that the host grants.
pub(crate) struct Imports {
    platform: Platform,
    attach: bool,
    n_windows_max: usize,
    pages: PagePool,
    /// Whether files are attached as a whole: as long as the host keeps no experts, which
    /// are most of them.
    whole_files: Rc<Cell<bool>>,
}

impl Imports {
    /// What is attached comes to lie in `pages`.
    pub fn new(platform: Platform, capabilities: Capabilities, pages: PagePool) -> Self {
        let whole_files = Rc::new(Cell::new(platform.addresses == Addresses::Files));
        let n_windows_max = match platform.addresses {
            // One is the team's.
            Addresses::Windows { .. } if capabilities.attach => {
                (capabilities.n_windows_max as usize).saturating_sub(1)
            }
            _ => usize::MAX,
        };
        Self { platform, attach: capabilities.attach, n_windows_max, pages, whole_files }
    }
}

impl Weights for Imports {
    fn open(&self, name: &str) -> Result<Box<dyn Source>> {
        let host = self.platform.host;
        let number = host.open(name.to_owned()).map_err(from_host)?;
        let file = OpenFile { host, number };
        Ok(Box::new(ImportedSource {
            size: host.size(number),
            file,
            pages: self.attach.then(|| self.pages.clone()),
            whole_files: self.whole_files.clone(),
            whole: OnceCell::new(),
        }))
    }

    fn expert_store(&self, model: &ExpertTable<'_>) -> Result<Option<Box<dyn ExpertStore>>> {
        let store = experts::Imported::open(self.platform, model, &self.pages)?;
        if store.is_some() {
            self.whole_files.set(false);
        }
        Ok(store)
    }

    fn n_windows_max(&self) -> usize {
        self.n_windows_max
    }
}

/// A file of the host's.
struct OpenFile {
    host: &'static dyn Host,
    number: u32,
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.host.close(self.number);
    }
}

struct ImportedSource {
    file: OpenFile,
    size: u64,
    /// If the host attaches.
    pages: Option<PagePool>,
    whole_files: Rc<Cell<bool>>,
    /// The file as a whole, once a window on it was wanted; none if it cannot be attached.
    whole: OnceCell<Option<Rc<Attached>>>,
}

impl Source for ImportedSource {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < out.len() {
            let wanted = (out.len() - done).min(READ_BYTES_MAX);
            let OpenFile { host, number } = self.file;
            let bytes =
                host.read(number, offset + done as u64, wanted as u32).map_err(from_host)?;
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
        if let Some(pages) = &self.pages {
            if self.whole_files.get() {
                if let Some(part) = self.part(pages, offset, length)? {
                    return Ok(Box::new(part));
                }
            } else if let Some(attached) = self.attach(pages, offset, length)? {
                return Ok(Box::new(attached));
            }
        }
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(length).map_err(|_| no_memory(length))?;
        bytes.resize(length, 0);
        self.read(offset, &mut bytes)?;
        self.file.host.copied(self.file.number, length as u64);
        Ok(Box::new(Copied(bytes)))
    }

    fn prefetch(&self, offset: u64, length: u64) {
        self.file.host.prefetch(self.file.number, offset, length);
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
        let OpenFile { host, number } = self.file;
        let attach = |address| {
            let first = host.attach(number, offset, length as u64, address)?;
            Ok(first == address + start as u64)
        };
        Attached::new(host, pages, start, length, attach)
    }

    /// A part of the file, which is attached as a whole. `None` if the host cannot.
    fn part(&self, pages: &PagePool, offset: u64, length: usize) -> Result<Option<Part>> {
        let start = usize::try_from(offset).map_err(|_| no_memory(length))?;
        let size = usize::try_from(self.size).map_err(|_| no_memory(length))?;
        let end = start.checked_add(length).filter(|&end| end <= size).ok_or_else(|| {
            let message = format!("{length} bytes from byte {offset} are not in the file");
            Error::new(ErrorKind::Weights, message)
        })?;
        let whole = match self.whole.get() {
            Some(whole) => whole,
            None => {
                let attached = self.attach(pages, 0, size)?.map(Rc::new);
                self.whole.get_or_init(|| attached)
            }
        };
        let Some(whole) = whole else { return Ok(None) };
        // What is mapped is read page by page as it is touched.
        self.prefetch(offset, length as u64);
        Ok(Some(Part::of(whole.clone(), start..end)))
    }
}
