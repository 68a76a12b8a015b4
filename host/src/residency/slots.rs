//! The slots, and the reads into them.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use moewe_disk::{Disk, Piece, Priority, Read, ReadError, Storage};
use moewe_memory::Mapping;
use moewe_residency::{Cache, Key, Lookup};
use rangemap::RangeSet;

use super::pages::n_readable;
use super::table::{SlotPiece, Table};

/// Of so much memory huge pages are made at a time.
const PREPARED_BYTES: u64 = 32 << 20;
const REGION: u64 = Mapping::REGION_BYTES;

/// What there is of an expert in its slot.
pub(super) enum Content {
    /// Reads are under way, or wait for their turn.
    Loading {
        ids: Vec<u64>,
        n_left: usize,
        is_prefetch: bool,
        /// Whether it began before the last demand.
        is_older: bool,
        error: Option<ReadError>,
    },
    Loaded,
    /// To be read again for whoever waits: a prefetch that did not begin before it
    /// was too late, or a read that failed and was not this demand's own.
    Cancelled,
    Failed(ReadError),
}

pub(super) struct Slot {
    key: Key,
    pub content: Content,
}

/// What hears, on a thread of the disk, that a read of an expert into a slot has ended.
pub(super) type Ended = Arc<dyn Fn(Key, usize, Result<(), ReadError>) + Send + Sync>;

/// The memory for experts, and what is in it.
pub(super) struct Slots {
    pub cache: Cache,
    pub arena: Arc<Mapping>,
    pub slot_bytes: u64,
    slots: Vec<Option<Slot>>,
    /// Where in the arena huge pages were asked for.
    prepared: RangeSet<u64>,
    /// Memory that the system has not taken back yet.
    owed: RangeSet<u64>,
    storages: Vec<Arc<dyn Storage>>,
    ended: Ended,
    /// Prefetches that may not have ended.
    prefetching: Vec<(Key, usize)>,
    next_id: AtomicU64,
}

/// What is to be asked of the disk, when nothing is locked any more.
#[derive(Default)]
pub(super) struct Requests {
    pub reads: Vec<Read>,
    pub promoted: Vec<u64>,
    pub cancelled: Vec<u64>,
}

impl Requests {
    pub fn send(self, disk: &Disk) {
        for id in self.cancelled {
            disk.cancel(id);
        }
        for id in self.promoted {
            disk.promote(id);
        }
        if !self.reads.is_empty() {
            // SAFETY: all pieces lie in the slots of experts that the cache has
            // as busy: nobody else is given these slots, or looks into them,
            // before `done` says that the read has ended. `done` keeps the
            // memory.
            unsafe { disk.read(self.reads) };
        }
    }
}

impl Slots {
    pub fn new(
        cache: Cache,
        arena: Arc<Mapping>,
        slot_bytes: u64,
        storages: Vec<Arc<dyn Storage>>,
        ended: Ended,
    ) -> Self {
        Self {
            cache,
            arena,
            slot_bytes,
            slots: Vec::new(),
            prepared: RangeSet::new(),
            owed: RangeSet::new(),
            storages,
            ended,
            prefetching: Vec::new(),
            next_id: AtomicU64::new(0),
        }
    }

    /// What there is of an expert in a slot.
    pub fn content(&self, slot: usize, key: Key) -> Option<&Content> {
        self.slots.get(slot)?.as_ref().filter(|s| s.key == key).map(|s| &s.content)
    }

    /// Whether the expert is in its slot.
    pub fn is_loaded(&self, slot: usize, key: Key) -> bool {
        matches!(self.content(slot, key), Some(Content::Loaded))
    }

