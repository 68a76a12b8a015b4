//! Rendering a chat template: in a guest without a model, which is thrown away
//! afterwards, whatever the template has done to it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use wasmtime::component::{Component, Linker};
use wasmtime::{Store, StoreContextMut, Trap, UpdateDeadline};

use super::bindings::EnginePre;
use super::bindings::exports::moewe::inference::inference as wit;
use super::limits::{Interrupt, Limiter, Limits, Refused};
use super::team::Team;
use crate::error::{Error, ErrorKind, Result};

/// The longest time for a conversation.
const TIME_MAX: Duration = Duration::from_secs(2);
/// The most memory for it.
const RENDERING_BYTES_MAX: u64 = 64 << 20;
/// The most bytes of text that cross to the guest or back.
const CONVERSATION_BYTES_MAX: usize = 64 << 20;

/// What to do instead of using the template.
const WAY_OUT: &str = "write the prompt in the model's format yourself, and tokenize it with \
                       parse-special";

/// The data of a renderer's store.
pub(crate) struct Rendering {
    limiter: Limiter,
    deadline: Instant,
}

/// The guest with imports that end it.
pub(super) fn prepare(
    wasmtime: &wasmtime::Engine,
    component: &Component,
) -> wasmtime::Result<EnginePre<Rendering>> {
    let mut linker = Linker::new(wasmtime);
    linker.define_unknown_imports_as_traps(component)?;
    EnginePre::new(linker.instantiate_pre(component)?)
}

/// Renders a conversation on behalf of a team, none of whose members is in a call.
pub(super) fn render(
    renderer: &EnginePre<Rendering>,
    team: &Arc<Team>,
    limits: Limits,
    conversation: &wit::Conversation,
) -> Result<Vec<u8>> {
    let _given_back = GivenBack(team);
    let time_max = limits.time_max.map_or(TIME_MAX, |time| time.min(TIME_MAX));
    let limiter = Limiter {
        team: team.clone(),
        rank: None,
        bytes_max: RENDERING_BYTES_MAX,
        memory_max: limits.memory_max,
        granted: 0,
        refused: None,
    };
    let state = Rendering { limiter, deadline: Instant::now() + time_max };
    let mut store = Store::new(renderer.engine(), state);
    store.limiter(|state| &mut state.limiter);
    store.set_hostcall_fuel(CONVERSATION_BYTES_MAX);
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(|store: StoreContextMut<'_, Rendering>| {
        let state = store.data();
        if state.limiter.team.cancelled.load(Ordering::Relaxed) {
            Err(Interrupt::Cancelled.into())
        } else if Instant::now() >= state.deadline {
            Err(Interrupt::TimeLimit.into())
        } else {
            Ok(UpdateDeadline::Continue(1))
        }
    });
    let rendered = renderer
        .instantiate(&mut store)
        .and_then(|guest| guest.moewe_inference_inference().call_render(&mut store, conversation));
    match rendered {
        Ok(text) => Ok(text?),
        Err(error) => Err(explain(&error, store.data().limiter.refused.as_ref(), time_max)),
    }
}

/// The renderer's memory, when it is gone.
struct GivenBack<'a>(&'a Team);

impl Drop for GivenBack<'_> {
    fn drop(&mut self) {
        self.0.render(0, u64::MAX);
    }
}

fn explain(error: &wasmtime::Error, refused: Option<&Refused>, time_max: Duration) -> Error {
    let what = match (error.downcast_ref::<Interrupt>(), error.downcast_ref::<Trap>(), refused) {
        (Some(Interrupt::Cancelled), ..) => return Error::new(ErrorKind::Cancelled, "cancelled"),
        (Some(Interrupt::TimeLimit), ..) => {
            format!("takes longer than {} s", time_max.as_secs_f64())
        }
        (_, Some(Trap::StackOverflow | Trap::MemoryOutOfBounds), _) => "nests too deep".to_owned(),
        (.., Some(Refused::TooLarge)) => {
            format!("takes more memory than it may, {} MiB at most", RENDERING_BYTES_MAX >> 20)
        }
        (.., Some(Refused::NoRoom)) => {
            "takes more memory than is left of what may be used; allow more".to_owned()
        }
        (.., Some(Refused::System(error))) => format!("finds no memory ({error})"),
        // A size that no memory has.
        (_, Some(Trap::UnreachableCodeReached), None) => "asks for too much".to_owned(),
        _ => format!("cannot be rendered ({})", error.root_cause()),
    };
    Error::new(ErrorKind::Unsupported, format!("the model's chat template {what}; {WAY_OUT}"))
}
