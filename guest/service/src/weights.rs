//! The engine's weights, over what the guest imports.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
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
    spans: Rc<RefCell<Spans>>,
}

/// What of the files is attached at once.
enum Spans {
    /// All of each.
    Files,
    /// These bytes of the files of these names, where the host keeps the experts, which
    /// are most of them.
    Dense(Vec<(String, Range<u64>)>),
    /// What is asked for.
    Windows,
}

impl Spans {
    /// What is attached at once of a file of this size, with these bytes in it.
    fn around(&self, name: &str, size: u64, bytes: &Range<u64>) -> Range<u64> {
        let has = |span: &Range<u64>| span.start <= bytes.start && bytes.end <= span.end;
        let span = match self {
            Self::Files => Some(0..size),
            Self::Dense(spans) => {
                let spans = spans.iter().filter(|(file, _)| file == name).map(|(_, span)| span);
                spans.cloned().find(has)
            }
            Self::Windows => None,
        };
        span.filter(has).unwrap_or_else(|| bytes.clone())
    }
}

impl Imports {
    /// What is attached comes to lie in `pages`.
    pub fn new(platform: Platform, capabilities: Capabilities, pages: PagePool) -> Self {
        let spans = match platform.addresses {
            Addresses::Files => Spans::Files,
            Addresses::Windows { .. } => Spans::Windows,
        };
        let n_windows_max = match platform.addresses {
            // One is the team's.
            Addresses::Windows { .. } if capabilities.attach => {
                (capabilities.n_windows_max as usize).saturating_sub(1)
            }
            _ => usize::MAX,
        };
        let spans = Rc::new(RefCell::new(spans));
        Self { platform, attach: capabilities.attach, n_windows_max, pages, spans }
    }
}

impl Weights for Imports {
    fn open(&self, name: &str) -> Result<Box<dyn Source>> {
        let host = self.platform.host;
        let number = host.open(name.to_owned()).map_err(from_host)?;
        let file = OpenFile { host, number };
        Ok(Box::new(ImportedSource {
            name: name.to_owned(),
            size: host.size(number),
            file,
            pages: self.attach.then(|| self.pages.clone()),
            spans: self.spans.clone(),
            attached: RefCell::default(),
        }))
    }

    fn expert_store(&self, model: &ExpertTable<'_>) -> Result<Option<Box<dyn ExpertStore>>> {
        let store = experts::Imported::open(self.platform, model, &self.pages)?;
        if store.is_some() && self.platform.addresses == Addresses::Files {
            let dense = model.dense.iter().map(|piece| {
                let bytes = piece.offset..piece.offset.saturating_add(piece.length);
                (model.files[piece.file].clone(), bytes)
            });
            self.spans.replace(Spans::Dense(dense.collect()));
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
    name: String,
    file: OpenFile,
    size: u64,
    /// If the host attaches.
    pages: Option<PagePool>,
    spans: Rc<RefCell<Spans>>,
    /// The spans of which a part was wanted, by their first bytes. They stay.
    attached: RefCell<BTreeMap<u64, Rc<Attached>>>,
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
        if let Some(pages) = &self.pages
            && let Some(window) = self.attach(pages, offset, length)?
        {
            return Ok(window);
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
    /// A window on what is attached with these bytes in it. `None` if the host cannot.
    fn attach(
        &self,
        pages: &PagePool,
        offset: u64,
        length: usize,
    ) -> Result<Option<Box<dyn Window>>> {
        let bytes = offset..offset.saturating_add(length as u64);
        let span = self.spans.borrow().around(&self.name, self.size, &bytes);
        if span == bytes {
            let attached = self.attach_span(pages, &span)?;
            return Ok(attached.map(|attached| Box::new(attached) as Box<dyn Window>));
        }
        let attached = self.attached.borrow().get(&span.start).cloned();
        let attached = match attached {
            Some(attached) => attached,
            None => match self.attach_span(pages, &span)?.map(Rc::new) {
                Some(attached) => {
                    self.attached.borrow_mut().insert(span.start, attached.clone());
                    attached
                }
                None => return Ok(None),
            },
        };
        if matches!(*self.spans.borrow(), Spans::Files) {
            // Otherwise it is read page by page as it is touched.
            self.prefetch(offset, length as u64);
        }
        let start = (bytes.start - span.start) as usize;
        Ok(Some(Box::new(Part::of(attached, start..start + length))))
    }

    fn attach_span(&self, pages: &PagePool, span: &Range<u64>) -> Result<Option<Attached>> {
        let length = span.end - span.start;
        let start = (span.start % pages.page_size() as u64) as usize;
        let OpenFile { host, number } = self.file;
        let bytes = usize::try_from(length).map_err(|_| no_memory(usize::MAX))?;
        let attach = |address| {
            let first = host.attach(number, span.start, length, address)?;
            Ok(first == address + start as u64)
        };
        Attached::new(host, pages, start, bytes, attach)
    }
}