    /// Takes the slots for a demand, and has read what is missing.
    pub fn demand(
        &mut self,
        layer: u16,
        experts: &[u16],
        table: &Table,
        requests: &mut Requests,
    ) -> Option<Vec<usize>> {
        // What is known not to be wanted must not stand in the way.
        let is_waste =
            |key: &Key| key.layer == layer && experts.binary_search(&key.expert).is_err();
        let wasted: Vec<_> = self.prefetching.iter().filter(|(key, _)| is_waste(key)).collect();
        for &&(key, slot) in &wasted {
            if let Some(Content::Loading { ids, is_prefetch: true, .. }) = self.content(slot, key) {
                requests.cancelled.extend(ids);
            }
        }
        let lookups = self.cache.acquire(layer, experts)?;
        self.prefetching.retain(|(key, _)| key.layer != layer);
        let mut slots = Vec::with_capacity(lookups.len());
        for (&expert, lookup) in experts.iter().zip(lookups) {
            let key = Key { layer, expert };
            match lookup {
                Lookup::Hit { slot } => {
                    slots.push(slot);
                    if let Some(Some(Slot { content, .. })) = self.slots.get_mut(slot)
                        && let Content::Loading { ids, is_prefetch, is_older, .. } = content
                    {
                        *is_older = true;
                        if std::mem::take(is_prefetch) {
                            requests.promoted.extend(ids.iter());
                        }
                    }
                }
                Lookup::Miss { slot, .. } => {
                    slots.push(slot);
                    let reads = self.read(key, slot, Priority::Demand, table);
                    requests.reads.extend(reads);
                }
            }
        }
        Some(slots)
    }

    /// Has experts read that may be wanted, as far as there are slots for them.
    pub fn prefetch(
        &mut self,
        layer: u16,
        experts: &[u16],
        table: &Table,
        requests: &mut Requests,
    ) {
        for (expert, slot) in self.cache.prefetch_all(layer, experts) {
            let key = Key { layer, expert };
            self.prefetching.push((key, slot));
            requests.reads.extend(self.read(key, slot, Priority::Prefetch, table));
        }
    }

    /// The prefetches that have not begun, as far as is known here.
    pub fn cancel_prefetches(&self, requests: &mut Requests) {
        for &(key, slot) in &self.prefetching {
            if let Some(Content::Loading { ids, is_prefetch: true, .. }) = self.content(slot, key) {
                requests.cancelled.extend(ids);
            }
        }
    }

