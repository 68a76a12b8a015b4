//! What was demanded and predicted in a run, as a file.
//!
//! Numbers are LEB128 varints but for the magic. The header:
//!
//! | field | what it is |
//! |---|---|
//! | magic | the 8 bytes `moewe-ex` |
//! | version | [`VERSION`] |
//! | `n_layer`, `n_expert`, `n_expert_used` | the shape of the model |
//! | `slot_bytes` | what an expert takes in memory |
//! | `other_bytes` | what all else takes |
//! | model | length in bytes, UTF-8 |
//! | policy | length in bytes, its name |
//! | `layer_floor` | slots |
//! | pins | how many; layer and expert of each |
//!
//! Then come records until the file ends. Each begins with a number that says
//! which it is:
//!
//! | record | number | fields |
//! |---|---|---|
//! | demand of the next layer for one token | 0 | `n_expert_used` experts, ascending |
//! | any other demand | 1 | layer; how many choices; of each the expert and the token |
//! | predicted | 2 | layer; how many experts; each |
//! | capacity | 3 | slots |
//!
//! The next layer is the one after that of the last demand; after the last layer,
//! and at first, it is layer 0. In record 0 the token has number 0, and an expert
//! is how many are left out since the last one (or since the start). So a token
//! takes a byte for each expert, up to 127 of them being left out, and one for each
//! layer. In record 1, which is sorted by expert and token, an expert is the
//! difference from the last one, and a token how many are left out since the last
//! one of the same expert. Experts predicted are written as they are, because
//! their order may mean something.
//!
//! That a demand is released is not recorded: it is before the next one.

use std::io::{self, BufReader, ErrorKind, Read, Write};

use integer_encoding::{VarInt, VarIntReader};

use crate::{CacheOptions, Key, PolicyKind};

/// The version of the format.
pub const VERSION: u64 = 1;

const MAGIC: &[u8; 8] = b"moewe-ex";
/// The most experts of all layers together, the most bytes in a name.
const N_EXPERT_MAX: usize = 1 << 20;
const NAME_BYTES_MAX: usize = 1 << 12;

const NEXT_DEMAND: u8 = 0;
const DEMAND: u8 = 1;
const PREDICTED: u8 = 2;
const CAPACITY: u8 = 3;

/// What a trace is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Layers of the model.
    pub n_layer: usize,
    /// Experts of each layer.
    pub n_expert: usize,
    /// Experts that a token takes in each layer.
    pub n_expert_used: usize,
    /// What an expert takes in memory.
    pub slot_bytes: u64,
    /// What all else takes in memory.
    pub other_bytes: u64,
    /// The model's name.
    pub model: String,
    /// The cache's options when the trace was recorded.
    pub options: CacheOptions,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A layer demands experts.
    Demand {
        /// The layer.
        layer: u16,
        /// Who chose what: experts with the numbers, in their forward pass, of
        /// the tokens that chose them. Strictly ascending.
        choices: Vec<(u16, u16)>,
    },
    /// Experts were predicted to be wanted, one layer ahead.
    Predicted {
        /// The layer that would want them.
        layer: u16,
        /// The experts, in the order of the prediction.
        experts: Vec<u16>,
    },
    /// From now on there are so many slots.
    Capacity {
        /// How many.
        n_slots: usize,
    },
}

/// Why a trace cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// Reading failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It begins with something else.
    #[error("not a trace of experts")]
    NotATrace,
    /// It was written by another version of moewe.
    #[error("the trace has version {0}, this is version {VERSION}")]
    Version(u64),
    /// What cannot be.
    #[error("the trace is damaged before byte {at}: {what}")]
    Damaged {
        /// Bytes read until it was noticed.
        at: u64,
        /// What is wrong.
        what: String,
    },
}

impl Header {
    fn check(&self) -> Result<(), String> {
        let Self { n_layer, n_expert, n_expert_used, .. } = *self;
        let is_named = |n| (1..=1 << 16).contains(&n);
        if !is_named(n_layer)
            || !is_named(n_expert)
            || n_layer.saturating_mul(n_expert) > N_EXPERT_MAX
        {
            return Err(format!("{n_layer} layers of {n_expert} experts"));
        }
        if n_expert_used > n_expert {
            return Err(format!("{n_expert_used} of {n_expert} experts are used"));
        }
        if self.model.len() > NAME_BYTES_MAX {
            return Err("a long name".to_owned());
        }
        if self.options.pins.len() > N_EXPERT_MAX {
            return Err(format!("{} pins", self.options.pins.len()));
        }
        self.options.pins.iter().try_for_each(|&key| self.check_key(key))
    }

