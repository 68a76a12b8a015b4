//! The weights of a model that may not be in memory as a whole: a budget, what
//! every token needs, and slots for experts.
//!
//! One store serves all sandboxes with a model. A slot is given to an expert by
//! the cache, filled by the disk, and mapped into the sandboxes, where it stays
//! mapped whatever it holds: what a sandbox has demanded keeps its slot until
//! all members of the team have released it.

mod budget;
mod dense;
mod needs;
mod options;
mod slots;
mod stats;
mod table;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufWriter;
use std::ops::{Deref, Range};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use moewe_disk::{DirectFile, Disk, DiskOptions, Priority, ReadError, Storage};
use moewe_experts::trace::{Header, Recorder};
use moewe_experts::{Cache, CacheOptions, Key, Switch};

use self::budget::{Budget, n_demand_max, resident_bytes};
use self::dense::{Mirrors, NotRead};
use self::slots::{Content, Requests, Slots};
use self::table::invalid;
use crate::bindings::moewe::inference::experts as wit;
use crate::bindings::moewe::inference::weights::{Error, ErrorCode};
use crate::error::{Error as HostError, ErrorKind};
use crate::memory::Mapping;
use crate::weights::{WeightFile, error};

pub use self::needs::MemoryNeeds;
pub use self::options::{MemoryOptions, Prefetch};
pub use self::stats::ExpertStats;
pub(crate) use self::table::Table;

const MIB: u64 = 1 << 20;
/// How often a thread that waits looks whether it shall stop.
const TICK: Duration = Duration::from_millis(10);
/// How long the disk may deliver nothing at all while somebody waits for it.
const STALL_MAX: Duration = Duration::from_secs(60);
/// What all sandboxes may have before the first of them has described the model.
const UNTOLD_BYTES_MAX: u64 = 64 * MIB;

/// How the bytes of a file are read; something else than the file in tests.
pub(crate) type Open = Box<dyn Fn(&WeightFile) -> std::io::Result<Arc<dyn Storage>> + Send + Sync>;

/// The weights of one model, within a budget.
pub(crate) struct ModelStore {
    name: String,
    options: MemoryOptions,
    /// Nothing is to be loaded.
    only_asks: bool,
    stall_max: Duration,
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
    needs: Option<MemoryNeeds>,
    model: Option<Described>,
    teams: BTreeMap<u64, TeamState>,
    next_team: u64,
    switch: Switch,
    token_began: Option<Instant>,
    stall: Duration,
    trace: Option<Recorder<BufWriter<File>>>,
}

/// What is there when a guest has described its model.
struct Described {
    table: Arc<Table>,
    slots: Slots,
}

struct TeamState {
    size: usize,
    /// Bytes of the sandboxes' memory without their windows.
    private: u64,
    /// How many demands there were, the last one included.
    n_demands: u64,
    demand: Option<Demand>,
}

/// Experts that a team has demanded and not given up.
struct Demand {
    layer: u16,
    experts: Vec<u16>,
    slots: Vec<usize>,
    n_released: usize,
}

impl Demand {
    fn position(&self, slot: usize) -> Option<(usize, Key)> {
        let i = self.slots.iter().position(|&s| s == slot)?;
        Some((slot, Key { layer: self.layer, expert: self.experts[i] }))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_ended(&self, key: Key, slot: usize, result: Result<(), ReadError>) {
        let inner = &mut *self.lock();
        let is_wanted = inner.is_wanted(slot, key);
        if let Some(model) = &mut inner.model {
            model.slots.read_ended(key, slot, result, is_wanted);
        }
        self.changed.notify_all();
    }
}

impl ModelStore {
    /// A store for the model of this name. What the process has by now counts.
    pub(crate) fn new(name: &str, options: MemoryOptions) -> Result<Self, HostError> {
        let open = |file: &WeightFile| {
            let file: Arc<dyn Storage> = Arc::new(DirectFile::from_file(file.file())?);
            Ok(file)
        };
        Self::with_storage(name, options, Box::new(open))
    }

