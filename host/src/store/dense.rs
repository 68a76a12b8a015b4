//! The weights that every token needs, read once into memory that guests map.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use moewe_disk::{Disk, Piece, Priority, Read, ReadError, Storage};
use rangemap::RangeSet;

use crate::memory::{self, Mapping};

/// How often a thread that waits looks whether it shall stop.
const TICK: Duration = Duration::from_millis(10);

/// A copy of parts of a file, each at the place it has in the file: what nobody
/// asked for takes no memory.
pub(super) struct Mirror {
    mapping: Arc<Mapping>,
    storage: Arc<dyn Storage>,
    loaded: Mutex<RangeSet<u64>>,
}

/// Why a part of a file is not there.
pub(super) enum NotRead<E> {
    Failed(ReadError),
    Interrupted(E),
}

impl Mirror {
    pub fn new(storage: Arc<dyn Storage>) -> std::io::Result<Self> {
        let length = storage.promised().max(1).next_multiple_of(memory::page_size());
        let mapping = Arc::new(Mapping::new("moewe-dense", length)?);
        Ok(Self { mapping, storage, loaded: Mutex::default() })
    }

    /// The memory to map in place of the file.
    pub fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// Reads the pages with these bytes, unless they are there, and answers how
    /// many bytes were read. The bytes lie within the file.
    pub fn read<E>(
        &self,
        bytes: Range<u64>,
        disk: &Disk,
        interrupted: impl Fn() -> Option<E>,
    ) -> Result<u64, NotRead<E>> {
        let page = memory::page_size();
        let pages = bytes.start / page * page..bytes.end.next_multiple_of(page);
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let gaps: Vec<_> = loaded.gaps(&pages).filter(|gap| !gap.is_empty()).collect();
        if gaps.is_empty() {
            return Ok(0);
        }
        let piece = |gap: &Range<u64>| {
            let length = (gap.end - gap.start) as usize;
            Piece { offset: gap.start, length, memory: self.mapping.at(gap.start as usize, length) }
        };
        let (sender, receiver) = channel();
        let pages_of_read = pages.start as usize..pages.end as usize;
        // The memory stays until the read has ended, whoever waits for that.
        let mapping = self.mapping.clone();
        let read = Read {
            id: u64::MAX,
            storage: self.storage.clone(),
            pieces: gaps.iter().map(piece).collect(),
            priority: Priority::Demand,
            done: Box::new(move |result| {
                // The pieces lie between the first and the last.
                mapping.forget(pages_of_read.start, pages_of_read.len());
                // Whoever gave up does not listen any more.
                let _ = sender.send(result);
            }),
        };
        // SAFETY: the pieces lie in the mapping, which `done` keeps, and apart
        // from one another. Nobody has been given them yet: they are not loaded,
        // and others wait for the lock. One that gave up may have left a read
        // into them; it writes the same bytes of the same file.
        unsafe { disk.read(vec![read]) };
        let result = loop {
            match receiver.recv_timeout(TICK) {
                Ok(result) => break result,
                Err(RecvTimeoutError::Disconnected) => break Err(ReadError::Cancelled),
                Err(RecvTimeoutError::Timeout) => {
                    if let Some(interrupt) = interrupted() {
                        return Err(NotRead::Interrupted(interrupt));
                    }
                }
            }
        };
        result.map_err(NotRead::Failed)?;
        loaded.insert(pages);
        Ok(gaps.iter().map(|gap| gap.end - gap.start).sum())
    }
}

/// The mirrors of a model's files.
#[derive(Default)]
pub(super) struct Mirrors(Mutex<BTreeMap<PathBuf, Arc<Mirror>>>);

impl Mirrors {
    pub fn get(
        &self,
        file: &Path,
        open: impl FnOnce() -> std::io::Result<Arc<dyn Storage>>,
    ) -> std::io::Result<Arc<Mirror>> {
        let mut mirrors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mirror) = mirrors.get(file) {
            return Ok(mirror.clone());
        }
        let mirror = Arc::new(Mirror::new(open()?)?);
        mirrors.insert(file.to_owned(), mirror.clone());
        Ok(mirror)
    }
}
