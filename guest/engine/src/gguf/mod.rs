//! Reading [GGUF](https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)
//! headers, versions 2 and 3, split files included.
//!
//! Nothing in a file is believed: every count is checked against the bytes
//! that are left before anything is allocated, every tensor against the end
//! of its file.

mod metadata;
mod reader;
mod types;

pub use metadata::{Metadata, Strings, Value};
pub use types::TensorType;

use std::collections::BTreeMap;
use std::ops::Range;

use crate::error::{Error, Result};
use crate::weights::{Source, Weights};
use reader::{Reader, no_memory};

/// The most key-value pairs in a header.
pub const N_PAIRS_MAX: u64 = 1 << 16;
/// The most tensors in a file.
pub const N_TENSORS_MAX: u64 = 1 << 17;
/// The most files that a model is split into.
pub const N_SPLIT_MAX: u32 = 1 << 10;

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

    /// Whether it belongs to an expert that the router picks. GGUF keeps all
    /// experts of a layer in one tensor, `blk.0.ffn_up_exps.weight`; files from
    /// early 2024 and packed ones have one for each, `blk.0.ffn_up.7.weight`.
    pub fn is_expert(&self) -> bool {
        let name = &self.name;
        name.contains("_exps.") || name.split('.').nth(3).is_some_and(|s| s.parse::<u32>().is_ok())
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

/// A model's header and its open files.
pub struct Gguf {
    /// What the headers say.
    pub header: Header,
    /// The files, in the order of [`TensorInfo::file`].
    pub sources: Vec<Box<dyn Source>>,
    /// Their names.
    pub names: Vec<String>,
}

impl Gguf {
    /// Opens a model by the name of its file; of a split model, by the name
    /// of its first file (`NAME-00001-of-00003.gguf`).
    pub fn open(weights: &dyn Weights, name: &str) -> Result<Self> {
        let first = weights.open(name)?;
        let File { metadata, pairs, mut tensors, end } = read_file(first.as_ref(), name, 0)?;
        let mut header_bytes = vec![end];
        let mut sources = vec![first];
        let mut names = vec![name.to_owned()];

        let n_split = metadata.u32("split.count")?.unwrap_or(1).max(1);
        if n_split > N_SPLIT_MAX {
            return Err(Error::invalid(format!(
                "{name}: says it is split into {n_split} files, at most {N_SPLIT_MAX} are possible"
            )));
        }
        if n_split > 1 {
            if metadata.u32("split.no")? != Some(0) {
                return Err(Error::invalid(format!(
                    "{name}: is not the first file of a split model; open the one that ends in \
                     -00001-of-{n_split:05}.gguf"
                )));
            }
            for (file, shard) in shard_names(name, n_split)?.into_iter().enumerate().skip(1) {
                let source = weights.open(&shard)?;
                let other = read_file(source.as_ref(), &shard, file)?;
                if other.metadata.u32("split.no")? != u32::try_from(file).ok()
                    || other.metadata.u32("split.count")? != Some(n_split)
                {
                    return Err(Error::invalid(format!(
                        "{shard}: does not belong to {name}; fetch all files of the model again"
                    )));
                }
                for (name, tensor) in other.tensors {
                    if let Some(twice) = tensors.insert(name, tensor) {
                        return Err(Error::invalid(format!(
                            "{shard}: tensor {} is in two files",
                            twice.name
                        )));
                    }
                }
                header_bytes.push(other.end);
                sources.push(source);
                names.push(shard);
            }
        }
        Ok(Self { header: Header { metadata, tensors, pairs, header_bytes }, sources, names })
    }
}

/// The names of all files of a split model, from the name of the first.
pub fn shard_names(first: &str, n_split: u32) -> Result<Vec<String>> {
    let suffix = format!("-00001-of-{n_split:05}.gguf");
    let Some(stem) = first.strip_suffix(&suffix) else {
        return Err(Error::invalid(format!(
            "{first}: is split into {n_split} files, so its name must end in {suffix}; give it \
             back the name it was published under"
        )));
    };
    Ok((1..=n_split).map(|i| format!("{stem}-{i:05}-of-{n_split:05}.gguf")).collect())
}

/// What one file's header says.
struct File {
    metadata: Metadata,
    pairs: Vec<(String, Range<u64>)>,
    tensors: BTreeMap<String, TensorInfo>,
    /// Bytes that it takes.
    end: u64,
}

fn read_file(source: &dyn Source, name: &str, file: usize) -> Result<File> {
    read_header(&mut Reader::new(source), file)
        .map_err(|e| Error::new(e.kind(), format!("{name}: {e}")))
}

fn read_header(r: &mut Reader<'_>, file: usize) -> Result<File> {
    let magic = r.bytes::<4>().map_err(|_| not_gguf("it is shorter than a header"))?;
    if &magic != b"GGUF" {
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
        let type_id = r.u32()?;
        let value = read_value(r, &key, type_id)?;
        if !metadata.insert(key.clone(), value) {
            return Err(Error::invalid(format!("metadata `{key}` is there twice")));
        }
        pairs.push((key, start..r.position()));
    }
    let alignment = u64::from(metadata.u32("general.alignment")?.unwrap_or(32));
    if !alignment.is_power_of_two() || alignment > 1 << 16 {
        return Err(Error::invalid(format!(
            "general.alignment is {alignment}; it must be a power of two up to 65536"
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
    Ok(File { metadata, pairs, tensors: by_name, end })
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
    let n = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).filter(|&n| n > 0);
    let size = n.and_then(|n| (n / ty.block_len()).checked_mul(ty.block_bytes()));
    let Some(size) = size.filter(|_| dims[0].is_multiple_of(ty.block_len())) else {
        return Err(Error::invalid(format!(
            "tensor {name} of type {ty} cannot have shape {dims:?}"
        )));
    };
    Ok(TensorInfo { name, dims, ty, file, offset, size })
}

fn read_value(r: &mut Reader<'_>, key: &str, type_id: u32) -> Result<Value> {
    Ok(match type_id {
        0 => Value::Uint(r.bytes::<1>()?[0].into()),
        1 => Value::Int(i8::from_le_bytes(r.bytes()?).into()),
        2 => Value::Uint(u16::from_le_bytes(r.bytes()?).into()),
        3 => Value::Int(i16::from_le_bytes(r.bytes()?).into()),
        4 => Value::Uint(r.u32()?.into()),
        5 => Value::Int(i32::from_le_bytes(r.bytes()?).into()),
        6 => Value::Float(f32::from_le_bytes(r.bytes()?).into()),
        7 => Value::Bool(r.bytes::<1>()?[0] != 0),
        8 => Value::String(r.string()?),
        9 => read_array(r, key)?,
        10 => Value::Uint(r.u64()?),
        11 => Value::Int(i64::from_le_bytes(r.bytes()?)),
        12 => Value::Float(f64::from_le_bytes(r.bytes()?)),
        _ => return Err(bad_type(key, type_id)),
    })
}

fn bad_type(key: &str, type_id: u32) -> Error {
    Error::invalid(format!("metadata `{key}` has type {type_id}, which GGUF does not know"))
}

fn read_array(r: &mut Reader<'_>, key: &str) -> Result<Value> {
    let type_id = r.u32()?;
    let n = r.u64()?;
    let width: usize = match type_id {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        8 | 10..=12 => 8,
        9 => {
            return Err(Error::unsupported(format!("metadata `{key}` is an array of arrays")));
        }
        _ => return Err(bad_type(key, type_id)),
    };
    // Every element takes at least `width` bytes, so a count that does not fit
    // the rest of the file is refused before anything is allocated.
    let n = r.check_count(n, width, key)?;
    Ok(match type_id {
        6 => Value::Floats(r.elements(n, f32::from_le_bytes)?),
        12 => Value::Floats(r.elements(n, |b| f64::from_le_bytes(b) as f32)?),
        7 => Value::Bools(r.elements(n, |[b]| b != 0)?),
        8 => {
            let mut strings = Strings::with_capacity(n).ok_or_else(no_memory)?;
            for _ in 0..n {
                r.string_with(|s| strings.push(s))?.ok_or_else(no_memory)?;
            }
            Value::Strings(strings)
        }
        0 => Value::Ints(r.elements(n, |[b]| i64::from(b))?),
        1 => Value::Ints(r.elements(n, |b| i8::from_le_bytes(b).into())?),
        2 => Value::Ints(r.elements(n, |b| u16::from_le_bytes(b).into())?),
        3 => Value::Ints(r.elements(n, |b| i16::from_le_bytes(b).into())?),
        4 => Value::Ints(r.elements(n, |b| u32::from_le_bytes(b).into())?),
        5 => Value::Ints(r.elements(n, |b| i32::from_le_bytes(b).into())?),
        10 => Value::Ints(r.elements(n, |b| u64::from_le_bytes(b) as i64)?),
        _ => Value::Ints(r.elements(n, i64::from_le_bytes)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_are_known_by_their_names() {
        let is_expert = |name: &str| {
            let ty = TensorType::from_id(0).unwrap();
            let name = name.to_owned();
            TensorInfo { name, dims: [1; 4], ty, file: 0, offset: 0, size: 4 }.is_expert()
        };
        assert!(is_expert("blk.0.ffn_up_exps.weight"));
        assert!(is_expert("blk.0.ffn_up.7.weight"));
        assert!(!is_expert("blk.0.ffn_up_shexp.weight"));
        assert!(!is_expert("blk.0.ffn_up.weight"));
        assert!(!is_expert("token_embd.weight"));
    }
}
