//! Whether a file is what it shall be.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::http::{self, PumpError};
use crate::library::wrong_size;
use crate::{Error, Progress, Result, Step};

/// What a file shall be, as far as somebody says.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub name: &'a str,
    pub size_bytes: Option<u64>,
    pub sha256: Option<&'a str>,
}

/// The SHA-256 of a file, in lowercase hex.
///
/// # Errors
///
/// The file cannot be read.
pub fn sha256(path: &Path) -> Result<String> {
    hash(path, &mut |_| {})
}

fn hash(path: &Path, at: &mut dyn FnMut(u64)) -> Result<String> {
    let mut content = File::open(path).map_err(Error::io("read", path))?;
    let mut hash = Sha256::new();
    let mut hash_more = |bytes: &[u8]| {
        hash.update(bytes);
        Ok(())
    };
    match http::pump(&mut content, &mut hash_more, at) {
        Err(PumpError::Read(error) | PumpError::Write(error)) => {
            Err(Error::io("read", path)(error))
        }
        Ok(()) => Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
    }
}

/// Checks what came, and removes it if it is something else.
pub fn require(
    path: &Path,
    wanted: Wanted<'_>,
    origin: &str,
    progress: &mut dyn Progress,
) -> Result<()> {
    match difference(path, wanted, progress)? {
        None => Ok(()),
        Some(reason) => {
            remove_if_there(path)?;
            Err(Error::Mismatch { file: wanted.name.into(), origin: origin.into(), reason })
        }
    }
}

/// In what the file at `path` differs from what it should be.
pub fn difference(
    path: &Path,
    wanted: Wanted<'_>,
    progress: &mut dyn Progress,
) -> Result<Option<String>> {
    let found_bytes = path.metadata().map_err(Error::io("read", path))?.len();
    if let Some(size_bytes) = wanted.size_bytes
        && found_bytes != size_bytes
    {
        return Ok(Some(wrong_size(found_bytes, size_bytes)));
    }
    let Some(sha256) = wanted.sha256 else { return Ok(None) };
    progress.start(Step::Check, wanted.name, found_bytes);
    let found = hash(path, &mut |bytes| progress.at(bytes))?;
    Ok((found != sha256).then(|| wrong_sha256(&found, sha256)))
}

/// How a hash differs, for messages.
pub fn wrong_sha256(found: &str, expected: &str) -> String {
    format!("SHA-256 {found}, not {expected}")
}

/// Says whether it was there.
pub fn remove_if_there(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        removed => removed.map(|()| true).map_err(Error::io("remove", path)),
    }
}
