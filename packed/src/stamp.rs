//! The first pairs of a packed file's metadata.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

use crate::SourceFile;
use crate::source_paths;

/// The version of the layout.
pub const VERSION: u32 = 2;
/// The key of the first pair: [`VERSION`], a u32.
pub const VERSION_KEY: &str = "moewe.packed.version";
/// The key of the second pair: XXH3 of the header (all before the padding that
/// is before the first tensor) with zeros in place of this checksum, a u64.
pub const CHECKSUM_KEY: &str = "moewe.packed.header";
/// The key of the third pair: [`Stamp::numbers`], an array of u64.
pub const SOURCE_KEY: &str = "moewe.packed.source";

/// Where the header's checksum lies.
pub const CHECKSUM_AT: usize = 24 + (8 + VERSION_KEY.len() + 4 + 4) + (8 + CHECKSUM_KEY.len() + 4);

/// The most files that a model is split into.
const N_FILES_MAX: usize = 1 << 10;

// Types of GGUF metadata.
const TYPE_U32: u32 = 4;
const TYPE_ARRAY: u32 = 9;
const TYPE_U64: u32 = 10;

/// What a packed file was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// The files of the model.
    pub files: Vec<SourceFile>,
}

impl Stamp {
    /// Size, length of the header, and checksum of each file.
    pub fn numbers(&self) -> Vec<u64> {
        self.files.iter().flat_map(|f| [f.size, f.header_bytes, f.checksum]).collect()
    }

    /// The stamp of the file at `path`; `None` if it is not packed, or in
    /// another layout than [`VERSION`].
    ///
    /// # Errors
    ///
    /// Those of opening and reading the file.
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        if !path.metadata()?.is_file() {
            return Ok(None);
        }
        match read(&mut File::open(path)?) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
            stamp => stamp,
        }
    }

    /// Whether the model in `source`, of a split model the first file, is the
    /// one.
    ///
    /// # Errors
    ///
    /// Those of opening and reading its files.
    pub fn is_of(&self, source: &Path) -> io::Result<bool> {
        let Some(paths) = source_paths(source, self.files.len()) else { return Ok(false) };
        for (path, expected) in paths.iter().zip(&self.files) {
            // Asked before the file is opened: opening a pipe would wait.
            let metadata = path.metadata()?;
            if !metadata.is_file()
                || metadata.len() != expected.size
                || expected.header_bytes > expected.size
                || SourceFile::of(&mut File::open(path)?, expected.header_bytes)? != *expected
            {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn read(file: &mut File) -> io::Result<Option<Stamp>> {
    let mut head = [0; CHECKSUM_AT + 8];
    file.read_exact(&mut head)?;
    let (magic, rest) = head.split_at(8);
    let (_counts, rest) = rest.split_at(16);
    let version = [&key(VERSION_KEY, TYPE_U32)[..], &VERSION.to_le_bytes()].concat();
    let checksum = key(CHECKSUM_KEY, TYPE_U64);
    if magic != b"GGUF\x03\0\0\0" || !rest.starts_with(&[version, checksum].concat()) {
        return Ok(None);
    }
    let expected = [&key(SOURCE_KEY, TYPE_ARRAY)[..], &TYPE_U64.to_le_bytes()].concat();
    let mut found = vec![0; expected.len()];
    file.read_exact(&mut found)?;
    let mut number = [0; 8];
    file.read_exact(&mut number)?;
    let n = usize::try_from(u64::from_le_bytes(number)).unwrap_or(usize::MAX);
    if found != expected || !n.is_multiple_of(3) || !(1..=N_FILES_MAX).contains(&(n / 3)) {
        return Ok(None);
    }
    let mut numbers = vec![0; 8 * n];
    file.read_exact(&mut numbers)?;
    let numbers: Vec<u64> =
        numbers.as_chunks::<8>().0.iter().copied().map(u64::from_le_bytes).collect();
    let file =
        |&[size, header_bytes, checksum]: &[u64; 3]| SourceFile { size, header_bytes, checksum };
    Ok(Some(Stamp { files: numbers.as_chunks::<3>().0.iter().map(file).collect() }))
}

/// A key and the type of its value, as GGUF has them.
fn key(key: &str, type_id: u32) -> Vec<u8> {
    [&(key.len() as u64).to_le_bytes()[..], key.as_bytes(), &type_id.to_le_bytes()].concat()
}