    /// A store that takes no model, but has what it needs told.
    pub(crate) fn asking(name: &str) -> Result<Self, HostError> {
        let mut store = Self::new(name, MemoryOptions::new(u64::MAX))?;
        store.only_asks = true;
        Ok(store)
    }

    /// What the model needs that a guest has described to a store that only asks.
    pub(crate) fn needs(&self) -> Option<MemoryNeeds> {
        self.shared.lock().needs
    }

    /// The same, over other storages.
    pub(crate) fn with_storage(
        name: &str,
        options: MemoryOptions,
        open: Open,
    ) -> Result<Self, HostError> {
        let disk = Disk::new(DiskOptions::default()).map_err(|e| {
            let message = format!("{name}: no threads to read the weights with: {e}");
            HostError::new(ErrorKind::Internal, message)
        })?;
        let budget = Budget {
            bytes: options.bytes,
            base: resident_bytes(),
            dense: 0,
            dense_resident: 0,
            guests: 0,
            n_guests: 0,
            slot_bytes: 0,
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
            open,
            disk: Unwaited(Some(disk)),
            mirrors: Mirrors::default(),
            shared: Arc::new(Shared { inner: Mutex::new(inner), changed: Condvar::new() }),
        })
    }

    /// A team of sandboxes begins.
    pub(crate) fn add_team(&self, size: usize) -> u64 {
        let inner = &mut *self.shared.lock();
        let team = inner.next_team;
        inner.next_team += 1;
        inner.teams.insert(team, TeamState { size, private: 0, n_demands: 0, demand: None });
        inner.budget.n_guests += size as u64;
        team
    }

    /// A team is gone, with all that it had.
    pub(crate) fn remove_team(&self, team: u64) {
        let inner = &mut *self.shared.lock();
        let Some(state) = inner.teams.remove(&team) else { return };
        inner.budget.n_guests -= state.size as u64;
        inner.budget.guests = inner.budget.guests.saturating_sub(state.private);
        if let Some(demand) = state.demand {
            inner.give_up(&demand);
        }
        inner.fit();
        self.shared.changed.notify_all();
    }

    /// A team computes nothing any more: others may have what it holds.
    pub(crate) fn give_up(&self, team: u64) {
        let inner = &mut *self.shared.lock();
        if let Some(demand) = inner.teams.get_mut(&team).and_then(|team| team.demand.take()) {
            inner.give_up(&demand);
            self.shared.changed.notify_all();
        }
    }

    /// A team wants to have so much memory of its own; false if that is more
    /// than there is.
    pub(crate) fn charge(&self, team: u64, private: u64) -> bool {
        let inner = &mut *self.shared.lock();
        let Some(state) = inner.teams.get_mut(&team) else { return true };
        let old = std::mem::replace(&mut state.private, private);
        let before = inner.budget;
        inner.budget.guests = before.guests.saturating_sub(old).saturating_add(private);
        // Until it has told what it needs, a small team is let alone, so that it
        // hears of that instead.
        let fits = inner.budget.has_room(inner.n_demand_max)
            || (inner.model.is_none() && inner.budget.guests <= UNTOLD_BYTES_MAX);
        if private > old && !fits {
            inner.budget = before;
            if let Some(state) = inner.teams.get_mut(&team) {
                state.private = old;
            }
            return false;
        }
        inner.fit();
        true
    }

    /// Fails if a context of `n_tokens` would not fit the budget.
    pub(crate) fn check_context(&self, n_tokens: u64) -> Result<(), HostError> {
        let inner = self.shared.lock();
        let Some(model) = &inner.model else { return Ok(()) };
        let kv = model.table.shape.kv_bytes_per_token.saturating_mul(n_tokens);
        let floor = inner.budget.floor(inner.n_demand_max).saturating_add(kv);
        if floor <= inner.budget.bytes {
            return Ok(());
        }
        let message = format!(
            "{}: a context of {n_tokens} tokens takes {kv} bytes, which makes {floor} bytes at \
             least, more than the {} that may be used; allow more memory or use a smaller context",
            self.name, inner.budget.bytes
        );
        Err(HostError::new(ErrorKind::OutOfMemory, message))
    }

