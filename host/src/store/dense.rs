//! The weights that every token needs, read once into memory that guests map.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use moewe_disk::{Disk, Piece, Priority, Read, ReadError, Storage};
use rangemap::RangeSet;

use super::n_readable;
use crate::memory::Mapping;

/// How often a thread that waits looks whether it shall stop.
const TICK: Duration = Duration::from_millis(10);

/// A copy of parts of a file, each at the place it has in the file: what nobody
/// asked for takes no memory.
pub(super) struct Mirror {
    mapping: Arc<Mapping>,
    storage: Arc<dyn Storage>,
    page_size: u64,
    state: Mutex<State>,
    /// A read has ended.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    loaded: RangeSet<u64>,
    is_reading: bool,
}

/// Why a part of a file is not there.
pub(super) enum NotRead<E> {
    Failed(ReadError),
    Interrupted(E),
    /// The disk delivers nothing.
    Stalled,
    /// There is no memory for it.
    NoRoom,
}

/// A read of a mirror, by one thread at a time.
struct Reading<'a>(&'a Mirror);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.lock().is_reading = false;
        self.0.changed.notify_all();
    }
}

impl Mirror {
    /// For guests that map pages of so many bytes.
    pub fn new(storage: Arc<dyn Storage>, page_size: u64) -> std::io::Result<Self> {
        let length = storage.promised().max(1).next_multiple_of(page_size);
        let mapping = Arc::new(Mapping::new("moewe-dense", length)?);
        Ok(Self { mapping, storage, page_size, state: Mutex::default(), changed: Condvar::new() })
    }

    /// The memory to map in place of the file.
    pub fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the pages with these bytes, unless they are there. `reserve` is
    /// asked before whether there is room for so many bytes; with an error comes
    /// how many of them are not used then.
    pub fn read<E>(
        &self,
        bytes: Range<u64>,
        disk: &Disk,
        stall_max: Duration,
        reserve: impl FnOnce(u64) -> bool,
        interrupted: impl Fn() -> Option<E>,
    ) -> Result<(), (u64, NotRead<E>)> {
        let page = self.page_size;
        let pages = bytes.start / page * page..bytes.end.next_multiple_of(page);
        let mut state = self.lock();
        while state.is_reading {
            if let Some(interrupt) = interrupted() {
                return Err((0, NotRead::Interrupted(interrupt)));
            }
            let woken = self.changed.wait_timeout(state, TICK);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        let gaps: Vec<_> = state.loaded.gaps(&pages).filter(|gap| !gap.is_empty()).collect();
        if gaps.is_empty() {
            return Ok(());
        }
        let size = self.storage.promised();
        if pages.end > size.next_multiple_of(page) {
            let truncated = ReadError::Truncated { offset: size, size };
            return Err((0, NotRead::Failed(truncated)));
        }
        let n = gaps.iter().map(|gap| gap.end - gap.start).sum();
        if !reserve(n) {
            return Err((0, NotRead::NoRoom));
        }
        state.is_reading = true;
        drop(state);
        let _reading = Reading(self);
        self.read_gaps(&gaps, disk, stall_max, interrupted).map_err(|e| (n, e))?;
        self.lock().loaded.insert(pages);
        Ok(())
    }

    fn read_gaps<E>(
        &self,
        gaps: &[Range<u64>],
        disk: &Disk,
        stall_max: Duration,
        interrupted: impl Fn() -> Option<E>,
    ) -> Result<(), NotRead<E>> {
        let piece = |gap: &Range<u64>| {
            let length = n_readable(gap, &*self.storage, self.page_size) as usize;
            Piece { offset: gap.start, length, memory: self.mapping.at(gap.start as usize, length) }
        };
        gaps.iter().for_each(|gap| self.mapping.gather(gap.clone()));
        let (sender, receiver) = channel();
        let start = gaps.iter().map(|gap| gap.start).min().unwrap_or(0);
        let end = gaps.iter().map(|gap| gap.end).max().unwrap_or(start);
        let pages_of_read = start as usize..end as usize;
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
        // and others wait until this one has read. One that gave up may have left
        // a read into them; it writes the same bytes of the same file.
        unsafe { disk.read(vec![read]) };
        let mut progress = (disk.stats().bytes_read, Instant::now());
        loop {
            match receiver.recv_timeout(TICK) {
                Ok(result) => return result.map_err(NotRead::Failed),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(NotRead::Failed(ReadError::Cancelled));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Some(interrupt) = interrupted() {
                return Err(NotRead::Interrupted(interrupt));
            }
            let bytes_read = disk.stats().bytes_read;
            if bytes_read != progress.0 {
                progress = (bytes_read, Instant::now());
            } else if progress.1.elapsed() > stall_max {
                return Err(NotRead::Stalled);
            }
        }
    }
}

/// The mirrors of a model's files.
#[derive(Default)]
pub(super) struct Mirrors(Mutex<BTreeMap<PathBuf, Arc<Mirror>>>);

impl Mirrors {
    pub fn get(
        &self,
        file: &Path,
        page_size: u64,
        open: impl FnOnce() -> std::io::Result<Arc<dyn Storage>>,
    ) -> std::io::Result<Arc<Mirror>> {
        let mut mirrors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mirror) = mirrors.get(file) {
            return Ok(mirror.clone());
        }
        let mirror = Arc::new(Mirror::new(open()?, page_size)?);
        mirrors.insert(file.to_owned(), mirror.clone());
        Ok(mirror)
    }
}
