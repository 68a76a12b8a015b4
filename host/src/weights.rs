//! The files of a model, and how a guest may have them.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use crate::bindings::moewe::inference::weights as wit;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{MemoryOptions, ModelStore};

/// The most bytes that one `read` returns.
const READ_BYTES_MAX: u32 = 1 << 20;
/// The most bytes that one `prefetch` asks for.
const PREFETCH_BYTES_MAX: u64 = 64 << 20;

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

/// The files of one model, opened once and shared by all its sessions.
pub(crate) struct WeightStore {
    folder: PathBuf,
    name: String,
    pub(crate) mode: WeightsMode,
    /// What holds the weights within a budget of memory, if there is one.
    pub(crate) store: Option<Arc<ModelStore>>,
    files: Mutex<BTreeMap<String, Arc<WeightFile>>>,
    stats: Mutex<WeightStats>,
}

impl WeightStore {
    /// The store of the model with this (first) file, which must exist.
    pub(crate) fn open(
        path: &Path,
        mode: WeightsMode,
        memory: Option<MemoryOptions>,
    ) -> Result<Self> {
        let weights = |message| Error::new(ErrorKind::Weights, message);
        let shown = path.display();
        let file = WeightFile::open(path).map_err(|e| weights(e.message))?;
        let name = path.file_name().and_then(|n| n.to_str()).ok_or_else(|| {
            weights(format!("{shown}: the file's name is not UTF-8 text; rename it"))
        })?;
        if memory.is_some() && (mode != WeightsMode::Attach || !cfg!(target_os = "linux")) {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "a budget of memory needs weights that are attached, which is possible on Linux; \
                 leave one of the two out",
            ));
        }
        let store = match memory {
            Some(options) => Some(Arc::new(ModelStore::new(name, options)?)),
            None => None,
        };
        Ok(Self {
            folder: path.parent().unwrap_or(Path::new("")).to_owned(),
            name: name.to_owned(),
            mode,
            store,
            files: Mutex::new(BTreeMap::from([(name.to_owned(), Arc::new(file))])),
            stats: Mutex::default(),
        })
    }

    /// The name of the model's (first) file.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The file of this name, if the guest may have it.
    pub(crate) fn file(&self, name: &str) -> Result<Arc<WeightFile>, wit::Error> {
        if name != self.name && !is_sibling(&self.name, name) {
            return Err(error(
                wit::ErrorCode::NotFound,
                format!("{name}: does not belong to the model {}", self.name),
            ));
        }
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = files.get(name) {
            file.check_unchanged()?;
            return Ok(file.clone());
        }
        let file = Arc::new(WeightFile::open(&self.folder.join(name))?);
        files.insert(name.to_owned(), file.clone());
        Ok(file)
    }

    /// Fails if sessions go on using the files when they have been loaded, and one of
    /// these has been written to since it was opened.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        if self.mode == WeightsMode::Read || !cfg!(target_os = "linux") {
            return Ok(());
        }
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let unchanged = files.values().try_for_each(|file| file.check_unchanged());
        unchanged.map_err(|e| Error::new(ErrorKind::Weights, e.message))
    }

    /// What to say when the kernel cannot bring a part of what is mapped any more.
    pub(crate) fn lost(&self) -> Error {
        // If no file is shorter than it was, it is not known here which one it was.
        self.check_unchanged().err().unwrap_or_else(|| {
            let message = format!(
                "{}: a part cannot be read any more; check the disk, and load the model again",
                self.folder.join(&self.name).display()
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

/// Whether both names are of one split model: `NAME-0000I-of-0000N.gguf`.
fn is_sibling(name: &str, other: &str) -> bool {
    fn parts(name: &str) -> Option<(&str, u32, &str)> {
        let (rest, n_split) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (stem, index) = rest.rsplit_once('-')?;
        let digits = |s: &str| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
        (digits(index) && digits(n_split)).then_some((stem, index.parse().ok()?, n_split))
    }
    match (parts(name), parts(other)) {
        (Some((stem, _, n_split)), Some((other_stem, index, other_n_split))) => {
            stem == other_stem
                && n_split == other_n_split
                && index >= 1
                && n_split.parse().is_ok_and(|n: u32| index <= n)
        }
        _ => false,
    }
}

/// One file of a model, open for reading.
#[derive(Debug)]
pub(crate) struct WeightFile {
    file: File,
    path: PathBuf,
    size: u64,
    modified: Option<SystemTime>,
}

/// A guest's handle of a [`WeightFile`].
pub type WeightFileHandle = Arc<WeightFile>;

impl WeightFile {
    fn open(path: &Path) -> Result<Self, wit::Error> {
        use wit::ErrorCode::{Io, NotFound, NotPermitted};
        let shown = path.display();
        let failed = |e: io::Error| match e.kind() {
            io::ErrorKind::NotFound => error(NotFound, format!("{shown}: there is no such file")),
            io::ErrorKind::PermissionDenied => error(
                NotPermitted,
                format!("{shown}: may not be read; check the file's permissions"),
            ),
            _ => error(Io, format!("{shown}: cannot be opened: {e}")),
        };
        // Asked before the file is opened: opening a pipe would wait.
        let metadata = path.metadata().map_err(failed)?;
        if metadata.is_dir() {
            return Err(error(
                NotFound,
                format!("{shown}: is a folder; name the .gguf file in it"),
            ));
        }
        if !metadata.is_file() {
            return Err(error(NotFound, format!("{shown}: is not a regular file")));
        }
        let file = File::open(path).map_err(failed)?;
        // Advice to programs that ask for it before they write; some file
        // systems have no locks, and the file can be read all the same.
        let _ = file.try_lock_shared();
        let metadata = file.metadata().map_err(failed)?;
        Ok(Self {
            file,
            path: path.to_owned(),
            size: metadata.len(),
            modified: metadata.modified().ok(),
        })
    }

    /// The size in bytes, when it was opened.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Where it lies.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The open file.
    #[cfg_attr(not(target_os = "linux"), expect(dead_code))]
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    fn io_error(&self, e: &io::Error) -> wit::Error {
        error(wit::ErrorCode::Io, format!("{}: cannot be read: {e}", self.path.display()))
    }

    /// An error that names the file.
    pub(crate) fn error(&self, code: wit::ErrorCode, what: impl std::fmt::Display) -> wit::Error {
        error(code, format!("{}: {what}", self.path.display()))
    }

    /// Fails if the file was written to since it was opened. Times of files are as
    /// exact as the kernel's clock for them: what happens within one of its ticks,
    /// usually 4 ms, may look alike.
    pub(crate) fn check_unchanged(&self) -> Result<(), wit::Error> {
        let now = self.file.metadata().map_err(|e| self.io_error(&e))?;
        let same = |m: &Metadata| m.len() == self.size && m.modified().ok() == self.modified;
        if same(&now) {
            return Ok(());
        }
        Err(self.error(
            wit::ErrorCode::Changed,
            "changed while it was in use; load the model again, with `--weights read` if it is \
             still being written",
        ))
    }

    /// Fails if the range does not lie within the file.
    pub(crate) fn check_range(&self, offset: u64, length: u64) -> Result<(), wit::Error> {
        match offset.checked_add(length) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(self.error(
                wit::ErrorCode::InvalidRange,
                format!("{length} bytes at {offset} lie outside its {} bytes", self.size),
            )),
        }
    }

    /// Up to `length` bytes from `offset`; at least one if `length` is not 0.
    pub(crate) fn read(&self, offset: u64, length: u32) -> Result<Vec<u8>, wit::Error> {
        self.check_range(offset, length.into())?;
        let mut bytes = vec![0; length.min(READ_BYTES_MAX) as usize];
        let read = loop {
            match read_at(&self.file, &mut bytes, offset) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        // What was read is that of a file that has not changed up to now.
        self.check_unchanged()?;
        let n = read.map_err(|e| self.io_error(&e))?;
        if n == 0 && !bytes.is_empty() {
            return Err(self.io_error(&io::ErrorKind::UnexpectedEof.into()));
        }
        bytes.truncate(n);
        Ok(bytes)
    }

    /// Has the operating system read ahead; answers whether it was asked.
    pub(crate) fn prefetch(&self, offset: u64, length: u64) -> bool {
        // The request itself takes longer the more it asks for.
        let Some(n) = std::num::NonZeroU64::new(length.min(PREFETCH_BYTES_MAX)) else {
            return false;
        };
        self.check_range(offset, length).is_ok() && advise_willneed(&self.file, offset, n)
    }
}

#[cfg(unix)]
fn read_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, out, offset)
}

#[cfg(windows)]
fn read_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, out, offset)
}

#[cfg(target_os = "linux")]
fn advise_willneed(file: &File, offset: u64, length: std::num::NonZeroU64) -> bool {
    rustix::fs::fadvise(file, offset, Some(length), rustix::fs::Advice::WillNeed).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn advise_willneed(_: &File, _: u64, _: std::num::NonZeroU64) -> bool {
    false
}

/// An error for the guest.
pub(crate) fn error(code: wit::ErrorCode, message: String) -> wit::Error {
    wit::Error { code, message }
}
