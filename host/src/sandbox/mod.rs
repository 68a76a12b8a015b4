//! A team of guests with a model, and the calls into it. What a guest imports,
//! and what limits it, are modules of their own; so are the threads.

pub(crate) mod bindings;
mod call;
mod crew;
mod errors;
mod experts;
mod handles;
mod imports;
mod limits;
mod member;
mod memory;
mod program;
mod render;
mod state;
mod team;
mod text;
mod wait;

use std::sync::Arc;

use wasmtime::Store;
use wasmtime::component::ResourceAny;

use self::bindings::exports::moewe::inference::inference::{self as wit, Guest};
use self::crew::Crew;
use self::member::{Answer, Member};
use self::state::State;
use self::team::Team;
use crate::error::{Error, ErrorKind, Result};
use crate::guest;
use crate::info::ModelInfo;
use crate::weights::{WeightStats, Weights};

pub use self::limits::CancelHandle;
pub(crate) use self::limits::Limits;
pub(crate) use self::program::Program;
pub(crate) use self::text::{checked_answer, checked_text};

/// Guests with a model loaded, which compute together: a team.
///
/// Calls that compute or change something are made on all members, with equal
/// arguments; a call that asks something goes to the first one alone.
pub(crate) struct Sandbox {
    crew: Crew<Member>,
    team: Arc<Team>,
    weights: Arc<Weights>,
    /// Its clock drives the limits: it must not stop before the sandbox.
    program: Arc<Program>,
    limits: Limits,
    info: ModelInfo,
    /// The error that ended the sandbox.
    ended: Option<Error>,
    cancel: CancelHandle,
}

impl Sandbox {
    /// Makes a sandbox of `n_threads` members and loads the model in it.
    pub(crate) fn load(
        program: &Arc<Program>,
        weights: &Arc<Weights>,
        limits: Limits,
        options: wit::LoadOptions,
        n_threads: usize,
    ) -> Result<Self> {
        let team = Team::new(n_threads, weights.store.clone()).with_whole_files(program.is_wide);
        let team = Arc::new(team);
        let cancel =
            CancelHandle { stopped: team.stopped.clone(), cancelled: team.cancelled.clone() };
        let mut crew = Crew::start(&team).map_err(|e| {
            let message = format!("no {n_threads} threads for a session ({e}); use fewer");
            Error::new(ErrorKind::Internal, message)
        })?;
        let answers = {
            let (program, weights, team) = (program.clone(), weights.clone(), team.clone());
            crew.all(move |rank, member| {
                let state =
                    State::new(weights.clone(), limits, team.clone(), rank, program.is_wide);
                let (loaded, info) = match Member::load(&program.guest, state, options)? {
                    Ok(loaded) => loaded,
                    Err(error) => return Ok(Err(error)),
                };
                *member = Some(loaded);
                Ok(Ok(info))
            })
        };
        let info = agree(&team, answers)??.swap_remove(0);
        weights.check_unchanged()?;
        let (weights, program) = (weights.clone(), program.clone());
        Ok(Self { crew, team, weights, program, limits, info, ended: None, cancel })
    }

    /// Starts the session of this sandbox, in place of an earlier one.
    pub(crate) fn start(&mut self, options: wit::SessionOptions) -> Result<()> {
        self.all(move |member| {
            let session = member
                .call(|store, guest, model, _| guest.model().call_start(store, model, options))?;
            Ok(session.map(|session| member.session = Some(session)))
        })?;
        Ok(())
    }

    /// Asks the first member. An error that is not the guest's own answer ends
    /// the sandbox: its memory may be in any state.
    pub(crate) fn ask<T>(
        &mut self,
        f: impl FnOnce(
            &mut Store<State>,
            &Guest,
            ResourceAny,
        ) -> wasmtime::Result<Result<T, wit::Error>>,
    ) -> Result<T> {
        self.check_alive()?;
        let answer = self.crew.first(|member| match member {
            Some(member) => member.call(|store, guest, model, _| f(store, guest, model)),
            None => Err(gone()),
        });
        self.end_unless_answered(answer)
    }

    /// Renders a conversation, apart from the members: it cannot end the sandbox.
    pub(crate) fn render(&self, conversation: &wit::Conversation) -> Result<Vec<u8>> {
        self.check_alive()?;
        render::render(self.program.renderer(), &self.team, self.limits, conversation)
    }

