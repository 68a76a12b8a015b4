//! How a packed copy of a model says which file it was made from.
//!
//! `moewe pack` writes `NAME.packed.gguf` beside `NAME.gguf`. Whoever opens the
//! latter can have the former instead, if it was made from this very file:
//!
//! ```no_run
//! use std::path::Path;
//!
//! let path = moewe_packed::file_to_open(Path::new("model.gguf"));
//! ```
//!
//! The metadata of a packed file begins with four pairs in fixed places: the
//! layout's version, the length and a checksum of the header, and the [`Stamp`].
//! So nothing of the file must be parsed to compare them.

mod fingerprint;
mod paths;
mod stamp;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use fingerprint::Likeness;
use moewe_gguf::{N_SPLIT_MAX, SplitNames};
use paths::beside;

pub use fingerprint::SourceFile;
pub use paths::{all_files, copy_path};
pub use stamp::{
    CHECKSUM_KEY, LENGTH_KEY, SOURCE_KEY, Stamp, VERSION, VERSION_KEY, is_packed, read_header, seal,
};

/// The packed copy beside a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PackedCopy {
    /// There is none.
    Absent,
    /// There is a file, which must not be used.
    Stale(PathBuf, Mismatch),
    /// This file was made from the model.
    Current(PathBuf),
}

/// Why a packed copy must not be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mismatch {
    /// It has another layout than [`VERSION`], or is something else.
    Version,
    /// Its header is damaged, or it cannot be read.
    Damaged,
    /// It was made from another file, or from this one before it changed.
    Source,
    /// The model has the right size and samples, but is not the same file any
    /// more, or was written to: only all of its bytes can tell.
    Unsure,
}

impl PackedCopy {
    /// Looks for the packed copy of the model in `source`, of a split model
    /// the first of its files. Reads the headers of both, and some samples of the
    /// model.
    pub fn of(source: &Path) -> Self {
        let path = copy_path(source);
        let mismatch = match mismatch(source, &path) {
            Ok(mismatch) => mismatch,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !path.exists() => {
                return Self::Absent;
            }
            Err(_) => Some(Mismatch::Damaged),
        };
        match mismatch {
            None => Self::Current(path),
            Some(mismatch) => Self::Stale(path, mismatch),
        }
    }
}

/// Why `copy` is not the packed copy of `source`; `None` if it is.
fn mismatch(source: &Path, copy: &Path) -> io::Result<Option<Mismatch>> {
    let Some(stamp) = Stamp::read(copy)? else { return Ok(Some(Mismatch::Version)) };
    read_header(&mut File::open(copy)?)?;
    let Some(paths) = stamp.paths(source) else { return Ok(Some(Mismatch::Source)) };
    let mut likeness = Likeness::Same;
    for (path, expected) in paths.iter().zip(&stamp.files) {
        // Asked before the file is opened: opening a pipe would wait.
        let is_file = path.metadata().is_ok_and(|metadata| metadata.is_file());
        let found = match is_file {
            true => File::open(path).and_then(|mut file| expected.likeness(&mut file)),
            false => Ok(Likeness::Other),
        };
        likeness = likeness.max(found.unwrap_or(Likeness::Other));
    }
    Ok(match likeness {
        Likeness::Same => None,
        Likeness::Alike => Some(Mismatch::Unsure),
        Likeness::Other => Some(Mismatch::Source),
    })
}

/// The file to open for the model in `source`: its packed copy if that was made
/// from it, else itself.
pub fn file_to_open(source: &Path) -> PathBuf {
    match PackedCopy::of(source) {
        PackedCopy::Current(copy) => copy,
        PackedCopy::Absent | PackedCopy::Stale(..) => source.to_owned(),
    }
}

/// The files that the model in `path` consists of, and its packed copy; if it is
/// one, those that it was made from as well. Not all of them must be there.
pub fn family(path: &Path) -> Vec<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut files = vec![path.to_owned(), copy_path(path)];
    if let Some(names) = SplitNames::of_first(&name).filter(|names| names.n_files <= N_SPLIT_MAX) {
        files.extend(beside(path, names));
    }
    if let Some(stem) = name.strip_suffix(".packed.gguf") {
        files.push(path.with_file_name(format!("{stem}.gguf")));
        let n_files = Stamp::read(path).ok().flatten().map_or(0, |stamp| stamp.n_files());
        files.extend(beside(path, SplitNames { stem, n_files }));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_a_model_and_its_copies() {
        let family = |path: &str| family(Path::new(path));
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(family("a/b.gguf"), paths(&["a/b.gguf", "a/b.packed.gguf"]));
        let all_files = ["b-00001-of-00002.gguf", "b-00002-of-00002.gguf"];
        assert_eq!(
            family(all_files[0]),
            paths(&[all_files[0], "b.packed.gguf", all_files[0], all_files[1]])
        );
        assert!(family("a/b.packed.gguf").contains(&"a/b.gguf".into()));
        assert_eq!(family("b-00001-of-99999.gguf").len(), 2);
    }
}
