//! Generation: a prompt in, text out, step by step.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use async_channel::{Receiver, Sender};
use futures_core::Stream;

use crate::error::{Error, ErrorKind, Result};
use crate::sandbox::CancelHandle;
use crate::session::{Session, Step, StopReason};

/// Steps that a stream computes ahead of its reader.
const STREAM_LEN: usize = 32;

impl Session {
    /// Feeds a prompt, then generates until a stop or `max_tokens` tokens.
    ///
    /// The prompt is fed in parts when the first step is asked for. If the
    /// session is stopped meanwhile, what was fed stays in the context.
    pub fn generate(&mut self, prompt: &[u32], max_tokens: Option<u64>) -> Generation<'_> {
        let progress = Progress::new(prompt, max_tokens, self.cancel_handle());
        Generation::new(self, progress)
    }

    /// The same as [`generate`](Self::generate) for async programs, whatever
    /// their runtime: the session works on a thread of its own, and
    /// [`TokenStream::finish`] gives it back.
    ///
    /// # Errors
    ///
    /// `Internal` if no thread can be started.
    pub fn generate_stream(self, prompt: &[u32], max_tokens: Option<u64>) -> Result<TokenStream> {
        let progress = Progress::new(prompt, max_tokens, self.cancel_handle());
        TokenStream::spawn(self, progress)
    }
}

/// Where a generation is.
struct Progress {
    prompt: VecDeque<u32>,
    n_left: Option<u64>,
    /// Whether the prompt is known to fit.
    checked: bool,
    done: bool,
    cancel: CancelHandle,
}

impl Progress {
    fn new(prompt: &[u32], max_tokens: Option<u64>, cancel: CancelHandle) -> Self {
        Self {
            prompt: prompt.iter().copied().collect(),
            n_left: max_tokens,
            checked: false,
            done: false,
            cancel,
        }
    }

    /// The next step; `None` behind the end.
    fn step(&mut self, session: &mut Session) -> Option<Result<Step>> {
        if self.done {
            return None;
        }
        let step = match self.advance(session) {
            Err(error) if error.kind() == ErrorKind::Stopped => {
                Ok(Step::end(StopReason::Cancelled))
            }
            step => step,
        };
        self.done = !matches!(&step, Ok(Step { stop: None, .. }));
        if self.done {
            // A stop that came too late is not meant for the next generation.
            self.cancel.forget_stop();
        }
        Some(step)
    }

    fn advance(&mut self, session: &mut Session) -> Result<Step> {
        if !self.checked {
            session.ensure_room(self.prompt.len())?;
            self.checked = true;
        }
        let stopped = || self.cancel.stopped.load(Ordering::Relaxed);
        while !self.prompt.is_empty() {
            if stopped() {
                return Ok(Step::end(StopReason::Cancelled));
            }
            let n = self.prompt.len().min(Session::FEED_LEN);
            let part: Vec<u32> = self.prompt.drain(..n).collect();
            session.feed(&part)?;
        }
        if self.n_left == Some(0) {
            return Ok(Step::end(StopReason::Length));
        }
        if stopped() {
            return Ok(Step::end(StopReason::Cancelled));
        }
        let mut step = session.next()?;
        if let (Some(n_left), Some(_)) = (&mut self.n_left, step.token) {
            *n_left -= 1;
            if *n_left == 0 && step.stop.is_none() {
                step.stop = Some(StopReason::Length);
            }
        }
        Ok(step)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if !self.done {
            self.cancel.forget_stop();
        }
    }
}

/// A generation under way: an iterator of [`Step`]s, of which the last has a
/// [`stop`](Step::stop). It ends behind an error, too.
#[must_use = "nothing is generated until steps are taken"]
pub struct Generation<'a> {
    session: &'a mut Session,
    progress: Progress,
}

impl<'a> Generation<'a> {
    fn new(session: &'a mut Session, progress: Progress) -> Self {
        Self { session, progress }
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Step>;

    fn next(&mut self) -> Option<Self::Item> {
        self.progress.step(self.session)
    }
}

impl std::iter::FusedIterator for Generation<'_> {}

impl std::fmt::Debug for Generation<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generation").field("session", &self.session).finish_non_exhaustive()
    }
}

/// A generation under way on a thread of its own: a stream of [`Step`]s, of
/// which the last has a [`stop`](Step::stop). It ends behind an error, too.
///
/// A stream that is dropped stops its generation behind the current step.
#[must_use = "the session ends if the stream is dropped"]
pub struct TokenStream {
    steps: Pin<Box<Receiver<Result<Step>>>>,
    session: Box<Receiver<Session>>,
    cancel: CancelHandle,
}

impl TokenStream {
    fn spawn(session: Session, progress: Progress) -> Result<Self> {
        let cancel = progress.cancel.clone();
        let (steps_sender, steps) = async_channel::bounded(STREAM_LEN);
        let (session_sender, session_receiver) = async_channel::bounded(1);
        std::thread::Builder::new()
            .name("moewe-session".to_owned())
            .spawn(move || run(session, progress, &steps_sender, &session_sender))
            .map_err(|e| {
                Error::new(ErrorKind::Internal, format!("no thread for the session: {e}"))
            })?;
        Ok(Self { steps: Box::pin(steps), session: Box::new(session_receiver), cancel })
    }

    /// Ends the generation, if it has not ended, and gives the session back.
    /// Its context may hold some tokens that the stream did not bring yet.
    ///
    /// # Errors
    ///
    /// `Internal` if the session's thread broke.
    pub async fn finish(self) -> Result<Session> {
        let (session, cancel) = (self.session.clone(), self.cancel.clone());
        drop(self);
        let session = session.recv().await;
        // The generation may have ended before it was to stop.
        cancel.forget_stop();
        session.map_err(|_| Error::new(ErrorKind::Internal, "the session's thread broke"))
    }

    /// Ends the generation, within the prompt too.
    fn stop(&self) {
        self.cancel.stop();
        self.steps.close();
    }
}

fn run(
    mut session: Session,
    mut progress: Progress,
    steps: &Sender<Result<Step>>,
    sessions: &Sender<Session>,
) {
    while let Some(step) = progress.step(&mut session) {
        if steps.send_blocking(step).is_err() {
            break;
        }
    }
    steps.close();
    drop(progress);
    // Nobody waits for the session if the stream was dropped.
    let _ = sessions.send_blocking(session);
}

impl Stream for TokenStream {
    type Item = Result<Step>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.steps.as_mut().poll_next(cx)
    }
}

impl Drop for TokenStream {
    fn drop(&mut self) {
        self.stop();
    }
}

impl std::fmt::Debug for TokenStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenStream").finish_non_exhaustive()
    }
}
