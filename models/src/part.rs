//! Files that take long to write, and what is left of them.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use moewe_output::{is_at, open_own};

/// A file that is being written beside its place. It is removed unless it is
/// finished; what a killed program left is written over.
pub struct Part {
    pub file: File,
    path: PathBuf,
    place: PathBuf,
    is_finished: bool,
}

impl Part {
    /// Where what gets to `place` is written.
    pub fn path_of(place: &Path) -> PathBuf {
        let mut name = OsString::from(place.file_name().unwrap_or_default());
        name.push(".part");
        place.with_file_name(name)
    }

    /// Begins to write what gets to `place`; `None` if another program does.
    pub fn create(place: &Path) -> io::Result<Option<Self>> {
        let path = Self::path_of(place);
        let Some(file) = open_locked(&path)? else { return Ok(None) };
        file.set_len(0)?;
        // Who could not read the old one shall not read the new one.
        if let Ok(old) = fs::metadata(place) {
            file.set_permissions(old.permissions())?;
        }
        Ok(Some(Self { file, path, place: place.into(), is_finished: false }))
    }

    /// Moves the file to its place.
    pub fn finish(mut self) -> io::Result<()> {
        settle(&self.path, &self.place)?;
        self.is_finished = true;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.is_finished {
            // An error is on its way already.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Opens a file of the program's own, or makes it, and locks it until it is closed;
/// `None` if another program has locked it.
fn open_locked(path: &Path) -> io::Result<Option<File>> {
    loop {
        let file = open_own(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            // Some file systems have no locks.
            Err(TryLockError::Error(_)) => {}
        }
        // Who held the lock until now has moved the file to its place, or
        // removed it.
        if is_at(&file, path) {
            return Ok(Some(file));
        }
    }
}

/// Moves a finished file into place, so that it is there whole or not at all,
/// even after a power cut.
pub fn settle(part: &Path, place: &Path) -> io::Result<()> {
    File::options().write(true).open(part)?.sync_all()?;
    fs::rename(part, place)?;
    if cfg!(unix) {
        let folder = place.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finished_file_is_not_taken_for_one_that_is_being_written() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("model");
        let part = Part::create(&place).unwrap().unwrap();
        // Another program has opened it, and gets the lock when it is finished.
        let other = open_own(&Part::path_of(&place)).unwrap();
        assert!(is_at(&other, &Part::path_of(&place)));
        assert!(Part::create(&place).unwrap().is_none(), "two write one file");
        part.finish().unwrap();
        other.try_lock().unwrap();
        assert!(!is_at(&other, &Part::path_of(&place)));
        // Nor if a third one has begun meanwhile.
        let _third = Part::create(&place).unwrap().unwrap();
        assert!(!is_at(&other, &Part::path_of(&place)));
    }
}
