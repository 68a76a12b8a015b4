//! The reader of traces.
//!
//! Whatever it reads is the model's that the header describes, can be written, and is
//! read as the same then. It takes memory in proportion to the trace.

use arbitrary::{Arbitrary, Result, Unstructured};
use moewe_residency::trace::{Header, Reader, Record, Recorder, TraceError, experts_of};
use moewe_residency::{CacheOptions, Key, PolicyKind};

use crate::memory;
use crate::target::{Target, reached};

/// See the module.
pub const TARGET: Target = Target {
    name: "trace",
    fuzz,
    seeds,
    words: &["moewe-ex", "moewe-ex\u{1}", "lru", "lfu", "layer-lru", "blend"],
    len_max: 4096,
};

fn seeds() -> Vec<Vec<u8>> {
    let described = (1..=4u8).map(|step| (0..=120u8).map(|i| i.wrapping_mul(step * 7)).collect());
    let described: Vec<Vec<u8>> = described.collect();
    let written = described.iter().map(|seed: &Vec<u8>| {
        let trace = trace(&mut Unstructured::new(seed)).unwrap_or_default();
        [&[0], &trace[..]].concat()
    });
    let written: Vec<_> = written.collect();
    written.into_iter().chain(described.into_iter().map(|d| [&[1], &d[..]].concat())).collect()
}

/// See the module.
///
/// # Panics
///
/// If a promise is broken.
pub fn fuzz(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else { return };
    let bytes = match first % 2 {
        0 => rest.to_vec(),
        _ => trace(&mut Unstructured::new(rest)).unwrap_or_default(),
    };
    // A record of a byte is the least, and a `Vec` doubles.
    let bytes_max = (64 << 10) + 128 * bytes.len();
    let (header, records) = match memory::bounded(bytes_max, || read(&bytes)) {
        Ok(read) => read,
        Err(error) => return failed(&error, bytes.len()),
    };
    let records: Vec<Record> = records
        .into_iter()
        .map_while(|record| match record {
            Ok(record) => Some(record),
            Err(error) => {
                failed(&error, bytes.len());
                None
            }
        })
        .collect();
    records.iter().for_each(|record| check(&header, record));
    let written = write(&header, &records);
    let (header_again, again) = read(&written).expect("what was written is a trace");
    let again: Vec<_> = again.into_iter().map(|r| r.expect("what was written is sound")).collect();
    assert_eq!(header_again, header);
    assert_eq!(again, records);
    assert!(written.len() <= bytes.len(), "the writer wastes bytes");
}

type Records = Vec<std::result::Result<Record, TraceError>>;

fn read(bytes: &[u8]) -> std::result::Result<(Header, Records), TraceError> {
    let reader = Reader::new(bytes)?;
    Ok((reader.header().clone(), reader.collect()))
}

fn failed(error: &TraceError, len: usize) {
    match error {
        TraceError::Damaged { at, what } => {
            assert!(*at <= len as u64, "{error}");
            reached(what.split(':').next().unwrap_or_default());
        }
        TraceError::NotATrace | TraceError::Version(_) => reached(&error.to_string()),
        error => panic!("bytes in memory can be read: {error}"),
    }
}

fn check(header: &Header, record: &Record) {
    let has = |layer: u16, expert: u16| {
        usize::from(layer) < header.n_layer && usize::from(expert) < header.n_expert
    };
    match record {
        Record::Demand { layer, choices } => {
            assert!(has(*layer, 0) && choices.iter().all(|&(expert, _)| has(*layer, expert)));
            assert!(choices.is_sorted_by(|a, b| a < b), "{choices:?}");
            assert!(experts_of(choices).is_sorted_by(|a, b| a < b), "{choices:?}");
            reached(["a demand", "demands"][usize::from(choices.len() > 1)]);
        }
        Record::Predicted { layer, experts } => {
            assert!(has(*layer, 0) && experts.iter().all(|&expert| has(*layer, expert)));
            assert!(experts.len() <= header.n_expert);
            reached("predicted");
        }
        Record::Capacity { .. } => reached("capacity"),
    }
}

fn write(header: &Header, records: &[Record]) -> Vec<u8> {
    let recorder = Recorder::new(Vec::new(), header.clone());
    let mut recorder = recorder.expect("a header that was read can be written");
    for record in records {
        recorder.record(record).expect("a record that was read can be written");
    }
    recorder.finish().expect("there is memory")
}

/// A sound trace as `u` describes it.
fn trace(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let n_layer = u.int_in_range(1..=5)?;
    let n_expert = *u.choose(&[1, 4, 130, 70_000 / 5])?;
    let key = |u: &mut Unstructured<'_>| -> Result<Key> {
        let layer = u.int_in_range(0..=n_layer - 1)? as u16;
        Ok(Key { layer, expert: u.int_in_range(0..=n_expert - 1)? as u16 })
    };
    let pins = (0..u.int_in_range(0..=3)?).map(|_| key(u)).collect::<Result<_>>()?;
    let header = Header {
        n_layer,
        n_expert,
        n_expert_used: u.int_in_range(0..=n_expert.min(4))?,
        slot_bytes: u64::arbitrary(u)?,
        other_bytes: u64::arbitrary(u)?,
        model: "m\u{f6}we".to_owned(),
        options: CacheOptions {
            policy: *u.choose(PolicyKind::ALL)?,
            layer_floor: u.int_in_range(0..=300)?,
            pins,
        },
    };
    let mut records = Vec::new();
    let mut layer = 0;
    while !u.is_empty() {
        records.push(match u.int_in_range(0..=5)? {
            0 => Record::Capacity { n_slots: usize::arbitrary(u)? },
            1 => {
                let n = u.int_in_range(0..=n_expert.min(5))?;
                let experts = (0..n).map(|_| Ok(key(u)?.expert)).collect::<Result<_>>()?;
                Record::Predicted { layer: key(u)?.layer, experts }
            }
            kind => {
                let n = u.int_in_range(0..=6)?;
                let mut choices = Vec::new();
                for _ in 0..n {
                    let token = if kind > 3 { 0 } else { u16::arbitrary(u)? };
                    choices.push((key(u)?.expert, token));
                }
                choices.sort_unstable();
                choices.dedup();
                layer = (layer + 1) % n_layer as u16;
                Record::Demand { layer, choices }
            }
        });
    }
    Ok(write(&header, &records))
}
