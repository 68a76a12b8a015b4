//! What a run would have done with other policies and budgets, with prefetching and
//! without.

use bytesize::ByteSize;
use moewe::Prefetch;

use crate::simulate::{self, Capacity};
use crate::timing::{self, Costs};
use crate::{Result, Trace};

/// One budget of memory.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Comparison {
    /// The budget, as people read it.
    pub memory: String,
    /// The slots; of a recorded run those at its end.
    pub n_slots: usize,
    /// All policies, and at last the optimum.
    pub policies: Vec<PolicyCounts>,
    /// Without prefetching, with, and with the switch; empty unless it is known what
    /// takes how long.
    pub prefetch: Vec<PrefetchTimes>,
}

/// What a policy would have hit.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct PolicyCounts {
    /// Its name.
    pub policy: String,
    /// Demanded experts that had a slot.
    pub hits: u64,
    /// Demanded experts that had none.
    pub misses: u64,
    /// Hits among all that was demanded.
    pub hit_rate: f64,
}

/// How long a run would have taken, and what became of its prefetches.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct PrefetchTimes {
    /// When experts are prefetched: `off`, `on`, `auto`.
    pub prefetch: &'static str,
    /// All of it.
    pub seconds: f64,
    /// How long computation waited for reads.
    pub stall_seconds: f64,
    /// Forward passes.
    pub passes: u64,
    /// Prefetches that had ended when their expert was demanded.
    pub useful: u64,
    /// Prefetches that had not.
    pub late: u64,
    /// Prefetches that were evicted or dropped before.
    pub wasted: u64,
    /// Whether `auto` prefers to prefetch at the end.
    pub on_at_end: Option<bool>,
}

impl Comparison {
    /// Replays a trace within a budget of bytes, by default with the slots that were
    /// recorded; on a clock, too, if `costs` are known.
    ///
    /// # Errors
    ///
    /// [`Error::TooLittleToReplay`](crate::Error::TooLittleToReplay).
    pub fn new(trace: &Trace, budget: Option<u64>, costs: Option<Costs>) -> Result<Self> {
        let Trace { header, records } = trace;
        let (memory, capacity, n_slots) = match budget {
            None => (format!("{}, as recorded", header.model), Capacity::Recorded, trace.n_slots()),
            Some(bytes) => {
                let n_slots = trace.n_slots_within(bytes)?;
                (ByteSize(bytes).to_string(), Capacity::Slots(n_slots), n_slots)
            }
        };
        let counts = simulate::compare(header, records, capacity).into_iter();
        let policies = counts.map(|(chooser, counts)| PolicyCounts {
            policy: chooser.to_string(),
            hits: counts.hits,
            misses: counts.misses,
            hit_rate: counts.hit_rate(),
        });
        let times = |prefetch: Prefetch, costs| {
            let options = header.options.clone();
            let timing = timing::replay(header, records, options, n_slots, costs, prefetch);
            PrefetchTimes {
                prefetch: prefetch.name(),
                seconds: timing.total,
                stall_seconds: timing.stall,
                passes: timing.n_pass,
                useful: timing.useful(),
                late: timing.late(),
                wasted: timing.wasted(),
                on_at_end: timing.switch.map(|switch| switch.is_preferred),
            }
        };
        let ways = [Prefetch::Off, Prefetch::On, Prefetch::Auto];
        Ok(Self {
            memory,
            n_slots,
            policies: policies.collect(),
            prefetch: costs.map_or(vec![], |costs| ways.map(|way| times(way, costs)).into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::Routing;

    #[test]
    fn policies_are_compared_and_ways_to_prefetch_if_the_clock_can_be_counted() {
        let routing = Routing { foresight: Some(0.9), ..Routing::default() };
        let trace = Trace { header: routing.header(), records: routing.records() };
        // A slot takes a byte.
        let found = Comparison::new(&trace, Some(48), None).unwrap();
        assert_eq!((&*found.memory, found.n_slots), ("48 B", 48));
        let names: Vec<_> = found.policies.iter().map(|counts| &*counts.policy).collect();
        assert_eq!(names, ["lru", "lfu", "layer-lru", "blend", "belady"]);
        let n_demanded = (routing.n_token * routing.n_layer * routing.n_expert_used) as u64;
        assert!(found.policies.iter().all(|counts| counts.hits + counts.misses == n_demanded));
        assert!(found.prefetch.is_empty());

        let costs = Costs { read: 1.0, compute: 3.0 };
        let timed = Comparison::new(&trace, Some(48), Some(costs)).unwrap();
        assert_eq!(timed.policies, found.policies);
        let [off, on, auto] = &timed.prefetch[..] else { panic!("{:?}", timed.prefetch) };
        assert_eq!([off, on, auto].map(|times| times.prefetch), ["off", "on", "auto"]);
        assert_eq!([off, on, auto].map(|times| times.on_at_end.is_some()), [false, false, true]);
        assert_eq!(off.useful + off.late + off.wasted, 0);
        assert!(on.useful > 0 && on.seconds < off.seconds);
        // Nothing says how many slots there were.
        assert_eq!(Comparison::new(&trace, None, None).unwrap().n_slots, 0);
        assert!(Comparison::new(&trace, Some(3), None).is_err());
    }
}
