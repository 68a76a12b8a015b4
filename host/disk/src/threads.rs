//! Threads that make one call each.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::job::{Job, Step};
use crate::queue::{Queue, Work};

/// Threads that do what is in a queue.
pub(crate) struct Threads {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Threads {
    pub fn new(n_threads: usize, queue: Queue) -> io::Result<Self> {
        let shared = Arc::new(Shared { queue: Mutex::new(queue), changed: Condvar::new() });
        // Those that were started end if one cannot be.
        let mut threads = Self { shared, handles: Vec::new() };
        for i in 0..n_threads {
            let shared = threads.shared.clone();
            let thread = std::thread::Builder::new().name(format!("disk {i}"));
            threads.handles.push(thread.spawn(move || shared.work())?);
        }
        Ok(threads)
    }

    /// Changes the queue; the threads see to it.
    pub fn change<T>(&self, change: impl FnOnce(&mut Queue) -> T) -> T {
        self.shared.change(change)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.change(Queue::close);
        for handle in self.handles.drain(..) {
            join(handle);
        }
    }
}

/// Waits for a thread to end, unless it is this one.
pub(crate) fn join(handle: JoinHandle<()>) {
    if handle.thread().id() != std::thread::current().id() {
        // A panic has been reported where it happened.
        let _ = handle.join();
    }
}

impl Shared {
    fn change<T>(&self, change: impl FnOnce(&mut Queue) -> T) -> T {
        let result = change(&mut self.queue.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
        result
    }

    fn work(&self) {
        while let Some(work) = self.next() {
            match work {
                Work::Settle(part, result) => part.settle(result),
                Work::Call(job) => self.call(job),
            }
        }
    }

    /// Waits for something to do; `None` when there will be nothing any more.
    fn next(&self) -> Option<Work> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let now = Instant::now();
            if let Some(work) = queue.take(now) {
                return Some(work);
            }
            if queue.is_closed() {
                return None;
            }
            queue = match queue.next_due() {
                Some(due) => {
                    let pause = due.saturating_duration_since(now);
                    let waited = self.changed.wait_timeout(queue, pause);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn call(&self, mut job: Job) {
        loop {
            job.call_begins();
            // SAFETY: they live for this call alone.
            let mut buffers = unsafe { job.buffers() };
            let result = job.storage().read_at(&mut buffers, job.offset());
            drop(buffers);
            match job.after(result) {
                Step::Finished => return,
                Step::Again => {}
                Step::Pause(pause) => {
                    return self.change(|queue| queue.delay(job, Instant::now() + pause));
                }
                Step::Split => {
                    let now = Instant::now();
                    return self
                        .change(|queue| job.split().for_each(|part| queue.delay(part, now)));
                }
            }
        }
    }
}
