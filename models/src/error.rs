//! What can go wrong, each with the way out.

use std::io;
use std::path::{Path, PathBuf};

/// A [`std::result::Result`] with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong. Each message is one line that names the way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Neither a file nor a known model has this name.
    #[error("no model is called `{name}`: {hint}")]
    UnknownModel {
        /// The name that was asked for.
        name: String,
        /// The nearest name, or all of them.
        hint: String,
    },
    /// The model is known, but its file is not here.
    #[error("{name} has not been fetched: run `moewe pull {name}`")]
    NotPulled {
        /// The recipe's name.
        name: String,
    },
    /// The argument is a path, and there is nothing there.
    #[error("no such file: {}", .0.display())]
    NoSuchFile(PathBuf),
    /// The argument is a folder.
    #[error("{} is a folder: name a .gguf file in it", .0.display())]
    Folder(PathBuf),
    /// A file with a recipe's name is in the models folder, but it is another.
    #[error(
        "{} is not the file of {name} ({reason}): move it away, then run `moewe pull {name}`",
        path.display()
    )]
    Altered {
        /// The recipe's name.
        name: String,
        /// The file.
        path: PathBuf,
        /// What differs.
        reason: String,
    },
    /// The file that shall be removed by a recipe's name is another.
    #[error(
        "{path} is not the file of {name} ({reason}), and stays: `moewe rm {path}` removes it",
        path = path.display()
    )]
    OtherFile {
        /// The recipe's name.
        name: String,
        /// The file.
        path: PathBuf,
        /// What differs.
        reason: String,
    },
    /// There is nothing of a known model to remove.
    #[error("there is nothing of {name} to remove; `moewe list` shows what is here")]
    NothingToRemove {
        /// The recipe's name.
        name: String,
    },
    /// What shall be removed is no model.
    #[error("{} is not a GGUF file, and stays: remove it by other means", .0.display())]
    NotGguf(PathBuf),
    /// A model cannot be read.
    #[error(transparent)]
    Model(#[from] moewe_engine::Error),
    /// A recipe that cannot be used.
    #[error("bad recipe: {0}")]
    BadRecipe(String),
    /// A shape that no model can have.
    #[error("no model can have this shape: {0}")]
    BadShape(String),
    /// The system does not say where a user's data belongs.
    #[error("no home folder: set $MOEWE_MODELS to the folder that models shall live in")]
    NoDataFolder,
    /// The mirror is not a folder, nor an http(s) URL.
    #[error("no mirror at {0}: set $MOEWE_MIRROR to a folder or an http(s) URL, or unset it")]
    NoMirror(String),
    /// One of pip's configuration files cannot be read.
    #[error("{}: {reason}; set $PIP_INDEX_URL to do without it", path.display())]
    PipConfig {
        /// The configuration file.
        path: PathBuf,
        /// What is wrong in it.
        reason: String,
    },
    /// The package index does not have the file.
    #[error(
        "{index} does not have {file}: \
         set $PIP_INDEX_URL to an index that has, such as https://pypi.org/simple"
    )]
    NotInIndex {
        /// The index page that was asked, without credentials.
        index: String,
        /// The file's name.
        file: String,
    },
    /// The server does not have the file (404 or 410).
    #[error("{url} is not there (HTTP {status}): it may have moved, look for a newer moewe")]
    NotFound {
        /// The address, without credentials.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// The server does not give the file to everybody (401 or 403).
    #[error(
        "{url} is not for everybody (HTTP {status}): put a name and a password into the \
         address, or set $MOEWE_MIRROR to another source"
    )]
    Refused {
        /// The address, without credentials.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// The repository does not have the file, or not for everybody.
    #[error(
        "{repository} does not give {file} (HTTP {status}): look for a newer moewe; or \
         fetch what has taken its place by other means, and name its path"
    )]
    NotInRepository {
        /// The repository's address, without credentials.
        repository: String,
        /// The file, with its folder.
        file: String,
        /// The HTTP status.
        status: u16,
    },
    /// Where files of Hugging Face shall come from is no http(s) URL.
    #[error("`{0}` is no http(s) URL: set $HF_ENDPOINT to one, or unset it")]
    NoHub(String),
    /// The server has another file of that name than the recipe promises.
    #[error(
        "{file} at {origin} is another by now ({reason}): look for a newer moewe, or set \
         $MOEWE_MIRROR to a source that has the old one"
    )]
    Changed {
        /// The file's name.
        file: String,
        /// The address, without credentials.
        origin: String,
        /// What differs.
        reason: String,
    },
    /// The server answered with an error, or with something unexpected.
    #[error("{url} answered {what}: try later, or set $MOEWE_MIRROR to another source")]
    Server {
        /// The address, without credentials.
        url: String,
        /// What the server answered.
        what: String,
    },
    /// The server could not be reached.
    #[error("cannot reach {url}: {reason}; check the network, $HTTPS_PROXY and $SSL_CERT_FILE")]
    Network {
        /// The address, without credentials.
        url: String,
        /// What failed.
        reason: String,
    },
    /// The connection broke on the way. What came is kept.
    #[error(
        "{url} broke off after {bytes_done} of {bytes_total} bytes ({reason}): \
         pull again, it goes on from there"
    )]
    Interrupted {
        /// The address, without credentials.
        url: String,
        /// Bytes that are on disk.
        bytes_done: u64,
        /// Bytes of the whole file.
        bytes_total: u64,
        /// What failed.
        reason: String,
    },
    /// What came is not what the recipe promises. It was removed.
    #[error(
        "{file} from {origin} is not what its recipe promises ({reason}) and was removed: \
         pull again, or set $MOEWE_MIRROR or $PIP_INDEX_URL to another source"
    )]
    Mismatch {
        /// The file that was fetched or put together.
        file: String,
        /// Where it came from, without credentials.
        origin: String,
        /// What differs.
        reason: String,
    },
    /// Another program is at it.
    #[error("{} is being written by another program: wait for it", .0.display())]
    Busy(PathBuf),
    /// What was asked for cannot be written to.
    #[error(transparent)]
    Output(#[from] moewe_output::Error),
    /// There is no space left. What came is kept.
    #[error(
        "no space left for {}: free some and pull again, \
         or set $MOEWE_MODELS to a folder on another disk",
        .0.display()
    )]
    DiskFull(PathBuf),
    /// A file or folder cannot be read or written.
    #[error("cannot {action} {}: {reason}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file or folder.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
}

impl From<moewe_gguf::Error> for Error {
    fn from(error: moewe_gguf::Error) -> Self {
        Self::Model(error.into())
    }
}

impl Error {
    /// Turns a failure to `action` the file at `path` into an error.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |reason| match reason.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::DiskFull(path.into())
            }
            _ => Self::Io { action, path: path.into(), reason },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_is_named() {
        let full = Path::new("/dev/full");
        let reason = std::fs::write(full, "x").unwrap_err();
        let error = Error::io("write", full)(reason);
        assert!(matches!(error, Error::DiskFull(_)), "{error}");
    }

    #[test]
    fn a_reason_is_told_once() {
        let error = Error::io("write", Path::new("x"))(io::ErrorKind::ReadOnlyFilesystem.into());
        assert!(std::error::Error::source(&error).is_none());
        assert_eq!(error.to_string(), "cannot write x: read-only filesystem or storage medium");
    }
}
