//! What a guest may use of memory and time, and how its calls end early.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use wasmtime::{ResourceLimiter, Store, StoreContextMut, Trap, UpdateDeadline};

use super::State;
use crate::engine::MEMORY_BYTES_MAX;
use crate::error::{Error, ErrorKind, Result};
use crate::memory;

/// The most entries of a table of functions.
pub(super) const TABLE_LEN_MAX: usize = 1 << 16;
/// The most modules, and tables, that a component is made of.
pub(super) const N_PARTS_MAX: usize = 16;
/// The most bytes that the arguments or the results of one call may take in
/// the host's memory.
pub(super) const CALL_BYTES_MAX: usize = 128 << 20;

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
    /// fails with [`ErrorKind::Stopped`] and changes nothing.
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

impl ResourceLimiter for State {
    fn memory_growing(
        &mut self,
        _current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let desired = desired as u64;
        let allowed = desired <= MEMORY_BYTES_MAX
            && maximum.is_none_or(|maximum| desired <= maximum as u64)
            && self.team.grow(self.rank, desired, self.limits.memory_max);
        self.memory_refused |= !allowed;
        Ok(allowed)
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.memory_refused = true;
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
        1
    }
}

/// A store in which limits and interrupts work.
pub(crate) fn new_store(engine: &wasmtime::Engine, state: State) -> Store<State> {
    let mut store = Store::new(engine, state);
    store.limiter(|state| state);
    store.set_hostcall_fuel(CALL_BYTES_MAX);
    store.epoch_deadline_callback(|store: StoreContextMut<'_, State>| {
        match store.data().interrupt() {
            Some(interrupt) => Err(interrupt.into()),
            None => Ok(UpdateDeadline::Continue(1)),
        }
    });
    store
}

/// Runs one call into the guest, within the limits.
pub(crate) fn call<T>(
    store: &mut Store<State>,
    f: impl FnOnce(&mut Store<State>) -> wasmtime::Result<T>,
) -> Result<T> {
    let state = store.data_mut();
    state.memory_refused = false;
    state.n_stop_asked = 0;
    state.deadline = state.limits.time_max.and_then(|time| Instant::now().checked_add(time));
    store.set_epoch_deadline(1);
    // A call that is shorter than a tick would not notice.
    let result = if store.data().team.cancelled.load(Ordering::Relaxed) {
        Err(Interrupt::Cancelled.into())
    } else {
        let region = store.data().region.clone();
        memory::catch_faults(region.as_deref(), || f(store))
    };
    // Whatever it says, it may have computed it from zeros.
    let result = match store.data().has_lost_weights() {
        true => Err(Interrupt::WeightsLost.into()),
        false => result,
    };
    result.map_err(|e| trap_error(store.data(), &e))
}

/// What an error of a call means.
fn trap_error(state: &State, error: &wasmtime::Error) -> Error {
    let new = |kind, message: String| Error::new(kind, message);
    match error.downcast_ref::<Interrupt>() {
        Some(Interrupt::Cancelled) => return new(ErrorKind::Cancelled, "cancelled".to_owned()),
        Some(Interrupt::TimeLimit) => {
            let seconds = state.limits.time_max.unwrap_or_default().as_secs_f64();
            let message = format!("the call took longer than its limit of {seconds} s");
            return new(ErrorKind::TimeLimit, message);
        }
        Some(Interrupt::WeightsLost) => return state.weights.lost(),
        None => {}
    }
    let name = state.weights.name();
    // The frames of the guest help those who look for the bug alone.
    let frames = std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0");
    let cause = if frames { format!("{error:#}") } else { error.root_cause().to_string() };
    match error.downcast_ref::<Trap>() {
        Some(Trap::UnreachableCodeReached) | None if state.memory_refused => {
            let sandbox_max = state.team.memory_bytes_max(state.limits.memory_max);
            let message = match state.team.store().map(|(store, _)| store.bytes_max()) {
                Some(bytes) if bytes <= sandbox_max => format!(
                    "{name}: needs more than the {bytes} bytes of memory that may be used; allow \
                     more, or use a smaller context"
                ),
                _ => format!(
                    "{name}: needs more memory than the sandbox may have ({} MiB with the \
                     weights); use a smaller context or a smaller model",
                    sandbox_max >> 20
                ),
            };
            new(ErrorKind::OutOfMemory, message)
        }
        Some(_) => {
            let message = format!("{name}: the engine failed, please report it: {cause}");
            new(ErrorKind::Internal, message)
        }
        // What the host refused to the guest, or could not do for it.
        None => new(ErrorKind::Internal, format!("{name}: {cause}")),
    }
}
