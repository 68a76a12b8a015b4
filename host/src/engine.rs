//! The engine that an embedder makes.

use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, ErrorKind, Result};
use crate::guest::Guest;
use crate::sandbox::Program;

/// How guests are compiled.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct EngineOptions {
    /// Whether loads of a guest with 64-bit addresses stay in its memory even where the
    /// processor only guesses that they will be made
    /// ([Spectre](https://spectreattack.com/spectre.pdf)); true by default.
    ///
    /// Every address is checked in any case. Without this, a guest that somebody took over
    /// might learn what else lies in this process from how long its own loads take: its
    /// threads share memory, in which one can count for the others. With it, raw weights
    /// are multiplied with a vector at 0.5 to 0.7 of the speed, packed ones at 0.75 to 0.9.
    /// Leave it on where sandboxes of different owners share a process, or where the process
    /// has secrets that whoever made the model must not learn.
    ///
    /// Loads of guests with 32-bit addresses reach nothing else, whatever is guessed.
    pub spectre_guard: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { spectre_guard: true }
    }
}

/// The engine: the compiled guests. Make one, and clone it as you like.
///
/// What was compiled is kept in the user's cache folder, or in the folder that
/// the environment variable `MOEWE_CACHE` names, so that a later start takes
/// milliseconds. Without such a folder, or if others can write to it, all works
/// the same, but every start compiles: for some seconds, with up to 80 MB of
/// memory, which are given back. The guest with 64-bit addresses is compiled when
/// a model needs it.
#[derive(Clone)]
pub struct Engine {
    options: EngineOptions,
    narrow: Arc<Program>,
    /// The guest with 64-bit addresses, once somebody wanted it.
    wide: Arc<Mutex<Option<Arc<Program>>>>,
}

impl Engine {
    /// Compiles the guest, or takes it from the cache.
    ///
    /// # Errors
    ///
    /// `Internal` if this platform cannot run the guest.
    pub fn new() -> Result<Self> {
        Self::with(EngineOptions::default())
    }

    /// The same with options.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub fn with(options: EngineOptions) -> Result<Self> {
        let narrow = Arc::new(Program::narrow().map_err(cannot_start)?);
        Ok(Self { options, narrow, wide: Arc::default() })
    }

    /// The program of a guest.
    pub(crate) fn program(&self, guest: Guest) -> Result<Arc<Program>> {
        if guest == Guest::Bits32 {
            return Ok(self.narrow.clone());
        }
        let mut wide = self.wide.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(program) = &*wide {
            return Ok(program.clone());
        }
        let program = Program::wide(self.options.spectre_guard, self.narrow.clone());
        let program = program.map_err(cannot_start)?.ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                "this build has no guest with 64-bit addresses; use the one with 32-bit \
                 addresses (`--guest 32`)",
            )
        })?;
        Ok(wide.insert(Arc::new(program)).clone())
    }
}

fn cannot_start(error: wasmtime::Error) -> Error {
    Error::new(ErrorKind::Internal, format!("the engine cannot start here: {error:#}"))
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("options", &self.options).finish_non_exhaustive()
    }
}
