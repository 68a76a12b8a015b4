//! What a guest may use of memory and time, and how its calls end early.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use wasmtime::ResourceLimiter;

use super::team::Team;

/// The most entries of a table of functions.
const TABLE_LEN_MAX: usize = 1 << 16;
/// The most modules, and tables, that a component is made of.
const N_PARTS_MAX: usize = 16;
/// The most memories: a guest with 64-bit addresses has one with 32-bit addresses, too.
const N_MEMORIES_MAX: usize = 2;

/// What a team of guests may use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes of memory beside the weights, all guests together.
    pub memory_max: u64,
    /// Time that one call may take.
    pub time_max: Option<Duration>,
}

/// Why a running guest was interrupted.
#[derive(Debug, Clone, Copy, thiserror::Error)]
pub(super) enum Interrupt {
    #[error("cancelled")]
    Cancelled,
    #[error("time limit")]
    TimeLimit,
    /// A part of a file that the guest has mapped is not there any more.
    #[error("lost weights")]
    WeightsLost,
}

/// Ends what a session does, from another thread or a signal handler's thread.
#[derive(Debug, Clone)]
pub struct CancelHandle {
    pub(crate) stopped: Arc<AtomicBool>,
    pub(crate) cancelled: Arc<AtomicBool>,
}

impl CancelHandle {
    /// Ends what the session is computing, within the time that a part of a layer
    /// takes; if that is nothing, what it computes next. The session can go on.
    ///
    /// A generation ends with [`StopReason::Cancelled`](crate::StopReason::Cancelled).
    /// With a generation that ends by itself, or is dropped, the wish is gone. A call
    /// outside of a generation, [`Session::feed`](crate::Session::feed) for example,
    /// fails with [`ErrorKind::Stopped`](crate::ErrorKind::Stopped) and changes nothing.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
    }

    /// Forgets that anything was to be stopped.
    pub(crate) fn forget_stop(&self) {
        self.stopped.store(false, Ordering::Relaxed);
    }

    /// Ends the call that is under way, in the midst of it, and the session
    /// with it; later calls fail.
    pub fn cancel(&self) {
        // In this order: a guest that is told to stop must not get away with that.
        self.cancelled.store(true, Ordering::SeqCst);
        self.stop();
    }
}

/// Lets a guest have what is within its limits.
pub(super) struct Limiter {
    pub team: Arc<Team>,
    /// Which member of the team it is; nothing for the guest that renders.
    pub rank: Option<usize>,
    /// Bytes that its memory may have at most, whatever is left.
    pub bytes_max: u64,
    /// See [`Limits`].
    pub memory_max: u64,
    /// What it was granted last.
    pub granted: u64,
    /// That it was refused memory, and why.
    pub refused: Option<Refused>,
}

/// Why a guest got no memory.
pub(super) enum Refused {
    /// No guest gets so much.
    TooLarge,
    /// There is no more of what may be used.
    NoRoom,
    /// The system has none.
    System(wasmtime::Error),
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let bytes = desired as u64;
        let more = bytes.saturating_sub(current as u64);
        self.granted = 0;
        let has_room = || match self.rank {
            Some(rank) => self.team.grow(rank, more, self.memory_max),
            None => self.team.render(bytes, self.memory_max),
        };
        if bytes > self.bytes_max || maximum.is_some_and(|maximum| desired > maximum) {
            self.refused = Some(Refused::TooLarge);
        } else if !has_room() {
            self.refused = Some(Refused::NoRoom);
        } else {
            self.granted = more;
            return Ok(true);
        }
        Ok(false)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        // What else fails does so before it is granted.
        if error.is::<io::Error>() {
            self.team.shrink(self.rank, std::mem::take(&mut self.granted));
        }
        self.refused = Some(Refused::System(error));
        Ok(())
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_LEN_MAX)
    }

    fn instances(&self) -> usize {
        N_PARTS_MAX
    }

    fn tables(&self) -> usize {
        N_PARTS_MAX
    }

    fn memories(&self) -> usize {
        N_MEMORIES_MAX
    }
}
