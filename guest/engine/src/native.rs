//! Weights from the file system of a native program, and teams of its threads,
//! for tests, tools and measurements.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use memmap2::{Mmap, MmapOptions};

use crate::error::{Error, ErrorKind, Result};
use crate::gguf;
use crate::team::{SharedMemory, Team};
use crate::weights::{Source, Weights, Window};

/// How often a thread looks whether the others have come before it lets other
/// threads run.
const N_SPINS: usize = 1000;

/// The files of one folder.
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// The folder that holds `model`, and the name of `model` in it.
    pub fn of(model: &Path) -> Result<(Self, String)> {
        let name = model.file_name().and_then(|n| n.to_str());
        let name =
            name.ok_or_else(|| Error::input(format!("{}: no file name", model.display())))?;
        let path = model.parent().unwrap_or(Path::new("")).to_owned();
        Ok((Self { path }, name.to_owned()))
    }
}

impl Weights for Folder {
    fn open(&self, name: &str) -> Result<Box<dyn Source>> {
        let path = self.path.join(name);
        let file = gguf::File::open(&path)?.into_inner();
        // SAFETY: the mapping is private and read-only. Should another program
        // truncate the file meanwhile, this process dies of SIGBUS; native
        // tools accept that, the sandbox's host does not use this module.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| failed(&path, &e))?;
        Ok(Box::new(Mapped { file, map, path }))
    }
}

struct Mapped {
    file: File,
    map: Mmap,
    path: PathBuf,
}

impl Source for Mapped {
    fn size(&self) -> u64 {
        self.map.len() as u64
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(out.len() as u64).filter(|&end| end <= self.size());
        let Some(end) = end else {
            let message = format!("{}: read past the end", self.path.display());
            return Err(Error::new(ErrorKind::Weights, message));
        };
        out.copy_from_slice(&self.map[offset as usize..end as usize]);
        Ok(())
    }

    fn window(&self, offset: u64, length: usize) -> Result<Box<dyn Window>> {
        // SAFETY: as for the whole file, in `open`.
        let map = unsafe { MmapOptions::new().offset(offset).len(length).map(&self.file) };
        Ok(Box::new(MapWindow(map.map_err(|e| failed(&self.path, &e))?)))
    }

    fn prefetch(&self, _offset: u64, _length: u64) {}
}

fn failed(path: &Path, e: &std::io::Error) -> Error {
    Error::new(ErrorKind::Weights, format!("{}: {e}", path.display()))
}

struct MapWindow(Mmap);

impl Window for MapWindow {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A thread in a team. The team is broken when a member is dropped while
/// another one waits for it.
pub struct Member {
    rank: usize,
    team: Arc<Threads>,
}

struct Threads {
    size: usize,
    /// Members that wait at the barrier.
    n_waiting: AtomicUsize,
    /// How often all members have met.
    n_met: AtomicUsize,
    broken: AtomicBool,
    /// The bits of numbers.
    memory: OnceLock<Box<[AtomicU32]>>,
}

impl Member {
    /// The members of a team, one for each of `size` threads.
    pub fn team(size: usize) -> Vec<Self> {
        let team = Arc::new(Threads {
            size,
            n_waiting: AtomicUsize::new(0),
            n_met: AtomicUsize::new(0),
            broken: AtomicBool::new(false),
            memory: OnceLock::new(),
        });
        (0..size).map(|rank| Self { rank, team: team.clone() }).collect()
    }
}

impl Team for Member {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.team.size
    }

    fn barrier(&self) -> Result<()> {
        let team = &*self.team;
        let n_met = team.n_met.load(Ordering::Acquire);
        if team.n_waiting.fetch_add(1, Ordering::AcqRel) + 1 == team.size {
            team.n_waiting.store(0, Ordering::Relaxed);
            team.n_met.store(n_met.wrapping_add(1), Ordering::Release);
            return Ok(());
        }
        let mut n = 0;
        loop {
            // A member may give up as soon as all have met.
            let broken = team.broken.load(Ordering::Acquire);
            if team.n_met.load(Ordering::Acquire) != n_met {
                return Ok(());
            }
            if broken {
                return Err(Error::new(ErrorKind::Team, "another thread gave up"));
            }
            match n {
                N_SPINS.. => std::thread::yield_now(),
                _ => std::hint::spin_loop(),
            }
            n += 1;
        }
    }

    fn share(&self, len: usize) -> Result<Box<dyn SharedMemory>> {
        let zeros = || (0..len).map(|_| AtomicU32::new(0)).collect();
        assert_eq!(self.team.memory.get_or_init(zeros).len(), len);
        Ok(Box::new(Bits(self.team.clone())))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.team.broken.store(true, Ordering::Release);
    }
}

struct Bits(Arc<Threads>);

impl Bits {
    fn at(&self, at: usize, n: usize) -> &[AtomicU32] {
        &self.0.memory.get().expect("shared before")[at..at + n]
    }
}

impl SharedMemory for Bits {
    fn write(&self, at: usize, x: &[f32]) {
        let memory = self.at(at, x.len()).iter().zip(x);
        memory.for_each(|(bits, x)| bits.store(x.to_bits(), Ordering::Relaxed));
    }

    fn read(&self, at: usize, out: &mut [f32]) {
        let memory = self.at(at, out.len()).iter().zip(out);
        memory.for_each(|(bits, x)| *x = f32::from_bits(bits.load(Ordering::Relaxed)));
    }
}
