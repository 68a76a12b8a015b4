//! What the members of a team share: the barrier, the limit on memory, and a
//! region of memory.

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_utils::CachePadded;
use crossbeam_utils::sync::{Parker, Unparker};
use moewe_memory::n_mappings_left;

use super::wait::Spin;
use crate::residency::ExpertStore;
use crate::weights::WeightStats;

/// How often a member that waits looks whether it shall stop.
const TICK: Duration = Duration::from_millis(10);

/// What a guest that renders may have without being counted: what it has before
/// it begins, and an honest template's work. It lives for milliseconds, and what
/// cannot be known beforehand has room for it.
const RENDERING_FREE_BYTES: u64 = 8 << 20;

/// Mappings that a member may have however many teams there are: few, but without any
/// there is no shared region. The regions themselves keep to what is left.
const N_MAPPINGS_MIN: usize = 64;

/// A bit of [`Team::n_told`].
const STOPS: u64 = 1 << 63;

/// Members that compute together.
pub(crate) struct Team {
    size: usize,
    /// The most mappings that a member's windows may take.
    n_mappings_max: usize,
    /// What counts the memory of all teams with the model, and this team's
    /// number there.
    store: Option<(Arc<ExpertStore>, u64)>,
    /// How often members have come to the barrier. Those who wait there look at
    /// it all the time, so what others write lies elsewhere.
    n_come: CachePadded<AtomicU64>,
    /// Whether a member has left the call that is under way, so that it will
    /// not come to the barrier any more.
    left: AtomicBool,
    broken: AtomicBool,
    /// How members wait there: awake, then parked, by rank.
    spin: Spin,
    parkers: Vec<Mutex<Parker>>,
    unparkers: Vec<Unparker>,
    /// How often the member that is ahead was told to go on during this call, and
    /// [`STOPS`] if nobody is told so any more.
    n_told: CachePadded<AtomicU64>,
    /// Ends what all members do, when they ask.
    pub(super) stopped: Arc<AtomicBool>,
    /// The same at once, whether they ask or not.
    pub(super) cancelled: Arc<AtomicBool>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    accounts: Vec<Account>,
    /// Whether each member has addresses for the files as a whole.
    whole_files: bool,
    /// The region that all map, and its size.
    shared: Option<(Arc<File>, u64)>,
    /// Memory of the guest that renders a chat template for the team.
    rendering: u64,
    stats: WeightStats,
}

/// What a member has, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Account {
    /// Its memory, windows included.
    pub memory: u64,
    /// The files that it opened.
    pub files: u64,
    /// Windows on files and on the shared region.
    pub attached: u64,
    pub n_windows: u64,
}

/// Another member has left: the computation is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Broken;

/// Why there is no shared region for a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotShared {
    /// The members want regions of different lengths.
    Length,
    TooLarge,
    Unsupported,
}

impl Team {
    pub fn new(size: usize, store: Option<Arc<ExpertStore>>) -> Self {
        let store = store.map(|store| {
            let team = store.add_team(size);
            (store, team)
        });
        let parkers: Vec<_> = (0..size).map(|_| Parker::new()).collect();
        Self {
            size,
            n_mappings_max: (n_mappings_left() / 2 / size.max(1)).max(N_MAPPINGS_MIN),
            store,
            n_come: AtomicU64::new(0).into(),
            left: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            spin: Spin::new(size),
            unparkers: parkers.iter().map(|parker| parker.unparker().clone()).collect(),
            parkers: parkers.into_iter().map(Mutex::new).collect(),
            n_told: AtomicU64::new(0).into(),
            stopped: Arc::default(),
            cancelled: Arc::default(),
            inner: Mutex::new(Inner {
                accounts: vec![Account::default(); size],
                whole_files: false,
                shared: None,
                rendering: 0,
                stats: WeightStats::default(),
            }),
        }
    }

    /// The same of members that map files as a whole.
    pub fn with_whole_files(mut self, whole_files: bool) -> Self {
        self.inner.get_mut().unwrap_or_else(PoisonError::into_inner).whole_files = whole_files;
        self
    }

    pub fn size(&self) -> usize {
        self.size
    }

    /// The most mappings that a member's windows may take: its share of half of what
    /// there was for windows when the team began, so that something is left for those who
    /// come later, and some in any case.
    pub fn n_mappings_max(&self) -> usize {
        self.n_mappings_max
    }

