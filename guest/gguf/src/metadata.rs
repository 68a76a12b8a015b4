//! The key-value pairs of a GGUF header.

use std::collections::BTreeMap;
use std::fmt;

use crate::error::{Error, Result};

/// The types of values, as files number them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueType {
    /// An unsigned byte.
    U8,
    /// A signed byte.
    I8,
    /// An unsigned number of 16 bits.
    U16,
    /// A signed number of 16 bits.
    I16,
    /// An unsigned number of 32 bits.
    U32,
    /// A signed number of 32 bits.
    I32,
    /// A float of 32 bits.
    F32,
    /// A truth value, one byte.
    Bool,
    /// A text: its length in bytes, and the bytes.
    String,
    /// The type of the entries, their number, and the entries.
    Array,
    /// An unsigned number of 64 bits.
    U64,
    /// A signed number of 64 bits.
    I64,
    /// A float of 64 bits.
    F64,
}

impl ValueType {
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::String,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    /// The type with this number in a file.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(id).ok()?).copied()
    }

    /// The number in a file.
    pub fn id(self) -> u32 {
        self as u32
    }

    /// The least bytes that a value takes in a file.
    pub const fn width(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::String | Self::U64 | Self::I64 | Self::F64 => 8,
            Self::Array => 12,
        }
    }
}

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any unsigned integer.
    Uint(u64),
    /// Any signed integer.
    Int(i64),
    /// Any float.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A text.
    String(String),
    /// An array of integers of any width.
    Ints(Vec<i64>),
    /// An array of floats.
    Floats(Vec<f32>),
    /// An array of truth values.
    Bools(Vec<bool>),
    /// An array of texts.
    Strings(Strings),
}

/// Many texts in one allocation: vocabularies have 10^5 of them.
#[derive(Clone, Default, PartialEq)]
pub struct Strings {
    text: String,
    ends: Vec<u32>,
}

impl Strings {
    /// An empty list with room for `n` texts; `None` if there is no memory.
    pub fn with_capacity(n: usize) -> Option<Self> {
        let mut ends = Vec::new();
        ends.try_reserve_exact(n).ok()?;
        Some(Self { text: String::new(), ends })
    }

    /// Appends a text; `None` if there is no memory for it.
    pub fn push(&mut self, text: &str) -> Option<()> {
        self.text.try_reserve(text.len()).ok()?;
        self.text.push_str(text);
        self.ends.push(u32::try_from(self.text.len()).ok()?);
        Some(())
    }

    /// How many texts there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The text with this index.
    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)? as usize;
        let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        Some(&self.text[start..end])
    }

    /// All texts in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.len()).map(|i| self.get(i).expect("index below len"))
    }
}

impl fmt::Debug for Strings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// The metadata of a model: every key of its (first) file.
#[derive(Debug, Clone, Default)]
pub struct Metadata {
    entries: BTreeMap<String, Value>,
}

impl Metadata {
    /// Adds a pair; answers whether the key is new.
    pub fn insert(&mut self, key: String, value: Value) -> bool {
        self.entries.insert(key, value).is_none()
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.get(key)
    }

    /// All pairs, ordered by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// The text of a key, if there is one.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a text", |v| match v {
            Value::String(s) => Some(s.as_str()),
            _ => None,
        })
    }

    /// The unsigned 32-bit number of a key, if there is one.
    pub fn u32(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "a number from 0 to 2^32-1", |v| match *v {
            Value::Uint(n) => u32::try_from(n).ok(),
            Value::Int(n) => u32::try_from(n).ok(),
            _ => None,
        })
    }

    /// The float of a key, if there is one. Integers will do.
    pub fn f32(&self, key: &str) -> Result<Option<f32>> {
        self.typed(key, "a finite number", |v| {
            match *v {
                Value::Float(x) => Some(x as f32),
                Value::Uint(n) => Some(n as f32),
                Value::Int(n) => Some(n as f32),
                _ => None,
            }
            .filter(|x| x.is_finite())
        })
    }

    /// The truth value of a key, if there is one.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", |v| match v {
            Value::Bool(b) => Some(*b),
            _ => None,
        })
    }

    /// The texts of a key, if there are any.
    pub fn strings(&self, key: &str) -> Result<Option<&Strings>> {
        self.typed(key, "an array of texts", |v| match v {
            Value::Strings(s) => Some(s),
            _ => None,
        })
    }

    /// The integers of a key, if there are any.
    pub fn ints(&self, key: &str) -> Result<Option<&[i64]>> {
        self.typed(key, "an array of integers", |v| match v {
            Value::Ints(a) => Some(a.as_slice()),
            _ => None,
        })
    }

    /// The floats of a key, if there are any.
    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>> {
        self.typed(key, "an array of floats", |v| match v {
            Value::Floats(a) => Some(a.as_slice()),
            _ => None,
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        convert(value).map(Some).ok_or_else(|| {
            Error::invalid(format!("metadata `{key}` is not {expected}; the file is damaged"))
        })
    }
}
