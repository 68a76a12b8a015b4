//! The engine that an embedder makes.

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::sandbox::Program;

/// The engine: the compiled guest. Make one, and clone it as you like.
///
/// What was compiled is kept in the user's cache folder, or in the folder that
/// the environment variable `MOEWE_CACHE` names, so that a later start takes
/// milliseconds. Without such a folder, or if others can write to it, all works
/// the same, but every start compiles: for some seconds, with up to 80 MB of
/// memory, which are given back.
#[derive(Clone)]
pub struct Engine {
    program: Arc<Program>,
}

impl Engine {
    /// Compiles the guest, or takes it from the cache.
    ///
    /// # Errors
    ///
    /// `Internal` if this platform cannot run the guest.
    pub fn new() -> Result<Self> {
        let program = Program::load().map_err(|e| {
            Error::new(ErrorKind::Internal, format!("the engine cannot start here: {e:#}"))
        })?;
        Ok(Self { program: Arc::new(program) })
    }

    pub(crate) fn program(&self) -> &Arc<Program> {
        &self.program
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}
