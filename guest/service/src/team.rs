//! The engine's team, over what the guest imports.

use std::mem::ManuallyDrop;

use moewe_engine::team::{SharedMemory, Team};
use moewe_engine::{Error, ErrorKind, Result};
use moewe_protocol::TeamError;

use crate::pages::{PagePool, Pages};

/// This instance's place in the team that the host made.
pub(crate) struct Imported {
    team: &'static dyn moewe_protocol::Team,
    rank: usize,
    size: usize,
    pages: PagePool,
}

impl Imported {
    pub fn new(team: &'static dyn moewe_protocol::Team, pages: PagePool) -> Self {
        Self { team, rank: team.rank() as usize, size: team.size() as usize, pages }
    }
}

impl Team for Imported {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn barrier(&self) -> Result<()> {
        self.team.barrier().map_err(from_host)
    }

    fn is_stopped(&self) -> bool {
        self.team.is_stopped()
    }

    fn share(&self, len: usize) -> Result<Box<dyn SharedMemory>> {
        let bytes = len.checked_mul(size_of::<f32>());
        let pages = bytes.and_then(|n| self.pages.take(n)).ok_or_else(no_memory)?;
        let (start, bytes) = (pages.start().addr() as u64, pages.len() as u64);
        self.team.share(start, bytes).map_err(from_host)?;
        Ok(Box::new(Shared { pages: ManuallyDrop::new(pages), len }))
    }
}

fn no_memory() -> Error {
    Error::new(
        ErrorKind::OutOfMemory,
        "no memory for what the threads exchange; use fewer threads or raise the memory limit",
    )
}

fn from_host(error: TeamError) -> Error {
    match error {
        TeamError::Broken => Error::new(ErrorKind::Team, "another thread gave up"),
        TeamError::OutOfMemory => no_memory(),
        TeamError::Unsupported => Error::new(
            ErrorKind::Unsupported,
            "this host shares no memory between threads; use one thread",
        ),
        TeamError::InvalidRange => {
            Error::new(ErrorKind::Team, "the threads do not agree on what they share")
        }
    }
}

/// The region that the host mapped over pages of this guest. They stay the region's for
/// good: the host knows no way back.
struct Shared {
    pages: ManuallyDrop<Pages>,
    len: usize,
}

impl Shared {
    /// Where `n` numbers from index `at` on are, which exist.
    fn at(&self, at: usize, n: usize) -> *mut f32 {
        assert!(at.checked_add(n).is_some_and(|end| end <= self.len), "outside the shared region");
        self.pages.start().cast::<f32>().wrapping_add(at)
    }
}

impl SharedMemory for Shared {
    fn write(&self, at: usize, x: &[f32]) {
        // SAFETY: the numbers lie within the region, to which no references
        // exist. Other members write elsewhere, and read behind the next
        // barrier only.
        unsafe { self.at(at, x.len()).copy_from_nonoverlapping(x.as_ptr(), x.len()) }
    }

    fn read(&self, at: usize, out: &mut [f32]) {
        // SAFETY: as above; other members write here behind the next barrier
        // only.
        unsafe { out.as_mut_ptr().copy_from_nonoverlapping(self.at(at, out.len()), out.len()) }
    }
}
