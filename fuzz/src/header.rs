//! GGUF files that are made up, sound or nearly so, and files in memory.

use std::rc::Rc;

use arbitrary::{Arbitrary, Result, Unstructured};
use moewe_engine::gguf::Value;
use moewe_engine::weights::{Source, Weights, Window};
use moewe_engine::{Error, ErrorKind};

/// Numbers of the types of metadata.
pub const U32: u32 = 4;
pub const I32: u32 = 5;
pub const F32: u32 = 6;
pub const BOOL: u32 = 7;
pub const STRING: u32 = 8;
pub const ARRAY: u32 = 9;
pub const U64: u32 = 10;
const I64: u32 = 11;
const F64: u32 = 12;

/// A header that grows.
#[derive(Default)]
pub struct Writer {
    pub n_pairs: u64,
    pub pairs: Vec<u8>,
    pub n_tensors: u64,
    pub tensors: Vec<u8>,
}

pub fn text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text);
}

impl Writer {
    pub fn key(&mut self, key: &[u8], type_id: u32) {
        self.n_pairs += 1;
        text(&mut self.pairs, key);
        self.pairs.extend(type_id.to_le_bytes());
    }

    pub fn array(&mut self, key: &str, type_id: u32, n: usize) {
        self.key(key.as_bytes(), ARRAY);
        self.pairs.extend(type_id.to_le_bytes());
        self.pairs.extend((n as u64).to_le_bytes());
    }

    pub fn string(&mut self, key: &str, value: &str) {
        self.key(key.as_bytes(), STRING);
        text(&mut self.pairs, value.as_bytes());
    }

    pub fn u32(&mut self, key: &str, value: u32) {
        self.key(key.as_bytes(), U32);
        self.pairs.extend(value.to_le_bytes());
    }

    pub fn bool(&mut self, key: &str, value: bool) {
        self.key(key.as_bytes(), BOOL);
        self.pairs.push(value.into());
    }

    pub fn strings<'a>(&mut self, key: &str, values: impl ExactSizeIterator<Item = &'a str>) {
        self.array(key, STRING, values.len());
        values.for_each(|value| text(&mut self.pairs, value.as_bytes()));
    }

    /// A value as it was read.
    pub fn value(&mut self, key: &str, value: &Value) {
        let id = match value {
            Value::Uint(_) => U64,
            Value::Int(_) => I64,
            Value::Float(_) => F64,
            Value::Bool(_) => BOOL,
            Value::String(_) => STRING,
            Value::Ints(_) | Value::Floats(_) | Value::Bools(_) | Value::Strings(_) => ARRAY,
        };
        let out = |values: &[[u8; 8]]| values.as_flattened().to_vec();
        match value {
            Value::Ints(a) => {
                self.array(key, I64, a.len());
                self.pairs.extend(a.iter().flat_map(|n| n.to_le_bytes()));
            }
            Value::Floats(a) => {
                self.array(key, F32, a.len());
                self.pairs.extend(a.iter().flat_map(|x| x.to_le_bytes()));
            }
            Value::Bools(a) => {
                self.array(key, BOOL, a.len());
                self.pairs.extend(a.iter().map(|&b| u8::from(b)));
            }
            Value::Strings(a) => {
                self.array(key, STRING, a.len());
                a.iter().for_each(|value| text(&mut self.pairs, value.as_bytes()));
            }
            _ => {
                self.key(key.as_bytes(), id);
                let bytes = match value {
                    Value::Uint(n) => out(&[n.to_le_bytes()]),
                    Value::Int(n) => out(&[n.to_le_bytes()]),
                    Value::Float(x) => out(&[x.to_le_bytes()]),
                    Value::Bool(b) => vec![u8::from(*b)],
                    Value::String(s) => {
                        let mut bytes = Vec::new();
                        text(&mut bytes, s.as_bytes());
                        bytes
                    }
                    _ => unreachable!("arrays are above"),
                };
                self.pairs.extend(bytes);
            }
        }
    }

    pub fn tensor(&mut self, name: &[u8], dims: &[u64], type_id: u32, offset: u64) {
        self.n_tensors += 1;
        text(&mut self.tensors, name);
        self.tensors.extend((dims.len() as u32).to_le_bytes());
        self.tensors.extend(dims.iter().flat_map(|n| n.to_le_bytes()));
        self.tensors.extend(type_id.to_le_bytes());
        self.tensors.extend(offset.to_le_bytes());
    }

    pub fn bytes(&self, version: u32) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(version.to_le_bytes());
        out.extend(self.n_tensors.to_le_bytes());
        out.extend(self.n_pairs.to_le_bytes());
        out.extend(&self.pairs);
        out.extend(&self.tensors);
        out
    }
}

/// A number that programs stumble over.
pub fn number(u: &mut Unstructured<'_>) -> Result<u64> {
    Ok(match u.int_in_range(0..=3)? {
        0 => u.int_in_range(0..=300)?,
        1 => 1u64 << u.int_in_range(0..=63)?,
        2 => u64::arbitrary(u)?,
        _ => (1u64 << u.int_in_range(0..=63)?).wrapping_sub(1),
    })
}

/// Whether something is to be unsound: seldom, and never when the bytes have ended.
pub fn is_odd(u: &mut Unstructured<'_>) -> Result<bool> {
    Ok(u8::arbitrary(u)? >= 244)
}

/// Files in memory, with zeros behind.
#[derive(Clone)]
pub struct Files(pub Rc<Vec<(String, File)>>);

/// One of them.
#[derive(Clone)]
pub struct File {
    pub bytes: Rc<[u8]>,
    pub size: u64,
}

impl Files {
    /// A single file.
    pub fn one(name: &str, bytes: Vec<u8>, size: u64) -> Self {
        Self(Rc::new(vec![(name.to_owned(), File { bytes: bytes.into(), size })]))
    }
}

impl Weights for Files {
    fn open(&self, name: &str) -> moewe_engine::Result<Box<dyn Source>> {
        match self.0.iter().find(|(n, _)| n == name) {
            Some((_, file)) => Ok(Box::new(file.clone())),
            None => Err(Error::new(ErrorKind::Weights, "there is no such file")),
        }
    }
}

impl Source for File {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> moewe_engine::Result<()> {
        let end = offset.checked_add(out.len() as u64);
        assert!(end.is_some_and(|end| end <= self.size), "a read past the end");
        out.fill(0);
        let there = self.bytes.get(offset as usize..).unwrap_or_default();
        let n = there.len().min(out.len());
        out[..n].copy_from_slice(&there[..n]);
        Ok(())
    }

    fn window(&self, _: u64, _: usize) -> moewe_engine::Result<Box<dyn Window>> {
        unreachable!("a header is not mapped")
    }

    fn prefetch(&self, _: u64, _: u64) {}
}
