//! What is noted of a store: counts, times, and a trace.

use std::time::Instant;

use super::slots::Slots;
use super::{ExpertStats, ExpertStore, Inner, Prefetch, Trace};
use crate::error::{Error, ErrorKind, Result};

impl ExpertStore {
    /// What was counted so far.
    pub(crate) fn stats(&self) -> ExpertStats {
        let inner = self.shared.lock();
        let slots = inner.model.as_ref().map(|model| &model.slots);
        let cache = slots.map(|slots| slots.cache.stats()).unwrap_or_default();
        let disk = self.disk.stats();
        ExpertStats {
            n_slots: slots.map_or(0, |slots| slots.cache.capacity()),
            slot_bytes: inner.budget.slot_bytes,
            hits: cache.hits,
            misses: cache.misses,
            evictions: cache.evictions,
            bytes_read: disk.bytes_read,
            n_retries: disk.n_retries,
            stall: inner.stall,
            prefetch_useful: cache.prefetch_hits - cache.prefetch_late,
            prefetch_late: cache.prefetch_late,
            prefetch_wasted: cache.prefetch_wasted,
            prefetch_on: match self.options.prefetch {
                Prefetch::Auto => inner.switch.is_on(),
                Prefetch::On => true,
                Prefetch::Off => false,
            },
            resident_bytes: inner.budget.dense_resident + slots.map_or(0, Slots::resident_bytes),
        }
    }

    /// Ends the trace, if one is written, and puts it into its place.
    pub(crate) fn finish_trace(&self) -> Result<()> {
        let trace = self.shared.lock().trace.take();
        let Some(trace) = trace else { return Ok(()) };
        let finish = || trace?.finish()?.into_inner()?.finish();
        finish().map_err(|e| {
            let path = self.options.trace.as_deref().unwrap_or(std::path::Path::new(""));
            let message = format!("{}: the trace cannot be written: {e}", path.display());
            Error::new(ErrorKind::Internal, message)
        })
    }
}

impl Inner {
    /// A trace that cannot be written ends, which `finish_trace` tells; the
    /// computation goes on.
    pub(super) fn record(&mut self, write: impl FnOnce(&mut Trace) -> std::io::Result<()>) {
        if let Some(Ok(trace)) = &mut self.trace
            && let Err(e) = write(trace)
        {
            self.trace = Some(Err(e));
        }
    }

    /// Tells the switch how long a token took, from one demand in the first
    /// layer to the next. Batches take other times.
    pub(super) fn pass_token(&mut self, layer: u16, n_choices: usize) {
        let Some(model) = &self.model else { return };
        let shape = model.table.shape;
        if model.table.first_layer() != Some(layer.into()) {
            return;
        }
        let now = Instant::now();
        let began = self.token_began.take();
        if n_choices == shape.n_expert_used as usize {
            self.token_began = Some(now);
            if let Some(began) = began {
                self.switch.token(now.duration_since(began).as_secs_f64());
            }
        }
    }
}
