//! io_uring with files that make it wait, and that go wrong.

use std::fs::File;
use std::io::{self, IoSliceMut, PipeReader, PipeWriter, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use moewe_disk::{Backend, DirectFile, Disk, DiskOptions, Priority, ReadError, Storage};

use crate::common::{Asker, BLOCK, Memory, file, noise, piece};

fn disk(depth: usize) -> Option<Disk> {
    let options = DiskOptions { backend: Backend::IoUring, depth, ..DiskOptions::default() };
    match Disk::new(options) {
        Ok(disk) => Some(disk),
        Err(error) => {
            moewe_fixtures::skip(format_args!("io_uring is not there: {error}"));
            None
        }
    }
}

/// Something with a file descriptor that only io_uring reads.
struct Descriptor<F>(F);

impl<F: AsFd + Send + Sync> Storage for Descriptor<F> {
    fn read_at(&self, _: &mut [IoSliceMut<'_>], _: u64) -> io::Result<usize> {
        panic!("io_uring does that")
    }

    fn promised(&self) -> u64 {
        2 * BLOCK as u64
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.promised())
    }

    fn raw_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }
}

/// Who reads it waits until something is written.
fn pipe() -> (Arc<Descriptor<PipeReader>>, PipeWriter) {
    let (reader, writer) = io::pipe().unwrap();
    (Arc::new(Descriptor(reader)), writer)
}

#[test]
fn others_go_on_while_one_stalls_and_short_reads_go_on() {
    let Some(disk) = disk(2) else { return };
    let (stalled, mut writer) = pipe();
    let file = file(&noise(20 * BLOCK));
    let sound = Arc::new(DirectFile::open(file.path()).unwrap());
    let asker = Asker::new();
    let (mut memory, mut held) = (Memory::new(20 * BLOCK), Memory::new(2 * BLOCK));
    let pieces = vec![piece(&mut held, BLOCK, 0, BLOCK), piece(&mut held, 0, BLOCK, BLOCK)];
    // SAFETY: the memory lives on, untouched, until the answer is here.
    unsafe { disk.read(vec![asker.read(99, &stalled, Priority::Demand, pieces)]) };
    for i in 0..20 {
        let pieces = vec![piece(&mut memory, i * BLOCK, i * BLOCK, BLOCK)];
        // SAFETY: as above.
        unsafe { disk.read(vec![asker.read(i as u64, &sound, Priority::Demand, pieces)]) };
        assert!(matches!(asker.next(), (id, Ok(())) if id == i as u64));
    }
    assert!(memory.bytes() == noise(20 * BLOCK));
    for half in [1, 2] {
        asker.nothing_yet();
        writer.write_all(&[half; BLOCK]).unwrap();
    }
    assert!(matches!(asker.next(), (99, Ok(()))));
    assert!(held.bytes()[..BLOCK] == [2; BLOCK] && held.bytes()[BLOCK..] == [1; BLOCK]);
    assert_eq!(disk.stats().n_calls, 22);
}

#[test]
fn demands_come_first_and_prefetches_can_be_cancelled_and_promoted() {
    let Some(disk) = disk(1) else { return };
    let (storage, mut writer) = pipe();
    let asker = Asker::new();
    let mut memory = Memory::new(12 * BLOCK);
    let mut ask = |id: u64, priority| {
        let pieces = vec![piece(&mut memory, 2 * id as usize * BLOCK, 0, BLOCK)];
        // SAFETY: the memory lives on, untouched, until all answers are here.
        unsafe { disk.read(vec![asker.read(id, &storage, priority, pieces)]) };
    };
    ask(0, Priority::Demand);
    while disk.stats().n_calls == 0 {
        std::thread::yield_now();
    }
    (1..4).for_each(|id| ask(id, Priority::Prefetch));
    ask(4, Priority::Demand);
    assert!(disk.cancel(2) && !disk.cancel(4));
    disk.promote(3);
    assert!(matches!(asker.next(), (2, Err(ReadError::Cancelled))));
    for expected in [0, 4, 3, 1] {
        asker.nothing_yet();
        writer.write_all(&[0; BLOCK]).unwrap();
        assert!(matches!(asker.next(), (id, Ok(())) if id == expected));
    }
}

#[test]
fn failures_are_repeated_and_told() {
    let Some(disk) = disk(4) else { return };
    let (empty, writer) = pipe();
    drop(writer);
    let folder = Arc::new(Descriptor(File::open(".").unwrap()));
    let asker = Asker::new();
    let mut memory = Memory::new(2 * BLOCK);
    let begun = Instant::now();
    let reads = vec![
        asker.read(0, &empty, Priority::Demand, vec![piece(&mut memory, 0, 0, BLOCK)]),
        asker.read(1, &folder, Priority::Demand, vec![piece(&mut memory, BLOCK, 0, BLOCK)]),
    ];
    // SAFETY: the memory lives on, untouched, until all answers are here.
    unsafe { disk.read(reads) };
    for _ in 0..2 {
        let (id, Err(ReadError::Io { offset: 0, source })) = asker.next() else { panic!("read") };
        let expected = [io::ErrorKind::UnexpectedEof, io::ErrorKind::IsADirectory][id as usize];
        assert_eq!(source.kind(), expected);
    }
    assert!(begun.elapsed() >= Duration::from_millis(310));
    assert_eq!((disk.stats().n_calls, disk.stats().n_retries), (8, 6));
}

#[test]
fn dropping_waits_for_what_has_begun_and_cancels_the_rest() {
    let Some(disk) = disk(1) else { return };
    let (storage, mut writer) = pipe();
    let asker = Asker::new();
    let mut memory = Memory::new(3 * BLOCK);
    for id in 0..3 {
        let pieces = vec![piece(&mut memory, id * BLOCK, 0, BLOCK)];
        // SAFETY: the memory lives on, untouched, until all answers are here.
        unsafe { disk.read(vec![asker.read(id as u64, &storage, Priority::Demand, pieces)]) };
    }
    while disk.stats().n_calls == 0 {
        std::thread::yield_now();
    }
    std::thread::scope(|scope| {
        let dropping = scope.spawn(|| drop(disk));
        asker.nothing_yet();
        assert!(!dropping.is_finished());
        writer.write_all(&[7; BLOCK]).unwrap();
    });
    let mut answers: Vec<_> = asker.answers.try_iter().collect();
    answers.sort_by_key(|(id, _)| *id);
    assert!(matches!(
        answers[..],
        [(0, Ok(())), (1, Err(ReadError::Cancelled)), (2, Err(ReadError::Cancelled))]
    ));
    assert!(memory.bytes()[..BLOCK] == [7; BLOCK]);
}