    /// Takes a description of the model, the first or one more of the same, and
    /// says what there is room for.
    /// A team takes `guests` bytes before it computes anything.
    pub(crate) fn describe(
        &self,
        team: u64,
        table: Table,
        guests: u64,
    ) -> Result<wit::Capacity, Error> {
        let inner = &mut *self.shared.lock();
        if let Some(model) = &inner.model {
            if !model.table.is_same(&table) {
                return Err(invalid("another sandbox has described another model"));
            }
        } else {
            let is_other = |&(&id, _): &(&u64, &TeamState)| id != team;
            let others = inner.teams.iter().filter(is_other).map(|(_, other)| other.private);
            let guests = others.fold(guests, u64::saturating_add);
            self.make_slots(inner, table, guests)?;
        }
        Ok(wit::Capacity {
            slot_bytes: inner.budget.slot_bytes,
            n_demand_max: inner.n_demand_max as u32,
        })
    }

    fn make_slots(&self, inner: &mut Inner, table: Table, guests: u64) -> Result<(), Error> {
        let shape = table.shape;
        let needs = MemoryNeeds::new(inner.budget, &table, guests);
        if self.only_asks {
            inner.needs = Some(needs);
            return Err(invalid("nobody wants them"));
        }
        let io = |e: std::io::Error| {
            error(ErrorCode::Io, format!("{}: no memory for experts: {e}", self.name))
        };
        let storages = table.files.iter().map(|file| (self.open)(file));
        let storages = storages.collect::<std::io::Result<Vec<_>>>().map_err(io)?;
        // The headers went through the page cache, which counts for some.
        for file in &table.files {
            let _ = rustix::fs::fadvise(file.file(), 0, None, rustix::fs::Advice::DontNeed);
        }
        let n_used = needs.n_expert_used();
        let budget =
            Budget { dense: needs.dense_bytes(), slot_bytes: needs.expert_bytes(), ..inner.budget };
        let n_slots = budget.n_slots();
        let least = needs.least_for_a_token();
        if n_slots < n_used || least > budget.bytes {
            return Err(error(
                ErrorCode::OutOfMemory,
                format!(
                    "{} bytes of memory do not suffice for a single token: {} are the least, of \
                     which {} for the weights that every token needs and {} for {n_used} experts",
                    budget.bytes,
                    needs::told(least),
                    budget.dense,
                    table.slot_bytes * n_used
                ),
            ));
        }
        let n_experts = table.n_experts();
        let n_max = n_experts.min(budget.bytes / table.slot_bytes.max(1));
        let length = n_max.saturating_mul(table.slot_bytes).max(1);
        let arena = Arc::new(Mapping::new("moewe-experts", length).map_err(io)?);
        let n_slots = n_slots.min(n_experts);
        let options = CacheOptions {
            policy: self.options.policy,
            layer_floor: self.options.layer_floor,
            pins: self.options.pins.iter().take(n_slots as usize / 2).copied().collect(),
        };
        let (n_layer, n_expert) = (shape.n_layer as usize, shape.n_expert as usize);
        if let Some(path) = &self.options.trace {
            let header = Header {
                n_layer,
                n_expert,
                n_expert_used: shape.n_expert_used as usize,
                slot_bytes: budget.mapped(table.slot_bytes),
                other_bytes: budget.others(),
                model: self.name.clone(),
                options: options.clone(),
            };
            let recorder = File::create(path).and_then(|file| {
                let mut recorder = Recorder::new(BufWriter::new(file), header)?;
                recorder.capacity(n_slots as usize)?;
                Ok(recorder)
            });
            let failed = |e| error(ErrorCode::Io, format!("{}: {e}", path.display()));
            inner.trace = Some(recorder.map_err(failed)?);
        }
        let cache = Cache::new(n_layer, n_expert, n_slots as usize, options);
        inner.budget = budget;
        inner.n_demand_max = n_demand_max(n_used, n_slots);
        let slots = Slots::new(cache, arena, table.slot_bytes, storages);
        inner.model = Some(Described { table: Arc::new(table), slots });
        Ok(())
    }

