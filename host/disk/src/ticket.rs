//! What is still to be done before a read's result can be told.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use crate::read::Done;
use crate::stats::Counters;
use crate::{ReadError, Storage};

/// A read that was asked for, shared by all of its pieces.
pub(crate) struct Ticket {
    pub id: u64,
    pub storage: Arc<dyn Storage>,
    /// How many bytes all of its pieces have.
    pub length: usize,
    counters: Arc<Counters>,
    state: Mutex<State>,
}

struct State {
    bytes_left: usize,
    error: Option<ReadError>,
    done: Option<Done>,
}

impl Ticket {
    pub fn new(
        id: u64,
        storage: Arc<dyn Storage>,
        length: usize,
        done: Done,
        counters: Arc<Counters>,
    ) -> Self {
        let state = Mutex::new(State { bytes_left: length, error: None, done: Some(done) });
        Self { id, storage, length, counters, state }
    }

    /// So many more bytes have their result. After the last of them the caller
    /// hears of it, so nobody may hold a lock here.
    pub fn settle(&self, n_bytes: usize, result: Result<(), ReadError>) {
        let (done, result) = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.bytes_left -= n_bytes;
            if let Err(error) = result {
                state.error.get_or_insert(error);
            }
            if state.bytes_left > 0 {
                return;
            }
            (state.done.take(), state.error.take().map_or(Ok(()), Err))
        };
        if let Some(done) = done {
            self.counters.count_read();
            // The thread must go on: memory of others is being read into.
            let _ = catch_unwind(AssertUnwindSafe(|| done(result)));
        }
    }
}
