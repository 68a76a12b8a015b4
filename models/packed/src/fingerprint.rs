//! What tells one file of a model from another.

use std::fs::{File, Metadata};
use std::hash::Hasher as _;
use std::io::{self, Read, Seek, SeekFrom};
use std::time::UNIX_EPOCH;

use twox_hash::XxHash3_64;

/// No header is longer: it is hashed whenever the model is opened.
const HEADER_BYTES_MAX: u64 = 128 << 20;
/// Bytes that are hashed at a time.
const PIECE_BYTES: usize = 1 << 20;
/// Weights are hashed in so many places, spread evenly over the file: models
/// that were trained differently can have the same header.
const N_SAMPLES: u64 = 64;
const SAMPLE_BYTES: u64 = 4096;

/// A file that a packed copy was made from, or one of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceFile {
    /// Its size in bytes.
    pub size: u64,
    /// Bytes before the data of its tensors, without padding.
    pub header_bytes: u64,
    /// XXH3 of these bytes, and of 64 samples of 4096 bytes each.
    pub samples: u64,
    /// XXH3 of all of its bytes.
    pub checksum: u64,
    /// The number that its file system knows it by; 0 where there is none.
    pub inode: u64,
    /// When it was last written to, in nanoseconds since 1970.
    pub modified: u64,
}

/// What a look at a file, and at some of its bytes, says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Likeness {
    /// It is the one, as it was.
    Same,
    /// It has the same size and samples, but is another file or was written to.
    Alike,
    /// It holds other bytes.
    Other,
}

impl SourceFile {
    /// What the file is, whose header takes `header_bytes`. Reads all of it, and
    /// calls `at` with the number of bytes so far, which may end it with an error.
    ///
    /// # Errors
    ///
    /// Those of reading and of `at`; `InvalidData` for a header of more than 128 MiB;
    /// `ResourceBusy` if somebody wrote to the file meanwhile.
    pub fn of(
        file: &mut File,
        header_bytes: u64,
        at: &mut dyn FnMut(u64) -> io::Result<()>,
    ) -> io::Result<Self> {
        let before = file.metadata()?;
        let size = before.len();
        let samples = samples(file, size, header_bytes)?;
        let mut hasher = XxHash3_64::new();
        let mut piece = vec![0; PIECE_BYTES];
        let mut bytes_done = 0;
        file.rewind()?;
        while bytes_done < size {
            let piece = &mut piece[..(size - bytes_done).min(PIECE_BYTES as u64) as usize];
            file.read_exact(piece)?;
            hasher.write(piece);
            bytes_done += piece.len() as u64;
            at(bytes_done)?;
        }
        let (inode, modified) = (inode(&before), modified(&before));
        let checksum = hasher.finish();
        let found = Self { size, header_bytes, samples, checksum, inode, modified };
        found.require_unchanged(file)?;
        Ok(found)
    }

    /// Fails if the file was written to since it was looked at.
    ///
    /// # Errors
    ///
    /// `ResourceBusy` if it was, and those of asking the system.
    pub fn require_unchanged(&self, file: &File) -> io::Result<()> {
        match self.is_identical(&file.metadata()?) {
            true => Ok(()),
            false => Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "it was written to while it was read",
            )),
        }
    }

    fn is_identical(&self, now: &Metadata) -> bool {
        (now.len(), inode(now), modified(now)) == (self.size, self.inode, self.modified)
    }

    /// Compares the file with another one, or with itself as it is now, by what
    /// can be read in no time.
    pub(crate) fn likeness(&self, file: &mut File) -> io::Result<Likeness> {
        let metadata = file.metadata()?;
        if metadata.len() != self.size
            || self.header_bytes > self.size
            || samples(file, self.size, self.header_bytes)? != self.samples
        {
            return Ok(Likeness::Other);
        }
        Ok(if self.is_identical(&metadata) { Likeness::Same } else { Likeness::Alike })
    }
}

/// The checksum of the header and of some pieces of the file.
fn samples(file: &mut File, size: u64, header_bytes: u64) -> io::Result<u64> {
    if header_bytes > HEADER_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut hasher = XxHash3_64::new();
    let mut bytes = vec![0; PIECE_BYTES];
    let mut hash = |at: u64, n: u64| -> io::Result<()> {
        file.seek(SeekFrom::Start(at))?;
        let mut left = n as usize;
        while left > 0 {
            let piece = &mut bytes[..left.min(PIECE_BYTES)];
            file.read_exact(piece)?;
            hasher.write(piece);
            left -= piece.len();
        }
        Ok(())
    };
    hash(0, header_bytes)?;
    if let Some(last) = size.checked_sub(SAMPLE_BYTES) {
        for i in 0..N_SAMPLES {
            let at = u128::from(last) * u128::from(i) / u128::from(N_SAMPLES - 1);
            hash(at as u64, SAMPLE_BYTES)?;
        }
    }
    Ok(hasher.finish())
}

#[cfg(unix)]
fn inode(metadata: &Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

#[cfg(not(unix))]
fn inode(_: &Metadata) -> u64 {
    0
}

/// Only compared, so it may wrap.
fn modified(metadata: &Metadata) -> u64 {
    match metadata.modified().map(|time| time.duration_since(UNIX_EPOCH)) {
        Ok(Ok(since)) => since.as_nanos() as u64,
        Ok(Err(before)) => (before.duration().as_nanos() as u64).wrapping_neg(),
        Err(_) => 0,
    }
}