    /// Demands experts, sorted, for a member of a team that has made `n_before`
    /// demands; the members make the same demands. Answers where each expert
    /// is, and whether it is there.
    pub(crate) fn demand<E>(
        &self,
        team: u64,
        n_before: u64,
        layer: u32,
        choices: &[wit::Choice],
        interrupted: impl Fn() -> Option<E>,
    ) -> Result<Result<Vec<wit::Place>, Error>, E> {
        let small = |n: u32| u16::try_from(n).ok();
        let pairs: Option<Vec<_>> =
            choices.iter().map(|c| Some((small(c.expert)?, small(c.token)?))).collect();
        let (Some(layer), Some(choices)) = (small(layer), pairs) else {
            return Ok(Err(invalid("a demand for an expert that is none")));
        };
        if !choices.is_sorted_by_key(|choice| choice.0) {
            return Ok(Err(invalid("the experts of a demand are not sorted")));
        }
        let mut experts: Vec<_> = choices.iter().map(|choice| choice.0).collect();
        experts.dedup();
        let mut inner = self.shared.lock();
        loop {
            let mut requests = Requests::default();
            let state = &mut *inner;
            let Some(n_demands) = state.teams.get(&team).map(|team| team.n_demands) else {
                return Ok(Err(invalid("the team is gone")));
            };
            if n_demands == n_before + 1 {
                return Ok(state.places(team, layer, &experts));
            }
            let is_free = state.teams.get(&team).is_some_and(|team| team.demand.is_none());
            if n_demands != n_before || experts.len() as u64 > state.n_demand_max {
                return Ok(Err(invalid("a demand out of turn, or for too many experts")));
            }
            if is_free {
                match state.begin(team, layer, &experts, &self.shared, &mut requests) {
                    Begun::Yes => {
                        state.record(|trace| trace.demand(layer, &choices));
                        state.pass_token(layer, choices.len());
                        let places = state.places(team, layer, &experts);
                        drop(inner);
                        requests.send(&self.disk);
                        self.shared.changed.notify_all();
                        return Ok(places);
                    }
                    Begun::Later => {}
                    Begun::Never => {
                        return Ok(Err(invalid(format!("layer {layer} has no such experts"))));
                    }
                }
                drop(inner);
                requests.send(&self.disk);
                inner = self.shared.lock();
            }
            if let Some(interrupt) = interrupted() {
                return Err(interrupt);
            }
            inner = self.sleep(inner);
        }
    }

