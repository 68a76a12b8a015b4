//! What comes next after the result of a call, whoever made the call.

use std::io;
use std::time::Duration;

use crate::{ALIGNMENT, ReadError};

/// Pauses before the next try; the last one for all further tries.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(10), Duration::from_millis(50), Duration::from_millis(250)];
/// Interrupted calls are repeated at once, but not for ever.
const INTERRUPTIONS_MAX: u32 = 100;

/// How far a contiguous read has come.
#[derive(Debug)]
pub(crate) struct Progress {
    position: u64,
    end: u64,
    promised: u64,
    max_retries: u32,
    n_failures: u32,
    n_interruptions: u32,
}

/// What comes next.
#[derive(Debug)]
pub(crate) enum Next {
    /// Everything has been read.
    Done,
    /// Read on from the position.
    Again,
    /// The same, after a pause.
    Pause(Duration),
    Failed(ReadError),
}

impl Progress {
    /// A read of `position..end` from a file of `promised` bytes.
    pub fn new(position: u64, end: u64, promised: u64, max_retries: u32) -> Self {
        Self { position, end, promised, max_retries, n_failures: 0, n_interruptions: 0 }
    }

    /// Up to where everything has been read.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// What comes next after a call that was to read everything from the
    /// position on. `size` asks how long the file is now.
    pub fn after(
        &mut self,
        result: io::Result<usize>,
        size: impl FnOnce() -> io::Result<u64>,
    ) -> Next {
        let error = match result {
            Ok(n) => {
                let reached = self.position.saturating_add(n as u64);
                if reached >= self.end.min(self.promised) {
                    self.position = self.end;
                    return Next::Done;
                }
                // The next call must start at a whole block again.
                let whole = reached / ALIGNMENT * ALIGNMENT;
                if whole > self.position {
                    self.position = whole;
                    self.n_failures = 0;
                    self.n_interruptions = 0;
                    return Next::Again;
                }
                match size() {
                    Ok(size) if size < self.promised => {
                        return Next::Failed(ReadError::Truncated { offset: reached, size });
                    }
                    Ok(_) => io::ErrorKind::UnexpectedEof.into(),
                    Err(error) => error,
                }
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                ) && self.n_interruptions < INTERRUPTIONS_MAX =>
            {
                self.n_interruptions += 1;
                return Next::Again;
            }
            Err(error) => error,
        };
        if self.n_failures == self.max_retries {
            return Next::Failed(ReadError::Io { offset: self.position, source: error.into() });
        }
        let pause = PAUSES[(self.n_failures as usize).min(PAUSES.len() - 1)];
        self.n_failures += 1;
        Next::Pause(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = ALIGNMENT;

    fn eio() -> io::Result<usize> {
        Err(io::Error::from_raw_os_error(5))
    }

    fn unasked() -> io::Result<u64> {
        panic!("the size does not matter")
    }

    #[test]
    fn a_whole_read_is_done() {
        let mut progress = Progress::new(BLOCK, 3 * BLOCK, 10 * BLOCK, 0);
        assert!(matches!(progress.after(Ok(2 * BLOCK as usize), unasked), Next::Done));
        assert_eq!(progress.position(), 3 * BLOCK);
    }

    #[test]
    fn a_short_read_goes_on_at_a_block() {
        let mut progress = Progress::new(BLOCK, 4 * BLOCK, 10 * BLOCK, 0);
        assert!(matches!(progress.after(Ok(BLOCK as usize + 7), unasked), Next::Again));
        assert_eq!(progress.position(), 2 * BLOCK);
        assert!(matches!(progress.after(Ok(2 * BLOCK as usize), unasked), Next::Done));
    }

    #[test]
    fn a_read_ends_with_the_file() {
        let mut progress = Progress::new(0, 2 * BLOCK, BLOCK + 10, 0);
        assert!(matches!(progress.after(Ok(BLOCK as usize), unasked), Next::Again));
        assert!(matches!(progress.after(Ok(10), unasked), Next::Done));
        assert_eq!(progress.position(), 2 * BLOCK);
    }

    #[test]
    fn a_file_that_shrank_is_told() {
        for (n, size) in [(0, BLOCK), (10, BLOCK + 10)] {
            let mut progress = Progress::new(BLOCK, 3 * BLOCK, 3 * BLOCK, 3);
            let Next::Failed(ReadError::Truncated { offset, size: told }) =
                progress.after(Ok(n), || Ok(size))
            else {
                panic!("not truncated")
            };
            assert_eq!((offset, told), (BLOCK + n as u64, size));
        }
    }

    #[test]
    fn a_read_of_nothing_from_a_whole_file_is_a_failure() {
        let mut progress = Progress::new(0, BLOCK, BLOCK, 1);
        assert!(matches!(progress.after(Ok(0), || Ok(BLOCK)), Next::Pause(_)));
        assert!(matches!(
            progress.after(Ok(0), || Ok(BLOCK)),
            Next::Failed(ReadError::Io { offset: 0, .. })
        ));
    }

    #[test]
    fn failures_are_repeated_after_growing_pauses() {
        let mut progress = Progress::new(BLOCK, 2 * BLOCK, 2 * BLOCK, 4);
        for pause in [10, 50, 250, 250] {
            let Next::Pause(told) = progress.after(eio(), unasked) else { panic!("no pause") };
            assert_eq!(told, Duration::from_millis(pause));
        }
        let Next::Failed(ReadError::Io { offset, source }) = progress.after(eio(), unasked) else {
            panic!("goes on")
        };
        assert_eq!((offset, source.raw_os_error()), (BLOCK, Some(5)));
    }

    #[test]
    fn progress_makes_up_for_failures() {
        let mut progress = Progress::new(0, 3 * BLOCK, 3 * BLOCK, 1);
        assert!(matches!(progress.after(eio(), unasked), Next::Pause(_)));
        assert!(matches!(progress.after(Ok(BLOCK as usize), unasked), Next::Again));
        assert!(matches!(progress.after(eio(), unasked), Next::Pause(_)));
        assert!(matches!(progress.after(eio(), unasked), Next::Failed(_)));
    }

    #[test]
    fn interruptions_are_repeated_at_once_but_not_for_ever() {
        for kind in [io::ErrorKind::Interrupted, io::ErrorKind::WouldBlock] {
            let mut progress = Progress::new(0, BLOCK, BLOCK, 0);
            for _ in 0..INTERRUPTIONS_MAX {
                assert!(matches!(progress.after(Err(kind.into()), unasked), Next::Again));
            }
            assert!(matches!(progress.after(Err(kind.into()), unasked), Next::Failed(_)));
        }
    }
}
