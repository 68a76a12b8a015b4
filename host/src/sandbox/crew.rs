//! The threads of a team: one for each member but the first, which works on
//! its caller's thread.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::{io, thread};

use super::team::Team;
use super::wait::Wait;

/// Members of a team, each on its thread.
pub(super) struct Crew<M> {
    first: Option<M>,
    others: Vec<Worker<M>>,
    team: Arc<Team>,
}

/// Work for a member. The first work makes the member.
type Job<M> = Box<dyn FnOnce(&mut Option<M>) + Send>;

struct Worker<M> {
    inbox: Arc<Inbox<M>>,
    thread: Option<JoinHandle<()>>,
}

struct Inbox<M> {
    order: Mutex<Option<Order<M>>>,
    wait: Wait,
}

enum Order<M> {
    Work(Job<M>),
    End,
}

impl<M> Inbox<M> {
    fn put(&self, order: Order<M>) {
        *self.order.lock().unwrap_or_else(PoisonError::into_inner) = Some(order);
        self.wait.wake();
    }

    fn take(&self) -> Order<M> {
        let order = || self.order.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.wait.until(None, order)
    }
}

/// What becomes of a job that all members do.
struct Results<T> {
    slots: Vec<Mutex<Option<T>>>,
    n_done: AtomicUsize,
    wait: Wait,
}

/// Says that a member has done its part, also if that panics.
struct Done<T> {
    team: Arc<Team>,
    results: Arc<Results<T>>,
}

impl<T> Drop for Done<T> {
    fn drop(&mut self) {
        self.team.leave();
        self.results.n_done.fetch_add(1, Ordering::SeqCst);
        self.results.wait.wake();
    }
}

/// Waits for all members, also if the first one panics.
struct All<T>(Arc<Results<T>>);

impl<T> Drop for All<T> {
    fn drop(&mut self) {
        let results = &*self.0;
        let all_done =
            || (results.n_done.load(Ordering::SeqCst) == results.slots.len()).then_some(());
        results.wait.until(None, all_done);
    }
}

impl<M: 'static> Crew<M> {
    /// Starts the threads of a team.
    pub fn start(team: &Arc<Team>) -> io::Result<Self> {
        let mut crew = Self { first: None, others: Vec::new(), team: team.clone() };
        for rank in 1..team.size() {
            let inbox = Arc::new(Inbox { order: Mutex::new(None), wait: Wait::new(team.size()) });
            let theirs = inbox.clone();
            let thread = thread::Builder::new().name(format!("moewe-{rank}")).spawn(move || {
                let mut member = None;
                while let Order::Work(job) = theirs.take() {
                    job(&mut member);
                }
            })?;
            crew.others.push(Worker { inbox, thread: Some(thread) });
        }
        Ok(crew)
    }

    /// Has every member do the same, at the same time, and answers what came
    /// of it by rank; nothing if a member panicked. A panic of the first one
    /// goes on from here, when all have done their part.
    pub fn all<T: Send + 'static>(
        &mut self,
        f: impl Fn(usize, &mut Option<M>) -> T + Send + Sync + 'static,
    ) -> Vec<Option<T>> {
        let size = self.team.size();
        let results = Arc::new(Results {
            slots: (0..size).map(|_| Mutex::new(None)).collect(),
            n_done: AtomicUsize::new(0),
            wait: Wait::new(size),
        });
        self.team.begin(false);
        let f = Arc::new(f);
        {
            let _all = All(results.clone());
            for (i, worker) in self.others.iter().enumerate() {
                let (rank, f) = (i + 1, f.clone());
                let done = Done { team: self.team.clone(), results: results.clone() };
                worker.inbox.put(Order::Work(Box::new(move |member| {
                    let value = f(rank, member);
                    done.results.put(rank, value);
                })));
            }
            let done = Done { team: self.team.clone(), results: results.clone() };
            let value = f(0, &mut self.first);
            done.results.put(0, value);
        }
        results.slots.iter().map(Results::take).collect()
    }

    /// Has the first member alone do something.
    pub fn first<T>(&mut self, f: impl FnOnce(&mut Option<M>) -> T) -> T {
        self.team.begin(true);
        f(&mut self.first)
    }
}

impl<T> Results<T> {
    fn put(&self, rank: usize, value: T) {
        *self.slots[rank].lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
    }

    fn take(slot: &Mutex<Option<T>>) -> Option<T> {
        slot.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl<M> Drop for Crew<M> {
    fn drop(&mut self) {
        for worker in &mut self.others {
            worker.inbox.put(Order::End);
            // A panic of its has been answered already.
            let _ = worker.thread.take().map(JoinHandle::join);
        }
    }
}
