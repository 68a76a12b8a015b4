//! The weights that every token needs, read once into memory that guests map.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use moewe_disk::{Disk, Piece, Priority, Read, ReadError, Storage};
use moewe_memory::Mapping;
use rangemap::RangeSet;

use super::pages::n_readable;

/// How often a thread that waits looks whether it shall stop.
const TICK: Duration = Duration::from_millis(10);

/// A copy of parts of a file, each at the place it has in the file: what nobody
/// asked for takes no memory.
pub(super) struct Mirror {
    mapping: Mapping,
    storage: Arc<dyn Storage>,
    page_size: u64,
    state: Mutex<State>,
    /// A read has ended.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    loaded: RangeSet<u64>,
    /// What has been read, or was to be: it may take memory.
    reserved: RangeSet<u64>,
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

/// Somebody who waits for the disk, but not for ever.
struct Waiting<'a, E, I: Fn() -> Option<E>> {
    disk: &'a Disk,
    stall_max: Duration,
    interrupted: I,
    /// What the disk had read when it last got on, and when that was.
    progress: (u64, Instant),
}

impl<'a, E, I: Fn() -> Option<E>> Waiting<'a, E, I> {
    fn new(disk: &'a Disk, stall_max: Duration, interrupted: I) -> Self {
        Self { disk, stall_max, interrupted, progress: (disk.stats().bytes_read, Instant::now()) }
    }

    /// Fails if there is no use in waiting on.
    fn check(&mut self) -> Result<(), NotRead<E>> {
        if let Some(interrupt) = (self.interrupted)() {
            return Err(NotRead::Interrupted(interrupt));
        }
        let bytes_read = self.disk.stats().bytes_read;
        if bytes_read != self.progress.0 {
            self.progress = (bytes_read, Instant::now());
        } else if self.progress.1.elapsed() > self.stall_max {
            return Err(NotRead::Stalled);
        }
        Ok(())
    }
}

impl Mirror {
    /// For guests that map pages of so many bytes.
    pub fn new(storage: Arc<dyn Storage>, page_size: u64) -> std::io::Result<Self> {
        let length = storage.promised().max(1).next_multiple_of(page_size);
        let mapping = Mapping::new("moewe-dense", length)?;
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
    /// asked before whether there is room for so many bytes. Once they are being
    /// read they keep their room, whoever still waits for them.
    pub fn read<E>(
        self: &Arc<Self>,
        bytes: Range<u64>,
        disk: &Disk,
        stall_max: Duration,
        reserve: impl FnOnce(u64) -> bool,
        interrupted: impl Fn() -> Option<E>,
    ) -> Result<(), NotRead<E>> {
        let page = self.page_size;
        let pages = bytes.start / page * page..bytes.end.next_multiple_of(page);
        let mut waiting = Waiting::new(disk, stall_max, interrupted);
        let mut state = self.lock();
        while state.is_reading {
            waiting.check()?;
            let woken = self.changed.wait_timeout(state, TICK);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        let missing = gaps(&state.loaded, &pages);
        if missing.is_empty() {
            return Ok(());
        }
        let size = self.storage.promised();
        if pages.end > size.next_multiple_of(page) {
            let truncated = ReadError::Truncated { offset: size, size };
            return Err(NotRead::Failed(truncated));
        }
        let new = missing.iter().flat_map(|gap| gaps(&state.reserved, gap));
        let n = new.map(|range| range.end - range.start).sum();
        if n > 0 && !reserve(n) {
            return Err(NotRead::NoRoom);
        }
        state.reserved.insert(pages.clone());
        state.is_reading = true;
        drop(state);
        let result = self.begin(&missing, pages, disk);
        // Making room in memory was no waiting.
        waiting.progress.1 = Instant::now();
        loop {
            match result.recv_timeout(TICK) {
                Ok(result) => return result.map_err(NotRead::Failed),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(NotRead::Failed(ReadError::Cancelled));
                }
                Err(RecvTimeoutError::Timeout) => waiting.check()?,
            }
        }
    }

    /// Has the disk read what is missing of these pages. They are loaded when that
    /// has ended, whether somebody still listens or not; until then nobody reads
    /// anything else.
    fn begin(
        self: &Arc<Self>,
        gaps: &[Range<u64>],
        pages: Range<u64>,
        disk: &Disk,
    ) -> Receiver<Result<(), ReadError>> {
        let piece = |gap: &Range<u64>| {
            let length = n_readable(gap, &*self.storage, self.page_size) as usize;
            Piece { offset: gap.start, length, memory: self.mapping.at(gap.start as usize, length) }
        };
        gaps.iter().for_each(|gap| self.mapping.gather(gap.clone()));
        let (sender, receiver) = channel();
        // The memory stays until the read has ended, whoever waits for that.
        let mirror = self.clone();
        let read = Read {
            id: u64::MAX,
            storage: self.storage.clone(),
            pieces: gaps.iter().map(piece).collect(),
            priority: Priority::Demand,
            done: Box::new(move |result| {
                // The pieces lie between the first page and the last.
                mirror.mapping.forget(pages.start as usize, (pages.end - pages.start) as usize);
                let mut state = mirror.lock();
                state.is_reading = false;
                if result.is_ok() {
                    state.loaded.insert(pages);
                }
                drop(state);
                mirror.changed.notify_all();
                // Whoever gave up does not listen any more.
                let _ = sender.send(result);
            }),
        };
        // SAFETY: the pieces lie in the mapping, which `done` keeps, and apart
        // from one another. Nobody has been given them yet: they are not loaded;
        // and nobody else has them read before this read has ended.
        unsafe { disk.read(vec![read]) };
        receiver
    }
}

/// What of a range is not in a set.
fn gaps(set: &RangeSet<u64>, range: &Range<u64>) -> Vec<Range<u64>> {
    set.gaps(range).filter(|gap| !gap.is_empty()).collect()
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
