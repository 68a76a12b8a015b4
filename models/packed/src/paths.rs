//! Names of the files that belong together.

use std::path::{Path, PathBuf};

use moewe_gguf::{N_SPLIT_MAX, SplitNames};

/// Where the packed copy of a model belongs: `NAME.packed.gguf` beside
/// `NAME.gguf`, or beside `NAME-00001-of-00003.gguf`.
pub fn copy_path(source: &Path) -> PathBuf {
    let name = source.file_name().unwrap_or_default().to_string_lossy();
    let stem = match SplitNames::of_first(&name) {
        Some(names) => names.stem,
        None => name.strip_suffix(".gguf").unwrap_or(&name),
    };
    source.with_file_name(format!("{stem}.packed.gguf"))
}

/// The files of the split model that `path` is one of, the first one first; else
/// `path` alone. Not all of them must be there.
pub fn all_files(path: &Path) -> Vec<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match SplitNames::of(&name) {
        Some((names, _)) if names.n_files <= N_SPLIT_MAX => beside(path, names).collect(),
        _ => vec![path.to_owned()],
    }
}

/// The files of a model that is in `n` files, of which `first` is the first.
pub(crate) fn source_paths(first: &Path, n: u32) -> Option<Vec<PathBuf>> {
    if n == 1 {
        return Some(vec![first.to_owned()]);
    }
    let names = SplitNames::of_first(first.file_name()?.to_str()?)?;
    (names.n_files == n).then(|| beside(first, names).collect())
}

/// The files of a split model, which lie beside `path`.
pub(crate) fn beside(path: &Path, names: SplitNames<'_>) -> impl Iterator<Item = PathBuf> {
    names.iter().map(|name| path.with_file_name(name))
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

    #[test]
    fn every_file_tells_all_files() {
        let expected = [1, 2, 3].map(|i| PathBuf::from(format!("a/b-0000{i}-of-00003.gguf")));
        assert!(expected.iter().all(|file| all_files(file) == expected));
        for other in
            ["b.gguf", "b-00004-of-00003.gguf", "b-00001-of-99999.gguf", "b-+0001-of-00003.gguf"]
        {
            assert_eq!(all_files(Path::new(other)), [PathBuf::from(other)]);
        }
    }
}
