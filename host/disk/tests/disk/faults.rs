//! Storages that go wrong, and the order of things.

use std::io::{self, IoSliceMut};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use moewe_disk::{Backend, Disk, DiskOptions, Piece, Priority, Read, ReadError, Storage};

use crate::common::{Asker, BLOCK, Memory, disks, noise, piece};

type Answer = Box<dyn Fn(u64, usize) -> io::Result<usize> + Send + Sync>;

/// Reads from memory as many bytes as it is told to, and notes offset and
/// length of each call.
struct Faulty {
    bytes: Vec<u8>,
    /// How many bytes a call reads, of those from an offset on that are wanted.
    answer: Answer,
    calls: Mutex<Vec<(u64, usize)>>,
}

impl Faulty {
    fn new(
        n_blocks: usize,
        answer: impl Fn(u64, usize) -> io::Result<usize> + Send + Sync + 'static,
    ) -> Arc<Self> {
        let bytes = noise(n_blocks * BLOCK);
        Arc::new(Self { bytes, answer: Box::new(answer), calls: Mutex::default() })
    }

    fn calls(&self) -> Vec<(usize, usize)> {
        let calls = self.calls.lock().unwrap();
        calls.iter().map(|(offset, n)| (*offset as usize / BLOCK, n / BLOCK)).collect()
    }
}

impl Storage for Faulty {
    fn read_at(&self, buffers: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        let wanted = buffers.iter().map(|buffer| buffer.len()).sum();
        self.calls.lock().unwrap().push((offset, wanted));
        let n = (self.answer)(offset, wanted)?.min(wanted);
        let mut bytes = &self.bytes[offset as usize..][..n];
        for buffer in buffers {
            let (now, later) = bytes.split_at(bytes.len().min(buffer.len()));
            buffer[..now.len()].copy_from_slice(now);
            bytes = later;
        }
        Ok(n)
    }

    fn promised(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.promised())
    }
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(5)
}

fn options(depth: usize) -> DiskOptions {
    DiskOptions { backend: Backend::Threads, depth, ..DiskOptions::default() }
}

/// Reads neighbours of a block each, and says which failed where.
fn read_neighbours(disk: &Disk, storage: &Arc<Faulty>, n: usize) -> Vec<(u64, u64)> {
    let asker = Asker::new();
    let mut memory = Memory::new(n * BLOCK);
    // The other way round in memory, so that no order of bytes is right by chance.
    let reads = (0..n).map(|i| {
        let pieces = vec![piece(&mut memory, (n - 1 - i) * BLOCK, i * BLOCK, BLOCK)];
        asker.read(i as u64, storage, Priority::Demand, pieces)
    });
    // SAFETY: the memory lives on, untouched, until all answers are here.
    unsafe { disk.read(reads.collect()) };
    let mut failed = Vec::new();
    for _ in 0..n {
        match asker.next() {
            (id, Ok(())) => {
                let at = (n - 1 - id as usize) * BLOCK;
                let expected = &storage.bytes[id as usize * BLOCK..][..BLOCK];
                assert!(&memory.bytes()[at..][..BLOCK] == expected);
            }
            (id, Err(ReadError::Io { offset, source })) => {
                assert_eq!(source.raw_os_error(), Some(5));
                failed.push((id, offset));
            }
            (_, Err(error)) => panic!("{error}"),
        }
    }
    failed.sort_unstable();
    failed
}

#[test]
fn short_reads_go_on() {
    // Both backends: without a file descriptor io_uring leaves it to threads.
    for disk in disks(&options(2)) {
        for n_bytes in (1..=9).map(|n| n * BLOCK).chain([BLOCK + 1, 3 * BLOCK - 1]) {
            let storage = Faulty::new(8, move |_, _| Ok(n_bytes));
            assert_eq!(read_neighbours(&disk, &storage, 8), []);
            let n_calls = storage.calls().len();
            assert_eq!(n_calls, 8usize.div_ceil(n_bytes / BLOCK), "{n_bytes} bytes a call");
        }
        assert_eq!(disk.stats().n_retries, 0);
    }
}

#[test]
fn interruptions_go_on_at_once() {
    let interrupted = Mutex::new(5);
    let storage = Faulty::new(4, move |_, n| {
        let mut left = interrupted.lock().unwrap();
        *left -= 1;
        if *left >= 0 { Err(io::ErrorKind::Interrupted.into()) } else { Ok(n) }
    });
    let disk = Disk::new(options(1)).unwrap();
    assert_eq!(read_neighbours(&disk, &storage, 4), []);
    assert_eq!((storage.calls().len(), disk.stats().n_retries), (6, 0));
}