    /// The most windows that a member may have, if they lie side by side: the rest of its
    /// mappings is for room between them.
    pub fn n_windows_max(&self) -> usize {
        self.n_mappings_max - self.n_mappings_max / 8
    }

    /// Begins a call of all members, or of one of them alone. No member is in
    /// a call.
    pub fn begin(&self, alone: bool) {
        self.left.store(alone && self.size > 1, Ordering::SeqCst);
        self.n_told.store(0, Ordering::SeqCst);
    }

    /// Whether a member shall end its call early that has asked `n_before` times during
    /// it. Who asks first decides for all who ask as often: they stop at the same place,
    /// or else none of them.
    pub fn is_stopped(&self, n_before: u64) -> bool {
        let mut told = self.n_told.load(Ordering::SeqCst);
        loop {
            if n_before < told & !STOPS {
                return false;
            }
            if told & STOPS != 0 {
                return true;
            }
            let stops = self.stopped.load(Ordering::SeqCst);
            let decided = if stops { told | STOPS } else { n_before + 1 };
            let decided =
                self.n_told.compare_exchange(told, decided, Ordering::SeqCst, Ordering::SeqCst);
            match decided {
                Ok(_) => return stops,
                Err(other) => told = other,
            }
        }
    }

    /// A member's call has ended: nobody can wait for it any more.
    pub fn leave(&self) {
        self.left.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Whether a member waited in vain; it cannot be repaired.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::SeqCst)
    }

    /// Waits until all members have called this as often as this one, or one
    /// of them has left, or `interrupted` answers.
    pub fn barrier<E>(
        &self,
        rank: usize,
        interrupted: impl Fn() -> Option<E>,
    ) -> Result<Result<(), Broken>, E> {
        if self.is_broken() {
            return Ok(Err(Broken));
        }
        let n_come = self.n_come.fetch_add(1, Ordering::SeqCst) + 1;
        let n_all = n_come.next_multiple_of(self.size as u64);
        if n_come == n_all {
            self.wake();
            return Ok(Ok(()));
        }
        let ready = || {
            // A member may leave as soon as all have met.
            let left = self.left.load(Ordering::SeqCst) || self.is_broken();
            if self.n_come.load(Ordering::SeqCst) >= n_all {
                Some(Ok(Ok(())))
            } else if left {
                self.broken.store(true, Ordering::SeqCst);
                Some(Ok(Err(Broken)))
            } else {
                let interrupt = interrupted()?;
                self.broken.store(true, Ordering::SeqCst);
                Some(Err(interrupt))
            }
        };
        if let Some(answer) = self.spin.until(ready) {
            return answer;
        }
        let parker = self.parkers[rank].lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(answer) = ready() {
                return answer;
            }
            parker.park_timeout(TICK);
        }
    }

    /// Has all who wait look again. Who is awake looks once more before it sleeps.
    fn wake(&self) {
        self.unparkers.iter().for_each(Unparker::unpark);
    }

    /// The most bytes that all members together may have, if they may have
    /// `memory_max` beside the weights. Weights count as much as is attached,
    /// and as the files at least, but no more than the files for each member. Where
    /// members map files as a whole, they count for each of them, and up to twice: the
    /// slots of a store have as many bytes again. A window has a page on both sides.
    pub fn memory_bytes_max(&self, memory_max: u64) -> u64 {
        self.lock().memory_bytes_max(memory_max)
    }

    /// Lets a member have so many bytes of memory more if that is within the limit.
    pub fn grow(&self, rank: usize, more: u64, memory_max: u64) -> bool {
        let mut inner = self.lock();
        let old = inner.accounts[rank].memory;
        let bytes = old.saturating_add(more);
        inner.accounts[rank].memory = bytes;
        let allowed = bytes <= inner.memory_bytes_left(rank, memory_max) && self.charge(&inner);
        if !allowed {
            inner.accounts[rank].memory = old;
        }
        allowed
    }

    /// Takes back so many bytes that were granted to a member, or to the guest that renders,
    /// and that the system did not have.
    pub fn shrink(&self, rank: Option<usize>, less: u64) {
        let mut inner = self.lock();
        let bytes = match rank {
            Some(rank) => &mut inner.accounts[rank].memory,
            None => &mut inner.rendering,
        };
        *bytes = bytes.saturating_sub(less);
        self.charge(&inner);
    }

    /// Lets the guest that renders for the team have a memory of `bytes` if that
    /// is within the limit.
    pub fn render(&self, bytes: u64, memory_max: u64) -> bool {
        let mut inner = self.lock();
        let members = inner.accounts.iter().map(|a| a.memory).fold(0, u64::saturating_add);
        let old = std::mem::replace(&mut inner.rendering, bytes);
        let allowed = members.saturating_add(bytes) <= inner.memory_bytes_max(memory_max)
            && self.charge(&inner);
        if !allowed {
            inner.rendering = old;
        }
        allowed
    }

    /// Tells the store what the team has; false if that is too much.
    fn charge(&self, inner: &Inner) -> bool {
        match &self.store {
            Some((store, team)) => store.charge(*team, inner.private()),
            None => true,
        }
    }

    /// The store of experts, if there is one, and the team's number there.
    pub fn store(&self) -> Option<(&Arc<ExpertStore>, u64)> {
        self.store.as_ref().map(|(store, team)| (store, *team))
    }

    /// What all members will have when they are as far as this one.
    pub fn memory_expected(&self, rank: usize) -> u64 {
        let inner = self.lock();
        let own = inner.accounts[rank].memory.saturating_sub(inner.accounts[rank].attached);
        let shared = inner.shared.as_ref().map_or(0, |(_, size)| *size);
        shared.saturating_add(own.saturating_mul(self.size as u64))
    }

    /// No member is in a call: what is still demanded of the store serves nobody.
    pub fn give_up(&self) {
        if let Some((store, team)) = &self.store {
            store.give_up(*team);
        }
    }

    /// Changes what a member is known to have.
    pub fn account(&self, rank: usize, change: impl FnOnce(&mut Account)) {
        let mut inner = self.lock();
        change(&mut inner.accounts[rank]);
        // Less than before, or a window in place of memory.
        self.charge(&inner);
    }

    /// The shared region, which the first to ask creates.
    pub fn share(&self, rank: usize, length: u64, memory_max: u64) -> Result<Arc<File>, NotShared> {
        let mut inner = self.lock();
        if inner.shared.is_none() {
            // The guest can map something else over it, and fill both.
            let all = inner.accounts[rank].memory.saturating_add(length);
            if all > inner.memory_bytes_left(rank, memory_max) {
                return Err(NotShared::TooLarge);
            }
            let file = moewe_memory::shared_memory("moewe-team", length)
                .map_err(|_| NotShared::Unsupported)?;
            inner.shared = Some((Arc::new(file), length));
            if !self.charge(&inner) {
                inner.shared = None;
                return Err(NotShared::TooLarge);
            }
        }
        match &inner.shared {
            Some((file, size)) if *size == length => Ok(file.clone()),
            _ => Err(NotShared::Length),
        }
    }

    pub fn count(&self, add: impl FnOnce(&mut WeightStats)) {
        add(&mut self.lock().stats);
    }

    pub fn stats(&self) -> WeightStats {
        self.lock().stats
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        if let Some((store, team)) = &self.store {
            store.remove_team(*team);
        }
    }
}