    /// Has all members call a function of the session, which was started, and
    /// answers what the first one says.
    pub(crate) fn call<T: Send + 'static>(
        &mut self,
        f: impl Fn(&mut Store<State>, &Guest, ResourceAny) -> wasmtime::Result<Result<T, wit::Error>>
        + Send
        + Sync
        + 'static,
    ) -> Result<T> {
        Ok(self.each(f)?.swap_remove(0))
    }

    /// The same, with the answers of all members.
    pub(crate) fn each<T: Send + 'static>(
        &mut self,
        f: impl Fn(&mut Store<State>, &Guest, ResourceAny) -> wasmtime::Result<Result<T, wit::Error>>
        + Send
        + Sync
        + 'static,
    ) -> Result<Vec<T>> {
        self.all(move |member| {
            member.call(|store, guest, _, session| match session {
                Some(session) => f(store, guest, session),
                None => Err(wasmtime::format_err!("there is no session yet")),
            })
        })
    }

    /// Ends the sandbox because members answered differently.
    pub(crate) fn end<T>(&mut self, message: &str) -> Result<T> {
        self.end_unless_answered(Err(Error::new(ErrorKind::Team, message)))
    }

    fn all<T: Send + 'static>(
        &mut self,
        f: impl Fn(&mut Member) -> Answer<T> + Send + Sync + 'static,
    ) -> Result<Vec<T>> {
        self.check_alive()?;
        let answers = self.crew.all(move |_, member| match member {
            Some(member) => f(member),
            None => Err(gone()),
        });
        // Whatever they computed, they may have computed it from other weights.
        let answer = agree(&self.team, answers)
            .and_then(|answer| self.weights.check_unchanged().map(|()| answer));
        self.end_unless_answered(answer)
    }

    fn check_alive(&self) -> Result<()> {
        match &self.ended {
            None => Ok(()),
            Some(error) => Err(Error::new(
                ErrorKind::Ended,
                format!("this session has ended ({error}); start a new one"),
            )),
        }
    }

    fn end_unless_answered<T>(&mut self, answer: Answer<T>) -> Result<T> {
        self.team.give_up();
        match &answer {
            Err(error) => self.ended = Some(error.clone()),
            Ok(Err(error)) if error.kind() == ErrorKind::Stopped => self.cancel.forget_stop(),
            Ok(_) => {}
        }
        answer?
    }

    pub(crate) fn info(&self) -> &ModelInfo {
        &self.info
    }

    pub(crate) fn stats(&self) -> WeightStats {
        self.team.stats()
    }

    pub(crate) fn cancel_handle(&self) -> &CancelHandle {
        &self.cancel
    }

    /// Which guest computes.
    pub(crate) fn guest(&self) -> guest::Guest {
        if self.program.is_wide { guest::Guest::Bits64 } else { guest::Guest::Bits32 }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }
}

/// A member whose thread panicked.
fn gone() -> Error {
    Error::new(ErrorKind::Internal, "a thread of the session broke, please report it")
}

/// What a team answers. Members that answer differently have lost one another:
/// the sandbox ends with the error that came first, not with those of members
/// that waited in vain.
fn agree<T>(team: &Team, answers: Vec<Option<Answer<T>>>) -> Answer<Vec<T>> {
    let n = answers.len();
    let (mut values, mut refusals, mut faults) = (Vec::new(), Vec::new(), Vec::new());
    for answer in answers {
        match answer.unwrap_or_else(|| Err(gone())) {
            Ok(Ok(value)) => values.push(value),
            Ok(Err(error)) => refusals.push(error),
            Err(error) => faults.push(error),
        }
    }
    if values.len() == n && !team.is_broken() {
        return Ok(Ok(values));
    }
    let alike = refusals.iter().all(|error| error.kind() == refusals[0].kind());
    if refusals.len() == n && alike && !team.is_broken() {
        return Ok(Err(refusals.swap_remove(0)));
    }
    let errors = faults.into_iter().chain(refusals);
    let root = errors.min_by_key(|error| error.kind() == ErrorKind::Team);
    Err(root.unwrap_or_else(|| Error::new(ErrorKind::Team, "the threads of the session disagree")))
}

#[cfg(test)]
mod team_tests;
#[cfg(test)]
mod tests;
