//! Files of the program's own, under names that somebody else may have taken.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use same_file::{Handle, is_same_file};

/// Opens a file of the program's own to read and write, with what is in it, or
/// makes it. A link in its place is removed, and what it points to left alone; so
/// are pipes and devices.
///
/// # Errors
///
/// Those of the system; there may be a folder.
pub fn open_own(path: &Path) -> io::Result<File> {
    if path.symlink_metadata().is_ok_and(|found| !found.is_file() && !found.is_dir()) {
        fs::remove_file(path)?;
    }
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    // If somebody has made a link there just now, it is an error.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(
        &mut options,
        rustix::fs::OFlags::NOFOLLOW.bits() as i32,
    );
    options.open(path)
}

/// Whether the file at `path` is one of these, by whatever name.
pub fn is_one_of(path: &Path, files: &[PathBuf]) -> bool {
    // Only regular files are opened: opening a pipe would wait.
    path.is_file()
        && files.iter().any(|file| file.is_file() && is_same_file(path, file).unwrap_or(false))
}

/// Whether an open file is still there under this name.
pub fn is_at(file: &File, path: &Path) -> bool {
    let open = file.try_clone().and_then(Handle::from_file);
    matches!((open, Handle::from_path(path)), (Ok(open), Ok(there)) if open == there)
}
