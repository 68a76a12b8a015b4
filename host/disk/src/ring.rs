//! One thread that has the kernel make the calls.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use rustix::event::{EventfdFlags, PollFlags};

use crate::job::{Job, Step};
use crate::queue::{Queue, Work};
use crate::threads::join;

/// Marks the completion that says that the queue has changed.
const WAKE: u64 = u64::MAX;

/// io_uring, and the thread that does with it what is in a queue. All storages
/// there have a file descriptor.
pub(crate) struct Ring {
    shared: Arc<Shared>,
    handle: Option<JoinHandle<()>>,
}

struct Shared {
    queue: Mutex<Queue>,
    /// Readable when the queue has changed.
    changed: OwnedFd,
}

impl Ring {
    /// Fails where io_uring is forbidden or too old.
    pub fn new(depth: usize, queue: Queue) -> io::Result<Self> {
        let n_entries = u32::try_from(depth + 1).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut ring = IoUring::new(n_entries)?;
        if !ring.params().is_feature_ext_arg() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        // Who may set it up may still be forbidden to use it.
        push(&mut ring, &opcode::Nop::new().build());
        ring.submit_and_wait(1)?;
        ring.completion().for_each(drop);

        let changed = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared { queue: Mutex::new(queue), changed });
        let calls = (0..depth).map(|_| None).collect();
        let mut worker =
            Worker { shared: shared.clone(), ring, calls: Calls(calls), is_listening: false };
        let thread = std::thread::Builder::new().name("disk".into());
        let handle = thread.spawn(move || worker.work())?;
        Ok(Self { shared, handle: Some(handle) })
    }

    /// Changes the queue; the thread sees to it.
    pub fn change<T>(&self, change: impl FnOnce(&mut Queue) -> T) -> T {
        let result = self.shared.change(change);
        // It can only fail because nobody has listened 2^64 times.
        let _ = rustix::io::write(&self.shared.changed, &1u64.to_ne_bytes());
        result
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.change(Queue::close);
        self.handle.take().into_iter().for_each(join);
    }
}

impl Shared {
    fn change<T>(&self, change: impl FnOnce(&mut Queue) -> T) -> T {
        change(&mut self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Worker {
    shared: Arc<Shared>,
    ring: IoUring,
    calls: Calls,
    /// Whether the kernel will tell of changes.
    is_listening: bool,
}

/// The calls under way; their places are what the kernel knows them by.
struct Calls(Vec<Option<Call>>);

struct Call {
    job: Job,
    /// The kernel reads this list, so it stays where it is.
    buffers: Vec<IoSliceMut<'static>>,
}

impl Drop for Calls {
    fn drop(&mut self) {
        // The thread panics, and the kernel would go on to write to memory
        // whose owners would never hear of it.
        if self.0.iter().any(Option::is_some) {
            std::process::abort();
        }
    }
}

impl Worker {
    fn work(&mut self) {
        while self.begin() {
            self.wait();
            let completions =
                self.ring.completion().map(|entry| (entry.user_data(), entry.result()));
            for (id, result) in completions.collect::<Vec<_>>() {
                if id == WAKE {
                    self.is_listening = false;
                    let _ = rustix::io::read(&self.shared.changed, &mut [0; 8]);
                } else {
                    self.end(id as usize, result);
                }
            }
        }
    }

    /// Begins what there is room for; false when there will be nothing any more.
    fn begin(&mut self) -> bool {
        let mut is_over = false;
        while let Some(free) = self.calls.0.iter().position(Option::is_none) {
            let take = |queue: &mut Queue| (queue.take(Instant::now()), queue.is_closed());
            match self.shared.change(take) {
                (Some(Work::Settle(part, result)), _) => part.settle(result),
                (Some(Work::Call(job)), _) => self.call(free, job),
                (None, is_closed) => {
                    is_over = is_closed;
                    break;
                }
            }
        }
        if !self.is_listening {
            let readable = PollFlags::IN.bits().into();
            let listen = opcode::PollAdd::new(Fd(self.shared.changed.as_raw_fd()), readable);
            push(&mut self.ring, &listen.build().user_data(WAKE));
            self.is_listening = true;
        }
        !is_over || self.calls.0.iter().any(Option::is_some)
    }

    fn call(&mut self, place: usize, job: Job) {
        job.call_begins();
        // SAFETY: the job stays in `calls`, and these beside it, until the call has
        // ended.
        let buffers: Vec<IoSliceMut<'static>> = unsafe { job.buffers() };
        let fd = job.storage().raw_fd().map_or(-1, |fd| fd.as_raw_fd());
        // The system knows `IoSliceMut` as `iovec`.
        let read = opcode::Readv::new(Fd(fd), buffers.as_ptr().cast(), buffers.len() as u32)
            .offset(job.offset());
        push(&mut self.ring, &read.build().user_data(place as u64));
        self.calls.0[place] = Some(Call { job, buffers });
    }

    /// Waits until a call ends, the queue changes, or a delayed job goes on.
    fn wait(&mut self) {
        let due = self.shared.change(|queue| queue.next_due());
        let pause = due.map(|due| Timespec::from(due.saturating_duration_since(Instant::now())));
        let mut args = SubmitArgs::new();
        if let Some(pause) = &pause {
            args = args.timespec(pause);
        }
        if let Err(error) = self.ring.submitter().submit_with_args(1, &args)
            && error.kind() != io::ErrorKind::TimedOut
            && error.kind() != io::ErrorKind::Interrupted
        {
            // The kernel is short of something; what was not submitted is next time.
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn end(&mut self, place: usize, result: i32) {
        let Some(Call { mut job, buffers }) = self.calls.0[place].take() else { return };
        drop(buffers);
        let result = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
        match job.after(result) {
            Step::Finished => {}
            Step::Again => self.call(place, job),
            Step::Pause(pause) => {
                self.shared.change(|queue| queue.delay(job, Instant::now() + pause));
            }
            Step::Split => {
                let now = Instant::now();
                self.shared.change(|queue| job.split().for_each(|part| queue.delay(part, now)));
            }
        }
    }
}

/// Has the next submission make a call.
fn push(ring: &mut IoUring, call: &squeue::Entry) {
    // SAFETY: a read's file and buffers live in `Calls` until it has ended; the
    // others need no memory.
    let pushed = unsafe { ring.submission().push(call) };
    pushed.expect("there is an entry for each call under way, and one to listen");
}
