//! Writing [GGUF](https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)
//! headers, version 3.

use super::tensor::Tensor;

/// Where tensors may begin.
pub const ALIGNMENT: u64 = 32;

const TYPE_U32: u32 = 4;
const TYPE_I32: u32 = 5;
const TYPE_F32: u32 = 6;
const TYPE_BOOL: u32 = 7;
const TYPE_STRING: u32 = 8;
const TYPE_ARRAY: u32 = 9;

/// A header that grows by metadata and tensors.
#[derive(Default)]
pub struct Header {
    pairs: Vec<u8>,
    n_pairs: u64,
    tensors: Vec<u8>,
    n_tensors: u64,
    /// Where the next tensor begins.
    offset: u64,
}

impl Header {
    pub fn u32(&mut self, key: &str, value: u32) {
        self.key(key, TYPE_U32);
        self.pairs.extend(value.to_le_bytes());
    }

    pub fn f32(&mut self, key: &str, value: f32) {
        self.key(key, TYPE_F32);
        self.pairs.extend(value.to_le_bytes());
    }

    pub fn bool(&mut self, key: &str, value: bool) {
        self.key(key, TYPE_BOOL);
        self.pairs.push(value.into());
    }

    pub fn string(&mut self, key: &str, value: &str) {
        self.key(key, TYPE_STRING);
        put_string(&mut self.pairs, value);
    }

    pub fn strings(&mut self, key: &str, values: &[String]) {
        self.array(key, TYPE_STRING, values.len());
        values.iter().for_each(|value| put_string(&mut self.pairs, value));
    }

    pub fn i32s(&mut self, key: &str, values: &[i32]) {
        self.array(key, TYPE_I32, values.len());
        self.pairs.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }

    fn key(&mut self, key: &str, value_type: u32) {
        put_string(&mut self.pairs, key);
        self.pairs.extend(value_type.to_le_bytes());
        self.n_pairs += 1;
    }

    fn array(&mut self, key: &str, item_type: u32, n: usize) {
        self.key(key, TYPE_ARRAY);
        self.pairs.extend(item_type.to_le_bytes());
        self.pairs.extend((n as u64).to_le_bytes());
    }

    /// Adds a tensor behind the ones before, and returns its size with the
    /// padding behind it.
    pub fn tensor(&mut self, tensor: &Tensor) -> u64 {
        put_string(&mut self.tensors, &tensor.name);
        self.tensors.extend((tensor.dims.len() as u32).to_le_bytes());
        self.tensors.extend(tensor.dims.iter().flat_map(|n| n.to_le_bytes()));
        self.tensors.extend(tensor.type_id().to_le_bytes());
        self.tensors.extend(self.offset.to_le_bytes());
        self.n_tensors += 1;
        let bytes = tensor.bytes().next_multiple_of(ALIGNMENT);
        self.offset += bytes;
        bytes
    }

    /// All that comes before the first tensor's data.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(self.n_tensors.to_le_bytes());
        bytes.extend(self.n_pairs.to_le_bytes());
        bytes.extend(&self.pairs);
        bytes.extend(&self.tensors);
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT as usize), 0);
        bytes
    }
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}
