//! Calls into a guest, within its limits.

use std::sync::atomic::Ordering;
use std::time::Instant;

use moewe_memory::catch_faults;
use wasmtime::{Store, StoreContextMut, Trap, UpdateDeadline};

use super::limits::Interrupt;
use super::state::State;
use crate::error::{Error, ErrorKind, Result};

/// The most bytes that the arguments or the results of one call may take in
/// the host's memory.
pub(super) const CALL_BYTES_MAX: usize = 128 << 20;

/// A store in which limits and interrupts work.
pub(super) fn new_store(engine: &wasmtime::Engine, state: State) -> Store<State> {
    let mut store = Store::new(engine, state);
    store.limiter(|state| &mut state.limiter);
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
pub(super) fn call<T>(
    store: &mut Store<State>,
    f: impl FnOnce(&mut Store<State>) -> wasmtime::Result<T>,
) -> Result<T> {
    let state = store.data_mut();
    state.limiter.refused = None;
    state.n_stop_asked = 0;
    state.deadline = state.time_max.and_then(|time| Instant::now().checked_add(time));
    store.set_epoch_deadline(1);
    // A call that is shorter than a tick would not notice.
    let result = if store.data().team.cancelled.load(Ordering::Relaxed) {
        Err(Interrupt::Cancelled.into())
    } else {
        let region = store.data().region.clone();
        catch_faults(region.as_deref(), || f(store))
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
            let seconds = state.time_max.unwrap_or_default().as_secs_f64();
            let message = format!("the call took longer than its limit of {seconds} s");
            return new(ErrorKind::TimeLimit, message);
        }
        Some(Interrupt::WeightsLost) => return state.weights.lost(),
        None => {}
    }
    let name = state.weights.files.name();
    // The frames of the guest help those who look for the bug alone.
    let frames = std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0");
    let cause = if frames { format!("{error:#}") } else { error.root_cause().to_string() };
    match error.downcast_ref::<Trap>() {
        Some(Trap::UnreachableCodeReached) | None if state.limiter.refused.is_some() => {
            let guests_max = state.limiter.bytes_max.saturating_mul(state.team.size() as u64);
            let sandbox_max = state.team.memory_bytes_max(state.limiter.memory_max);
            let sandbox_max = sandbox_max.min(guests_max);
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
