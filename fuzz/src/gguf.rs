//! The reader of GGUF headers.
//!
//! What it accepts lies in its files, adds up, and can be written and read again as
//! the same. It never reads past an end, and takes memory in proportion to
//! the file.

use std::collections::BTreeMap;

use arbitrary::{Arbitrary, Result, Unstructured};
use moewe_gguf::{
    ALIGNMENT, ALIGNMENT_KEY, Error, ErrorKind, Gguf, RawHeader, Source, TensorInfo, TensorType,
    ValueType, Writer, put_text,
};

use crate::made_up::{is_odd, number};
use crate::memory;
use crate::target::{Target, check_message, reached};

/// See the module.
pub const TARGET: Target = Target {
    name: "gguf",
    fuzz,
    seeds,
    words: &[
        "GGUF",
        "GGUF\u{3}\0\0\0",
        "general.alignment",
        "split.count",
        "split.no",
        "tokenizer.ggml.tokens",
        "blk.0.ffn_up_exps.weight",
        "\u{9}\0\0\0\u{8}\0\0\0",
    ],
    len_max: 1 << 14,
};

const NAMES: [&str; 2] = ["model-00001-of-00002.gguf", "model-00002-of-00002.gguf"];

/// Types that tensors have.
const TYPES: [TensorType; 10] = [
    TensorType::F32,
    TensorType::F16,
    TensorType::Q4_0,
    TensorType::Q8_0,
    TensorType::Q4_K,
    TensorType::Q6_K,
    TensorType::BF16,
    TensorType::IQ2_XS,
    TensorType::MXFP4,
    TensorType::NVFP4,
];

/// What is added to a type's number for rows that are interleaved.
const PACKED: u32 = TensorType::Q4_0X4.id() - TensorType::Q4_0.id();

/// The most zeros behind the bytes of a file.
const PADDING_MAX: u64 = 1 << 20;

fn seeds() -> Vec<Vec<u8>> {
    let varied = (1..=4u8).map(|step| (0..=200u8).map(|i| i.wrapping_mul(step * 13)).collect());
    let made: Vec<Vec<u8>> = varied.collect();
    // The same as files.
    let files = made.iter().map(|seed: &Vec<u8>| {
        let (file, _) = file(&mut Unstructured::new(seed), 0).unwrap_or_default();
        [&[0], &file[..]].concat()
    });
    let files: Vec<_> = files.collect();
    let described = made.into_iter().map(|seed| [&[1], &seed[..]].concat());
    described.chain(files).collect()
}

/// See the module.
///
/// # Panics
///
/// If a promise is broken.
pub fn fuzz(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else { return };
    let files = match first % 4 {
        0 => vec![(rest.to_vec(), 0)],
        1 | 2 => {
            let mut u = Unstructured::new(rest);
            vec![file(&mut u, 0).unwrap_or_default()]
        }
        _ => {
            let mut u = Unstructured::new(rest);
            let first = file(&mut u, 1).unwrap_or_default();
            vec![first, file(&mut u, 2).unwrap_or_default()]
        }
    };
    let size: u64 = files.iter().map(|(bytes, padding)| bytes.len() as u64 + padding).sum();
    let named = NAMES.iter().zip(files).map(|(name, (bytes, padding))| {
        let size = bytes.len() as u64 + padding;
        ((*name).to_owned(), File { bytes, size })
    });
    let files = Files(named.collect());
    // A text takes 8 bytes in the file at least, a pair or a tensor not much more;
    // the reader has a buffer of 64 KiB, which doubles.
    let bytes_max = (1 << 20) + 64 * size as usize;
    match memory::bounded(bytes_max, || files.open(NAMES[0])) {
        Ok(gguf) => accepted(&files, &gguf),
        Err(error) => {
            // All that can be missing is the second file.
            let may_miss = files.0.len() < 2;
            assert!(
                match error.kind() {
                    ErrorKind::Invalid | ErrorKind::Unsupported => true,
                    ErrorKind::Source => may_miss,
                    _ => false,
                },
                "{error}"
            );
            check_message(&error);
        }
    }
}

