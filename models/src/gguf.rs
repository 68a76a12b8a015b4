//! Writing [GGUF](https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)
//! headers, version 3.

const TYPE_U32: u32 = 4;
const TYPE_I32: u32 = 5;
const TYPE_F32: u32 = 6;
const TYPE_BOOL: u32 = 7;
const TYPE_STRING: u32 = 8;
const TYPE_ARRAY: u32 = 9;
const TYPE_U64: u32 = 10;

/// A header that grows by metadata and tensors.
pub struct Header {
    /// Tensors begin at multiples of this.
    alignment: u64,
    pairs: Vec<u8>,
    n_pairs: u64,
    tensors: Vec<u8>,
    n_tensors: u64,
    /// Where the next tensor begins.
    offset: u64,
}

impl Header {
    /// An empty header. Another alignment than 32 must be told in the metadata.
    pub fn new(alignment: u64) -> Self {
        Self {
            alignment,
            pairs: Vec::new(),
            n_pairs: 0,
            tensors: Vec::new(),
            n_tensors: 0,
            offset: 0,
        }
    }

    pub fn u32(&mut self, key: &str, value: u32) {
        self.key(key, TYPE_U32);
        self.pairs.extend(value.to_le_bytes());
    }

    pub fn u64(&mut self, key: &str, value: u64) {
        self.key(key, TYPE_U64);
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

    pub fn u64s(&mut self, key: &str, values: &[u64]) {
        self.array(key, TYPE_U64, values.len());
        self.pairs.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }

    /// Adds a pair as another file has it.
    pub fn pair(&mut self, bytes: &[u8]) {
        self.pairs.extend(bytes);
        self.n_pairs += 1;
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
    pub fn tensor(&mut self, name: &str, dims: &[u64], type_id: u32, bytes: u64) -> u64 {
        put_string(&mut self.tensors, name);
        self.tensors.extend((dims.len() as u32).to_le_bytes());
        self.tensors.extend(dims.iter().flat_map(|n| n.to_le_bytes()));
        self.tensors.extend(type_id.to_le_bytes());
        self.tensors.extend(self.offset.to_le_bytes());
        self.n_tensors += 1;
        let bytes = bytes.next_multiple_of(self.alignment);
        self.offset += bytes;
        bytes
    }

    /// All that comes before the first tensor's data, but for the padding.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(self.n_tensors.to_le_bytes());
        bytes.extend(self.n_pairs.to_le_bytes());
        bytes.extend(&self.pairs);
        bytes.extend(&self.tensors);
        bytes
    }
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}
