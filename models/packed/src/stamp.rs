//! The first pairs of a packed file's metadata.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};

use moewe_gguf::{N_SPLIT_MAX, PAIRS_AT, ValueType, Writer, key_bytes};
use twox_hash::XxHash3_64;

use crate::fingerprint::SourceFile;
use crate::paths::source_paths;

/// The version of the layout.
pub const VERSION: u32 = 3;
/// The key of the first pair: [`VERSION`], a u32.
pub const VERSION_KEY: &str = "moewe.packed.version";
/// The key of the second pair: how many bytes the header has (all before the
/// padding that is before the first tensor), a u64.
pub const LENGTH_KEY: &str = "moewe.packed.header_bytes";
/// The key of the third pair: XXH3 of the header with zeros in place of this
/// checksum, a u64.
pub const CHECKSUM_KEY: &str = "moewe.packed.header";
/// The key of the fourth pair: [`Stamp::numbers`], an array of u64.
pub const SOURCE_KEY: &str = "moewe.packed.source";

/// Where the header's length and checksum lie, and the numbers of the stamp.
const LENGTH_AT: usize =
    PAIRS_AT + key_bytes(VERSION_KEY) + ValueType::U32.width() + key_bytes(LENGTH_KEY);
const CHECKSUM_AT: usize = LENGTH_AT + ValueType::U64.width() + key_bytes(CHECKSUM_KEY);
const NUMBERS_AT: usize =
    CHECKSUM_AT + ValueType::U64.width() + key_bytes(SOURCE_KEY) + ValueType::Array.width();

/// Numbers of each file.
const N_NUMBERS: usize = 6;
/// The most files of a model.
const N_FILES_MAX: usize = N_SPLIT_MAX as usize;
/// A header that is longer is none.
const HEADER_BYTES_MAX: u64 = 256 << 20;

/// What a packed file was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// The files of the model.
    pub files: Vec<SourceFile>,
}

impl Stamp {
    /// Of each file the size, the header's length, the checksum of samples, that
    /// of all bytes, the inode, and the time of the last write.
    pub fn numbers(&self) -> Vec<u64> {
        let numbers =
            |f: &SourceFile| [f.size, f.header_bytes, f.samples, f.checksum, f.inode, f.modified];
        self.files.iter().flat_map(numbers).collect()
    }

    /// The stamp of the file at `path`; `None` if it is not packed, or in
    /// another layout than [`VERSION`].
    ///
    /// # Errors
    ///
    /// Those of opening and reading the file.
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        // Asked before the file is opened: opening a pipe would wait.
        if !path.metadata()?.is_file() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        File::open(path)?.take(BYTES_MAX as u64).read_to_end(&mut bytes)?;
        Ok(Self::parse(&bytes))
    }

    /// The stamp in what a file begins with; `None` if there is none, or not all
    /// of it.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = bytes.split_at_checked(NUMBERS_AT)?;
        let n = usize::try_from(u64::from_le_bytes(*head.last_chunk()?)).ok()?;
        if !n.is_multiple_of(N_NUMBERS) || !(1..=N_FILES_MAX).contains(&(n / N_NUMBERS)) {
            return None;
        }
        let numbers = rest.get(..8 * n)?.as_chunks::<8>().0;
        let numbers: Vec<u64> = numbers.iter().copied().map(u64::from_le_bytes).collect();
        let file = |&[size, header_bytes, samples, checksum, inode, modified]: &[u64;
                         N_NUMBERS]| {
            SourceFile { size, header_bytes, samples, checksum, inode, modified }
        };
        let stamp = Self { files: numbers.as_chunks().0.iter().map(file).collect() };
        // All else is as it is written, but for counts of what follows and two numbers.
        let mut expected = stamp.header().bytes();
        for at in [8..PAIRS_AT, LENGTH_AT..LENGTH_AT + 8, CHECKSUM_AT..CHECKSUM_AT + 8] {
            expected[at.clone()].copy_from_slice(&head[at]);
        }
        (expected[..NUMBERS_AT] == *head).then_some(stamp)
    }

    /// A packed file's header with this stamp, which more can be added to, and which is
    /// then [sealed](seal).
    pub fn header(&self) -> Writer {
        let mut header = Writer::default();
        header.u32(VERSION_KEY, VERSION);
        header.u64(LENGTH_KEY, 0);
        header.u64(CHECKSUM_KEY, 0);
        header.u64s(SOURCE_KEY, &self.numbers());
        header
    }

    /// How many files the model has.
    pub(crate) fn n_files(&self) -> u32 {
        self.files.len() as u32
    }

    /// The files that this stamp is of, if the model in `source`, of a split model
    /// the first file, can be the one.
    pub fn paths(&self, source: &Path) -> Option<Vec<PathBuf>> {
        source_paths(source, self.n_files())
    }

    /// Puts this stamp in place of the one in the packed file at `path`, which is
    /// of as many files.
    ///
    /// # Errors
    ///
    /// Those of opening, reading and writing the file; `InvalidData` if its
    /// header is damaged; `ResourceBusy` if another program has it open.
    pub fn replace(&self, path: &Path) -> io::Result<()> {
        let mut file = File::options().read(true).write(true).open(path)?;
        if let Err(std::fs::TryLockError::WouldBlock) = file.try_lock() {
            return Err(ErrorKind::ResourceBusy.into());
        }
        let mut header = read_header(&mut file)?;
        let numbers: Vec<_> = self.numbers().iter().flat_map(|n| n.to_le_bytes()).collect();
        let found = Self::parse(&header).filter(|found| found.files.len() == self.files.len());
        let place = header.get_mut(NUMBERS_AT..NUMBERS_AT + numbers.len());
        let (Some(_), Some(place)) = (found, place) else {
            return Err(ErrorKind::InvalidData.into());
        };
        place.copy_from_slice(&numbers);
        seal(&mut header);
        // One write: were it cut short, the checksum would not fit.
        file.rewind()?;
        file.write_all(&header[..NUMBERS_AT + numbers.len()])?;
        file.sync_all()
    }
}

