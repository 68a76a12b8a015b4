//! Writing headers, version 3.

use crate::header::{ALIGNMENT, ALIGNMENT_KEY, MAGIC};
use crate::metadata::{Value, ValueType};
use crate::tensor_type::TensorType;

/// Where the first pair of a header begins.
pub const PAIRS_AT: usize = 24;

/// Bytes of a pair that lie before its value.
pub const fn key_bytes(key: &str) -> usize {
    8 + key.len() + 4
}

/// A header that grows by metadata and tensors.
#[derive(Debug, Clone)]
pub struct Writer {
    /// What has been written, to which anything can be added.
    pub raw: RawHeader,
    /// Tensors begin at multiples of this.
    alignment: u64,
    /// Where the next tensor begins.
    offset: u64,
}

/// The parts of a header as a file has them, which nobody checks.
#[derive(Debug, Clone)]
pub struct RawHeader {
    /// The version of the format.
    pub version: u32,
    /// How many tensors there are said to be.
    pub n_tensors: u64,
    /// How many pairs there are said to be.
    pub n_pairs: u64,
    /// The pairs.
    pub pairs: Vec<u8>,
    /// The tensors.
    pub tensors: Vec<u8>,
}

impl Default for Writer {
    /// An empty header.
    fn default() -> Self {
        Self { raw: RawHeader::default(), alignment: ALIGNMENT, offset: 0 }
    }
}

impl Writer {
    /// Has the tensors begin at multiples of this, not of [`ALIGNMENT`]. Called before
    /// any is added.
    pub fn align(&mut self, alignment: u32) {
        self.u32(ALIGNMENT_KEY, alignment);
        self.alignment = alignment.into();
    }

    /// Adds a number.
    pub fn u16(&mut self, key: &str, value: u16) {
        self.scalar(key, ValueType::U16, &value.to_le_bytes());
    }

    /// Adds a number.
    pub fn u32(&mut self, key: &str, value: u32) {
        self.scalar(key, ValueType::U32, &value.to_le_bytes());
    }

    /// Adds a number.
    pub fn u64(&mut self, key: &str, value: u64) {
        self.scalar(key, ValueType::U64, &value.to_le_bytes());
    }

    /// Adds a number.
    pub fn f32(&mut self, key: &str, value: f32) {
        self.scalar(key, ValueType::F32, &value.to_le_bytes());
    }

    /// Adds a truth value.
    pub fn bool(&mut self, key: &str, value: bool) {
        self.scalar(key, ValueType::Bool, &[value.into()]);
    }

    /// Adds a text.
    pub fn string(&mut self, key: &str, value: &str) {
        self.scalar(key, ValueType::String, &[]);
        put_text(&mut self.raw.pairs, value.as_bytes());
    }

    /// Adds texts.
    pub fn strings<S: AsRef<str>>(
        &mut self,
        key: &str,
        values: impl IntoIterator<Item = S, IntoIter: ExactSizeIterator>,
    ) {
        let values = values.into_iter();
        self.raw.array(key.as_bytes(), ValueType::String.id(), values.len() as u64);
        values.for_each(|value| put_text(&mut self.raw.pairs, value.as_ref().as_bytes()));
    }

    /// Adds numbers.
    pub fn i32s(&mut self, key: &str, values: &[i32]) {
        self.array(key, ValueType::I32, values.iter().map(|n| n.to_le_bytes()));
    }

    /// Adds numbers.
    pub fn u64s(&mut self, key: &str, values: &[u64]) {
        self.array(key, ValueType::U64, values.iter().map(|n| n.to_le_bytes()));
    }

    /// Adds numbers.
    pub fn f32s(&mut self, key: &str, values: &[f32]) {
        self.array(key, ValueType::F32, values.iter().map(|x| x.to_le_bytes()));
    }

    /// Adds a value as it was read, in the widest type there is for it.
    pub fn value(&mut self, key: &str, value: &Value) {
        match value {
            Value::Uint(n) => self.u64(key, *n),
            Value::Int(n) => self.scalar(key, ValueType::I64, &n.to_le_bytes()),
            Value::Float(x) => self.scalar(key, ValueType::F64, &x.to_le_bytes()),
            Value::Bool(b) => self.bool(key, *b),
            Value::String(text) => self.string(key, text),
            Value::Ints(a) => self.array(key, ValueType::I64, a.iter().map(|n| n.to_le_bytes())),
            Value::Floats(a) => self.f32s(key, a),
            Value::Bools(a) => self.array(key, ValueType::Bool, a.iter().map(|&b| [b.into()])),
            Value::Strings(a) => self.strings(key, a.iter()),
        }
    }

    /// Adds a pair as another file has it.
    pub fn pair(&mut self, bytes: &[u8]) {
        self.raw.n_pairs += 1;
        self.raw.pairs.extend(bytes);
    }

    fn scalar(&mut self, key: &str, ty: ValueType, bytes: &[u8]) {
        self.raw.key(key.as_bytes(), ty.id());
        self.raw.pairs.extend(bytes);
    }

    fn array<const N: usize>(
        &mut self,
        key: &str,
        ty: ValueType,
        values: impl ExactSizeIterator<Item = [u8; N]>,
    ) {
        self.raw.array(key.as_bytes(), ty.id(), values.len() as u64);
        self.raw.pairs.extend(values.flatten());
    }

