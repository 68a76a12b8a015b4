//! Waiting for other threads: awake for a moment, then asleep.

use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};

/// How long a thread stays awake: less than a short token takes, and several times what
/// it takes to wake up, which is longest where a hypervisor has lent the processor to
/// others meanwhile.
const SPIN: Duration = Duration::from_millis(1);
/// Looks between two looks at the clock.
const N_LOOKS: usize = 32;

/// How long a thread that waits stays awake.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spin(Duration);

impl Spin {
    /// For `n_threads` that work at the same time. If they are more than the
    /// processors, one that stays awake keeps another one from its work.
    pub fn new(n_threads: usize) -> Self {
        // Finding out takes as long as a short call.
        static N_PROCESSORS: OnceLock<usize> = OnceLock::new();
        let n_processors =
            *N_PROCESSORS.get_or_init(|| thread::available_parallelism().map_or(1, usize::from));
        Self(if n_threads <= n_processors { SPIN } else { Duration::ZERO })
    }

    /// What `ready` answers, or nothing when it is time to sleep.
    pub fn until<T>(self, mut ready: impl FnMut() -> Option<T>) -> Option<T> {
        let start = Instant::now();
        loop {
            for _ in 0..N_LOOKS {
                if let Some(answer) = ready() {
                    return Some(answer);
                }
                std::hint::spin_loop();
            }
            if start.elapsed() >= self.0 {
                return None;
            }
        }
    }

    /// The next message, or nothing when nobody is left who could send one.
    pub fn receive<T>(self, messages: &Receiver<T>) -> Option<T> {
        let awake = self.until(|| match messages.try_recv() {
            Ok(message) => Some(Some(message)),
            Err(TryRecvError::Disconnected) => Some(None),
            Err(TryRecvError::Empty) => None,
        });
        awake.unwrap_or_else(|| messages.recv().ok())
    }
}
