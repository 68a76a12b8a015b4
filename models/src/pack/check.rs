//! Whether a packed file is still what was written.

use std::fs::File;
use std::hash::Hasher as _;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use moewe_engine::gguf::Gguf;
use moewe_engine::native::Folder;
use moewe_packed::{CHECKSUM_AT, Stamp};
use twox_hash::XxHash3_64;

use super::{CHECKSUMS_KEY, Error, PIECE_BYTES, Result, head_checksum};
use crate::{Progress, Step};

/// Compares a packed file with its checksums; answers how many tensors it has.
///
/// # Errors
///
/// [`Error::NotPacked`], [`Error::Damaged`] with the name of the first tensor
/// that is, and what else [`Error`] says of files that cannot be read.
pub fn check(path: &Path, progress: &mut dyn Progress) -> Result<usize> {
    let error = || Error::io("read", path);
    if Stamp::read(path).map_err(error())?.is_none() {
        return Err(Error::NotPacked(path.into()));
    }
    let damaged = |what: String| Error::Damaged { path: path.into(), what };
    let (folder, name) = Folder::of(path)?;
    let header = Gguf::open(&folder, &name)?.header;
    let mut file = File::open(path).map_err(error())?;
    let mut bytes = vec![0; header.header_bytes[0] as usize];
    file.read_exact(&mut bytes).map_err(error())?;
    let expected = bytes[CHECKSUM_AT..CHECKSUM_AT + 8].to_vec();
    if head_checksum(&mut bytes).to_le_bytes()[..] != expected {
        return Err(damaged("its header".to_owned()));
    }

    let checksums = header.metadata.ints(CHECKSUMS_KEY)?.unwrap_or_default();
    let mut tensors: Vec<_> = header.tensors.values().collect();
    tensors.sort_by_key(|tensor| tensor.offset);
    if checksums.len() != tensors.len() {
        return Err(damaged("the list of its checksums".to_owned()));
    }
    progress.start(Step::Check, &name, tensors.iter().map(|tensor| tensor.size).sum());
    let mut bytes_done = 0;
    let mut piece = vec![0; PIECE_BYTES as usize];
    for (tensor, &checksum) in tensors.iter().zip(checksums) {
        file.seek(SeekFrom::Start(tensor.offset)).map_err(error())?;
        let mut hasher = XxHash3_64::new();
        let mut left = tensor.size;
        while left > 0 {
            let piece = &mut piece[..left.min(PIECE_BYTES) as usize];
            file.read_exact(piece).map_err(error())?;
            hasher.write(piece);
            left -= piece.len() as u64;
            bytes_done += piece.len() as u64;
            progress.at(bytes_done);
        }
        // The metadata's integers are signed, whatever the file says.
        if hasher.finish() != checksum.cast_unsigned() {
            return Err(damaged(format!("tensor {}", tensor.name)));
        }
    }
    Ok(tensors.len())
}