impl Inner {
    /// Memory of all members that is no window, the shared region, and what
    /// renders.
    fn private(&self) -> u64 {
        let own = self.accounts.iter().map(|a| a.memory.saturating_sub(a.attached));
        let shared = self.shared.as_ref().map_or(0, |(_, size)| *size);
        let rendering = self.rendering.saturating_sub(RENDERING_FREE_BYTES);
        own.fold(shared.saturating_add(rendering), u64::saturating_add)
    }

    fn memory_bytes_max(&self, memory_max: u64) -> u64 {
        let files = self.accounts.iter().map(|a| a.files).max().unwrap_or(0);
        let (least, most) = match self.whole_files {
            true => (files, files.saturating_mul(2)),
            false => (0, files),
        };
        let attached = self.accounts.iter().map(|a| a.attached.clamp(least, most));
        let attached = attached.fold(0, u64::saturating_add);
        let n_windows: u64 = self.accounts.iter().map(|a| a.n_windows).sum();
        let shared = self.shared.as_ref().map_or(0, |(_, size)| *size);
        (memory_max.saturating_sub(shared))
            .saturating_add(files.max(attached))
            .saturating_add(2 * n_windows * moewe_memory::page_size())
    }

    /// How much of that one member may have, as the others have the rest.
    fn memory_bytes_left(&self, rank: usize, memory_max: u64) -> u64 {
        let others = self.accounts.iter().enumerate().filter(|(other, _)| *other != rank);
        let others = others.map(|(_, a)| a.memory).fold(0, u64::saturating_add);
        self.memory_bytes_max(memory_max).saturating_sub(others)
    }
}
