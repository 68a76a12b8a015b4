//! What tells one file of a model from another.

use std::fs::File;
use std::hash::Hasher as _;
use std::io::{self, Read, Seek, SeekFrom};

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
    pub checksum: u64,
}

impl SourceFile {
    /// What the file is, whose header takes `header_bytes`.
    ///
    /// # Errors
    ///
    /// Those of reading; `InvalidData` for a header of more than 128 MiB.
    pub fn of(file: &mut File, header_bytes: u64) -> io::Result<Self> {
        if header_bytes > HEADER_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let size = file.metadata()?.len();
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
        Ok(Self { size, header_bytes, checksum: hasher.finish() })
    }
}
