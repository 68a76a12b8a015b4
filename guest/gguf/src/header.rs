//! What a header says, and reading it.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::error::{Error, Result};
use crate::expert_name::ExpertName;
use crate::metadata::{Metadata, Strings, Value, ValueType};
use crate::reader::{Reader, no_memory};
use crate::source::Source;
use crate::tensor_type::TensorType;

/// What a file begins with.
pub const MAGIC: &[u8; 4] = b"GGUF";
/// The key of the multiples at which tensors begin.
pub const ALIGNMENT_KEY: &str = "general.alignment";
/// Tensors begin at multiples of this, if a file says nothing else.
pub const ALIGNMENT: u64 = 32;
/// The most key-value pairs in a header.
pub const N_PAIRS_MAX: u64 = 1 << 16;
/// The most tensors in a file.
pub const N_TENSORS_MAX: u64 = 1 << 17;

/// Where a tensor lies, and what it looks like.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// Its name: `blk.0.attn_q.weight`.
    pub name: String,
    /// Its shape, innermost dimension (the length of a row) first; unused
    /// dimensions are 1.
    pub dims: [u64; 4],
    /// How its numbers are stored.
    pub ty: TensorType,
    /// Which file of a split model holds it, from 0.
    pub file: usize,
    /// Offset of its first byte in that file.
    pub offset: u64,
    /// Its size in bytes.
    pub size: u64,
}

impl TensorInfo {
    /// How many numbers the tensor holds.
    pub fn n_elements(&self) -> u64 {
        self.dims.iter().product()
    }

    /// Whether it belongs to experts that the router picks.
    pub fn is_expert(&self) -> bool {
        ExpertName::parse(&self.name).is_some()
    }
}

/// The header of a model: metadata and tensors of all its files.
#[derive(Debug)]
pub struct Header {
    /// The key-value pairs of the first file.
    pub metadata: Metadata,
    /// The tensors of all files, by name.
    pub tensors: BTreeMap<String, TensorInfo>,
    /// Where the first file has each pair, key and value, in its order.
    pub pairs: Vec<(String, Range<u64>)>,
    /// Bytes that the headers take, file by file.
    pub header_bytes: Vec<u64>,
}

/// What one file's header says.
pub(crate) struct FileHeader {
    pub metadata: Metadata,
    pub pairs: Vec<(String, Range<u64>)>,
    pub tensors: BTreeMap<String, TensorInfo>,
    /// Bytes that it takes.
    pub end: u64,
}

impl FileHeader {
    /// Reads the header of file number `file` of a model, whose name is `name`.
    pub fn read(source: &dyn Source, name: &str, file: usize) -> Result<Self> {
        read_header(&mut Reader::new(source), file)
            .map_err(|e| Error::new(e.kind(), format!("{name}: {e}")))
    }
}

fn read_header(r: &mut Reader<'_>, file: usize) -> Result<FileHeader> {
    let magic = r.bytes::<4>().map_err(|_| not_gguf("it is shorter than a header"))?;
    if &magic != MAGIC {
        return Err(not_gguf(match &magic {
            b"FUGG" => "it is big-endian GGUF",
            b"ggml" | b"ggjt" | b"lmgg" | b"tjgg" => "it has the format from before GGUF",
            b"PK\x03\x04" => "it is a zip or PyTorch file",
            b"<!DO" | b"<htm" => "it is a web page, so the download went wrong",
            b"vers" => "it is a Git LFS pointer, so the download went wrong",
            _ => "its first four bytes are not `GGUF`",
        }));
    }
    let version = r.u32()?;
    if !(2..=3).contains(&version) {
        return Err(Error::unsupported(format!(
            "GGUF version {version}: versions 2 and 3 can be read; convert the model again"
        )));
    }
    let n_tensors = r.u64()?;
    let n_pairs = r.u64()?;
    if n_tensors > N_TENSORS_MAX || n_pairs > N_PAIRS_MAX {
        return Err(Error::invalid(format!(
            "the header claims {n_tensors} tensors and {n_pairs} metadata entries; the limits are \
             {N_TENSORS_MAX} and {N_PAIRS_MAX}, so the file is damaged"
        )));
    }

    let mut metadata = Metadata::default();
    let mut pairs = Vec::new();
    for _ in 0..n_pairs {
        let start = r.position();
        let key = r.string()?;
        let value = read_value(r, &key)?;
        if !metadata.insert(key.clone(), value) {
            return Err(Error::invalid(format!("metadata `{key}` is there twice")));
        }
        pairs.push((key, start..r.position()));
    }
    let alignment = metadata.u32(ALIGNMENT_KEY)?.map_or(ALIGNMENT, u64::from);
    if !alignment.is_power_of_two() || alignment > 1 << 16 {
        return Err(Error::invalid(format!(
            "{ALIGNMENT_KEY} is {alignment}; it must be a power of two up to 65536"
        )));
    }

    let mut tensors = Vec::new();
    for _ in 0..n_tensors {
        tensors.push(read_tensor(r, file)?);
    }
    let end = r.position();
    let data = end.next_multiple_of(alignment);
    for tensor in &mut tensors {
        if !tensor.offset.is_multiple_of(alignment) {
            return Err(Error::invalid(format!(
                "tensor {} lies at {}, not at a multiple of {alignment}; the file is damaged: \
                 download it again",
                tensor.name, tensor.offset
            )));
        }
        let place =
            data.checked_add(tensor.offset).and_then(|o| Some((o, o.checked_add(tensor.size)?)));
        match place {
            Some((offset, past)) if past <= r.size() => tensor.offset = offset,
            _ => {
                return Err(Error::invalid(format!(
                    "tensor {} ({} bytes at {}) reaches past the end of the file ({} bytes); the \
                     file is truncated or damaged: download it again",
                    tensor.name,
                    tensor.size,
                    data.saturating_add(tensor.offset),
                    r.size()
                )));
            }
        }
    }
    // A few bytes that many tensors share could ask for any amount of memory.
    tensors.sort_by_key(|t| t.offset);
    if let Some([a, b]) = tensors.array_windows().find(|[a, b]| a.offset + a.size > b.offset) {
        return Err(Error::invalid(format!(
            "tensors {} and {} overlap; the file is damaged: download it again",
            a.name, b.name
        )));
    }
    let mut by_name = BTreeMap::new();
    for tensor in tensors {
        if let Some(twice) = by_name.insert(tensor.name.clone(), tensor) {
            return Err(Error::invalid(format!("tensor {} is there twice", twice.name)));
        }
    }
    Ok(FileHeader { metadata, pairs, tensors: by_name, end })
}

