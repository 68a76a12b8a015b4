//! What is to be done next, without a thread that does it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crate::job::{Job, Part};
use crate::stats::Counters;
use crate::{DiskOptions, Priority, ReadError};

/// The system takes no more buffers for one call.
const PARTS_MAX: usize = 1024;

pub(crate) struct Queue {
    /// Parts whose result is known without a call.
    settled: Vec<(Part, Result<(), ReadError>)>,
    /// Jobs that have begun, and when they go on.
    delayed: Vec<(Instant, Job)>,
    demands: VecDeque<Part>,
    prefetches: VecDeque<Part>,
    is_closed: bool,
    /// Held by all jobs that prefetch.
    prefetching: Arc<()>,
    prefetches_max: usize,
    call_bytes: usize,
    max_retries: u32,
    counters: Arc<Counters>,
}

/// What a thread should do.
pub(crate) enum Work {
    Call(Job),
    Settle(Part, Result<(), ReadError>),
}

impl Queue {
    pub fn new(options: &DiskOptions, counters: Arc<Counters>) -> Self {
        Self {
            settled: Vec::new(),
            delayed: Vec::new(),
            demands: VecDeque::new(),
            prefetches: VecDeque::new(),
            is_closed: false,
            prefetching: Arc::new(()),
            prefetches_max: (options.depth / 2).max(1),
            call_bytes: options.call_bytes,
            max_retries: options.max_retries,
            counters,
        }
    }

    /// More parts, in this order.
    pub fn extend(&mut self, parts: impl IntoIterator<Item = (Priority, Part)>) {
        for (priority, part) in parts {
            match priority {
                Priority::Demand => self.demands.push_back(part),
                Priority::Prefetch => self.prefetches.push_back(part),
            }
        }
    }

    /// A part that needs no call.
    pub fn settle(&mut self, part: Part, result: Result<(), ReadError>) {
        self.settled.push((part, result));
    }

    /// A job that goes on at `due`.
    pub fn delay(&mut self, job: Job, due: Instant) {
        self.delayed.push((due, job));
        if self.is_closed {
            self.close();
        }
    }

    /// What can be done now.
    pub fn take(&mut self, now: Instant) -> Option<Work> {
        if let Some((part, result)) = self.settled.pop() {
            return Some(Work::Settle(part, result));
        }
        if let Some(i) = self.delayed.iter().position(|(due, _)| *due <= now) {
            return Some(Work::Call(self.delayed.remove(i).1));
        }
        let (waiting, prefetch) = if !self.demands.is_empty() {
            (&mut self.demands, None)
        } else if Arc::strong_count(&self.prefetching) <= self.prefetches_max {
            (&mut self.prefetches, Some(self.prefetching.clone()))
        } else {
            return None;
        };
        let parts = contiguous(waiting, self.call_bytes);
        if parts.is_empty() {
            return None;
        }
        Some(Work::Call(Job::new(parts, prefetch, self.max_retries, self.counters.clone())))
    }

    /// When the first of the delayed jobs goes on.
    pub fn next_due(&self) -> Option<Instant> {
        self.delayed.iter().map(|(due, _)| *due).min()
    }

    /// Takes out the prefetch, if nothing of it has begun.
    pub fn cancel(&mut self, id: u64) -> Vec<Part> {
        let mut ours = self.prefetches.iter().filter(|part| part.ticket.id == id).peekable();
        let Some(first) = ours.peek() else { return Vec::new() };
        let length = first.ticket.length;
        if ours.map(|part| part.piece.length).sum::<usize>() < length {
            return Vec::new();
        }
        self.take_prefetch(id)
    }

    /// Makes a demand of what still waits of the prefetch.
    pub fn promote(&mut self, id: u64) {
        let parts = self.take_prefetch(id);
        self.demands.extend(parts);
    }

    /// Nothing begins any more; everything that waits is cancelled.
    pub fn close(&mut self) {
        self.is_closed = true;
        let delayed = self.delayed.drain(..).flat_map(|(_, job)| job.into_parts());
        let waiting = self.demands.drain(..).chain(self.prefetches.drain(..));
        let parts = delayed.chain(waiting).map(|part| (part, Err(ReadError::Cancelled)));
        self.settled.extend(parts);
    }

    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    fn take_prefetch(&mut self, id: u64) -> Vec<Part> {
        let all = std::mem::take(&mut self.prefetches);
        let (ours, others): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|part| part.ticket.id == id);
        self.prefetches = others.into();
        ours
    }
}

/// Takes the first part, and those behind it that go on where it ends in the
/// same file, up to `n_bytes` in all.
fn contiguous(waiting: &mut VecDeque<Part>, n_bytes: usize) -> VecDeque<Part> {
    let mut parts = VecDeque::<Part>::new();
    let mut room = n_bytes;
    while let Some(next) = waiting.front_mut() {
        let fits = parts.back().is_none_or(|Part { ticket, piece }| {
            Arc::ptr_eq(&next.ticket.storage, &ticket.storage)
                && next.piece.offset == piece.offset + piece.length as u64
        });
        if !fits || room == 0 || parts.len() == PARTS_MAX {
            break;
        }
        if next.piece.length > room {
            parts.push_back(next.cut(room));
            break;
        }
        room -= next.piece.length;
        parts.extend(waiting.pop_front());
    }
    parts
}