fn accepted(files: &Files, gguf: &Gguf<&File>) {
    let header = &gguf.header;
    let sizes: Vec<u64> = gguf.sources.iter().map(|source| source.size).collect();
    assert_eq!(header.header_bytes.len(), sizes.len());
    assert_eq!(gguf.names.len(), sizes.len());
    reached(&format!("{} files", ["no", "one", "two"][sizes.len().min(2)]));

    let mut end = 24;
    for (key, range) in &header.pairs {
        assert_eq!(range.start, end, "pairs lie one behind the other");
        end = range.end;
        let value = header.metadata.get(key).expect("every pair is in the metadata");
        reached(format!("{value:?}").get(..3).unwrap_or_default());
    }
    assert!(end <= header.header_bytes[0]);
    assert_eq!(header.pairs.len(), header.metadata.iter().count());

    let alignment = header.metadata.u32(ALIGNMENT_KEY).unwrap().map_or(ALIGNMENT, u64::from);
    let mut places: BTreeMap<(usize, u64), u64> = BTreeMap::new();
    for (name, tensor) in &header.tensors {
        let TensorInfo { dims, ty, file, offset, size, .. } = tensor;
        assert_eq!(*name, tensor.name);
        let n = dims.iter().map(|&n| u128::from(n)).product::<u128>();
        assert!(n > 0 && dims[0].is_multiple_of(ty.block_len()), "{tensor:?}");
        let bytes = n / u128::from(ty.block_len()) * u128::from(ty.block_bytes());
        assert_eq!(u128::from(*size), bytes, "{tensor:?}");
        assert!(*file > 0 || offset.is_multiple_of(alignment), "{tensor:?}");
        assert!(*offset >= header.header_bytes[*file], "{tensor:?} lies in the header");
        assert!(offset.checked_add(*size).is_some_and(|end| end <= sizes[*file]), "{tensor:?}");
        assert!(places.insert((*file, *offset), *size).is_none(), "{tensor:?} is not alone");
        reached(ty.name());
    }
    let in_order: Vec<_> = places.iter().collect();
    for pair in in_order.windows(2) {
        let [((file, offset), size), ((next_file, next), _)] = pair else { unreachable!() };
        assert!(file != next_file || offset + **size <= *next, "tensors overlap");
    }
    if let [size] = sizes[..] {
        read_again(files, gguf, size, alignment);
    }
}

/// What was accepted can be written and read again.
fn read_again(files: &Files, gguf: &Gguf<&File>, size: u64, alignment: u64) {
    let header = &gguf.header;
    let mut writer = Writer::default();
    for (key, _) in &header.pairs {
        writer.value(key, header.metadata.get(key).unwrap());
    }
    let data = header.header_bytes[0].next_multiple_of(alignment);
    for tensor in header.tensors.values() {
        let offset = tensor.offset - data;
        writer.raw.tensor(tensor.name.as_bytes(), &tensor.dims, tensor.ty.id(), offset);
    }
    let bytes = writer.bytes();
    let new_data = (bytes.len() as u64).next_multiple_of(alignment);
    // The longer header takes no room from what is behind it.
    let new_size = size - data.min(size) + new_data;
    let name = files.0[0].0.as_str();
    let again = Files(vec![(name.to_owned(), File { bytes, size: new_size })]);
    let again = again.open(name);
    let again = again.unwrap_or_else(|error| panic!("what was accepted is refused: {error}"));
    let said = |gguf: &Gguf<&File>, data: u64| {
        let tensors = gguf.header.tensors.values();
        let tensors = tensors.map(|t| (t.name.clone(), t.dims, t.ty, t.offset - data, t.size));
        (format!("{:?}", gguf.header.metadata), format!("{:?}", tensors.collect::<Vec<_>>()))
    };
    assert_eq!(said(gguf, data), said(&again, new_data));
}

/// Files in memory, with zeros behind.
struct Files(Vec<(String, File)>);

/// One of them.
struct File {
    bytes: Vec<u8>,
    size: u64,
}

impl Files {
    /// Opens the model that begins in the file with this name.
    fn open(&self, name: &str) -> moewe_gguf::Result<Gguf<&File>> {
        Gguf::open(name, |name| match self.0.iter().find(|(n, _)| n == name) {
            Some((_, file)) => Ok(file),
            None => Err(Error::new(ErrorKind::Source, "there is no such file")),
        })
    }
}

impl Source for &File {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> moewe_gguf::Result<()> {
        let end = offset.checked_add(out.len() as u64);
        assert!(end.is_some_and(|end| end <= self.size), "a read past the end");
        out.fill(0);
        let there = self.bytes.get(offset as usize..).unwrap_or_default();
        let n = there.len().min(out.len());
        out[..n].copy_from_slice(&there[..n]);
        Ok(())
    }
}