fn not_gguf(why: &str) -> Error {
    Error::invalid(format!("not a GGUF file: {why}; download the model's .gguf file"))
}

fn read_tensor(r: &mut Reader<'_>, file: usize) -> Result<TensorInfo> {
    let name = r.string()?;
    let n_dims = r.u32()?;
    if !(1..=4).contains(&n_dims) {
        return Err(Error::invalid(format!(
            "tensor {name} has {n_dims} dimensions, 1 to 4 can be"
        )));
    }
    let mut dims = [1; 4];
    for dim in &mut dims[..n_dims as usize] {
        *dim = r.u64()?;
    }
    let type_id = r.u32()?;
    let offset = r.u64()?;
    let Some(ty) = TensorType::from_id(type_id) else {
        return Err(Error::unsupported(format!(
            "tensor {name} has type {type_id}, which is not known; get the model in Q4_K_M or Q8_0"
        )));
    };
    let Some(size) = ty.size(&dims) else {
        return Err(Error::invalid(format!(
            "tensor {name} of type {ty} cannot have shape {dims:?}"
        )));
    };
    Ok(TensorInfo { name, dims, ty, file, offset, size })
}

fn read_value(r: &mut Reader<'_>, key: &str) -> Result<Value> {
    Ok(match value_type(r.u32()?, key)? {
        ValueType::U8 => Value::Uint(r.bytes::<1>()?[0].into()),
        ValueType::I8 => Value::Int(i8::from_le_bytes(r.bytes()?).into()),
        ValueType::U16 => Value::Uint(u16::from_le_bytes(r.bytes()?).into()),
        ValueType::I16 => Value::Int(i16::from_le_bytes(r.bytes()?).into()),
        ValueType::U32 => Value::Uint(r.u32()?.into()),
        ValueType::I32 => Value::Int(i32::from_le_bytes(r.bytes()?).into()),
        ValueType::F32 => Value::Float(f32::from_le_bytes(r.bytes()?).into()),
        ValueType::Bool => Value::Bool(r.bytes::<1>()?[0] != 0),
        ValueType::String => Value::String(r.string()?),
        ValueType::Array => read_array(r, key)?,
        ValueType::U64 => Value::Uint(r.u64()?),
        ValueType::I64 => Value::Int(i64::from_le_bytes(r.bytes()?)),
        ValueType::F64 => Value::Float(f64::from_le_bytes(r.bytes()?)),
    })
}

fn value_type(id: u32, key: &str) -> Result<ValueType> {
    ValueType::from_id(id).ok_or_else(|| {
        Error::invalid(format!("metadata `{key}` has type {id}, which GGUF does not know"))
    })
}

fn read_array(r: &mut Reader<'_>, key: &str) -> Result<Value> {
    let id = r.u32()?;
    let n = r.u64()?;
    let ty = value_type(id, key)?;
    if ty == ValueType::Array {
        return Err(Error::unsupported(format!("metadata `{key}` is an array of arrays")));
    }
    // Every element takes at least `width` bytes, so a count that does not fit
    // the rest of the file is refused before anything is allocated.
    let n = r.check_count(n, ty.width(), key)?;
    Ok(match ty {
        ValueType::F32 => Value::Floats(r.elements(n, f32::from_le_bytes)?),
        ValueType::F64 => Value::Floats(r.elements(n, |b| f64::from_le_bytes(b) as f32)?),
        ValueType::Bool => Value::Bools(r.elements(n, |[b]| b != 0)?),
        ValueType::String => {
            let mut strings = Strings::with_capacity(n).ok_or_else(no_memory)?;
            for _ in 0..n {
                r.string_with(|s| strings.push(s))?.ok_or_else(no_memory)?;
            }
            Value::Strings(strings)
        }
        ValueType::U8 => Value::Ints(r.elements(n, |[b]| i64::from(b))?),
        ValueType::I8 => Value::Ints(r.elements(n, |b| i8::from_le_bytes(b).into())?),
        ValueType::U16 => Value::Ints(r.elements(n, |b| u16::from_le_bytes(b).into())?),
        ValueType::I16 => Value::Ints(r.elements(n, |b| i16::from_le_bytes(b).into())?),
        ValueType::U32 => Value::Ints(r.elements(n, |b| u32::from_le_bytes(b).into())?),
        ValueType::I32 => Value::Ints(r.elements(n, |b| i32::from_le_bytes(b).into())?),
        ValueType::U64 => Value::Ints(r.elements(n, |b| u64::from_le_bytes(b) as i64)?),
        ValueType::I64 => Value::Ints(r.elements(n, i64::from_le_bytes)?),
        ValueType::Array => unreachable!("refused above"),
    })
}