#[test]
fn one_failure_is_made_up_for() {
    let failed = Mutex::new(false);
    let storage = Faulty::new(1, move |_, n| {
        if std::mem::replace(&mut failed.lock().unwrap(), true) { Ok(n) } else { Err(eio()) }
    });
    let disk = Disk::new(options(1)).unwrap();
    assert_eq!(read_neighbours(&disk, &storage, 1), []);
    assert_eq!((storage.calls().len(), disk.stats().n_retries), (2, 1));
}

#[test]
fn a_bad_block_fails_nobody_else() {
    let bad = 3 * BLOCK as u64;
    let storage =
        Faulty::new(
            6,
            move |offset, n| {
                if (offset..offset + n as u64).contains(&bad) { Err(eio()) } else { Ok(n) }
            },
        );
    let disk = Disk::new(DiskOptions { max_retries: 2, ..options(1) }).unwrap();
    assert_eq!(read_neighbours(&disk, &storage, 6), [(3, bad)]);
    let calls = storage.calls();
    assert_eq!(calls[0], (0, 6));
    assert_eq!(calls.iter().filter(|call| **call == (3, 1)).count(), 3);
    assert_eq!(calls.len(), 1 + 5 + 3);
}

#[test]
fn what_was_read_before_a_failure_stays() {
    // Two blocks come, then the third is bad.
    let storage =
        Faulty::new(
            4,
            |offset, _| {
                if offset == 2 * BLOCK as u64 { Err(eio()) } else { Ok(2 * BLOCK) }
            },
        );
    let disk = Disk::new(DiskOptions { max_retries: 0, ..options(1) }).unwrap();
    assert_eq!(read_neighbours(&disk, &storage, 4), [(2, 2 * BLOCK as u64)]);
    assert_eq!(storage.calls(), [(0, 4), (2, 2), (2, 1), (3, 1)]);
}

/// Storages whose calls wait until it opens.
struct Gate(Mutex<bool>, Condvar);

impl Gate {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(false), Condvar::new()))
    }

    fn storage(self: &Arc<Self>, n_blocks: usize) -> Arc<Faulty> {
        let gate = self.clone();
        Faulty::new(n_blocks, move |_, n| {
            let (_guard, timeout) = gate
                .1
                .wait_timeout_while(gate.0.lock().unwrap(), Duration::from_secs(20), |open| !*open)
                .unwrap();
            assert!(!timeout.timed_out());
            Ok(n)
        })
    }

    fn open(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }
}

/// A block each, a hole between them, so that nothing is joined.
fn ask(
    disk: &Disk,
    asker: &Asker,
    storage: &Arc<Faulty>,
    memory: &mut Memory,
    reads: &[(usize, Priority)],
) {
    let reads = reads.iter().map(|(i, priority)| {
        let pieces = vec![piece(memory, 2 * i * BLOCK, 2 * i * BLOCK, BLOCK)];
        asker.read(*i as u64, storage, *priority, pieces)
    });
    // SAFETY: the callers keep the memory, untouched, until they have all answers.
    unsafe { disk.read(reads.collect()) }
}

