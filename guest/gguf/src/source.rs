//! Where the bytes of a file come from.

use std::cell::RefCell;
use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};

/// The bytes of one file.
pub trait Source {
    /// The size in bytes.
    fn size(&self) -> u64;

    /// Copies exactly `out.len()` bytes from `offset`; never past the end.
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()>;
}

impl Source for &[u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..));
        let bytes = rest.and_then(|rest| rest.get(..out.len()));
        let bytes = bytes.ok_or_else(|| Error::new(ErrorKind::Source, "read past the end"))?;
        out.copy_from_slice(bytes);
        Ok(())
    }
}

/// A file of the system's.
#[derive(Debug)]
pub struct File {
    file: RefCell<fs::File>,
    size: u64,
}

impl File {
    /// Opens a file that has something in it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Source`] if it cannot be opened, [`ErrorKind::Invalid`] if it is
    /// empty. The message names it.
    pub fn open(path: &Path) -> Result<Self> {
        let fail =
            |e: std::io::Error| Error::new(ErrorKind::Source, format!("{}: {e}", path.display()));
        let file = fs::File::open(path).map_err(fail)?;
        let meta = file.metadata().map_err(fail)?;
        if meta.is_dir() {
            let message = format!("{}: is a folder; give a .gguf file", path.display());
            return Err(Error::new(ErrorKind::Source, message));
        }
        if meta.len() == 0 {
            let message = format!("{}: is empty; download it again", path.display());
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        Ok(Self { file: RefCell::new(file), size: meta.len() })
    }

    /// The file as the standard library knows it.
    pub fn into_inner(self) -> fs::File {
        self.file.into_inner()
    }
}

impl Source for File {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let mut file = self.file.borrow_mut();
        let read = file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(out));
        read.map_err(|e| Error::new(ErrorKind::Source, e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_none_are_named() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        let error = |path: &Path| File::open(path).unwrap_err();
        assert!(error(folder).to_string().ends_with("gguf: is a folder; give a .gguf file"));
        let missing = error(&folder.join("missing.gguf"));
        assert_eq!(missing.kind(), ErrorKind::Source);
        assert!(missing.to_string().contains("missing.gguf: "), "{missing}");
    }

    #[test]
    fn nothing_is_read_past_the_end() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let bytes = std::fs::read(&path).unwrap();
        let file = File::open(&path).unwrap();
        assert_eq!(file.size(), bytes.len() as u64);
        let sources: [&dyn Source; 2] = [&file, &&bytes[..]];
        for source in sources {
            let mut out = [0; 10];
            source.read(source.size() - 10, &mut out).unwrap();
            assert_eq!(out[..], bytes[bytes.len() - 10..]);
            for offset in [source.size() - 9, source.size(), u64::MAX >> 1] {
                assert_eq!(source.read(offset, &mut out).unwrap_err().kind(), ErrorKind::Source);
            }
        }
    }
}
