//! Names of the files that belong together.

use std::path::{Path, PathBuf};

/// The most files that a model is split into.
pub(crate) const N_FILES_MAX: usize = 1 << 10;

/// Where the packed copy of a model belongs: `NAME.packed.gguf` beside
/// `NAME.gguf`, or beside `NAME-00001-of-00003.gguf`.
pub fn copy_path(source: &Path) -> PathBuf {
    let name = source.file_name().unwrap_or_default().to_string_lossy();
    let stem = match split_name(&name) {
        Some((stem, 1, _)) => stem,
        _ => name.strip_suffix(".gguf").unwrap_or(&name),
    };
    source.with_file_name(format!("{stem}.packed.gguf"))
}

/// The files of the split model that `path` is one of, the first one first; else
/// `path` alone. Not all of them must be there.
pub fn all_files(path: &Path) -> Vec<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match split_name(&name) {
        Some((stem, i, n)) if (1..=n).contains(&i) && n <= N_FILES_MAX => {
            (1..=n).map(|i| shard_path(path, stem, i, n)).collect()
        }
        _ => vec![path.to_owned()],
    }
}

/// The files of a model that is in `n` files, of which `first` is the first.
pub(crate) fn source_paths(first: &Path, n: usize) -> Option<Vec<PathBuf>> {
    if n == 1 {
        return Some(vec![first.to_owned()]);
    }
    let (stem, i, n_split) = split_name(first.file_name()?.to_str()?)?;
    (i == 1 && n == n_split).then(|| (1..=n).map(|i| shard_path(first, stem, i, n)).collect())
}

/// The file number `i` of a model in `n` files, beside `path`.
pub(crate) fn shard_path(path: &Path, stem: &str, i: usize, n: usize) -> PathBuf {
    path.with_file_name(format!("{stem}-{i:05}-of-{n:05}.gguf"))
}

/// `NAME`, 2 and 3, of `NAME-00002-of-00003.gguf`.
pub(crate) fn split_name(name: &str) -> Option<(&str, usize, usize)> {
    let (rest, n_split) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, i) = rest.rsplit_once('-')?;
    let number = |digits: &str| -> Option<usize> {
        let is_number = digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit());
        is_number.then(|| digits.parse().ok())?
    };
    Some((stem, number(i)?, number(n_split)?))
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
