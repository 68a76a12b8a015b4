//! How fast a disk is.

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use moewe_memory::Mapping;

use crate::{ALIGNMENT, Disk, Piece, Priority, Read, ReadError, Storage};

/// Measures for about `time` how many bytes a second come when `n_at_once` pieces
/// of `length` bytes, a multiple of [`ALIGNMENT`], are read together from places
/// that `place` picks: numbers below the one it is given. They are read into a
/// [`Mapping`] whose pages are huge, if there are such.
///
/// # Errors
///
/// Those of reading, and [`ReadError::Truncated`] if the storage has no such
/// piece; [`ReadError::Io`] without memory.
pub fn measure(
    disk: &Disk,
    storage: &Arc<dyn Storage>,
    length: usize,
    n_at_once: usize,
    time: Duration,
    mut place: impl FnMut(u64) -> u64,
) -> Result<f64, ReadError> {
    let length = length / ALIGNMENT as usize * ALIGNMENT as usize;
    let n_places = storage.promised().checked_div(length as u64).unwrap_or(0);
    if n_places == 0 || n_at_once == 0 {
        return Err(ReadError::Truncated { offset: 0, size: storage.promised() });
    }
    let bytes_at_once = (length as u64).saturating_mul(n_at_once as u64);
    let no_memory = |e| ReadError::Io { offset: 0, source: Arc::new(e) };
    let memory = Mapping::new("moewe-measure", bytes_at_once).map_err(no_memory)?;
    memory.gather(0..bytes_at_once);
    let (start, mut bytes) = (Instant::now(), 0);
    while start.elapsed() < time {
        let (sender, receiver) = mpsc::channel();
        let read = |i: usize| {
            let sender = sender.clone();
            let offset = place(n_places).min(n_places - 1) * length as u64;
            let memory = memory.at(i * length, length);
            Read {
                id: i as u64,
                storage: storage.clone(),
                pieces: vec![Piece { offset, length, memory }],
                priority: Priority::Demand,
                // The receiver waits for all of them.
                done: Box::new(move |result| drop(sender.send(result))),
            }
        };
        let reads: Vec<_> = (0..n_at_once).map(read).collect();
        drop(sender);
        // SAFETY: each read has memory of its own, which is not looked at, and
        // lives until every `done` was called and so dropped its sender: the
        // loop below ends only then.
        unsafe { disk.read(reads) };
        let mut result = Ok(());
        while let Ok(read) = receiver.recv() {
            result = result.and(read);
            bytes += length as u64;
        }
        result?;
    }
    Ok(bytes as f64 / start.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DirectFile, DiskOptions};

    #[test]
    fn pieces_are_read_all_over_the_file() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, &[1; 5 * ALIGNMENT as usize]).unwrap();
        let storage: Arc<dyn Storage> = Arc::new(DirectFile::open(file.path()).unwrap());
        let disk = Disk::new(DiskOptions::default()).unwrap();
        let page = ALIGNMENT as usize;
        let mut places = Vec::new();
        let place = |n| {
            places.push(n);
            places.len() as u64
        };
        let speed = measure(&disk, &storage, page, 3, Duration::from_millis(1), place).unwrap();
        assert!(speed > 0.0);
        assert!(places.len() >= 3 && places.iter().all(|&n| n == 5));
        let bytes = disk.stats().bytes_read;
        assert_eq!(bytes, places.len() as u64 * ALIGNMENT);
        let none = measure(&disk, &storage, 6 * page, 1, Duration::ZERO, |_| 0);
        assert!(matches!(none, Err(ReadError::Truncated { .. })));
    }
}
