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