    fn check_key(&self, key: Key) -> Result<(), String> {
        let is_there =
            usize::from(key.layer) < self.n_layer && usize::from(key.expert) < self.n_expert;
        if is_there { Ok(()) } else { Err(format!("there is no {key}")) }
    }

    /// The layer after that of a demand.
    fn next_layer(&self, layer: u16) -> u16 {
        if usize::from(layer) + 1 < self.n_layer { layer + 1 } else { 0 }
    }
}

/// The experts of a demand, each once, ascending.
pub fn experts_of(choices: &[(u16, u16)]) -> Vec<u16> {
    let mut experts: Vec<_> = choices.iter().map(|&(expert, _)| expert).collect();
    experts.dedup();
    experts
}

/// Writes a trace. Each record is written at once, so the writer should have a
/// buffer.
#[derive(Debug)]
pub struct Recorder<W> {
    writer: W,
    header: Header,
    next_layer: u16,
    /// The record being made.
    bytes: Vec<u8>,
}

impl<W: Write> Recorder<W> {
    /// Writes the header.
    ///
    /// # Errors
    ///
    /// Those of the writer, and [`InvalidInput`](ErrorKind::InvalidInput) for a
    /// header that would not be read back.
    pub fn new(mut writer: W, header: Header) -> io::Result<Self> {
        header.check().map_err(invalid)?;
        let mut bytes = MAGIC.to_vec();
        put(&mut bytes, VERSION);
        for n in [header.n_layer, header.n_expert, header.n_expert_used] {
            put(&mut bytes, n as u64);
        }
        put(&mut bytes, header.slot_bytes);
        put(&mut bytes, header.other_bytes);
        let CacheOptions { policy, layer_floor, pins } = &header.options;
        for name in [&header.model, &policy.to_string()] {
            put(&mut bytes, name.len() as u64);
            bytes.extend_from_slice(name.as_bytes());
        }
        put(&mut bytes, *layer_floor as u64);
        put(&mut bytes, pins.len() as u64);
        for key in pins {
            put(&mut bytes, key.layer.into());
            put(&mut bytes, key.expert.into());
        }
        writer.write_all(&bytes)?;
        Ok(Self { writer, header, next_layer: 0, bytes })
    }

    /// What the trace is of.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Writes a demand. See [`Record::Demand`].
    ///
    /// # Errors
    ///
    /// Those of the writer, and [`InvalidInput`](ErrorKind::InvalidInput) for
    /// choices out of order or not the model's.
    pub fn demand(&mut self, layer: u16, choices: &[(u16, u16)]) -> io::Result<()> {
        let expert = choices.last().map_or(0, |&(expert, _)| expert);
        self.header.check_key(Key { layer, expert }).map_err(invalid)?;
        if !choices.is_sorted_by(|a, b| a < b) {
            return Err(invalid("choices are out of order".to_owned()));
        }
        let is_next = layer == self.next_layer
            && choices.len() == self.header.n_expert_used
            && choices.iter().all(|&(_, token)| token == 0);
        self.bytes.clear();
        if is_next {
            self.bytes.push(NEXT_DEMAND);
            let mut next = 0;
            for &(expert, _) in choices {
                put(&mut self.bytes, u64::from(expert) - next);
                next = u64::from(expert) + 1;
            }
        } else {
            self.bytes.push(DEMAND);
            put(&mut self.bytes, layer.into());
            put(&mut self.bytes, choices.len() as u64);
            let (mut last, mut next_token) = (0, 0);
            for &(expert, token) in choices {
                if expert != last {
                    next_token = 0;
                }
                put(&mut self.bytes, u64::from(expert - last));
                put(&mut self.bytes, u64::from(token) - next_token);
                (last, next_token) = (expert, u64::from(token) + 1);
            }
        }
        self.next_layer = self.header.next_layer(layer);
        self.writer.write_all(&self.bytes)
    }

    /// Writes a prediction. See [`Record::Predicted`].
    ///
    /// # Errors
    ///
    /// Those of the writer, and [`InvalidInput`](ErrorKind::InvalidInput) for
    /// experts that are not the model's, or more than there are.
    pub fn predicted(&mut self, layer: u16, experts: &[u16]) -> io::Result<()> {
        let expert = experts.iter().copied().max().unwrap_or(0);
        self.header.check_key(Key { layer, expert }).map_err(invalid)?;
        if experts.len() > self.header.n_expert {
            return Err(invalid(format!("{} experts predicted", experts.len())));
        }
        self.bytes.clear();
        self.bytes.push(PREDICTED);
        put(&mut self.bytes, layer.into());
        put(&mut self.bytes, experts.len() as u64);
        experts.iter().for_each(|&expert| put(&mut self.bytes, expert.into()));
        self.writer.write_all(&self.bytes)
    }