/// Whether the file at `path` is a packed one, in the layout of any version.
///
/// # Errors
///
/// Those of opening and reading the file.
pub fn is_packed(path: &Path) -> io::Result<bool> {
    // Asked before the file is opened: opening a pipe would wait.
    if !path.metadata()?.is_file() {
        return Ok(false);
    }
    let mut header = Writer::default();
    header.u32(VERSION_KEY, VERSION);
    let expected = header.bytes();
    let mut bytes = Vec::new();
    File::open(path)?.take(expected.len() as u64).read_to_end(&mut bytes)?;
    let key = PAIRS_AT..PAIRS_AT + key_bytes(VERSION_KEY);
    Ok([0..4, key].into_iter().all(|at| bytes.get(at.clone()) == expected.get(at)))
}

/// The most bytes up to the end of a stamp.
const BYTES_MAX: usize = NUMBERS_AT + 8 * N_NUMBERS * N_FILES_MAX;

/// Writes the length and the checksum of a packed file's header into it.
///
/// # Panics
///
/// If the header does not begin with the first four pairs.
pub fn seal(header: &mut [u8]) {
    let length = (header.len() as u64).to_le_bytes();
    header[LENGTH_AT..LENGTH_AT + 8].copy_from_slice(&length);
    let checksum = checksum(header);
    header[CHECKSUM_AT..CHECKSUM_AT + 8].copy_from_slice(&checksum.to_le_bytes());
}

/// The header of a packed file, which must be what was written.
///
/// # Errors
///
/// Those of reading; `InvalidData` if it is damaged.
pub fn read_header(file: &mut File) -> io::Result<Vec<u8>> {
    let damaged = || io::Error::new(ErrorKind::InvalidData, "its header is damaged");
    let mut header = vec![0; NUMBERS_AT];
    file.rewind()?;
    file.read_exact(&mut header)?;
    let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| header[at + i]));
    let (length, expected) = (number(LENGTH_AT), number(CHECKSUM_AT));
    let is_possible = (NUMBERS_AT as u64..=HEADER_BYTES_MAX).contains(&length);
    if !is_possible || length > file.metadata()?.len() {
        return Err(damaged());
    }
    header.resize(length as usize, 0);
    file.read_exact(&mut header[NUMBERS_AT..])?;
    header[CHECKSUM_AT..CHECKSUM_AT + 8].fill(0);
    if checksum(&mut header) != expected {
        return Err(damaged());
    }
    header[CHECKSUM_AT..CHECKSUM_AT + 8].copy_from_slice(&expected.to_le_bytes());
    Ok(header)
}

/// The checksum of a packed file's header; takes the one that is in it out.
fn checksum(header: &mut [u8]) -> u64 {
    header[CHECKSUM_AT..CHECKSUM_AT + 8].fill(0);
    XxHash3_64::oneshot(header)
}