/// A file as `u` describes it, and the zeros behind its bytes. With nothing to
/// describe it, it is sound.
fn file(u: &mut Unstructured<'_>, split: u32) -> Result<(Vec<u8>, u64)> {
    let mut writer = Writer::default();
    let mut alignment = ALIGNMENT;
    if u.ratio(1, 4)? {
        alignment = 1 << u.int_in_range(0..=17)?;
        writer.u32(ALIGNMENT_KEY, alignment as u32);
    }
    if split > 0 {
        let odd = is_odd(u)?;
        writer.u32("split.count", if odd { number(u)? as u32 } else { 2 });
        writer.u32("split.no", if odd { number(u)? as u32 } else { split - 1 });
    }
    for i in 0..u.int_in_range(0..=6)? {
        pair(u, &mut writer.raw, i)?;
    }
    let mut offset = 0;
    for i in 0..u.int_in_range(0..=6)? {
        offset += tensor(u, &mut writer.raw, i + 100 * split, offset)?.next_multiple_of(alignment);
    }
    if is_odd(u)? {
        writer.raw.n_pairs = number(u)?;
    }
    if is_odd(u)? {
        writer.raw.n_tensors = number(u)?;
    }
    writer.raw.version = if is_odd(u)? { u32::arbitrary(u)? } else { u.int_in_range(2..=3)? };
    let mut bytes = writer.bytes();
    let data = (bytes.len() as u64).next_multiple_of(alignment);
    let mut padding = data - bytes.len() as u64 + offset;
    if is_odd(u)? {
        padding = padding.saturating_sub(number(u)?);
    }
    if is_odd(u)? {
        bytes.truncate(number(u)? as usize);
    }
    // Zeros can be a header, too.
    Ok((bytes, padding.min(PADDING_MAX)))
}

fn pair(u: &mut Unstructured<'_>, header: &mut RawHeader, i: u32) -> Result<()> {
    const KEYS: [&str; 6] = [
        "general.architecture",
        "general.alignment",
        "split.count",
        "split.no",
        "tokenizer.ggml.tokens",
        "",
    ];
    let mut key = match u.int_in_range(0..=15)? {
        15 => (*u.choose(&KEYS)?).as_bytes().to_vec(),
        14 => u.bytes(u.len().min(20))?.to_vec(),
        _ => format!("key.{i}").into_bytes(),
    };
    // As long as the reader's buffer, or longer.
    if is_odd(u)? {
        key.resize(u.int_in_range(60_000..=140_000)?, b'k');
    }
    let type_id = if is_odd(u)? { number(u)? as u32 } else { u.int_in_range(0..=12)? };
    if type_id == ValueType::Array.id() {
        let element = if is_odd(u)? { number(u)? as u32 } else { u.int_in_range(0..=12)? };
        let n = u.int_in_range(0..=9)?;
        let claimed = if is_odd(u)? { number(u)? } else { n };
        header.array(&key, element, claimed);
        (0..n).try_for_each(|_| scalar(u, &mut header.pairs, element))
    } else {
        header.key(&key, type_id);
        scalar(u, &mut header.pairs, type_id)
    }
}

fn scalar(u: &mut Unstructured<'_>, out: &mut Vec<u8>, type_id: u32) -> Result<()> {
    let ty = ValueType::from_id(type_id);
    if ty == Some(ValueType::String) {
        let n = u.int_in_range(0..=12)?.min(u.len());
        put_text(out, u.bytes(n)?);
        if is_odd(u)? {
            let at = out.len() - n - 8;
            out[at..at + 8].copy_from_slice(&number(u)?.to_le_bytes());
        }
    } else {
        let width = ty.map_or(8, |ty| ty.width().min(8));
        out.extend(&number(u)?.to_le_bytes()[..width]);
    }
    Ok(())
}

/// Adds a tensor and answers its size.
fn tensor(u: &mut Unstructured<'_>, header: &mut RawHeader, i: u32, next: u64) -> Result<u64> {
    let name = match is_odd(u)? {
        true => u.bytes(u.len().min(20))?.to_vec(),
        false => format!("blk.{i}.weight").into_bytes(),
    };
    let id = if is_odd(u)? { number(u)? as u32 } else { u.choose(&TYPES)?.id() };
    let packed = if is_odd(u)? { PACKED } else { 0 };
    let ty = TensorType::from_id(id | packed);
    let (len, bytes) = ty.map_or((1, 1), |ty| (ty.block_len(), ty.block_bytes()));
    let n_dims = if is_odd(u)? { u.int_in_range(0..=6)? } else { u.int_in_range(1..=4)? };
    let mut dims = Vec::new();
    let mut size = bytes;
    for i in 0..n_dims {
        let n = if is_odd(u)? { number(u)? } else { u.int_in_range(1..=5)? };
        size = size.wrapping_mul(n);
        dims.push(if i == 0 { n.wrapping_mul(len) } else { n });
    }
    let offset = if is_odd(u)? { number(u)? } else { next };
    header.tensor(&name, &dims, id | packed, offset);
    Ok(size.min(1 << 40))
}
