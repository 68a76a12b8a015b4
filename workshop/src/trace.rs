//! A recorded run.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use moewe_residency::Key;
use moewe_residency::trace::{Header, Reader, Record, TraceError};

use crate::{Error, Result};

/// Which experts a run used, all of it in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// What it is of.
    pub header: Header,
    /// What happened.
    pub records: Vec<Record>,
}

impl Trace {
    /// Reads the trace in `path`.
    ///
    /// # Errors
    ///
    /// Those of opening the file and reading it.
    pub fn read(path: &Path) -> Result<Self, TraceError> {
        let reader = Reader::new(File::open(path)?)?;
        let header = reader.header().clone();
        Ok(Self { header, records: reader.collect::<Result<_, _>>()? })
    }

    /// The slots of the run, at its end; before, the model was loaded.
    pub fn n_slots(&self) -> usize {
        let slots = self.records.iter().rev().find_map(|record| match record {
            Record::Capacity { n_slots } => Some(*n_slots),
            _ => None,
        });
        slots.unwrap_or(0)
    }

    /// The slots that fit into so many bytes.
    ///
    /// # Errors
    ///
    /// [`Error::TooLittleToReplay`] if not even one layer's experts do.
    pub fn n_slots_within(&self, bytes: u64) -> Result<usize> {
        let Header { n_layer, n_expert, n_expert_used, slot_bytes, other_bytes, .. } = self.header;
        let least_bytes =
            slot_bytes.saturating_mul(n_expert_used as u64).saturating_add(other_bytes);
        if bytes < least_bytes {
            let model = self.header.model.clone();
            return Err(Error::TooLittleToReplay { model, bytes, least_bytes });
        }
        let n_slots = (bytes - other_bytes) / slot_bytes.max(1);
        Ok(n_slots.min((n_layer * n_expert) as u64) as usize)
    }
}

/// The experts in the trace in `path`, those first that most tokens used. The trace
/// may be longer than memory.
///
/// # Errors
///
/// Those of opening the file and reading it.
pub fn hottest_experts(path: &Path) -> Result<Vec<Key>, TraceError> {
    hottest_of(Reader::new(File::open(path)?)?)
}

fn hottest_of(
    records: impl Iterator<Item = Result<Record, TraceError>>,
) -> Result<Vec<Key>, TraceError> {
    let mut uses = BTreeMap::new();
    for record in records {
        if let Record::Demand { layer, choices } = record? {
            for (expert, _) in choices {
                *uses.entry(Key { layer, expert }).or_insert(0_u64) += 1;
            }
        }
    }
    let mut uses: Vec<_> = uses.into_iter().collect();
    uses.sort_by_key(|&(_, n)| Reverse(n));
    Ok(uses.into_iter().map(|(key, _)| key).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::Routing;

    fn trace(records: Vec<Record>) -> Trace {
        let routing = Routing { n_layer: 2, n_expert: 8, n_expert_used: 2, ..Routing::default() };
        let header = Header { slot_bytes: 100, other_bytes: 1000, ..routing.header() };
        Trace { header, records }
    }

    #[test]
    fn what_fits_is_between_a_layers_experts_and_all() {
        let trace = trace(vec![]);
        let error = trace.n_slots_within(1199).unwrap_err().to_string();
        assert!(error.contains("1199 bytes do not suffice") && error.contains("1200"), "{error}");
        assert_eq!(trace.n_slots_within(1200).unwrap(), 2);
        assert_eq!(trace.n_slots_within(1399).unwrap(), 3);
        assert_eq!(trace.n_slots_within(u64::MAX).unwrap(), 16);
        let endless = Header { slot_bytes: u64::MAX, ..trace.header };
        assert!(Trace { header: endless, records: vec![] }.n_slots_within(u64::MAX - 1).is_err());
    }

    #[test]
    fn the_hottest_expert_is_the_one_that_most_tokens_chose() {
        let demand =
            |layer, choices: &[(u16, u16)]| Record::Demand { layer, choices: choices.into() };
        let trace = trace(vec![
            Record::Capacity { n_slots: 5 },
            demand(0, &[(3, 0), (3, 1), (7, 1)]),
            Record::Predicted { layer: 1, experts: vec![1, 1, 1, 1] },
            demand(1, &[(3, 0), (4, 0)]),
            demand(1, &[(4, 0), (4, 1), (4, 2)]),
            Record::Capacity { n_slots: 4 },
        ]);
        let key = |(layer, expert)| Key { layer, expert };
        assert_eq!(trace.n_slots(), 4);
        let hottest = hottest_of(trace.records.into_iter().map(Ok)).unwrap();
        assert_eq!(hottest, [(1, 4), (0, 3), (0, 7), (1, 3)].map(key));
    }
}
