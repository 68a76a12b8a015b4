//! The engine, in a module with 64-bit addresses, to which this one is the face.
//!
//! Each of the two has a memory of its own, and that module is given functions that copy
//! between them (`xtask`). Who makes a call has its message lie in its own memory; who
//! answers keeps the answer until it is fetched.

use std::cell::RefCell;

use moewe_protocol::{Inference, InferenceClient, Team, TeamError, answer_host};

use crate::host::Imports;

#[link(wasm_import_module = "wide")]
unsafe extern "C" {
    /// Makes room for a message of so many bytes, and says where.
    safe fn receive(len: u64) -> u64;
    /// Answers the message, and says how long the answer is.
    safe fn answer() -> u64;
    /// Says where the answer is.
    safe fn answered() -> u64;
    /// Copies from this memory to the engine's.
    fn copy_in(to: u64, from: *const u8, len: usize);
    /// Copies from the engine's memory to this one.
    fn copy_out(to: *mut u8, from: u64, len: usize);
}

/// Calls the engine.
pub(crate) fn with<T>(f: impl FnOnce(&dyn Inference) -> T) -> T {
    f(&InferenceClient(send))
}

fn send(message: &[u8]) -> Vec<u8> {
    let room = receive(message.len() as u64);
    // SAFETY: the engine has made room for as many bytes there.
    unsafe { copy_in(room, message.as_ptr(), message.len()) };
    let len = answer();
    fetch(answered(), len)
}

/// A copy of what lies in the engine's memory.
fn fetch(from: u64, len: u64) -> Vec<u8> {
    let len = usize::try_from(len).expect("a message fits into 4 GiB");
    let mut bytes = Vec::with_capacity(len);
    // SAFETY: there is room for `len` bytes, all of which are written. Whatever the engine
    // says, what it does not have it cannot have copied.
    unsafe {
        copy_out(bytes.as_mut_ptr(), from, len);
        bytes.set_len(len);
    }
    bytes
}

thread_local! {
    /// The host's answer, until the engine fetches it.
    static ANSWER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Answers a message of the engine to the host, and says how long the answer is.
#[unsafe(no_mangle)]
extern "C" fn host_answer(from: u64, len: u64) -> u64 {
    let answer = answer_host(&Imports, &fetch(from, len));
    let len = answer.len() as u64;
    ANSWER.set(answer);
    len
}

/// Copies the host's answer to a place that has room for it.
#[unsafe(no_mangle)]
extern "C" fn host_answered(to: u64) {
    let answer = ANSWER.take();
    // SAFETY: the engine vouches for the room.
    unsafe { copy_in(to, answer.as_ptr(), answer.len()) };
}

#[unsafe(no_mangle)]
extern "C" fn team_rank() -> u32 {
    Imports.rank()
}

#[unsafe(no_mangle)]
extern "C" fn team_size() -> u32 {
    Imports.size()
}

#[unsafe(no_mangle)]
extern "C" fn team_barrier() -> u32 {
    TeamError::to_number(Imports.barrier())
}

#[unsafe(no_mangle)]
extern "C" fn team_is_stopped() -> u32 {
    Imports.is_stopped().into()
}

#[unsafe(no_mangle)]
extern "C" fn team_share(address: u64, length: u64) -> u32 {
    TeamError::to_number(Imports.share(address, length))
}
