//! The compiled guest, and the clock that can interrupt it.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

use wasmtime::Config;
use wasmtime::component::{HasSelf, Linker};

use crate::bindings;
use crate::compiled;
use crate::error::{Error, ErrorKind, Result};
use crate::memory;
use crate::sandbox::{Rendering, State, prepare_renderer};

/// The guest, as `cargo xtask guest` builds it.
static GUEST: &[u8] = include_bytes!(env!("MOEWE_GUEST_COMPONENT"));

/// How often a running guest looks whether it shall stop.
const TICK: Duration = Duration::from_millis(10);
/// Address space that a memory gets: all that a 32-bit guest can use.
pub(crate) const MEMORY_BYTES_MAX: u64 = 1 << 32;

/// The engine: the compiled guest. Make one, and clone it as you like.
///
/// What was compiled is kept in the user's cache folder, or in the folder that
/// the environment variable `MOEWE_CACHE` names, so that a later start takes
/// milliseconds. Without such a folder, or if others can write to it, all works
/// the same, but every start compiles: for some seconds, with up to 80 MB of
/// memory, which are given back.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    wasmtime: wasmtime::Engine,
    guest: bindings::EnginePre<State>,
    renderer: bindings::EnginePre<Rendering>,
    /// Ends the clock when the last engine goes.
    _clock: Sender<()>,
}

impl Engine {
    /// Compiles the guest, or takes it from the cache.
    ///
    /// # Errors
    ///
    /// `Internal` if this platform cannot run the guest.
    pub fn new() -> Result<Self> {
        Self::start().map_err(|e| {
            Error::new(ErrorKind::Internal, format!("the engine cannot start here: {e:#}"))
        })
    }

    fn start() -> wasmtime::Result<Self> {
        let wasmtime = wasmtime::Engine::new(&config())?;
        let component = compiled::load(&wasmtime, config(), GUEST)?;
        let mut linker = Linker::new(&wasmtime);
        bindings::Engine::add_to_linker::<_, HasSelf<_>>(&mut linker, |state: &mut State| state)?;
        let guest = bindings::EnginePre::new(linker.instantiate_pre(&component)?)?;
        let renderer = prepare_renderer(&wasmtime, &component)?;
        let clock = start_clock(&wasmtime)?;
        Ok(Self { inner: Arc::new(Inner { wasmtime, guest, renderer, _clock: clock }) })
    }

    pub(crate) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.inner.wasmtime
    }

    pub(crate) fn guest(&self) -> &bindings::EnginePre<State> {
        &self.inner.guest
    }

    /// The guest without imports, to render chat templates in.
    pub(crate) fn renderer(&self) -> &bindings::EnginePre<Rendering> {
        &self.inner.renderer
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

/// How guests are compiled and run.
pub(crate) fn config() -> Config {
    let mut config = Config::new();
    config
        .wasm_memory64(true)
        .wasm_relaxed_simd(true)
        .epoch_interruption(true)
        .memory_reservation(MEMORY_BYTES_MAX)
        .memory_may_move(false);
    memory::configure(&mut config);
    config
}

/// Counts the engine's epochs until the sender is dropped.
pub(crate) fn start_clock(engine: &wasmtime::Engine) -> wasmtime::Result<Sender<()>> {
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
