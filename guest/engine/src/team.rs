//! Several instances of the engine that compute together, one per core.
//!
//! Every member runs the same forward pass and keeps a full copy of the hidden
//! state. It computes some heads of the attention, and some rows of every
//! matrix, and the members exchange what they computed through memory that all
//! of them see. A row's result does not depend on who computes it, so that any
//! number of members gives the same bits.

use std::cell::Cell;
use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};

/// The most members.
const SIZE_MAX: usize = 1 << 10;
/// Rows that stay together: as many as the kernels like, or else as many as a
/// packed file interleaves.
const ROW_GROUPS: [usize; 3] = [16, 8, 4];

/// A team, as one of its members sees it.
pub trait Team {
    /// This member's number, from 0 to `size` - 1.
    fn rank(&self) -> usize;

    /// How many members the team has, at least 1.
    fn size(&self) -> usize;

    /// Waits until every member has called it as often as this one. What a
    /// member wrote to the shared memory before, all read after.
    fn barrier(&self) -> Result<()>;

    /// Whether the caller wants what is under way to end early. Members that have
    /// asked as often get the same answer.
    fn is_stopped(&self) -> bool {
        false
    }

    /// Memory for `len` numbers that all members see. Every member asks for the
    /// same length, each at its own time.
    fn share(&self, len: usize) -> Result<Box<dyn SharedMemory>>;
}

/// Memory that all members of a team see.
///
/// Between two barriers, no member reads what another one writes.
pub trait SharedMemory {
    /// Writes numbers from index `at` on.
    fn write(&self, at: usize, x: &[f32]);

    /// Reads numbers from index `at` on.
    fn read(&self, at: usize, out: &mut [f32]);
}

/// A team of one.
pub struct Alone;

impl Team for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn barrier(&self) -> Result<()> {
        Ok(())
    }

    fn share(&self, _len: usize) -> Result<Box<dyn SharedMemory>> {
        Err(Error::unsupported("a team of one has nobody to share memory with"))
    }
}

/// How many members a team has.
///
/// # Errors
/// [`Unsupported`](crate::ErrorKind::Unsupported) if it is no team that can compute.
pub(crate) fn checked_size(team: &dyn Team) -> Result<usize> {
    let (rank, size) = (team.rank(), team.size());
    if !(1..=SIZE_MAX).contains(&size) || rank >= size {
        return Err(Error::unsupported(format!(
            "member {rank} of a team of {size}; 1 to {SIZE_MAX} can compute together"
        )));
    }
    Ok(size)
}

/// What of `n` things each member of a team of `size` gets.
pub(crate) fn shares(n: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    shares_of_units(n, 1, size)
}

/// The same where each `unit` things stay together, and with the last of them what is
/// left.
pub(crate) fn shares_of_units(
    n: usize,
    unit: usize,
    size: usize,
) -> impl Iterator<Item = Range<usize>> {
    (0..size).map(move |rank| Split { len: n, unit, rank, size }.mine())
}

/// How the numbers of a vector, or the rows of a matrix, are dealt out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Split {
    len: usize,
    /// Numbers that stay together.
    unit: usize,
    rank: usize,
    size: usize,
}

impl Split {
    /// All of the numbers.
    pub fn len(&self) -> usize {
        self.len
    }

    /// This member's numbers; there may be none.
    pub fn mine(&self) -> Range<usize> {
        let n_units = self.len / self.unit;
        let bound = |rank: usize| match rank == self.size {
            true => self.len,
            false => n_units * rank / self.size * self.unit,
        };
        bound(self.rank)..bound(self.rank + 1)
    }
}

/// Vectors of which each member computed a part.
pub(crate) struct Parts<'a> {
    pub split: Split,
    /// The numbers of each vector that this member needs.
    pub needed: Range<usize>,
    /// `[..][split.len()]`: this member's part, and once they are gathered all
    /// that it needs.
    pub x: &'a mut [f32],
}

impl<'a> Parts<'a> {
    /// Vectors that every member needs the whole of.
    pub fn whole(split: Split, x: &'a mut [f32]) -> Self {
        Self { split, needed: 0..split.len(), x }
    }
}

/// What two ranges share; if nothing, an empty range inside of `b`.
fn overlap(a: &Range<usize>, b: Range<usize>) -> Range<usize> {
    let start = a.start.clamp(b.start, b.end);
    start..a.end.clamp(start, b.end)
}

/// A member's place in its team, and the memory that it exchanges vectors
/// through: two buffers that take turns. A buffer that is written was read
/// before the last barrier.
pub(crate) struct Exchange {
    team: Box<dyn Team>,
    /// Absent in a team of one.
    shared: Option<Box<dyn SharedMemory>>,
    /// Numbers in a buffer.
    len: usize,
    second: Cell<bool>,
}

