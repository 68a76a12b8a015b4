//! The weights of a model: where they come from, and how a guest may have them.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, ErrorKind, Result};
use crate::files::WeightFiles;
use crate::residency::{ExpertStore, MemoryOptions};

/// How the weights reach the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum WeightsMode {
    /// The files are mapped into the guest's memory: nothing is copied, and all
    /// sessions share one copy in the page cache. A file that another program
    /// changes or cuts short meanwhile, or that cannot be read any more, ends the
    /// sessions that use it, with an error.
    ///
    /// Where the platform cannot map, this is [`Read`](Self::Read).
    #[default]
    Attach,
    /// The bytes are copied into every session's memory: slower to start,
    /// and proof against files that change while they are in use.
    Read,
}

/// What a guest asked of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct WeightStats {
    /// Bytes copied into guests.
    pub bytes_read: u64,
    /// How often bytes were copied.
    pub n_read: u64,
    /// Bytes mapped into guests.
    pub bytes_attached: u64,
    /// How often a window was mapped.
    pub n_attach: u64,
    /// How often a window was given back.
    pub n_detach: u64,
    /// Bytes that were asked for ahead of use.
    pub bytes_prefetched: u64,
}

/// The weights of one model, shared by all its sessions.
pub(crate) struct Weights {
    pub(crate) files: WeightFiles,
    pub(crate) mode: WeightsMode,
    /// What holds the weights within a budget of memory, if there is one.
    pub(crate) store: Option<Arc<ExpertStore>>,
    stats: Mutex<WeightStats>,
}

impl Weights {
    /// The weights of the model with this (first) file, which must exist.
    pub(crate) fn open(path: &Path, mode: WeightsMode) -> Result<Self> {
        let files = WeightFiles::open(path)?;
        Ok(Self { files, mode, store: None, stats: Mutex::default() })
    }

    /// Has them stay within a budget. What the process has now is part of it.
    pub(crate) fn limit(&mut self, options: MemoryOptions) -> Result<()> {
        if self.mode != WeightsMode::Attach || !cfg!(target_os = "linux") {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "a budget of memory needs weights that are attached, which is possible on Linux; \
                 leave one of the two out",
            ));
        }
        self.store = Some(Arc::new(ExpertStore::new(self.files.name(), options)?));
        Ok(())
    }

    /// Fails if sessions go on using the files when they have been loaded, and one of
    /// these has been written to since it was opened.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        if self.mode == WeightsMode::Read || !cfg!(target_os = "linux") {
            return Ok(());
        }
        Ok(self.files.check_unchanged()?)
    }

    /// What to say when the kernel cannot bring a part of what is mapped any more.
    pub(crate) fn lost(&self) -> Error {
        // If no file is shorter than it was, it is not known here which one it was.
        self.check_unchanged().err().unwrap_or_else(|| {
            let message = format!(
                "{}: a part cannot be read any more; check the disk, and load the model again",
                self.files.path().display()
            );
            Error::new(ErrorKind::Weights, message)
        })
    }

    /// What all guests together asked for.
    pub(crate) fn stats(&self) -> WeightStats {
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts something.
    pub(crate) fn count(&self, add: impl FnOnce(&mut WeightStats)) {
        add(&mut self.stats.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
