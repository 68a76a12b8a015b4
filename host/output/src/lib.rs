//! Files that a program writes for somebody, and what must not be lost by that.
//!
//! Where a path leads is asked first ([`Place`]). A regular file is written beside
//! its place and moved there when it is whole, so that an interrupted program
//! leaves the old one. Links stay, and what they point to is replaced. Pipes and
//! devices are written to as they are. What the program reads from is refused.
//!
//! ```no_run
//! use std::io::Write as _;
//! use std::path::Path;
//!
//! use moewe_output::Output;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut output = Output::create(Path::new("out.npy"), &["model.gguf".into()])?;
//! output.write_all(b"numbers")?;
//! output.finish()?;
//! # Ok(())
//! # }
//! ```

mod output;
mod own;
mod place;

use std::io;
use std::path::{Path, PathBuf};

pub use output::Output;
pub use own::{is_at, is_one_of, open_own};
pub use place::Place;

/// Why nothing can be written. Each message is one line that names the way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The path is that of a folder.
    #[error("{} is a folder: name the file to write", .0.display())]
    Folder(PathBuf),
    /// The program reads from this file.
    #[error("{} is a file that is read here, and is not replaced: name another one", .0.display())]
    Input(PathBuf),
    /// The system does not let it be written.
    #[error("{} cannot be written: {reason}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
}

impl Error {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |reason| Self::Io { path: path.into(), reason }
    }
}
