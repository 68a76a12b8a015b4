//! The compiled guests, linked to what they import, and the clock that can interrupt them.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

use wasmtime::Config;
use wasmtime::component::{Component, HasSelf, Linker};

use super::bindings::{self, EnginePre};
use super::memory;
use super::render::{self, Rendering};
use super::state::State;
use crate::compiled;

/// The guest with 32-bit addresses, as `cargo xtask guest` builds it.
static NARROW: &[u8] = include_bytes!(env!("MOEWE_GUEST_COMPONENT"));
/// The one with 64-bit addresses.
#[cfg(has_wide_guest)]
static WIDE: Option<&[u8]> = Some(include_bytes!(env!("MOEWE_GUEST_WIDE_COMPONENT")));
#[cfg(not(has_wide_guest))]
static WIDE: Option<&[u8]> = None;

/// How often a running guest looks whether it shall stop.
const TICK: Duration = Duration::from_millis(10);

/// A guest, ready to be instantiated, as long as its clock goes.
pub(crate) struct Program {
    pub(super) guest: EnginePre<State>,
    renderer: Renderer,
    /// Whether its addresses have 64 bits.
    pub(super) is_wide: bool,
    /// Ends the clock when it is dropped.
    _clock: Sender<()>,
}

/// Where chat templates are rendered: in a guest with 32-bit addresses and without imports.
enum Renderer {
    Own(Box<EnginePre<Rendering>>),
    Of(Arc<Program>),
}

impl Program {
    /// Compiles the guest with 32-bit addresses, or takes it from the cache.
    pub(crate) fn narrow() -> wasmtime::Result<Self> {
        let (guest, component, clock) = Self::load(&config(), NARROW)?;
        let renderer = Renderer::Own(Box::new(render::prepare(guest.engine(), &component)?));
        Ok(Self { guest, renderer, is_wide: false, _clock: clock })
    }

    /// The same for the guest with 64-bit addresses, if there is one. `spectre_guard` says
    /// whether a wrong guess of the processor cannot lead its loads out of its memory.
    pub(crate) fn wide(spectre_guard: bool, narrow: Arc<Self>) -> wasmtime::Result<Option<Self>> {
        let Some(wide) = WIDE else { return Ok(None) };
        let (guest, _, clock) = Self::load(&wide_config(spectre_guard), wide)?;
        Ok(Some(Self { guest, renderer: Renderer::Of(narrow), is_wide: true, _clock: clock }))
    }

    /// Whether there is one.
    pub(crate) const fn has_wide() -> bool {
        WIDE.is_some()
    }

    /// The guest without imports, to render chat templates in.
    pub(super) fn renderer(&self) -> &EnginePre<Rendering> {
        match &self.renderer {
            Renderer::Own(renderer) => renderer,
            Renderer::Of(program) => program.renderer(),
        }
    }

    fn load(
        config: &Config,
        guest: &[u8],
    ) -> wasmtime::Result<(EnginePre<State>, Component, Sender<()>)> {
        let engine = wasmtime::Engine::new(config)?;
        let component = compiled::load(&engine, config.clone(), guest)?;
        let mut linker = Linker::new(&engine);
        bindings::Engine::add_to_linker::<_, HasSelf<_>>(&mut linker, |state: &mut State| state)?;
        let guest = EnginePre::new(linker.instantiate_pre(&component)?)?;
        Ok((guest, component, start_clock(&engine)?))
    }
}

/// Cranelift's name for what confines loads whose address is checked explicitly.
const SPECTRE_GUARD: &str = "enable_heap_access_spectre_mitigation";

/// How guests are compiled and run.
pub(super) fn config() -> Config {
    let mut config = Config::new();
    config.wasm_memory64(true).wasm_relaxed_simd(true).epoch_interruption(true);
    memory::configure(&mut config);
    config
}

/// The same for guests with 64-bit addresses.
pub(super) fn wide_config(spectre_guard: bool) -> Config {
    let mut config = config();
    if cfg!(target_os = "linux") {
        // What is reserved for all memories would be taken for the bound of each, less the
        // offset of the load. Where that is less than a memory has at first, the bound is
        // what it has, and one check serves all offsets that the guard covers. What is
        // really reserved says whoever creates it.
        config.memory_reservation(0);
    } else {
        config.memory_may_move(true);
    }
    if !spectre_guard {
        // SAFETY: without it, code still checks each address; only what the processor
        // does before it knows the outcome is not confined.
        unsafe { config.cranelift_flag_set(SPECTRE_GUARD, "false") };
    }
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
