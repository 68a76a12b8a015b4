//! What a guest imports: weights, and a team.

use std::fs::File;

use moewe_memory::{Region, page_size};
use wasmtime::component::{Resource, ResourceTableError};

use super::bindings::moewe::inference::{team, weights};
use super::errors::{map_kind, team_code};
use super::handles::WeightFileHandle;
use super::limits::Refused;
use super::state::{N_SOURCES_MAX, State};
use super::team::{Broken, NotShared};
use super::text::checked_text;
use crate::files::{WeightError, WeightErrorKind};
use crate::weights::{WeightStats, WeightsMode};

impl State {
    /// Counts something, for this team and for all.
    pub(super) fn count(&mut self, add: impl Fn(&mut WeightStats)) {
        self.team.count(&add);
        self.weights.count(add);
    }

    /// Where windows can be attached.
    fn attaches(&self) -> Option<&Region> {
        let region = self.region.as_deref()?;
        (self.weights.mode == WeightsMode::Attach).then_some(region)
    }
}

impl weights::Host for State {
    fn get_capabilities(&mut self) -> wasmtime::Result<weights::Capabilities> {
        let page_size = u32::try_from(self.page_size())?;
        let attaches = self.attaches();
        let n_windows_max = attaches.map_or(0, |_| self.team.n_windows_max());
        let (attach, n_windows_max) = (attaches.is_some(), u32::try_from(n_windows_max)?);
        Ok(weights::Capabilities { attach, page_size, n_windows_max })
    }

    fn detach(
        &mut self,
        address: u64,
        length: u64,
    ) -> wasmtime::Result<Result<(), weights::Error>> {
        let Some(region) = &self.region else {
            let kind = WeightErrorKind::InvalidRange;
            return Ok(Err(WeightError::new(kind, "nothing is attached").into()));
        };
        let detached = region.detach(address, length);
        if detached.is_ok() {
            self.account_windows();
            self.count(|s| s.n_detach += 1);
        }
        Ok(detached.map_err(|e| WeightError::new(map_kind(&e), e.to_string()).into()))
    }
}

impl weights::HostSource for State {
    fn open(
        &mut self,
        name: weights::Utf8,
    ) -> wasmtime::Result<Result<Resource<WeightFileHandle>, weights::Error>> {
        let name = checked_text(name)?;
        let file = match self.weights.files.get(&name) {
            Ok(file) => file,
            Err(e) => return Ok(Err(e.into())),
        };
        let size = file.size().next_multiple_of(page_size());
        match self.sources.push(file) {
            Ok(source) => {
                self.opened.insert(name, size);
                let files = self.opened.values().fold(0_u64, |sum, n| sum.saturating_add(*n));
                self.team.account(self.rank, |account| account.files = files);
                Ok(Ok(source))
            }
            Err(ResourceTableError::Full) => {
                let message = format!("{name}: at most {N_SOURCES_MAX} files can be open");
                Ok(Err(WeightError::new(WeightErrorKind::Io, message).into()))
            }
            Err(e) => Err(e.into()),
        }
    }

    fn size(&mut self, source: Resource<WeightFileHandle>) -> wasmtime::Result<u64> {
        Ok(self.sources.get(&source)?.size())
    }

    fn read(
        &mut self,
        source: Resource<WeightFileHandle>,
        offset: u64,
        length: u32,
    ) -> wasmtime::Result<Result<Vec<u8>, weights::Error>> {
        let read = self.sources.get(&source)?.read(offset, length);
        if let Ok(bytes) = &read {
            let n = bytes.len() as u64;
            self.count(|s| {
                s.n_read += 1;
                s.bytes_read += n;
            });
        }
        Ok(read.map_err(weights::Error::from))
    }

