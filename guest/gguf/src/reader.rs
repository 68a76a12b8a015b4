//! A buffered little-endian reader over a source.

use crate::error::{Error, ErrorKind, Result};
use crate::source::Source;

/// Bytes asked for at a time: a header of a few megabytes should take few
/// requests, and reading should stop soon behind the header.
const CHUNK: usize = 64 * 1024;
/// The longest single text.
const STRING_BYTES_MAX: u64 = 16 << 20;
/// The longest header: several times the largest vocabularies known. So a
/// damaged count in a file of many gigabytes cannot ask for as much memory.
const HEADER_BYTES_MAX: u64 = 128 << 20;

/// Reads the source from its start, never past its end.
pub(crate) struct Reader<'a> {
    source: &'a dyn Source,
    size: u64,
    buffer: Vec<u8>,
    /// Offset in the source of the first byte in the buffer.
    start: u64,
    /// Position within the buffer.
    at: usize,
}

impl<'a> Reader<'a> {
    pub fn new(source: &'a dyn Source) -> Self {
        Self { source, size: source.size(), buffer: Vec::new(), start: 0, at: 0 }
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn position(&self) -> u64 {
        self.start + self.at as u64
    }

    /// Bytes of the header that can follow.
    fn left(&self) -> u64 {
        self.size().min(HEADER_BYTES_MAX) - self.position()
    }

    /// Checks that `n` elements of at least `width` bytes can follow.
    pub fn check_count(&self, n: u64, width: usize, what: &str) -> Result<usize> {
        match n.checked_mul(width as u64) {
            Some(bytes) if bytes <= self.left() => usize::try_from(n).map_err(|_| too_short()),
            _ => Err(Error::invalid(format!(
                "`{what}` claims {n} entries, more than the header can hold; the file is truncated \
                 or damaged: download it again"
            ))),
        }
    }

    /// Makes the next `n` bytes available and returns them.
    fn take(&mut self, n: usize) -> Result<&[u8]> {
        if self.buffer.len() - self.at < n {
            if n as u64 > self.left() {
                return Err(too_short());
            }
            self.buffer.drain(..self.at);
            self.start += self.at as u64;
            self.at = 0;
            let have = self.buffer.len();
            let more = (self.left() - have as u64).min((n - have).max(CHUNK) as u64) as usize;
            self.buffer.resize(have + more, 0);
            self.source.read(self.start + have as u64, &mut self.buffer[have..])?;
        }
        let bytes = &self.buffer[self.at..self.at + n];
        self.at += n;
        Ok(bytes)
    }

    pub fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("N bytes were taken"))
    }

    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    /// A text; bytes that are not UTF-8 become U+FFFD.
    pub fn string_with<T>(&mut self, f: impl FnOnce(&str) -> T) -> Result<T> {
        let n = self.u64()?;
        if n > STRING_BYTES_MAX || n > self.left() {
            return Err(Error::invalid(format!(
                "a text claims {n} bytes where {} are left; the file is truncated or damaged: \
                 download it again",
                self.left()
            )));
        }
        Ok(f(&String::from_utf8_lossy(self.take(n as usize)?)))
    }

    pub fn string(&mut self) -> Result<String> {
        self.string_with(str::to_owned)
    }

    /// `n` fixed-size elements; the caller has checked that they can follow.
    pub fn elements<const N: usize, T>(
        &mut self,
        n: usize,
        convert: impl Fn([u8; N]) -> T,
    ) -> Result<Vec<T>> {
        let mut out = Vec::new();
        out.try_reserve_exact(n).map_err(|_| no_memory())?;
        for _ in 0..n {
            out.push(convert(self.bytes()?));
        }
        Ok(out)
    }
}

fn too_short() -> Error {
    Error::invalid(format!(
        "the header ends too early, or takes more than {HEADER_BYTES_MAX} bytes; the file is \
         truncated or damaged: download it again"
    ))
}

/// The error if a header does not fit into memory.
pub(crate) fn no_memory() -> Error {
    Error::new(
        ErrorKind::OutOfMemory,
        "no memory for the file's metadata; raise the memory limit, if the file is not damaged",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sparse file of a petabyte.
    struct Zeros;

    impl Source for Zeros {
        fn size(&self) -> u64 {
            1 << 50
        }

        fn read(&self, _offset: u64, out: &mut [u8]) -> Result<()> {
            out.fill(0);
            Ok(())
        }
    }

    #[test]
    fn a_large_file_does_not_excuse_a_large_header() {
        let mut reader = Reader::new(&Zeros);
        assert_eq!(reader.check_count(HEADER_BYTES_MAX, 1, "x").unwrap(), 128 << 20);
        assert!(reader.check_count(HEADER_BYTES_MAX / 8 + 1, 8, "x").is_err());
        assert!(reader.check_count(u64::MAX, 8, "x").is_err());
        while reader.position() < HEADER_BYTES_MAX {
            reader.bytes::<4096>().unwrap();
        }
        assert_eq!(reader.bytes::<1>().unwrap_err().kind(), ErrorKind::Invalid);
        assert!(reader.check_count(1, 1, "x").is_err());
    }
}