/// Waits until the storage was called so often.
fn called(storage: &Faulty, n: usize) {
    while storage.calls().len() < n {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn others_go_on_while_one_stalls() {
    for disk in disks(&options(2)) {
        let gate = Gate::new();
        let (stalled, sound) = (gate.storage(2), Faulty::new(40, |_, n| Ok(n)));
        let asker = Asker::new();
        let (mut memory, mut held) = (Memory::new(40 * BLOCK), Memory::new(BLOCK));
        let read = asker.read(99, &stalled, Priority::Demand, vec![piece(&mut held, 0, 0, BLOCK)]);
        // SAFETY: the memory lives on, untouched, until the answer is here.
        unsafe { disk.read(vec![read]) };
        let reads: Vec<_> = (0..20).map(|i| (i, Priority::Demand)).collect();
        ask(&disk, &asker, &sound, &mut memory, &reads);
        for i in 0..20 {
            assert!(matches!(asker.next(), (id, Ok(())) if id == i));
        }
        asker.nothing_yet();
        gate.open();
        assert!(matches!(asker.next(), (99, Ok(()))));
    }
}

#[test]
fn demands_come_first_and_prefetches_can_be_cancelled_and_promoted() {
    use Priority::{Demand, Prefetch};
    let disk = Disk::new(options(1)).unwrap();
    let gate = Gate::new();
    let storage = gate.storage(20);
    let asker = Asker::new();
    let mut memory = Memory::new(20 * BLOCK);
    ask(&disk, &asker, &storage, &mut memory, &[(0, Prefetch)]);
    called(&storage, 1);
    ask(&disk, &asker, &storage, &mut memory, &[(3, Prefetch), (2, Prefetch), (1, Prefetch)]);
    ask(&disk, &asker, &storage, &mut memory, &[(9, Demand), (8, Demand), (4, Prefetch)]);
    ask(&disk, &asker, &storage, &mut memory, &[(5, Demand)]);
    assert!(!disk.cancel(0), "it has begun");
    assert!(!disk.cancel(9), "it is a demand");
    assert!(!disk.cancel(77), "there is none");
    assert!(disk.cancel(2));
    assert!(matches!(asker.answers.try_recv(), Ok((2, Err(ReadError::Cancelled)))));
    assert!(!disk.cancel(2), "it is cancelled already");
    disk.promote(3);
    disk.promote(77);
    assert!(!disk.cancel(3), "it is a demand by now");
    gate.open();
    for expected in [0, 8, 9, 5, 3, 1, 4] {
        assert!(matches!(asker.next(), (id, Ok(())) if id == expected));
    }
    assert_eq!(storage.calls().len(), 7);
}

#[test]
fn prefetches_leave_room_for_demands() {
    let disk = Disk::new(options(4)).unwrap();
    let gate = Gate::new();
    let (stalled, sound) = (gate.storage(20), Faulty::new(20, |_, n| Ok(n)));
    let asker = Asker::new();
    let (mut memory, mut other) = (Memory::new(20 * BLOCK), Memory::new(20 * BLOCK));
    let prefetches: Vec<_> = (0..5).map(|i| (i, Priority::Prefetch)).collect();
    ask(&disk, &asker, &stalled, &mut memory, &prefetches);
    called(&stalled, 2);
    ask(&disk, &asker, &sound, &mut other, &[(9, Priority::Demand)]);
    assert!(matches!(asker.next(), (9, Ok(()))));
    asker.nothing_yet();
    assert_eq!(stalled.calls().len(), 2);
    gate.open();
    (0..5).for_each(|_| asker.next().1.unwrap());
}

#[test]
fn a_long_prefetch_that_has_begun_is_not_cancelled() {
    let disk = Disk::new(DiskOptions { call_bytes: BLOCK, ..options(1) }).unwrap();
    let gate = Gate::new();
    let storage = gate.storage(3);
    let asker = Asker::new();
    let mut memory = Memory::new(3 * BLOCK);
    let pieces = vec![piece(&mut memory, 0, 0, 3 * BLOCK)];
    // SAFETY: the memory lives on, untouched, until the answer is here.
    unsafe { disk.read(vec![asker.read(1, &storage, Priority::Prefetch, pieces)]) };
    called(&storage, 1);
    assert!(!disk.cancel(1));
    disk.promote(1);
    gate.open();
    asker.next().1.unwrap();
    assert_eq!(storage.calls(), [(0, 1), (1, 1), (2, 1)]);
    assert!(memory.bytes() == storage.bytes);
}

#[test]
fn neighbours_share_a_call() {
    let disk = Disk::new(DiskOptions { call_bytes: 4 * BLOCK, ..options(1) }).unwrap();
    let storage = Faulty::new(40, |_, n| Ok(n));
    let asker = Asker::new();
    let mut memory = Memory::new(20 * BLOCK);
    // In the file: 0 1 2 | 4 | 10..20, which is too much for one call.
    let places = [(2, 1), (10, 10), (0, 1), (4, 1), (1, 1)];
    let mut at = 0;
    let reads: Vec<Read> = (0..)
        .zip(places)
        .map(|(id, (offset, n))| {
            let pieces = vec![piece(&mut memory, at, offset * BLOCK, n * BLOCK)];
            at += n * BLOCK;
            asker.read(id, &storage, Priority::Demand, pieces)
        })
        .collect();
    // SAFETY: the memory lives on, untouched, until all answers are here.
    unsafe { disk.read(reads) };
    (0..5).for_each(|_| asker.next().1.unwrap());
    assert_eq!(storage.calls(), [(0, 3), (4, 1), (10, 4), (14, 4), (18, 2)]);
    let mut read = memory.bytes();
    for (offset, n) in places {
        let now = read.split_off(..n * BLOCK).unwrap();
        assert!(now == &storage.bytes[offset * BLOCK..][..n * BLOCK]);
    }
    let stats = disk.stats();
    assert_eq!((stats.n_calls, stats.n_reads, stats.bytes_read), (5, 5, 14 * BLOCK as u64));
}

#[test]
fn one_call_takes_no_more_buffers_than_the_system() {
    let disk = Disk::new(DiskOptions { call_bytes: 4096 * BLOCK, ..options(1) }).unwrap();
    let storage = Faulty::new(1500, |_, n| Ok(n));
    assert_eq!(read_neighbours(&disk, &storage, 1500), []);
    assert_eq!(storage.calls(), [(0, 1024), (1024, 476)]);
}

#[test]
fn dropping_waits_for_what_has_begun_and_cancels_the_rest() {
    let disk = Disk::new(options(1)).unwrap();
    let gate = Gate::new();
    let storage = gate.storage(20);
    let asker = Asker::new();
    let mut memory = Memory::new(20 * BLOCK);
    let reads = [(0, Priority::Demand), (1, Priority::Demand), (2, Priority::Prefetch)];
    ask(&disk, &asker, &storage, &mut memory, &reads);
    called(&storage, 1);
    std::thread::scope(|scope| {
        let dropping = scope.spawn(|| drop(disk));
        asker.nothing_yet();
        assert!(!dropping.is_finished());
        gate.open();
    });
    let mut answers: Vec<_> = asker.answers.try_iter().collect();
    answers.sort_by_key(|(id, _)| *id);
    assert!(matches!(
        answers[..],
        [(0, Ok(())), (1, Err(ReadError::Cancelled)), (2, Err(ReadError::Cancelled))]
    ));
    assert_eq!(storage.calls().len(), 1);
}

#[test]
fn dropping_does_not_wait_for_retries() {
    let storage = Faulty::new(1, |_, _| Err(eio()));
    let disk = Disk::new(DiskOptions { max_retries: u32::MAX, ..options(2) }).unwrap();
    let asker = Asker::new();
    let mut memory = Memory::new(BLOCK);
    let pieces = vec![piece(&mut memory, 0, 0, BLOCK)];
    // SAFETY: the memory lives on, untouched, until the answer is here.
    unsafe { disk.read(vec![asker.read(1, &storage, Priority::Demand, pieces)]) };
    called(&storage, 2);
    drop(disk);
    assert!(matches!(asker.next(), (1, Err(ReadError::Cancelled))));
}

#[test]
fn a_result_may_ask_for_more_panic_and_drop_the_disk() {
    for disk in disks(&options(1)) {
        let storage = Faulty::new(4, |_, n| Ok(n));
        let asker = Asker::new();
        let mut memory = Memory::new(3 * BLOCK);
        let mut pieces: Vec<Piece> =
            (0..3).map(|i| piece(&mut memory, i * BLOCK, 0, BLOCK)).collect();
        let mut read = |id| {
            let pieces = pieces.pop().into_iter().collect();
            asker.read(id, &storage, Priority::Demand, pieces)
        };
        let disk = Arc::new(disk);
        let (mut first, second, mut third) = (read(1), read(2), read(3));
        let (ours, theirs) = (disk.clone(), disk.clone());
        let done = std::mem::replace(
            &mut first.done,
            Box::new(move |_| {
                // SAFETY: as below.
                unsafe { ours.read(vec![second]) };
                panic!("the disk must go on");
            }),
        );
        let tell = third.done;
        third.done = Box::new(move |result| {
            drop(theirs);
            tell(result);
        });
        // SAFETY: the memory lives on, untouched, until all answers are here.
        unsafe { disk.read(vec![first]) };
        assert!(matches!(asker.next(), (2, Ok(()))));
        done(Ok(()));
        assert!(matches!(asker.next(), (1, Ok(()))));
        // SAFETY: as above.
        unsafe { disk.read(vec![third]) };
        drop(disk);
        assert!(matches!(asker.next(), (3, Ok(()) | Err(ReadError::Cancelled))));
    }
}