    /// Writes that the number of slots has changed.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    pub fn capacity(&mut self, n_slots: usize) -> io::Result<()> {
        self.bytes.clear();
        self.bytes.push(CAPACITY);
        put(&mut self.bytes, n_slots as u64);
        self.writer.write_all(&self.bytes)
    }

    /// Writes any record.
    ///
    /// # Errors
    ///
    /// See the methods for each.
    pub fn record(&mut self, record: &Record) -> io::Result<()> {
        match record {
            Record::Demand { layer, choices } => self.demand(*layer, choices),
            Record::Predicted { layer, experts } => self.predicted(*layer, experts),
            Record::Capacity { n_slots } => self.capacity(*n_slots),
        }
    }

    /// Flushes the writer and gives it back.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    pub fn finish(mut self) -> io::Result<W> {
        self.writer.flush()?;
        Ok(self.writer)
    }
}

fn put(bytes: &mut Vec<u8>, number: u64) {
    let mut buffer = [0; 10];
    let n = number.encode_var(&mut buffer);
    bytes.extend_from_slice(&buffer[..n]);
}

fn invalid(what: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, what)
}

/// Reads a trace: an iterator of its records, which ends at the first error. What
/// a record takes in memory is bounded by what it takes in the trace.
#[derive(Debug)]
pub struct Reader<R> {
    input: Input<R>,
    header: Header,
    next_layer: u16,
    is_over: bool,
}

impl<R: Read> Reader<R> {
    /// Reads the header.
    ///
    /// # Errors
    ///
    /// If it is not the header of a trace.
    pub fn new(reader: R) -> Result<Self, TraceError> {
        let mut input = Input { reader: BufReader::new(reader), at: 0 };
        let header = read_header(&mut input)?;
        Ok(Self { input, header, next_layer: 0, is_over: false })
    }

    /// What the trace is of.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// `None` where the trace ends.
    fn record(&mut self) -> Result<Option<Record>, TraceError> {
        let mut kind = [0];
        if self.input.read(&mut kind)? == 0 {
            return Ok(None);
        }
        let record = match kind[0] {
            NEXT_DEMAND => self.next_demand()?,
            DEMAND => self.demand()?,
            PREDICTED => self.predicted()?,
            CAPACITY => Record::Capacity { n_slots: self.input.number("slots", usize::MAX)? },
            kind => return Err(self.input.damaged(format!("record of unknown kind {kind}"))),
        };
        if let Record::Demand { layer, .. } = record {
            self.next_layer = self.header.next_layer(layer);
        }
        Ok(Some(record))
    }

    fn next_demand(&mut self) -> Result<Record, TraceError> {
        let (layer, mut next) = (self.next_layer, 0);
        let mut choices = Vec::new();
        for _ in 0..self.header.n_expert_used {
            let expert = self.expert(next)?;
            choices.push((expert, 0));
            next = usize::from(expert) + 1;
        }
        Ok(Record::Demand { layer, choices })
    }

    fn demand(&mut self) -> Result<Record, TraceError> {
        let layer = self.layer()?;
        let n = self.input.number("choices", self.header.n_expert.saturating_mul(1 << 16))?;
        let mut choices = Vec::new();
        let (mut last, mut next_token) = (0, 0);
        for _ in 0..n {
            let expert = self.expert(usize::from(last))?;
            if expert != last {
                next_token = 0;
            }
            let token = self.input.number("token", usize::from(u16::MAX))? + next_token;
            next_token = token + 1;
            let Ok(token) = u16::try_from(token) else {
                return Err(self.input.damaged(format!("token {token}")));
            };
            choices.push((expert, token));
            last = expert;
        }
        Ok(Record::Demand { layer, choices })
    }

    fn predicted(&mut self) -> Result<Record, TraceError> {
        let layer = self.layer()?;
        let n = self.input.number("experts", self.header.n_expert)?;
        let experts = (0..n).map(|_| self.expert(0)).collect::<Result<_, _>>()?;
        Ok(Record::Predicted { layer, experts })
    }

    fn layer(&mut self) -> Result<u16, TraceError> {
        Ok(self.input.number("layer", self.header.n_layer - 1)? as u16)
    }

