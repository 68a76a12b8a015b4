//! The weights of a model that may not be in memory as a whole: a budget, what
//! every token needs, and slots for experts.
//!
//! One store serves all sandboxes with a model. A slot is given to an expert by
//! the cache, filled by the disk, and mapped into the sandboxes, where it stays
//! mapped whatever it holds: what a sandbox has demanded keeps its slot until
//! all members of the team have released it.

mod budget;
mod demands;
mod dense;
mod describe;
mod interface;
mod needs;
mod options;
mod pages;
mod room;
mod slots;
mod stats;
mod table;
mod teams;
mod watch;

use std::collections::BTreeMap;
use std::io::BufWriter;
use std::ops::{Deref, Range};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use moewe_disk::{DirectFile, Disk, DiskOptions, ReadError, Storage};
use moewe_memory::{Mapping, page_size};
use moewe_output::Output;
use moewe_residency::Switch;
use moewe_residency::trace::Recorder;

use self::budget::{Budget, resident_bytes};
use self::dense::{Mirrors, NotRead};
use self::slots::Slots;
use self::table::invalid;
use self::teams::TeamState;
use crate::error::{Error, ErrorKind, Result};
use crate::files::{WeightError, WeightErrorKind, WeightFile};

pub(crate) use self::interface::{Capacity, Choice, FilePiece, Place, Shape};
pub use self::needs::MemoryNeeds;
pub use self::options::{MemoryOptions, Prefetch};
pub use self::stats::ExpertStats;
pub(crate) use self::table::Table;

/// How long the disk may deliver nothing at all while somebody waits for it.
const STALL_MAX: Duration = Duration::from_secs(60);

/// How the bytes of a file are read; something else than the file in tests.
pub(crate) type Open = Box<dyn Fn(&WeightFile) -> std::io::Result<Arc<dyn Storage>> + Send + Sync>;

/// The weights of one model, within a budget.
pub(crate) struct ExpertStore {
    name: String,
    options: MemoryOptions,
    /// Nothing is to be loaded.
    only_asks: bool,
    stall_max: Duration,
    /// The unit in which guests map.
    page_size: u64,
    open: Open,
    disk: Unwaited,
    mirrors: Mirrors,
    shared: Arc<Shared>,
}

/// A disk that nobody waits for when it goes: a read that hangs would keep the
/// error from being told. The reads themselves keep the memory.
struct Unwaited(Option<Disk>);

impl Deref for Unwaited {
    type Target = Disk;

    fn deref(&self) -> &Disk {
        self.0.as_ref().expect("it is taken when it is dropped")
    }
}

impl Drop for Unwaited {
    fn drop(&mut self) {
        let disk = self.0.take();
        // Without a thread it is waited for.
        let _ = std::thread::Builder::new().name("disk ends".to_owned()).spawn(|| drop(disk));
    }
}

struct Shared {
    inner: Mutex<Inner>,
    /// A read has ended, or something was released.
    changed: Condvar,
}

struct Inner {
    budget: Budget,
    n_demand_max: u64,
    /// Of the model that is described, or about which is asked.
    needs: Option<MemoryNeeds>,
    model: Option<Described>,
    teams: BTreeMap<u64, TeamState>,
    next_team: u64,
    switch: Switch,
    token_began: Option<Instant>,
    stall: Duration,
    trace: Option<std::io::Result<Trace>>,
}

/// A trace that is being written.
type Trace = Recorder<BufWriter<Output>>;

