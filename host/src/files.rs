//! The files of a model.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use moewe_gguf::{N_SPLIT_MAX, SplitNames};

use crate::error::{Error, ErrorKind};

/// The most bytes that one `read` returns.
const READ_BYTES_MAX: u32 = 1 << 20;
/// The most bytes that one `prefetch` asks for.
const PREFETCH_BYTES_MAX: u64 = 64 << 20;

/// Why a guest cannot have weights, with a sentence that names them and the way out.
#[derive(Debug)]
pub(crate) struct WeightError {
    pub(crate) kind: WeightErrorKind,
    pub(crate) message: String,
}

/// What kind of error it is, for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WeightErrorKind {
    /// There is no such file, or the guest may not have it.
    NotFound,
    /// The file is there, and may not be opened.
    NotPermitted,
    /// What the guest asks for does not exist.
    InvalidRange,
    /// It cannot be mapped; it can be read.
    Unsupported,
    /// It can be mapped when others are given back.
    TooManyWindows,
    /// The file is not what it was any more.
    Changed,
    /// The bytes could not be delivered.
    Io,
    /// There is no memory for it.
    OutOfMemory,
}

impl WeightError {
    pub(crate) fn new(kind: WeightErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

impl From<WeightError> for Error {
    fn from(error: WeightError) -> Self {
        Self::new(ErrorKind::Weights, error.message)
    }
}

/// The files of one model, each opened once.
pub(crate) struct WeightFiles {
    folder: PathBuf,
    name: String,
    opened: Mutex<BTreeMap<String, Arc<WeightFile>>>,
    /// The bytes of all of them, once somebody asked.
    bytes: OnceLock<u64>,
}

impl WeightFiles {
    /// The files of the model with this (first) one, which must exist.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let file = WeightFile::open(path)?;
        let name = path.file_name().and_then(|n| n.to_str()).ok_or_else(|| {
            let shown = path.display();
            let message = format!("{shown}: the file's name is not UTF-8 text; rename it");
            Error::new(ErrorKind::Weights, message)
        })?;
        Ok(Self {
            folder: path.parent().unwrap_or(Path::new("")).to_owned(),
            name: name.to_owned(),
            opened: Mutex::new(BTreeMap::from([(name.to_owned(), Arc::new(file))])),
            bytes: OnceLock::new(),
        })
    }

    /// The name of the (first) file.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Where it lies.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.join(&self.name)
    }

    /// The file of this name, if it is one of the model's.
    pub(crate) fn get(&self, name: &str) -> Result<Arc<WeightFile>, WeightError> {
        if name != self.name && !is_sibling(&self.name, name) {
            let message = format!("{name}: does not belong to the model {}", self.name);
            return Err(WeightError::new(WeightErrorKind::NotFound, message));
        }
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = opened.get(name) {
            file.check_unchanged()?;
            return Ok(file.clone());
        }
        let file = Arc::new(WeightFile::open(&self.folder.join(name))?);
        opened.insert(name.to_owned(), file.clone());
        Ok(file)
    }

    /// The bytes of all of them that are there, of as many as a model may have.
    pub(crate) fn bytes(&self) -> u64 {
        *self.bytes.get_or_init(|| {
            let names = SplitNames::of(&self.name)
                .map(|(names, _)| names.iter().take(N_SPLIT_MAX as usize).collect());
            let names = names.unwrap_or_else(|| vec![self.name.clone()]);
            let sizes = names.iter().filter_map(|name| Some(self.get(name).ok()?.size()));
            sizes.fold(0, u64::saturating_add)
        })
    }

    /// Fails if one of those that are open has been written to since it was opened.
    pub(crate) fn check_unchanged(&self) -> Result<(), WeightError> {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.values().try_for_each(|file| file.check_unchanged())
    }
}

/// Whether both names are of one split model: `NAME-0000I-of-0000N.gguf`.
fn is_sibling(name: &str, other: &str) -> bool {
    let names = |name| SplitNames::of(name).map(|(names, _)| names);
    names(name).is_some_and(|own| names(other) == Some(own))
}

/// One file of a model, open for reading.
#[derive(Debug)]
pub(crate) struct WeightFile {
    file: File,
    path: PathBuf,
    size: u64,
    modified: Option<SystemTime>,
}

impl WeightFile {
    fn open(path: &Path) -> Result<Self, WeightError> {
        use WeightErrorKind::{Io, NotFound, NotPermitted};
        let error = |kind, message| WeightError::new(kind, message);
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
    #[cfg_attr(not(target_os = "linux"), expect(dead_code))]
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The open file.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    fn io_error(&self, e: &io::Error) -> WeightError {
        self.error(WeightErrorKind::Io, format_args!("cannot be read: {e}"))
    }

    /// An error that names the file.
    pub(crate) fn error(&self, kind: WeightErrorKind, what: impl Display) -> WeightError {
        WeightError::new(kind, format!("{}: {what}", self.path.display()))
    }

    /// Fails if the file was written to since it was opened. Times of files are as
    /// exact as the kernel's clock for them: what happens within one of its ticks,
    /// usually 4 ms, may look alike.
    pub(crate) fn check_unchanged(&self) -> Result<(), WeightError> {
        let now = self.file.metadata().map_err(|e| self.io_error(&e))?;
        let same = |m: &Metadata| m.len() == self.size && m.modified().ok() == self.modified;
        if same(&now) {
            return Ok(());
        }
        Err(self.error(
            WeightErrorKind::Changed,
            "changed while it was in use; load the model again, with `--weights read` if it is \
             still being written",
        ))
    }

    /// Fails if the range does not lie within the file.
    pub(crate) fn check_range(&self, offset: u64, length: u64) -> Result<(), WeightError> {
        match offset.checked_add(length) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(self.error(
                WeightErrorKind::InvalidRange,
                format!("{length} bytes at {offset} lie outside its {} bytes", self.size),
            )),
        }
    }

    /// Up to `length` bytes from `offset`; at least one if `length` is not 0.
    pub(crate) fn read(&self, offset: u64, length: u32) -> Result<Vec<u8>, WeightError> {
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
