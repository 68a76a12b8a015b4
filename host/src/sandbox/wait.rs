//! Waiting for other threads: awake for a moment, then asleep.

use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long a thread stays awake: less than a short token takes, and more than
/// it takes to wake up.
const SPIN: Duration = Duration::from_micros(100);
/// Looks between two looks at the clock.
const N_LOOKS: usize = 32;

/// Threads that wait for something that others will do.
#[derive(Debug)]
pub(super) struct Wait {
    spin: Duration,
    n_asleep: AtomicUsize,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Wait {
    /// For `n_threads` that work at the same time. If they are more than the
    /// processors, one that stays awake keeps another one from its work.
    pub fn new(n_threads: usize) -> Self {
        // Finding out takes as long as a short call.
        static N_PROCESSORS: OnceLock<usize> = OnceLock::new();
        let n_processors =
            *N_PROCESSORS.get_or_init(|| thread::available_parallelism().map_or(1, usize::from));
        let spin = if n_threads <= n_processors { SPIN } else { Duration::ZERO };
        Self { spin, n_asleep: AtomicUsize::new(0), lock: Mutex::new(()), changed: Condvar::new() }
    }

    /// Waits until `ready` answers. It is asked again after each
    /// [`wake`](Self::wake), and every `tick` if there is one.
    pub fn until<T>(&self, tick: Option<Duration>, mut ready: impl FnMut() -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            for _ in 0..N_LOOKS {
                if let Some(answer) = ready() {
                    return answer;
                }
                std::hint::spin_loop();
            }
            if start.elapsed() >= self.spin {
                break;
            }
        }
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.n_asleep.fetch_add(1, Ordering::SeqCst);
        // Either `ready` sees what was done before a `wake`, or that sees
        // somebody asleep.
        fence(Ordering::SeqCst);
        let answer = loop {
            if let Some(answer) = ready() {
                break answer;
            }
            lock = match tick {
                None => self.changed.wait(lock).unwrap_or_else(PoisonError::into_inner),
                Some(tick) => {
                    let waited = self.changed.wait_timeout(lock, tick);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        };
        self.n_asleep.fetch_sub(1, Ordering::SeqCst);
        answer
    }

    /// Tells all who wait that something was done.
    pub fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.n_asleep.load(Ordering::SeqCst) > 0 {
            // Whoever has the lock sleeps before it is free again.
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.changed.notify_all();
        }
    }
}