    fn sleep<'a>(&self, inner: MutexGuard<'a, Inner>) -> MutexGuard<'a, Inner> {
        let woken = self.shared.changed.wait_timeout(inner, TICK);
        woken.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Waits until the expert that the team has demanded is in its slot.
    /// `counts` if the time is to be counted.
    pub(crate) fn wait<E>(
        &self,
        team: u64,
        slot: u32,
        counts: bool,
        interrupted: impl Fn() -> Option<E>,
    ) -> Result<Result<(), Error>, E> {
        let began = Instant::now();
        let mut progress = (self.disk.stats().bytes_read, Instant::now());
        let mut inner = self.shared.lock();
        loop {
            let state = &mut *inner;
            let demand = state.teams.get(&team).and_then(|team| team.demand.as_ref());
            let Some((slot, key)) = demand.and_then(|demand| demand.position(slot as usize)) else {
                return Ok(Err(invalid(format!("slot {slot} was not demanded"))));
            };
            let Some(model) = &mut state.model else {
                return Ok(Err(invalid("there is no model")));
            };
            match model.slots.content(slot, key) {
                Some(Content::Loaded) => {
                    if counts {
                        state.stall += began.elapsed();
                    }
                    return Ok(Ok(()));
                }
                Some(Content::Failed(e)) => return Ok(Err(self.read_error(&model.table, key, e))),
                Some(Content::Cancelled) => {
                    let Described { table, slots } = model;
                    let reads = slots.read(key, slot, Priority::Demand, table, &self.shared);
                    drop(inner);
                    Requests { reads, ..Requests::default() }.send(&self.disk);
                    inner = self.shared.lock();
                    continue;
                }
                Some(Content::Loading { .. }) => {}
                None => return Ok(Err(invalid(format!("slot {slot} holds another expert")))),
            }
            if let Some(interrupt) = interrupted() {
                return Err(interrupt);
            }
            let bytes_read = self.disk.stats().bytes_read;
            if bytes_read != progress.0 {
                progress = (bytes_read, Instant::now());
            } else if progress.1.elapsed() > self.stall_max {
                return Ok(Err(self.stalled()));
            }
            inner = self.sleep(inner);
        }
    }

    fn read_error(&self, table: &Table, key: Key, e: &ReadError) -> Error {
        let pieces = table.expert(key.layer.into(), key.expert.into());
        match pieces.first().and_then(|piece| table.files.get(piece.file)) {
            Some(file) => file_error(file, e),
            None => error(ErrorCode::Io, format!("{}: cannot be read: {e}", self.name)),
        }
    }

    /// A member of a team has no more use for what was demanded.
    pub(crate) fn release(&self, team: u64) -> Result<(), Error> {
        let inner = &mut *self.shared.lock();
        let state = inner.teams.get_mut(&team);
        let Some((state, demand)) = state.and_then(|state| {
            let demand = state.demand.take()?;
            Some((state, demand))
        }) else {
            return Err(invalid("nothing was demanded"));
        };
        let demand = Demand { n_released: demand.n_released + 1, ..demand };
        if demand.n_released < state.size {
            state.demand = Some(demand);
            return Ok(());
        }
        inner.give_up(&demand);
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Experts may be demanded next; whether they are read before is decided
    /// here.
    pub(crate) fn prefetch(&self, team: u64, layer: u32, experts: &[u32]) {
        let experts: Option<Vec<_>> =
            experts.iter().map(|&expert| u16::try_from(expert).ok()).collect();
        let (Ok(layer), Some(experts)) = (u16::try_from(layer), experts) else { return };
        let mut requests = Requests::default();
        {
            let inner = &mut *self.shared.lock();
            let has = |model: &Described| {
                let expert = experts.last().copied().unwrap_or_default();
                !model.table.expert(layer.into(), expert.into()).is_empty()
            };
            if !experts.is_sorted_by(|a, b| a < b) || !inner.model.as_ref().is_some_and(has) {
                return;
            }
            let demanded = inner.teams.get(&team).and_then(|team| team.demand.as_ref());
            // More of the layer that is being computed is no guess.
            let is_certain = demanded.is_some_and(|demand| demand.layer == layer);
            if !is_certain {
                inner.record(|trace| trace.predicted(layer, &experts));
            }
            let is_on = match self.options.prefetch {
                Prefetch::Auto => is_certain || inner.switch.is_on(),
                Prefetch::On => true,
                Prefetch::Off => false,
            };
            let Some(Described { table, slots }) = inner.model.as_mut().filter(|_| is_on) else {
                return;
            };
            for expert in experts {
                slots.prefetch(Key { layer, expert }, table, &self.shared, &mut requests);
            }
        }
        requests.send(&self.disk);
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
    ) -> Result<T, Error> {
        let (arena, bytes) = {
            let inner = self.shared.lock();
            let model = inner.model.as_ref().ok_or_else(|| invalid("there is no model"))?;
            let demand = inner.teams.get(&team).and_then(|team| team.demand.as_ref());
            // Looking at any other slot could take memory that was given back.
            if demand.and_then(|demand| demand.position(slot as usize)).is_none() {
                return Err(invalid(format!("slot {slot} was not demanded")));
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
    ) -> Result<Result<T, Error>, E> {
        let mirror = match self.mirrors.get(file.path(), || (self.open)(file)) {
            Ok(mirror) => mirror,
            Err(e) => return Ok(Err(file.error(ErrorCode::Io, format!("cannot be read: {e}")))),
        };
        let reserve = |n| self.reserve_dense(n);
        let failed = match mirror.read(bytes, &self.disk, self.stall_max, reserve, interrupted) {
            Ok(()) => return Ok(Ok(f(mirror.mapping()))),
            Err((n, failed)) => {
                self.shared.lock().budget.dense_resident -= n;
                failed
            }
        };
        Ok(Err(match failed {
            NotRead::Interrupted(interrupt) => return Err(interrupt),
            NotRead::Failed(e) => file_error(file, &e),
            NotRead::Stalled => self.stalled(),
            NotRead::NoRoom => file.error(
                ErrorCode::OutOfMemory,
                "the weights that every token needs do not fit the memory that may be used; allow \
                 more",
            ),
        }))
    }

    /// Makes room for so many bytes of weights that every token needs.
    fn reserve_dense(&self, n: u64) -> bool {
        let inner = &mut *self.shared.lock();
        let before = inner.budget;
        inner.budget.dense_resident = before.dense_resident.saturating_add(n);
        if !inner.budget.has_room(inner.n_demand_max) {
            inner.budget = before;
            return false;
        }
        inner.fit();
        true
    }

    fn stalled(&self) -> Error {
        let message = format!(
            "{}: the disk has delivered nothing for {} s; check it and try again",
            self.name,
            self.stall_max.as_secs_f64()
        );
        error(ErrorCode::Io, message)
    }

    /// The most bytes that the process may have.
    pub(crate) fn bytes_max(&self) -> u64 {
        self.options.bytes
    }

    /// What was counted so far.
    pub(crate) fn stats(&self) -> ExpertStats {
        let inner = self.shared.lock();
        let slots = inner.model.as_ref().map(|model| &model.slots);
        let cache = slots.map(|slots| slots.cache.stats()).unwrap_or_default();
        let disk = self.disk.stats();
        ExpertStats {
            n_slots: slots.map_or(0, |slots| slots.cache.capacity()),
            slot_bytes: inner.budget.slot_bytes,
            hits: cache.hits,
            misses: cache.misses,
            evictions: cache.evictions,
            bytes_read: disk.bytes_read,
            n_retries: disk.n_retries,
            stall: inner.stall,
            prefetch_useful: cache.prefetch_hits - cache.prefetch_late,
            prefetch_late: cache.prefetch_late,
            prefetch_wasted: cache.prefetch_wasted,
            prefetch_on: match self.options.prefetch {
                Prefetch::Auto => inner.switch.is_on(),
                Prefetch::On => true,
                Prefetch::Off => false,
            },
            resident_bytes: inner.budget.dense_resident + slots.map_or(0, Slots::resident_bytes),
        }
    }

    /// Ends the trace, if one is written.
    pub(crate) fn finish_trace(&self) -> Result<(), HostError> {
        let trace = self.shared.lock().trace.take();
        let Some(trace) = trace else { return Ok(()) };
        trace.finish().map(drop).map_err(|e| {
            let path = self.options.trace.as_deref().unwrap_or(std::path::Path::new(""));
            HostError::new(ErrorKind::Internal, format!("{}: {e}", path.display()))
        })
    }
}

impl Drop for ModelStore {
    fn drop(&mut self) {
        // Nobody is left to hear of a failure; `finish_trace` tells.
        let _ = self.finish_trace();
    }
}

/// Whether a demand could begin.
enum Begun {
    Yes,
    Later,
    Never,
}

impl Inner {
    /// Whether a team has demanded this expert, in this slot.
    fn is_wanted(&self, slot: usize, key: Key) -> bool {
        let is_demanded = |demand: &Demand| demand.position(slot) == Some((slot, key));
        self.teams.values().any(|team| team.demand.as_ref().is_some_and(is_demanded))
    }

    /// Releases what a team, which does not have it any more, had demanded.
    fn give_up(&mut self, demand: &Demand) {
        let keys = demand.slots.iter().filter_map(|&slot| demand.position(slot));
        let unwanted: Vec<_> = keys.filter(|&(slot, key)| !self.is_wanted(slot, key)).collect();
        let Some(Described { slots, .. }) = &mut self.model else { return };
        slots.cache.release(demand.layer, &demand.experts);
        for (slot, key) in unwanted {
            slots.unwanted(key, slot);
        }
        if slots.cache.n_used() > slots.cache.capacity() {
            slots.set_capacity(slots.cache.capacity());
        }
    }

    /// Gives as many slots as the budget allows.
    fn fit(&mut self) {
        let n = self.budget.n_slots().max(self.n_demand_max);
        let Some(Described { table, slots }) = &mut self.model else { return };
        let (old, n) = (slots.cache.capacity() as u64, n.min(table.n_experts()));
        if old != n && self.budget.is_change(old, n) {
            slots.set_capacity(n as usize);
            self.record(|trace| trace.capacity(n as usize));
        }
    }

    /// A trace that cannot be written ends; the computation goes on.
    fn record(
        &mut self,
        write: impl FnOnce(&mut Recorder<BufWriter<File>>) -> std::io::Result<()>,
    ) {
        if let Some(trace) = &mut self.trace
            && let Err(e) = write(trace)
        {
            eprintln!("moewe: the trace ends here: {e}");
            self.trace = None;
        }
    }

    fn begin(
        &mut self,
        team: u64,
        layer: u16,
        experts: &[u16],
        shared: &Arc<Shared>,
        requests: &mut Requests,
    ) -> Begun {
        let Some(Described { table, slots }) = &mut self.model else { return Begun::Never };
        let n_expert = table.shape.n_expert;
        if experts.last().is_none_or(|&e| u32::from(e) >= n_expert)
            || table.expert(layer.into(), 0).is_empty()
        {
            return Begun::Never;
        }
        let Some(taken) = slots.demand(layer, experts, table, shared, requests) else {
            // Others have what is missing; reads that did not begin need not.
            slots.cancel_prefetches(requests);
            return Begun::Later;
        };
        if let Some(team) = self.teams.get_mut(&team) {
            team.n_demands += 1;
            let experts = experts.to_vec();
            team.demand = Some(Demand { layer, experts, slots: taken, n_released: 0 });
        }
        Begun::Yes
    }

    /// Where the experts are that the team has demanded.
    fn places(&self, team: u64, layer: u16, experts: &[u16]) -> Result<Vec<wit::Place>, Error> {
        let demand = self.teams.get(&team).and_then(|team| team.demand.as_ref());
        let demand = demand.filter(|demand| demand.layer == layer && demand.experts == experts);
        let (Some(demand), Some(model)) = (demand, &self.model) else {
            return Err(invalid("the threads of the session demand different experts"));
        };
        let place = |(&slot, &expert): (&usize, &u16)| wit::Place {
            slot: slot as u32,
            loaded: model.slots.is_loaded(slot, Key { layer, expert }),
        };
        Ok(demand.slots.iter().zip(experts).map(place).collect())
    }

    /// Tells the switch how long a token took, from one demand in the first
    /// layer to the next. Batches take other times.
    fn pass_token(&mut self, layer: u16, n_choices: usize) {
        let Some(model) = &self.model else { return };
        let shape = model.table.shape;
        if model.table.first_layer() != Some(layer.into()) {
            return;
        }
        let now = Instant::now();
        let began = self.token_began.take();
        if n_choices == shape.n_expert_used as usize {
            self.token_began = Some(now);
            if let Some(began) = began {
                self.switch.token(now.duration_since(began).as_secs_f64());
            }
        }
    }
}

fn file_error(file: &WeightFile, e: &ReadError) -> Error {
    match e {
        ReadError::Truncated { .. } => file.error(
            ErrorCode::Changed,
            format!("became shorter while it was in use ({e}); load the model again"),
        ),
        ReadError::Io { source, .. } => {
            let what = format!("{e}: {source}; check the disk, and try again");
            file.error(ErrorCode::Io, what)
        }
        ReadError::Cancelled => file.error(ErrorCode::Io, e),
    }
}

#[cfg(test)]
mod tests;
