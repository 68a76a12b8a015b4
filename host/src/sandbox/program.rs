//! The compiled guest, linked to what it imports, and the clock that can interrupt it.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

use wasmtime::Config;
use wasmtime::component::{HasSelf, Linker};

use super::bindings::{self, EnginePre};
use super::memory;
use super::render::{self, Rendering};
use super::state::State;
use crate::compiled;

/// The guest, as `cargo xtask guest` builds it.
static GUEST: &[u8] = include_bytes!(env!("MOEWE_GUEST_COMPONENT"));

/// How often a running guest looks whether it shall stop.
const TICK: Duration = Duration::from_millis(10);

/// The guest, ready to be instantiated, as long as its clock goes.
pub(crate) struct Program {
    pub(super) guest: EnginePre<State>,
    /// The guest without imports, to render chat templates in.
    pub(super) renderer: EnginePre<Rendering>,
    /// Ends the clock when it is dropped.
    _clock: Sender<()>,
}

impl Program {
    /// Compiles the guest, or takes it from the cache.
    pub(crate) fn load() -> wasmtime::Result<Self> {
        let engine = wasmtime::Engine::new(&config())?;
        let component = compiled::load(&engine, config(), GUEST)?;
        let mut linker = Linker::new(&engine);
        bindings::Engine::add_to_linker::<_, HasSelf<_>>(&mut linker, |state: &mut State| state)?;
        let guest = EnginePre::new(linker.instantiate_pre(&component)?)?;
        let renderer = render::prepare(&engine, &component)?;
        Ok(Self { guest, renderer, _clock: start_clock(&engine)? })
    }
}

/// How guests are compiled and run.
pub(super) fn config() -> Config {
    let mut config = Config::new();
    config.wasm_memory64(true).wasm_relaxed_simd(true).epoch_interruption(true);
    memory::configure(&mut config);
    config
}

/// Counts the engine's epochs until the sender is dropped.
pub(super) fn start_clock(engine: &wasmtime::Engine) -> wasmtime::Result<Sender<()>> {
    let (alive, engines) = mpsc::channel();
    let engine = engine.weak();
    std::thread::Builder::new().name("moewe-clock".to_owned()).spawn(move || {
        while let Err(RecvTimeoutError::Timeout) = engines.recv_timeout(TICK) {
            let Some(engine) = engine.upgrade() else { break };
            engine.increment_epoch();
        }
    })?;
    Ok(alive)
}