    /// An expert that is written as the difference from this one.
    fn expert(&mut self, from: usize) -> Result<u16, TraceError> {
        let expert = from + self.input.number("expert", self.header.n_expert - 1)?;
        if expert >= self.header.n_expert {
            return Err(self.input.damaged(format!("expert {expert}")));
        }
        Ok(expert as u16)
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Result<Record, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let record = self.record().transpose();
        self.is_over = !matches!(record, Some(Ok(_)));
        record
    }
}

fn read_header<R: Read>(input: &mut Input<R>) -> Result<Header, TraceError> {
    let mut magic = [0; MAGIC.len()];
    match input.read_exact(&mut magic) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
            return Err(TraceError::NotATrace);
        }
        result => result?,
    }
    if magic != *MAGIC {
        return Err(TraceError::NotATrace);
    }
    let version = input.varint()?;
    if version != VERSION {
        return Err(TraceError::Version(version));
    }
    let n_layer = input.number("layers", N_EXPERT_MAX)?;
    let n_expert = input.number("experts", N_EXPERT_MAX)?;
    let n_expert_used = input.number("experts used", N_EXPERT_MAX)?;
    let slot_bytes = input.varint()?;
    let other_bytes = input.varint()?;
    let model = input.name()?;
    let policy = match input.name()?.parse::<PolicyKind>() {
        Ok(policy) => policy,
        Err(error) => return Err(input.damaged(error.to_string())),
    };
    let layer_floor = input.number("floor", usize::MAX)?;
    let mut pins = Vec::new();
    for _ in 0..input.number("pins", N_EXPERT_MAX)? {
        let [layer, expert] =
            [(); 2].map(|()| input.number("pin", usize::from(u16::MAX)).map(|n| n as u16));
        pins.push(Key { layer: layer?, expert: expert? });
    }
    let options = CacheOptions { policy, layer_floor, pins };
    let header =
        Header { n_layer, n_expert, n_expert_used, slot_bytes, other_bytes, model, options };
    match header.check() {
        Ok(()) => Ok(header),
        Err(what) => Err(input.damaged(what)),
    }
}

/// Counts the bytes read.
#[derive(Debug)]
struct Input<R> {
    reader: BufReader<R>,
    at: u64,
}

impl<R: Read> Input<R> {
    fn damaged(&self, what: String) -> TraceError {
        TraceError::Damaged { at: self.at, what }
    }

    fn varint(&mut self) -> Result<u64, TraceError> {
        match self.read_varint() {
            Ok(number) => Ok(number),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                Err(self.damaged("it ends early".to_owned()))
            }
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                Err(self.damaged("a number of more than 64 bits".to_owned()))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn number(&mut self, what: &str, max: usize) -> Result<usize, TraceError> {
        let number = self.varint()?;
        match usize::try_from(number) {
            Ok(number) if number <= max => Ok(number),
            _ => Err(self.damaged(format!("{what}: {number}, more than {max}"))),
        }
    }

    fn name(&mut self) -> Result<String, TraceError> {
        let mut bytes = vec![0; self.number("bytes of a name", NAME_BYTES_MAX)?];
        match self.read_exact(&mut bytes) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                return Err(self.damaged("it ends early".to_owned()));
            }
            result => result?,
        }
        String::from_utf8(bytes).map_err(|error| self.damaged(error.to_string()))
    }
}