    fn attach(
        &mut self,
        source: Resource<WeightFileHandle>,
        offset: u64,
        length: u64,
        address: u64,
    ) -> wasmtime::Result<Result<u64, weights::Error>> {
        let file = self.sources.get(&source)?.clone();
        let Some(region) = self.attaches() else {
            let what = "this host copies weights, it does not attach them";
            return Ok(Err(file.error(WeightErrorKind::Unsupported, what).into()));
        };
        let attached = file.check_range(offset, length).and_then(|()| file.check_unchanged());
        let skew = offset % self.page_size();
        let attach = |from: &File| {
            let pages = length.saturating_add(skew);
            let first = region.attach(from, offset - skew, pages, address);
            first.map(|first| first + skew).map_err(|e| file.error(map_kind(&e), e))
        };
        let attached = match (attached, self.team.store()) {
            (Err(e), _) => Err(e),
            (Ok(()), None) => attach(file.file()),
            (Ok(()), Some((store, _))) => {
                let range = offset..offset + length;
                let interrupted = || self.interrupt();
                store.with_dense(&file, range, interrupted, |copy| attach(copy.file()))?.flatten()
            }
        };
        if attached.is_ok() {
            self.account_windows();
            self.count(|s| {
                s.n_attach += 1;
                s.bytes_attached += length;
            });
        }
        Ok(attached.map_err(weights::Error::from))
    }

    fn copied(&mut self, _: Resource<WeightFileHandle>, length: u64) -> wasmtime::Result<()> {
        // The guest says so, of what it has read.
        self.count(|s| s.bytes_copied = s.bytes_copied.saturating_add(length).min(s.bytes_read));
        Ok(())
    }

    fn prefetch(
        &mut self,
        source: Resource<WeightFileHandle>,
        offset: u64,
        length: u64,
    ) -> wasmtime::Result<()> {
        if self.sources.get(&source)?.prefetch(offset, length) {
            self.count(|s| s.bytes_prefetched = s.bytes_prefetched.saturating_add(length));
        }
        Ok(())
    }

    fn drop(&mut self, source: Resource<WeightFileHandle>) -> wasmtime::Result<()> {
        self.sources.delete(source)?;
        Ok(())
    }
}

impl team::Host for State {
    fn rank(&mut self) -> wasmtime::Result<u32> {
        Ok(u32::try_from(self.rank)?)
    }

    fn size(&mut self) -> wasmtime::Result<u32> {
        Ok(u32::try_from(self.team.size())?)
    }

    fn is_stopped(&mut self) -> wasmtime::Result<bool> {
        let n_before = self.n_stop_asked;
        self.n_stop_asked += 1;
        let is_stopped = self.team.is_stopped(n_before);
        // Whoever cancels stops, too, and wants no more than an end.
        match self.interrupt().filter(|_| is_stopped) {
            Some(interrupt) => Err(interrupt.into()),
            None => Ok(is_stopped),
        }
    }

    fn barrier(&mut self) -> wasmtime::Result<Result<(), team::ErrorCode>> {
        let met = self.team.barrier(self.rank, || self.interrupt())?;
        Ok(met.map_err(|Broken| team::ErrorCode::Broken))
    }

    fn share(
        &mut self,
        address: u64,
        length: u64,
    ) -> wasmtime::Result<Result<(), team::ErrorCode>> {
        let Some(region) = &self.region else { return Ok(Err(team::ErrorCode::Unsupported)) };
        // Checked before a file of that size is made.
        if let Err(e) = region.check(address, length) {
            return Ok(Err(team_code(&e)));
        }
        let file = match self.team.share(self.rank, length, self.limiter.memory_max) {
            Ok(file) => file,
            Err(NotShared::Length) => return Ok(Err(team::ErrorCode::InvalidRange)),
            Err(NotShared::Unsupported) => return Ok(Err(team::ErrorCode::Unsupported)),
            Err(NotShared::TooLarge) => {
                self.limiter.refused = Some(Refused::NoRoom);
                return Ok(Err(team::ErrorCode::OutOfMemory));
            }
        };
        let shared = region.share(&file, length, address).map_err(|e| team_code(&e));
        self.account_windows();
        Ok(shared)
    }
}
