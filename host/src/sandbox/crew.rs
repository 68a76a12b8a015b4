//! The threads of a team: one for each member but the first, which works on
//! its caller's thread.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::{io, iter, thread};

use crossbeam_channel::{Sender, bounded};

use super::team::Team;
use super::wait::Spin;

/// Members of a team, each on its thread.
pub(super) struct Crew<M> {
    first: Option<M>,
    /// The inboxes and the threads of the others.
    others: Vec<(Sender<Job<M>>, JoinHandle<()>)>,
    team: Arc<Team>,
    spin: Spin,
}

/// Work for a member. The first work makes the member.
type Job<M> = Box<dyn FnOnce(&mut Option<M>) + Send>;

impl<M: 'static> Crew<M> {
    /// Starts the threads of a team.
    pub fn start(team: &Arc<Team>) -> io::Result<Self> {
        let spin = Spin::new(team.size());
        let mut crew = Self { first: None, others: Vec::new(), team: team.clone(), spin };
        for rank in 1..team.size() {
            let (jobs, inbox) = bounded::<Job<M>>(1);
            let thread = thread::Builder::new().name(format!("moewe-{rank}")).spawn(move || {
                let mut member = None;
                while let Some(job) = spin.receive(&inbox) {
                    job(&mut member);
                }
            })?;
            crew.others.push((jobs, thread));
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
        self.team.begin(false);
        let f = Arc::new(f);
        let (answers, answered) = bounded(self.others.len());
        for (i, (jobs, _)) in self.others.iter().enumerate() {
            let (rank, f, team, answers) = (i + 1, f.clone(), self.team.clone(), answers.clone());
            let job: Job<M> = Box::new(move |member| {
                let answer = part(&team, || f(rank, member));
                // Whatever `f` holds is gone when the caller goes on.
                drop(f);
                let _ = answers.send((rank, answer.ok()));
            });
            // If there is no thread any more, there is no answer either.
            let _ = jobs.send(job);
        }
        drop(answers);
        let first = part(&self.team, || f(0, &mut self.first));
        let mut all: Vec<_> = iter::repeat_with(|| None).take(self.team.size()).collect();
        while let Some((rank, answer)) = self.spin.receive(&answered) {
            all[rank] = answer;
        }
        all[0] = Some(first.unwrap_or_else(|panic| resume_unwind(panic)));
        all
    }

    /// Has the first member alone do something.
    pub fn first<T>(&mut self, f: impl FnOnce(&mut Option<M>) -> T) -> T {
        self.team.begin(true);
        f(&mut self.first)
    }
}

/// What a member answers. It has left its call then, also if that panicked.
fn part<T>(team: &Team, f: impl FnOnce() -> T) -> thread::Result<T> {
    let answer = catch_unwind(AssertUnwindSafe(f));
    team.leave();
    answer
}

impl<M> Drop for Crew<M> {
    fn drop(&mut self) {
        for (jobs, thread) in self.others.drain(..) {
            drop(jobs);
            // A panic, while it drops its member, has nobody to go to.
            let _ = thread.join();
        }
    }
}