impl<R: Read> Read for Input<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.reader.read(buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(n) => {
                    self.at += n as u64;
                    return Ok(n);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        let pins = vec![Key { layer: 1, expert: 299 }];
        Header {
            n_layer: 3,
            n_expert: 300,
            n_expert_used: 2,
            slot_bytes: 1 << 40,
            other_bytes: 12345,
            model: "möwe".to_owned(),
            options: CacheOptions { policy: PolicyKind::LayerLru, layer_floor: 5, pins },
        }
    }

    fn records() -> Vec<Record> {
        let demand = |layer, choices: &[_]| Record::Demand { layer, choices: choices.to_vec() };
        vec![
            Record::Capacity { n_slots: 1000 },
            demand(0, &[(0, 0), (1, 0)]),
            Record::Predicted { layer: 1, experts: vec![299, 7, 0] },
            demand(1, &[(7, 0), (299, 0)]),
            demand(2, &[(0, 0), (0, 1), (0, 65535), (5, 3), (299, 0), (299, 65535)]),
            demand(0, &[(1, 0)]),
            demand(0, &[(3, 0), (130, 0)]),
            demand(1, &[]),
            Record::Predicted { layer: 2, experts: vec![] },
            Record::Capacity { n_slots: 0 },
        ]
    }

    fn bytes() -> Vec<u8> {
        let mut recorder = Recorder::new(Vec::new(), header()).unwrap();
        records().iter().for_each(|record| recorder.record(record).unwrap());
        recorder.finish().unwrap()
    }

    #[test]
    fn a_trace_is_read_back() {
        let bytes = bytes();
        let reader = Reader::new(&bytes[..]).unwrap();
        assert_eq!(*reader.header(), header());
        assert_eq!(reader.collect::<Result<Vec<_>, _>>().unwrap(), records());
    }

    #[test]
    fn a_token_takes_a_byte_for_each_expert_and_layer() {
        let mut recorder = Recorder::new(Vec::new(), header()).unwrap();
        let n_header = recorder.writer.len();
        for layer in [0, 1, 2, 0] {
            recorder.demand(layer, &[(100, 0), (200, 0)]).unwrap();
        }
        assert_eq!(recorder.finish().unwrap().len() - n_header, 4 * 3);
    }

    #[test]
    fn what_would_not_be_read_back_is_not_written() {
        let mut recorder = Recorder::new(Vec::new(), header()).unwrap();
        assert!(recorder.demand(3, &[]).is_err());
        assert!(recorder.demand(0, &[(300, 0)]).is_err());
        assert!(recorder.demand(0, &[(1, 0), (0, 0)]).is_err());
        assert!(recorder.demand(0, &[(1, 0), (1, 0)]).is_err());
        assert!(recorder.predicted(0, &[300, 0]).is_err());
        assert!(recorder.predicted(0, &[0; 301]).is_err());
        let error = Recorder::new(Vec::new(), Header { n_layer: 1 << 16, ..header() }).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        let error = Recorder::new(Vec::new(), Header { n_expert: 299, ..header() }).unwrap_err();
        assert_eq!(error.to_string(), "there is no expert 299 of layer 1");
    }

    #[test]
    fn other_files_are_refused() {
        assert!(matches!(Reader::new(&b""[..]), Err(TraceError::NotATrace)));
        assert!(matches!(Reader::new(&b"GGUF\x03\0\0\0\0\0"[..]), Err(TraceError::NotATrace)));
        let mut bytes = bytes();
        bytes[8] = 9;
        let error = Reader::new(&bytes[..]).unwrap_err();
        assert_eq!(error.to_string(), "the trace has version 9, this is version 1");
    }

    fn read(bytes: &[u8]) -> Result<Vec<Record>, TraceError> {
        Reader::new(bytes)?.collect()
    }

    #[test]
    fn a_short_trace_is_an_error_or_ends_with_a_record() {
        let bytes = bytes();
        let mut n_whole = 0;
        for n in 0..bytes.len() {
            match read(&bytes[..n]) {
                Ok(some) => {
                    assert!(records().starts_with(&some));
                    n_whole += 1;
                }
                Err(TraceError::Damaged { at, what }) => {
                    assert!(at <= n as u64 && what == "it ends early", "{what}");
                }
                Err(error) => assert!(n < MAGIC.len(), "{error}"),
            }
        }
        assert_eq!(n_whole, records().len());
    }

    #[test]
    fn a_damaged_trace_does_no_harm() {
        let bytes = bytes();
        let mut n_error = 0;
        for at in 0..bytes.len() {
            for value in 0..=255 {
                let mut bytes = bytes.clone();
                bytes[at] = value;
                let Ok(reader) = Reader::new(&bytes[..]) else {
                    n_error += 1;
                    continue;
                };
                let header = reader.header().clone();
                for record in reader {
                    match record {
                        Ok(record) => assert_eq!(
                            Recorder::new(Vec::new(), header.clone())
                                .and_then(|mut r| r.record(&record))
                                .map_err(|e| e.to_string()),
                            Ok(()),
                            "what is read can be written"
                        ),
                        Err(_) => n_error += 1,
                    }
                }
            }
        }
        assert!(n_error > 1000, "{n_error}");
    }

    #[test]
    fn large_counts_allocate_nothing() {
        let mut bytes = Recorder::new(Vec::new(), header()).unwrap().finish().unwrap();
        bytes.extend([DEMAND, 0, 0xff, 0xff, 0xff, 0x0f]);
        let error = read(&bytes).unwrap_err().to_string();
        assert!(error.contains("more than 19660800"), "{error}");
        let n = bytes.len() - 4;
        bytes.truncate(n);
        bytes.extend([0xff, 0xff, 0x7f]);
        assert!(read(&bytes).unwrap_err().to_string().contains("it ends early"));
        bytes.truncate(n);
        bytes.extend([0xff; 12]);
        assert!(read(&bytes).unwrap_err().to_string().contains("more than 64 bits"));
    }
}