impl Exchange {
    /// Exchanges `len` numbers at a time, in as many steps as vectors take; none may be
    /// longer. The size of the team was [checked](checked_size).
    pub fn new(team: Box<dyn Team>, len: usize) -> Result<Self> {
        // Every member has a word when they agree.
        let len = len.max(team.size());
        let shared = match team.size() {
            1 => None,
            _ => Some(team.share(2 * len)?),
        };
        Ok(Self { team, shared, len, second: Cell::new(false) })
    }

    /// Whether this is the member that speaks for all.
    pub fn is_first(&self) -> bool {
        self.team.rank() == 0
    }

    /// How many members there are.
    pub fn size(&self) -> usize {
        self.team.size()
    }

    /// Fails if the caller wants it to end early. All members call it between the
    /// same steps.
    pub fn go_on(&self) -> Result<()> {
        match self.team.is_stopped() {
            true => Err(Error::new(ErrorKind::Stopped, "stopped before it was done")),
            false => Ok(()),
        }
    }

    /// Numbers that are exchanged at a time.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Deals out the rows of a matrix, in groups if there are enough. A number
    /// of rows that is a multiple of eight or of four is dealt out in multiples
    /// of that.
    pub fn rows(&self, len: usize) -> Split {
        let (rank, size) = (self.team.rank(), self.team.size());
        let [many, eight, four] = ROW_GROUPS;
        let unit = match len {
            len if len / many >= size => many,
            len if len.is_multiple_of(eight) => eight,
            len if len.is_multiple_of(four) => four,
            _ => 1,
        };
        Split { len, unit, rank, size }
    }

    /// Deals out whole heads.
    pub fn heads(&self, n_head: usize, head_dim: usize) -> Split {
        self.units(n_head * head_dim, head_dim)
    }

    /// Deals out `len` numbers, of which each `unit` stay together, and with the last of
    /// them what is left.
    pub fn units(&self, len: usize, unit: usize) -> Split {
        let (rank, size) = (self.team.rank(), self.team.size());
        Split { len, unit, rank, size }
    }

    /// Fails for all members if it fails for one of them: with its own error for that
    /// one. All members call it between the same steps.
    pub fn agree(&self, result: Result<()>) -> Result<()> {
        let (rank, size) = (self.team.rank(), self.team.size());
        let mut failed = vec![0.0; size];
        failed[rank] = f32::from(u8::from(result.is_err()));
        let split = Split { len: size, unit: 1, rank, size };
        self.gather(&mut [Parts::whole(split, &mut failed)])?;
        result?;
        match failed.iter().position(|&failed| failed != 0.0) {
            None => Ok(()),
            Some(rank) => Err(Error::new(
                ErrorKind::OutOfMemory,
                format!(
                    "thread {rank} of {size} has no memory left; use a shorter prompt, or raise \
                     the memory limit"
                ),
            )),
        }
    }

    /// Gives every member the numbers that it needs. All members call it with
    /// as many vectors, of the same lengths.
    pub fn gather(&self, parts: &mut [Parts<'_>]) -> Result<()> {
        let Some(shared) = &self.shared else { return Ok(()) };
        // Each vector's part, and where it begins there.
        let vectors: Vec<(usize, usize)> = (parts.iter().enumerate())
            .flat_map(|(i, p)| (0..p.x.len()).step_by(p.split.len()).map(move |from| (i, from)))
            .collect();
        let mut rest = &vectors[..];
        while !rest.is_empty() {
            let mut n_step = 0;
            let fit = rest.iter().take_while(|&&(i, _)| {
                n_step += parts[i].split.len();
                n_step <= self.len
            });
            let (step, later) = rest.split_at(fit.count());
            assert!(!step.is_empty(), "a vector longer than the exchange");
            rest = later;
            let start = if self.second.replace(!self.second.get()) { self.len } else { 0 };
            let mut at = start;
            for &(i, from) in step {
                let Parts { split, x, .. } = &parts[i];
                let mine = split.mine();
                shared.write(at + mine.start, &x[from + mine.start..from + mine.end]);
                at += split.len();
            }
            self.team.barrier()?;
            let mut at = start;
            for &(i, from) in step {
                let Parts { split, needed, x } = &mut parts[i];
                let mine = split.mine();
                for others in [0..mine.start, mine.end..split.len()] {
                    let read = overlap(needed, others);
                    shared.read(at + read.start, &mut x[from + read.start..from + read.end]);
                }
                at += split.len();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_belongs_to_one_member() {
        for (len, unit) in [(0, 1), (1, 1), (5, 1), (576, 16), (577, 16), (12, 4), (49_152, 16)] {
            for size in 1..9 {
                let mut end = 0;
                for rank in 0..size {
                    let mine = Split { len, unit, rank, size }.mine();
                    assert_eq!(mine.start, end, "{len} in units of {unit}, rank {rank} of {size}");
                    assert!(mine.start.is_multiple_of(unit));
                    end = mine.end;
                }
                assert_eq!(end, len);
            }
        }
    }
}
