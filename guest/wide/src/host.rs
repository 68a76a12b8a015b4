//! What this module imports from its face.

use moewe_protocol::{HostClient, Team, TeamError};

#[link(wasm_import_module = "__main_module__")]
unsafe extern "C" {
    /// Answers a message to the host, and says how long the answer is.
    fn host_answer(message: *const u8, len: u64) -> u64;
    /// Copies the answer to a place that has room for it.
    fn host_answered(to: *mut u8);
    safe fn team_rank() -> u32;
    safe fn team_size() -> u32;
    safe fn team_barrier() -> u32;
    safe fn team_is_stopped() -> u32;
    safe fn team_share(address: u64, length: u64) -> u32;
}

/// The host.
pub static HOST: HostClient<Sender> = HostClient(send);

/// Brings the answer to a message.
type Sender = fn(&[u8]) -> Vec<u8>;

fn send(message: &[u8]) -> Vec<u8> {
    // SAFETY: the message lies there.
    let len = unsafe { host_answer(message.as_ptr(), message.len() as u64) } as usize;
    let mut answer = Vec::with_capacity(len);
    // SAFETY: there is room for `len` bytes, all of which are written.
    unsafe {
        host_answered(answer.as_mut_ptr());
        answer.set_len(len);
    }
    answer
}

/// The team, through the face.
pub struct Face;

impl Team for Face {
    fn rank(&self) -> u32 {
        team_rank()
    }

    fn size(&self) -> u32 {
        team_size()
    }

    fn barrier(&self) -> Result<(), TeamError> {
        TeamError::from_number(team_barrier())
    }

    fn is_stopped(&self) -> bool {
        team_is_stopped() != 0
    }

    fn share(&self, address: u64, length: u64) -> Result<(), TeamError> {
        TeamError::from_number(team_share(address, length))
    }
}