    /// The reads that bring an expert into its slot, one for each file.
    pub fn read(&mut self, key: Key, slot: usize, priority: Priority, table: &Table) -> Vec<Read> {
        self.owed.remove(self.bytes(slot));
        self.prepare(slot);
        let pieces = table.expert(key.layer.into(), key.expert.into());
        let mut reads = Vec::new();
        for pieces in pieces.chunk_by(|a, b| a.file == b.file) {
            let id = self.next_id.fetch_add(1, Ordering::Relaxed);
            let (arena, ended) = (self.arena.clone(), self.ended.clone());
            let storage = self.storages[pieces[0].file].clone();
            let piece = |piece: &SlotPiece| {
                let pages = piece.offset..piece.offset + piece.length;
                let length = n_readable(&pages, &*storage, table.page_size()) as usize;
                let start = self.bytes(slot).start + piece.start;
                Piece { offset: piece.offset, length, memory: arena.at(start as usize, length) }
            };
            let pieces_of_file: Vec<_> = pieces.iter().map(piece).collect();
            let range = pieces.iter().fold((u64::MAX, 0), |(start, end), piece| {
                (start.min(piece.start), end.max(piece.start + piece.length))
            });
            let first = (self.bytes(slot).start + range.0) as usize;
            let length = (range.1 - range.0) as usize;
            reads.push(Read {
                id,
                storage,
                pieces: pieces_of_file,
                priority,
                done: Box::new(move |result| {
                    arena.forget(first, length);
                    ended(key, slot, result);
                }),
            });
        }
        let content = Content::Loading {
            ids: reads.iter().map(|read| read.id).collect(),
            n_left: reads.len(),
            is_prefetch: priority == Priority::Prefetch,
            is_older: false,
            error: None,
        };
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, || None);
        }
        self.slots[slot] = Some(Slot { key, content });
        reads
    }

    /// A read into a slot has ended; `is_wanted` if somebody waits for it.
    pub fn read_ended(
        &mut self,
        key: Key,
        slot: usize,
        result: Result<(), ReadError>,
        is_wanted: bool,
    ) {
        // It may have kept the huge pages together that it wrote to.
        self.give_back();
        let Some(Some(Slot { content, .. })) =
            self.slots.get_mut(slot).map(|s| s.as_mut().filter(|s| s.key == key))
        else {
            return;
        };
        let Content::Loading { n_left, error, is_older, .. } = content else { return };
        *n_left -= 1;
        if let Err(e) = result {
            // A failure weighs more than a cancellation.
            if !matches!((&*error, &e), (Some(_), ReadError::Cancelled)) {
                *error = Some(e);
            }
        }
        if *n_left > 0 {
            return;
        }
        match error.take() {
            None => {
                *content = Content::Loaded;
                self.cache.loaded(key);
            }
            // What failed for others may be read for this demand.
            Some(_) if *is_older && is_wanted => *content = Content::Cancelled,
            Some(ReadError::Cancelled) => {
                *content = Content::Cancelled;
                if !is_wanted {
                    self.cache.forget(key);
                }
            }
            Some(e) => {
                *content = Content::Failed(e);
                self.cache.forget(key);
            }
        }
    }

    /// A demand for the expert has ended, and there is no other one. Of a
    /// prefetch that was cancelled, only the slot is left.
    pub fn unwanted(&mut self, key: Key, slot: usize) {
        if matches!(self.content(slot, key), Some(Content::Cancelled)) {
            self.cache.forget(key);
        }
    }

    /// Changes how many slots there are; gives the memory of those that go
    /// back, and of all that are free.
    pub fn set_capacity(&mut self, n_slots: usize) {
        self.cache.set_capacity(n_slots);
        let n_prepared =
            self.prepared.last().map_or(0, |bytes| bytes.end.div_ceil(self.slot_bytes));
        let mut free = RangeSet::new();
        for i in 0..self.slots.len().max(n_prepared as usize) {
            if self.cache.expert_in(i).is_none() {
                free.insert(self.bytes(i));
                if let Some(slot) = self.slots.get_mut(i) {
                    *slot = None;
                }
            }
        }
        for bytes in free.iter() {
            self.prepared.remove(regions(bytes.start, bytes.end.next_multiple_of(REGION)));
        }
        self.owed.extend(free);
        self.give_back();
    }

    /// Gives back the memory of slots that went.
    fn give_back(&mut self) {
        for bytes in std::mem::take(&mut self.owed) {
            if !self.arena.discard(bytes.clone()) {
                self.owed.insert(bytes);
            }
        }
    }

    /// Where a slot lies in the arena.
    fn bytes(&self, slot: usize) -> Range<u64> {
        let start = slot as u64 * self.slot_bytes;
        start..start + self.slot_bytes
    }

    /// Has huge pages made where a slot lies that is to be used, and those that
    /// will be used next.
    fn prepare(&mut self, slot: usize) {
        let Range { start, end } = self.bytes(slot);
        let end = end.next_multiple_of(REGION);
        if self.prepared.gaps(&regions(start, end)).next().is_none() {
            return;
        }
        // Huge pages take all their memory at once: no more than there may be.
        let usable = self.n_usable() as u64 * self.slot_bytes;
        let next = regions(start, end.max(start + PREPARED_BYTES).min(usable));
        let gaps: Vec<_> = self.prepared.gaps(&next).filter(|gap| !gap.is_empty()).collect();
        for gap in gaps {
            self.owed.remove(gap.clone());
            self.arena.gather(gap.clone());
            self.prepared.insert(gap);
        }
    }

    /// Below this number, each slot has memory or there is room for it: the free
    /// ones with the lowest numbers are used first.
    fn n_usable(&self) -> usize {
        let n = self.slots.len().max(self.cache.capacity());
        let has_memory = |i: &usize| {
            self.cache.expert_in(*i).is_some() || self.slots.get(*i).is_some_and(Option::is_some)
        };
        let n_more = self.cache.capacity().saturating_sub((0..n).filter(has_memory).count());
        (0..n).filter(|i| !has_memory(i)).nth(n_more).unwrap_or(n)
    }

    /// How many slots, from the first on, guests may map: those that there are, and
    /// those that were ever in use, as an expert may stay in one of these for a while. A
    /// guest that looks into one that is not in use any more takes memory that was given
    /// back; it is limited by the arena, and seen by no other guest.
    pub fn n_mappable(&self) -> usize {
        self.cache.capacity().max(self.slots.len())
    }

    /// Bytes of the slots in use.
    pub fn resident_bytes(&self) -> u64 {
        self.cache.n_used() as u64 * self.slot_bytes
    }
}

/// The regions from the one with a byte on that end before another byte.
fn regions(start: u64, end: u64) -> Range<u64> {
    let start = start / REGION * REGION;
    start..(end / REGION * REGION).max(start)
}
