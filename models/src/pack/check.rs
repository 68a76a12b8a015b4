//! Whether a packed file is still what was written, and what it was made from.

use std::fs::File;
use std::hash::Hasher as _;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use moewe_gguf::Gguf;
use moewe_packed::{SourceFile, Stamp, copy_path, read_header};
use twox_hash::XxHash3_64;

use super::error::{Error, Result};
use super::plan::{CHECKSUMS_KEY, PIECE_BYTES};
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
    let mut file = File::open(path).map_err(error())?;
    read_header(&mut file).map_err(|_| damaged("its header".to_owned()))?;
    let header = Gguf::read(path)?.header;

    let checksums = header.metadata.ints(CHECKSUMS_KEY)?.unwrap_or_default();
    let mut tensors: Vec<_> = header.tensors.values().collect();
    tensors.sort_by_key(|tensor| tensor.offset);
    if checksums.len() != tensors.len() {
        return Err(damaged("the list of its checksums".to_owned()));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
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

/// Compares the model in `source`, of a split model the first of its files, byte
/// by byte with what its packed copy was made from, and the copy with its
/// checksums; answers how many tensors that has.
///
/// If the files are the same, but were moved, or written to and back, the copy is
/// told so, and used again.
///
/// # Errors
///
/// Those of [`check`], [`Error::OtherSource`], and [`Error::InUse`] if the copy
/// must be told something while others use it.
pub fn check_source(source: &Path, progress: &mut dyn Progress) -> Result<usize> {
    let copy = copy_path(source);
    if !copy.exists() {
        return Err(Error::NotPacked(source.into()));
    }
    let n_tensors = check(&copy, progress)?;
    let error = || Error::io("read", &copy);
    let stamp = Stamp::read(&copy).map_err(error())?;
    let stamp = stamp.ok_or_else(|| Error::NotPacked(copy.clone()))?;
    let other = || Error::OtherSource { copy: copy.clone(), source_path: source.into() };
    let mut found = Stamp { files: Vec::new() };
    for (path, expected) in stamp.paths(source).ok_or_else(other)?.iter().zip(&stamp.files) {
        let mut file = File::open(path).map_err(Error::io("read", path))?;
        let size = file.metadata().map_err(Error::io("read", path))?.len();
        if size != expected.size || expected.header_bytes > size {
            return Err(other());
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        progress.start(Step::Check, &name, size);
        let at = &mut |bytes| {
            progress.at(bytes);
            Ok(())
        };
        let now = SourceFile::of(&mut file, expected.header_bytes, at);
        let now = now.map_err(Error::source(path))?;
        let SourceFile { inode, modified, .. } = now;
        if now != (SourceFile { inode, modified, ..*expected }) {
            return Err(other());
        }
        found.files.push(now);
    }
    if found != stamp {
        found.replace(&copy).map_err(|reason| match reason.kind() {
            std::io::ErrorKind::ResourceBusy => Error::InUse(copy.clone()),
            _ => Error::io("write", &copy)(reason),
        })?;
    }
    Ok(n_tensors)
}