    /// Adds a tensor behind the ones before, and returns its size with the
    /// padding behind it. The length of a row is the first of `dims`.
    ///
    /// # Panics
    ///
    /// If no tensor of this type has this shape.
    pub fn tensor(&mut self, name: &str, dims: &[u64], ty: TensorType) -> u64 {
        let size = ty.size(dims).unwrap_or_else(|| panic!("{name} of type {ty}: {dims:?}"));
        self.raw.tensor(name.as_bytes(), dims, ty.id(), self.offset);
        let size = size.next_multiple_of(self.alignment);
        self.offset += size;
        size
    }

    /// All that comes before the first tensor's data, but for the padding.
    pub fn bytes(&self) -> Vec<u8> {
        self.raw.bytes()
    }

    /// All that comes before the first tensor's data.
    pub fn padded(&self) -> Vec<u8> {
        let mut bytes = self.bytes();
        bytes.resize(bytes.len().next_multiple_of(self.alignment as usize), 0);
        bytes
    }
}

impl Default for RawHeader {
    /// An empty header.
    fn default() -> Self {
        Self { version: 3, n_tensors: 0, n_pairs: 0, pairs: Vec::new(), tensors: Vec::new() }
    }
}

impl RawHeader {
    /// Begins a pair. The value of the type with this number belongs behind it.
    pub fn key(&mut self, key: &[u8], type_id: u32) {
        self.n_pairs += 1;
        put_text(&mut self.pairs, key);
        self.pairs.extend(type_id.to_le_bytes());
    }

    /// Begins a pair that is an array. So many entries belong behind it.
    pub fn array(&mut self, key: &[u8], type_id: u32, n: u64) {
        self.key(key, ValueType::Array.id());
        self.pairs.extend(type_id.to_le_bytes());
        self.pairs.extend(n.to_le_bytes());
    }

    /// Adds a tensor, at this offset behind the header.
    pub fn tensor(&mut self, name: &[u8], dims: &[u64], type_id: u32, offset: u64) {
        self.n_tensors += 1;
        put_text(&mut self.tensors, name);
        self.tensors.extend((dims.len() as u32).to_le_bytes());
        self.tensors.extend(dims.iter().flat_map(|n| n.to_le_bytes()));
        self.tensors.extend(type_id.to_le_bytes());
        self.tensors.extend(offset.to_le_bytes());
    }

    /// The header, without padding.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.n_tensors.to_le_bytes());
        bytes.extend(self.n_pairs.to_le_bytes());
        bytes.extend(&self.pairs);
        bytes.extend(&self.tensors);
        bytes
    }
}

/// Adds a text as files have it: its length in bytes, and the bytes.
pub fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Error, Gguf};

    #[test]
    fn what_is_written_is_read() {
        let mut writer = Writer::default();
        writer.u16("u16", 1);
        writer.u32("u32", 2);
        writer.u64("u64", 1 << 40);
        writer.f32("f32", 0.5);
        writer.bool("bool", true);
        writer.string("string", "caf\u{e9}");
        writer.strings("strings", ["", "a"]);
        writer.i32s("i32s", &[-1]);
        writer.u64s("u64s", &[3, 4]);
        writer.f32s("f32s", &[-0.5]);
        writer.value("int", &Value::Int(-5));
        writer.value("float", &Value::Float(0.1));
        writer.value("bools", &Value::Bools(vec![false, true]));
        writer.align(64);
        assert_eq!(writer.tensor("a", &[32, 2], TensorType::Q4_0), 64);
        assert_eq!(writer.tensor("b", &[1], TensorType::F32), 64);
        let mut file = writer.padded();
        let data = file.len() as u64;
        assert!(data.is_multiple_of(64));
        file.resize(file.len() + 128, 0);
        let open = |_: &str| Ok::<_, Error>(&file[..]);
        let header = Gguf::open("m.gguf", open).unwrap().header;
        let tensors = header.tensors.values().map(|t| (t.name.as_str(), t.offset, t.size));
        assert!(tensors.eq([("a", data, 36), ("b", data + 64, 4)]));
        let values = [
            ("bool", "Bool(true)"),
            ("bools", "Bools([false, true])"),
            ("f32", "Float(0.5)"),
            ("f32s", "Floats([-0.5])"),
            ("float", "Float(0.1)"),
            ("general.alignment", "Uint(64)"),
            ("i32s", "Ints([-1])"),
            ("int", "Int(-5)"),
            ("string", "String(\"caf\u{e9}\")"),
            ("strings", "Strings([\"\", \"a\"])"),
            ("u16", "Uint(1)"),
            ("u32", "Uint(2)"),
            ("u64", "Uint(1099511627776)"),
            ("u64s", "Ints([3, 4])"),
        ];
        let read: Vec<_> = header.metadata.iter().map(|(k, v)| (k, format!("{v:?}"))).collect();
        assert!(read.iter().map(|(k, v)| (*k, v.as_str())).eq(values), "{read:?}");
        // Where a pair's value begins.
        let at = &header.pairs[1].1;
        assert_eq!(header.pairs[0].1.start, PAIRS_AT as u64);
        assert_eq!((at.end - at.start) as usize, key_bytes("u32") + ValueType::U32.width());
    }
}
