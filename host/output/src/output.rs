//! An output that is there whole or not at all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::place::folder_of;
use crate::{Error, Place};

/// A file that is being written. A regular one appears, or replaces another, when
/// it is finished; else nothing is left of it.
#[derive(Debug)]
pub struct Output(To);

#[derive(Debug)]
enum To {
    Beside(NamedTempFile, PathBuf),
    Stream(File),
}

impl Output {
    /// Begins to write to `path`.
    ///
    /// # Errors
    ///
    /// Those of [`Place::of`], and of making a file beside the place.
    pub fn create(path: &Path, inputs: &[PathBuf]) -> Result<Self, Error> {
        Self::at(Place::of(path, inputs)?).map_err(Error::io(path))
    }

    /// Begins to write to a place that was found before.
    ///
    /// # Errors
    ///
    /// Those of making a file beside it.
    pub fn at(place: Place) -> io::Result<Self> {
        let place = match place {
            Place::File(place) => place,
            Place::Stream(stream) => return Ok(Self(To::Stream(stream))),
        };
        let mut builder = tempfile::Builder::new();
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = builder.tempfile_in(folder_of(&place))?;
        // Who could not read the old one shall not read the new one.
        if let Ok(old) = fs::metadata(&place) {
            file.as_file().set_permissions(old.permissions())?;
        }
        Ok(Self(To::Beside(file, place)))
    }

    /// Puts what was written into its place.
    ///
    /// # Errors
    ///
    /// Those of the system.
    pub fn finish(self) -> io::Result<()> {
        match self.0 {
            To::Beside(file, place) => {
                file.as_file().sync_all()?;
                file.persist(place)?;
                Ok(())
            }
            To::Stream(_) => Ok(()),
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            To::Beside(file, _) => file.as_file_mut().write(bytes),
            To::Stream(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            To::Beside(file, _) => file.as_file_mut().flush(),
            To::Stream(stream) => stream.flush(),
        }
    }
}
