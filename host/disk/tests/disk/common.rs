//! What the tests share.

use std::fs::File;
use std::io::Write as _;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use moewe_disk::{
    ALIGNMENT, Backend, Disk, DiskOptions, Piece, Priority, Read, ReadError, Storage,
};

pub const BLOCK: usize = ALIGNMENT as usize;

/// Memory for pieces, which is not there until its reads have ended.
pub struct Memory {
    bytes: Box<[u8]>,
    start: usize,
    length: usize,
}

impl Memory {
    /// So many bytes, all `0xee`.
    pub fn new(length: usize) -> Self {
        let bytes = vec![0xee; length + BLOCK].into_boxed_slice();
        let start = bytes.as_ptr().align_offset(BLOCK);
        Self { bytes, start, length }
    }

    pub fn at(&mut self, offset: usize) -> *mut u8 {
        assert!(offset < self.length);
        self.bytes.as_mut_ptr().wrapping_add(self.start + offset)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..][..self.length]
    }
}

/// Reproducible numbers.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

pub fn noise(length: usize) -> Vec<u8> {
    let mut random = Random(1);
    (0..length).map(|_| random.below(251) as u8).collect()
}

/// A file where direct I/O is likely to work: temporary ones may be in memory.
pub fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    file.write_all(bytes).unwrap();
    File::sync_all(file.as_file()).unwrap();
    file
}

/// A disk of each kind that can be had here.
pub fn disks(options: &DiskOptions) -> Vec<Disk> {
    let with = |backend| Disk::new(DiskOptions { backend, ..options.clone() });
    let threads = with(Backend::Threads).unwrap();
    // io_uring may be forbidden.
    [threads].into_iter().chain(with(Backend::IoUring)).collect()
}

pub type Answers = mpsc::Receiver<(u64, Result<(), ReadError>)>;

/// Makes reads that answer to one place.
pub struct Asker {
    sender: mpsc::Sender<(u64, Result<(), ReadError>)>,
    pub answers: Answers,
}

impl Asker {
    pub fn new() -> Self {
        let (sender, answers) = mpsc::channel();
        Self { sender, answers }
    }

    pub fn read(
        &self,
        id: u64,
        storage: &Arc<impl Storage + 'static>,
        priority: Priority,
        pieces: Vec<Piece>,
    ) -> Read {
        let sender = self.sender.clone();
        // Whoever does not ask does not want to know.
        let done = Box::new(move |result| drop(sender.send((id, result))));
        Read { id, storage: storage.clone(), pieces, priority, done }
    }

    /// The next answer.
    pub fn next(&self) -> (u64, Result<(), ReadError>) {
        self.answers.recv_timeout(Duration::from_secs(20)).expect("an answer in time")
    }

    pub fn nothing_yet(&self) {
        assert!(self.answers.recv_timeout(Duration::from_millis(20)).is_err());
    }
}

pub fn piece(memory: &mut Memory, at: usize, offset: usize, length: usize) -> Piece {
    Piece { offset: offset as u64, length, memory: memory.at(at) }
}
