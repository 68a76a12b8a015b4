//! Reads pieces of files around the page cache, straight into memory that the
//! caller owns, for a cache of its own. Linux only; empty elsewhere.
//!
//! ```
//! # #[cfg(target_os = "linux")]
//! # fn main() -> std::io::Result<()> {
//! use std::sync::{Arc, mpsc};
//! use moewe_disk::{ALIGNMENT, DirectFile, Disk, DiskOptions, Piece, Priority, Read};
//!
//! #[repr(align(4096))]
//! struct Block([u8; ALIGNMENT as usize]);
//!
//! let file = Arc::new(DirectFile::open("Cargo.toml".as_ref())?);
//! let disk = Disk::new(DiskOptions::default())?;
//! let mut block = Box::new(Block([0; _]));
//! let (sender, receiver) = mpsc::channel();
//! let read = Read {
//!     id: 1,
//!     storage: file,
//!     pieces: vec![Piece { offset: 0, length: block.0.len(), memory: block.0.as_mut_ptr() }],
//!     priority: Priority::Demand,
//!     done: Box::new(move |result| sender.send(result).unwrap()),
//! };
//! // SAFETY: nobody touches the block before the result is there.
//! unsafe { disk.read(vec![read]) };
//! receiver.recv().unwrap().unwrap();
//! assert!(block.0.starts_with(b"[package]"));
//! # Ok(())
//! # }
//! # #[cfg(not(target_os = "linux"))]
//! # fn main() {}
//! ```
#![cfg(target_os = "linux")]

mod disk;
mod file;
mod job;
mod options;
mod progress;
mod queue;
mod read;
mod ring;
mod speed;
mod stats;
mod storage;
mod threads;
mod ticket;

pub use disk::Disk;
pub use file::DirectFile;
pub use options::{Backend, DiskOptions};
pub use read::{ALIGNMENT, Piece, Priority, Read, ReadError};
pub use speed::measure;
pub use stats::DiskStats;
pub use storage::Storage;
