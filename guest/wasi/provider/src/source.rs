//! `moewe:inference/weights` over files.

use wasip2::filesystem::types::{Descriptor, DescriptorStat, ErrorCode as WasiCode};

use crate::Provider;
use crate::bindings::exports::moewe::inference::weights::{
    Capabilities, Error, ErrorCode, Guest, GuestSource, Source, Utf8,
};
use crate::folders;

/// The most that one `read` delivers. Every byte passes through this
/// component's memory, which need not grow beyond it.
const READ_BYTES_MAX: u32 = 4 << 20;

/// One file, open for reading.
pub struct File {
    name: String,
    descriptor: Descriptor,
    version: Version,
}

/// What tells a file from itself after a change.
#[derive(Clone, Copy, PartialEq)]
struct Version {
    size: u64,
    /// Seconds and nanoseconds of the last modification, where the runtime
    /// tells.
    modified: Option<(u64, u32)>,
}

impl From<DescriptorStat> for Version {
    fn from(stat: DescriptorStat) -> Self {
        let modified =
            stat.data_modification_timestamp.map(|time| (time.seconds, time.nanoseconds));
        Self { size: stat.size, modified }
    }
}

impl Guest for Provider {
    type Source = File;

    fn get_capabilities() -> Capabilities {
        Capabilities { attach: false, page_size: 64 << 10, n_windows_max: 0 }
    }

    fn detach(_address: u64, _length: u64) -> Result<(), Error> {
        let message = "nothing is attached: WASI cannot map files; use `read`".to_owned();
        Err(Error { code: ErrorCode::Unsupported, message })
    }
}

impl GuestSource for File {
    fn open(name: Utf8) -> Result<Source, Error> {
        let name = String::from_utf8(name).map_err(|_| Error {
            code: ErrorCode::NotFound,
            message: "the name of the file is not UTF-8".to_owned(),
        })?;
        let descriptor = folders::open(&name)?;
        let version = match descriptor.stat() {
            Ok(stat) => stat.into(),
            Err(code) => return Err(wasi_error(&name, code)),
        };
        Ok(Source::new(Self { name, descriptor, version }))
    }

    fn size(&self) -> u64 {
        self.version.size
    }

    fn read(&self, offset: u64, length: u32) -> Result<Vec<u8>, Error> {
        if offset.checked_add(length.into()).is_none_or(|end| end > self.version.size) {
            return Err(self.error(
                ErrorCode::InvalidRange,
                format!(
                    "{length} bytes from byte {offset} are not in the file, which has {} bytes",
                    self.version.size
                ),
            ));
        }
        if length == 0 {
            return Ok(Vec::new());
        }
        let (bytes, _end) = self
            .descriptor
            .read(length.min(READ_BYTES_MAX).into(), offset)
            .map_err(|code| wasi_error(&self.name, code))?;
        let stat = self.descriptor.stat().map_err(|code| wasi_error(&self.name, code))?;
        if self.version != stat.into() {
            return Err(self.error(
                ErrorCode::Changed,
                "the file changed while it was open; load the model again",
            ));
        }
        if bytes.is_empty() {
            return Err(self.error(
                ErrorCode::Io,
                format!("the runtime delivered no bytes from byte {offset}"),
            ));
        }
        Ok(bytes)
    }

    fn attach(&self, _offset: u64, _length: u64, _address: u64) -> Result<u64, Error> {
        Err(self.error(ErrorCode::Unsupported, "WASI cannot map files; use `read`"))
    }

    /// Nobody asks for a count.
    fn copied(&self, _length: u64) {}

    /// WASI's `advise` may block, and reads do not wait here for anything that
    /// could be started earlier.
    fn prefetch(&self, _offset: u64, _length: u64) {}
}

impl File {
    fn error(&self, code: ErrorCode, sentence: impl AsRef<str>) -> Error {
        Error { code, message: format!("{}: {}", self.name, sentence.as_ref()) }
    }
}

fn wasi_error(name: &str, code: WasiCode) -> Error {
    Error { code: folders::error_code(code), message: format!("{name}: {}", folders::reason(code)) }
}
