//! Where a path leads.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::{Error, is_one_of};

/// More links than the kernel follows.
const N_LINKS_MAX: usize = 40;

/// Where something is written to.
#[derive(Debug)]
pub enum Place {
    /// A regular file, which need not be there yet, behind all links: to be
    /// written beside it and moved there.
    File(PathBuf),
    /// A pipe, a device, or another open file of the process (`/dev/stdout`): to
    /// be written to as it is, from the first byte to the last.
    Stream(File),
}

impl Place {
    /// Finds out what is at `path`. A pipe is waited for until somebody reads it.
    ///
    /// # Errors
    ///
    /// [`Error::Folder`]; [`Error::Input`] for one of `inputs`, not all of which
    /// must be there; [`Error::Io`] for what may not be written.
    pub fn of(path: &Path, inputs: &[PathBuf]) -> Result<Self, Error> {
        let failed = || Error::io(path);
        if path.is_dir() || path.file_name().is_none() {
            return Err(Error::Folder(path.into()));
        }
        let (end, is_of_process) = follow(path).map_err(failed())?;
        let is_there = match path.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                folder_of(&end).metadata().map_err(failed())?;
                false
            }
            metadata => {
                let metadata = metadata.map_err(failed())?;
                if is_one_of(path, inputs) {
                    return Err(Error::Input(path.into()));
                }
                if is_of_process || !metadata.is_file() {
                    // Who redirects to the end of a file means that.
                    let stream = File::options().append(true).open(path);
                    return Ok(Self::Stream(stream.map_err(failed())?));
                }
                true
            }
        };
        if is_there {
            // A file that may not be written to is not replaced either.
            File::options().write(true).open(&end).map_err(failed())?;
        }
        Ok(Self::File(end))
    }
}

/// Where links lead in the end, and whether one of them stands for an open file
/// of a process, whose name may be anybody's by now.
fn follow(path: &Path) -> io::Result<(PathBuf, bool)> {
    let mut path = path.to_owned();
    for _ in 0..N_LINKS_MAX {
        let Ok(target) = fs::read_link(&path) else { return Ok((path, false)) };
        let folder = folder_of(&path);
        if folder.canonicalize()?.starts_with("/proc") {
            return Ok((path, true));
        }
        path = folder.join(target);
    }
    Err(io::Error::other("too many links"))
}

/// The folder that a file lies in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