/// What is there when a guest has described its model.
struct Described {
    table: Arc<Table>,
    slots: Slots,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ExpertStore {
    /// A store for the model of this name. What the process has by now counts.
    pub(crate) fn new(name: &str, options: MemoryOptions) -> Result<Self> {
        let open = |file: &WeightFile| {
            let file: Arc<dyn Storage> = Arc::new(DirectFile::from_file(file.file())?);
            Ok(file)
        };
        Self::with_storage(name, options, page_size(), Box::new(open))
    }

    /// The same, over other storages, and with other pages.
    pub(crate) fn with_storage(
        name: &str,
        options: MemoryOptions,
        page_size: u64,
        open: Open,
    ) -> Result<Self> {
        let disk = Disk::new(DiskOptions::default()).map_err(|e| {
            let message = format!("{name}: no threads to read the weights with: {e}");
            Error::new(ErrorKind::Internal, message)
        })?;
        let budget = Budget {
            bytes: options.bytes,
            base: resident_bytes(),
            dense: 0,
            dense_resident: 0,
            guests: 0,
            n_guests: 0,
            slot_bytes: 0,
            page_size,
        };
        let inner = Inner {
            budget,
            n_demand_max: 0,
            needs: None,
            model: None,
            teams: BTreeMap::new(),
            next_team: 0,
            switch: Switch::new(),
            token_began: None,
            stall: Duration::ZERO,
            trace: None,
        };
        Ok(Self {
            name: name.to_owned(),
            options,
            only_asks: false,
            stall_max: STALL_MAX,
            page_size,
            open,
            disk: Unwaited(Some(disk)),
            mirrors: Mirrors::default(),
            shared: Arc::new(Shared { inner: Mutex::new(inner), changed: Condvar::new() }),
        })
    }

    /// The unit in which guests map.
    pub(crate) fn page_size(&self) -> u64 {
        self.page_size
    }

    /// Passes the memory that holds some bytes of a slot, and where, to `f`. The
    /// team has demanded what is in it.
    pub(crate) fn with_slot<T>(
        &self,
        team: u64,
        slot: u32,
        offset: u64,
        length: u64,
        f: impl FnOnce(&Mapping, u64) -> T,
    ) -> Result<T, WeightError> {
        let (arena, bytes) = {
            let inner = self.shared.lock();
            let model = inner.model.as_ref().ok_or_else(|| invalid("there is no model"))?;
            let demand = inner.teams.get(&team).and_then(|team| team.demand.as_ref());
            let is_demanded = demand.and_then(|demand| demand.position(slot as usize)).is_some();
            // Looking at any other slot could take memory that was given back.
            if !is_demanded && slot as usize >= model.slots.cache.capacity() {
                return Err(invalid(format!("there is no slot {slot}")));
            }
            (model.slots.arena.clone(), model.slots.slot_bytes)
        };
        if offset.checked_add(length).is_none_or(|end| end > bytes) {
            let message = format!("slot {slot} has no {length} bytes at {offset}");
            return Err(invalid(message));
        }
        Ok(f(&arena, u64::from(slot) * bytes + offset))
    }

    /// Has a range of a file read, which lies within it, and passes the memory
    /// that holds it, at the same offset, to `f`.
    pub(crate) fn with_dense<T, E>(
        &self,
        file: &WeightFile,
        bytes: Range<u64>,
        interrupted: impl Fn() -> Option<E>,
        f: impl FnOnce(&Mapping) -> T,
    ) -> Result<Result<T, WeightError>, E> {
        let mirror = match self.mirrors.get(file.path(), self.page_size, || (self.open)(file)) {
            Ok(mirror) => mirror,
            Err(e) => {
                return Ok(Err(file.error(WeightErrorKind::Io, format!("cannot be read: {e}"))));
            }
        };
        let reserve = |n| self.reserve_dense(n);
        let failed = match mirror.read(bytes, &self.disk, self.stall_max, reserve, interrupted) {
            Ok(()) => return Ok(Ok(f(mirror.mapping()))),
            Err(failed) => failed,
        };
        Ok(Err(match failed {
            NotRead::Interrupted(interrupt) => return Err(interrupt),
            NotRead::Failed(e) => file_error(file, &e),
            NotRead::Stalled => self.stalled(),
            NotRead::NoRoom => file.error(
                WeightErrorKind::OutOfMemory,
                "the weights that every token needs do not fit the memory that may be used; allow \
                 more",
            ),
        }))
    }

    fn stalled(&self) -> WeightError {
        let message = format!(
            "{}: the disk has delivered nothing for {} s; check it and try again",
            self.name,
            self.stall_max.as_secs_f64()
        );
        WeightError::new(WeightErrorKind::Io, message)
    }
}

fn file_error(file: &WeightFile, e: &ReadError) -> WeightError {
    match e {
        ReadError::Truncated { .. } => file.error(
            WeightErrorKind::Changed,
            format!("became shorter while it was in use ({e}); load the model again"),
        ),
        ReadError::Io { source, .. } => {
            let what = format!("{e}: {source}; check the disk, and try again");
            file.error(WeightErrorKind::Io, what)
        }
        ReadError::Cancelled => file.error(WeightErrorKind::Io, e),
    }
}

#[cfg(test)]
mod tests;
