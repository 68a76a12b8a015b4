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
//! The metadata of a packed file begins with three pairs in fixed places: the
//! layout's version, a checksum of the header, and the [`Stamp`]. So nothing
//! of the file must be parsed to compare them.

mod fingerprint;
mod stamp;

use std::io;
use std::path::{Path, PathBuf};

pub use fingerprint::SourceFile;
pub use stamp::{CHECKSUM_AT, CHECKSUM_KEY, SOURCE_KEY, Stamp, VERSION, VERSION_KEY};

/// The packed copy beside a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PackedCopy {
    /// There is none.
    Absent,
    /// There is a file, but it was not made from the model as it is now, has
    /// another layout than [`VERSION`], or cannot be read.
    Stale(PathBuf),
    /// This file was made from the model.
    Current(PathBuf),
}

impl PackedCopy {
    /// Looks for the packed copy of the model in `source`, of a split model
    /// the first of its files. Reads the header of the model and some samples.
    pub fn of(source: &Path) -> Self {
        let path = copy_path(source);
        let is_current = Stamp::read(&path).and_then(|stamp| match stamp {
            Some(stamp) => stamp.is_of(source),
            None => Ok(false),
        });
        match is_current {
            Ok(true) => Self::Current(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !path.exists() => Self::Absent,
            _ => Self::Stale(path),
        }
    }
}

/// The file to open for the model in `source`: its packed copy if that was made
/// from it, else itself.
pub fn file_to_open(source: &Path) -> PathBuf {
    match PackedCopy::of(source) {
        PackedCopy::Current(copy) => copy,
        PackedCopy::Absent | PackedCopy::Stale(_) => source.to_owned(),
    }
}

/// Where the packed copy of a model belongs: `NAME.packed.gguf` beside
/// `NAME.gguf`, or beside `NAME-00001-of-00003.gguf`.
pub fn copy_path(source: &Path) -> PathBuf {
    let name = source.file_name().unwrap_or_default().to_string_lossy();
    let stem = match split_name(&name) {
        Some((stem, _)) => stem,
        None => name.strip_suffix(".gguf").unwrap_or(&name),
    };
    source.with_file_name(format!("{stem}.packed.gguf"))
}

/// The files of a model that is in `n` files, of which `first` is the first.
fn source_paths(first: &Path, n: usize) -> Option<Vec<PathBuf>> {
    if n == 1 {
        return Some(vec![first.to_owned()]);
    }
    let (stem, n_split) = split_name(first.file_name()?.to_str()?)?;
    let path = |i| first.with_file_name(format!("{stem}-{i:05}-of-{n_split:05}.gguf"));
    (n == n_split).then(|| (1..=n).map(path).collect())
}

/// `NAME` and 3, of `NAME-00001-of-00003.gguf`.
fn split_name(name: &str) -> Option<(&str, usize)> {
    let (stem, n_split) = name.strip_suffix(".gguf")?.rsplit_once("-00001-of-")?;
    (n_split.len() == 5).then_some((stem, n_split.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_lies_beside_its_model() {
        let copy = |path| copy_path(Path::new(path)).to_str().unwrap().to_owned();
        assert_eq!(copy("a/b.gguf"), "a/b.packed.gguf");
        assert_eq!(copy("b"), "b.packed.gguf");
        assert_eq!(copy("a/b-00001-of-00012.gguf"), "a/b.packed.gguf");
        let paths = source_paths(Path::new("a/b-00001-of-00002.gguf"), 2).unwrap();
        let expected = ["a/b-00001-of-00002.gguf", "a/b-00002-of-00002.gguf"].map(PathBuf::from);
        assert_eq!(paths, expected);
        assert_eq!(source_paths(Path::new("a/b-00001-of-00002.gguf"), 3), None);
        assert_eq!(source_paths(Path::new("a/b.gguf"), 2), None);
    }
}
