//! Real files, both backends.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use moewe_disk::{DirectFile, DiskOptions, Piece, Priority, ReadError, Storage as _};

use crate::common::{Asker, BLOCK, Memory, Random, disks, file, noise, piece};

#[test]
fn reads_what_others_read() {
    const BYTES: usize = 700 * BLOCK + 1234;
    let bytes = noise(BYTES);
    let file = file(&bytes);
    for disk in disks(&DiskOptions { call_bytes: 40 * BLOCK, ..DiskOptions::default() }) {
        let storage = Arc::new(DirectFile::open(file.path()).unwrap());
        let mut random = Random(7);
        for _ in 0..30 {
            let asker = Asker::new();
            let mut memories = Vec::new();
            let mut reads = Vec::new();
            for id in 0..8 {
                let mut memory = Memory::new(300 * BLOCK);
                let pieces: Vec<Piece> = (0..3)
                    .map(|i| {
                        let length = 1 + random.below(99);
                        let offset = random.below(701 - length + 1);
                        piece(&mut memory, i * 100 * BLOCK, offset * BLOCK, length * BLOCK)
                    })
                    .collect();
                let priority = if id % 2 == 0 { Priority::Demand } else { Priority::Prefetch };
                reads.push(asker.read(id, &storage, priority, pieces.clone()));
                memories.push((memory, pieces));
            }
            // SAFETY: the memories live on, untouched, until all answers are here.
            unsafe { disk.read(reads) };
            (0..8).for_each(|_| asker.next().1.unwrap());
            for (memory, pieces) in &memories {
                for (i, piece) in pieces.iter().enumerate() {
                    let there = (BYTES - piece.offset as usize).min(piece.length);
                    let (read, rest) =
                        memory.bytes()[i * 100 * BLOCK..][..100 * BLOCK].split_at(there);
                    assert!(read == &bytes[piece.offset as usize..][..there]);
                    let (zeros, rest) = rest.split_at(piece.length - there);
                    assert!(zeros.iter().all(|byte| *byte == 0), "behind the end");
                    assert!(rest.iter().all(|byte| *byte == 0xee), "behind the piece");
                }
            }
        }
        let stats = disk.stats();
        assert_eq!(stats.n_reads, 240);
        assert!(stats.n_calls >= 240 && stats.n_retries == 0 && !stats.busy.is_zero());
    }
}

#[test]
fn a_file_that_shrank_fails_behind_its_end_only() {
    for disk in disks(&DiskOptions::default()) {
        let file = file(&noise(10 * BLOCK));
        let storage = Arc::new(DirectFile::open(file.path()).unwrap());
        file.as_file().set_len(5 * BLOCK as u64 + 100).unwrap();
        let asker = Asker::new();
        let mut memory = Memory::new(10 * BLOCK);
        // Neighbours: they begin as one call.
        let reads = (0..5).map(|id| {
            let at = id * 2 * BLOCK;
            let pieces = vec![piece(&mut memory, at, at, 2 * BLOCK)];
            asker.read(id as u64, &storage, Priority::Demand, pieces)
        });
        // SAFETY: the memory lives on, untouched, until all answers are here.
        unsafe { disk.read(reads.collect()) };
        let mut answers: Vec<_> = (0..5).map(|_| asker.next()).collect();
        answers.sort_by_key(|(id, _)| *id);
        for (id, result) in answers {
            let end = 5 * BLOCK as u64 + 100;
            match result {
                Ok(()) => assert!(id < 2),
                Err(ReadError::Truncated { offset, size }) => {
                    assert!(id >= 2);
                    assert_eq!((offset, size), (end.max(id * 2 * BLOCK as u64), end));
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert!(memory.bytes()[..4 * BLOCK] == noise(4 * BLOCK));
    }
}

#[test]
fn what_cannot_be_read_is_refused() {
    let file = file(&noise(2 * BLOCK + 1));
    for disk in disks(&DiskOptions::default()) {
        let storage = Arc::new(DirectFile::open(file.path()).unwrap());
        let asker = Asker::new();
        let mut memory = Memory::new(4 * BLOCK);
        let wrong = [
            Piece { offset: 1, length: BLOCK, memory: memory.at(0) },
            Piece { offset: 0, length: BLOCK - 1, memory: memory.at(0) },
            Piece { offset: 0, length: BLOCK, memory: memory.at(1) },
            Piece { offset: 0, length: 4 * BLOCK, memory: memory.at(0) },
            Piece { offset: u64::MAX - BLOCK as u64 + 1, length: BLOCK, memory: memory.at(0) },
        ];
        for (id, piece) in wrong.into_iter().enumerate() {
            let read = asker.read(id as u64, &storage, Priority::Demand, vec![piece]);
            // SAFETY: the memory lives on, untouched, until the answer is here.
            unsafe { disk.read(vec![read]) };
            let (_, Err(ReadError::Io { offset, source })) = asker.next() else { panic!("read") };
            assert_eq!((offset, source.kind()), (piece.offset, std::io::ErrorKind::InvalidInput));
        }
        let nothing = asker.read(9, &storage, Priority::Demand, Vec::new());
        // SAFETY: there is no memory.
        unsafe { disk.read(vec![nothing]) };
        asker.next().1.unwrap();
        assert_eq!(disk.stats().n_calls, 0);
    }
}

#[test]
fn opens_the_same_file_once_more() {
    let file = file(&noise(BLOCK));
    let opened = File::open(file.path()).unwrap();
    std::fs::remove_file(file.path()).unwrap();
    let storage = DirectFile::from_file(&opened).unwrap();
    assert_eq!((storage.promised(), storage.size().unwrap()), (BLOCK as u64, BLOCK as u64));
    assert_eq!(storage.is_direct(), storage.raw_fd().is_some());
    assert!(DirectFile::open(file.path()).is_err());
}

/// `/proc` has no direct I/O.
#[test]
fn reads_without_direct_io() {
    let path = Path::new("/proc/self/cmdline");
    let storage = DirectFile::open(path).unwrap();
    assert!(!storage.is_direct());
    let mut expected = [0; 8];
    File::open(path).unwrap().read_exact_at(&mut expected, 0).unwrap();
    let mut read = [0; 8];
    let n = storage.read_at(&mut [std::io::IoSliceMut::new(&mut read)], 0).unwrap();
    assert_eq!((n, read), (8, expected));
}
