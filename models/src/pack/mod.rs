//! Packed copies of models: rows interleaved by eights or fours.
//!
//! The kernels multiply rows by fours. In a packed file, one load brings
//! something of each of the four, and memory is read from the first byte to the
//! last. The bytes are those of the original in another order, and so is what
//! the model computes, to the bit. `docs/design.md` describes the layout.

mod check;
mod error;
mod plan;

use std::fs::{self, File, TryLockError};
use std::hash::Hasher as _;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use moewe_engine::Model;
use moewe_engine::gguf::{self, Gguf, shard_names};
use moewe_engine::native::Folder;
use moewe_packed::{
    CHECKSUM_AT, CHECKSUM_KEY, SOURCE_KEY, SourceFile, Stamp, VERSION, VERSION_KEY,
};
use twox_hash::XxHash3_64;

use crate::gguf::Header;
use crate::pull::settle;
use crate::{Progress, Step};
use plan::Tensor;

pub use check::check;
pub use error::Error;
pub use moewe_packed::copy_path;

/// A [`std::result::Result`] with this module's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Tensors begin at multiples of a page: windows on experts start where their
/// matrices do, and experts can be read around the page cache.
const ALIGNMENT: u64 = 4096;
/// The key of the tensors' checksums: XXH3 of each one's bytes, in the order
/// of the file.
const CHECKSUMS_KEY: &str = "moewe.packed.checksums";
/// Bytes of a tensor that are in memory at a time; one group of rows at least.
const PIECE_BYTES: u64 = 4 << 20;

/// Writes a packed copy of the model in `source`, of a split model its first
/// file, to `out`. The same model always gives the same bytes.
///
/// A file that is there is replaced only if `force` is set, and once all is
/// written.
///
/// # Errors
///
/// See [`Error`].
pub fn pack(source: &Path, out: &Path, force: bool, progress: &mut dyn Progress) -> Result<()> {
    let (folder, name) = Folder::of(source)?;
    let header = Gguf::open(&folder, &name)?.header;
    let is_packed = |t: &gguf::TensorInfo| t.ty.is_packed();
    if header.metadata.get(VERSION_KEY).is_some() || header.tensors.values().any(is_packed) {
        return Err(Error::AlreadyPacked(source.into()));
    }
    // What the engine cannot run need not be packed.
    Model::load(&folder, &name, u64::MAX)?;
    let tensors = plan::tensors(&header);
    if tensors.iter().all(|tensor| tensor.packed.is_none()) {
        return Err(Error::NothingToPack(source.into()));
    }
    if tensors.len() as u64 > gguf::N_TENSORS_MAX {
        return Err(Error::TooManyTensors { path: source.into(), n_tensors: tensors.len() });
    }

    let paths = match header.header_bytes.len() {
        1 => vec![source.to_owned()],
        n => {
            (shard_names(&name, n as u32)?.iter()).map(|name| source.with_file_name(name)).collect()
        }
    };
    check_place(out, &paths, force)?;
    let mut sources = Vec::new();
    let mut stamp = Stamp { files: Vec::new() };
    for (path, &header_bytes) in paths.iter().zip(&header.header_bytes) {
        let mut file = File::open(path).map_err(Error::io("read", path))?;
        stamp.files.push(SourceFile::of(&mut file, header_bytes).map_err(Error::io("read", path))?);
        sources.push((file, path.clone()));
    }
    let pairs = pairs_to_copy(&header, &mut sources[0])?;
    let head = |checksums: &[u64]| head(&stamp, &pairs, &tensors, checksums);

    let data_start = (head(&vec![0; tensors.len()]).len() as u64).next_multiple_of(ALIGNMENT);
    let data_bytes = tensors.iter().map(|t| t.size.next_multiple_of(ALIGNMENT)).sum::<u64>();
    let place = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    check_space(out, place, data_start + data_bytes)?;

    let out_name = out.file_name().unwrap_or_default().to_string_lossy();
    let part = Part::create(out.with_file_name(format!("{out_name}.part")))?;
    progress.start(Step::Pack, &out_name, data_bytes);
    let mut writer = Writer { file: BufWriter::new(&part.file), path: &part.path };
    writer.file.seek(SeekFrom::Start(data_start)).map_err(writer.error())?;
    let mut checksums = Vec::new();
    let mut bytes_done = 0;
    for tensor in &tensors {
        let (file, path) = &mut sources[tensor.file];
        let checksum = copy(tensor, file, path, &mut writer, &mut |bytes| {
            progress.at(bytes_done + bytes);
        })?;
        checksums.push(checksum);
        bytes_done += tensor.size.next_multiple_of(ALIGNMENT);
    }
    progress.at(data_bytes);
    writer.file.rewind().map_err(writer.error())?;
    writer.put(&head(&checksums))?;
    writer.file.flush().map_err(writer.error())?;
    drop(writer);
    part.finish(out, place)
}

/// Fails if nothing may be written to `out`.
fn check_place(out: &Path, sources: &[PathBuf], force: bool) -> Result<()> {
    if out.file_name().is_none() || out.is_dir() {
        return Err(Error::Folder(out.into()));
    }
    if !out.exists() {
        return Ok(());
    }
    let is_out = |source: &PathBuf| match (source.canonicalize(), out.canonicalize()) {
        (Ok(source), Ok(out)) => source == out,
        _ => false,
    };
    match sources.iter().any(is_out) {
        true => Err(Error::OntoItself(out.into())),
        false if !force => Err(Error::Exists(out.into())),
        false => Ok(()),
    }
}

/// Fails if the folder `place` has no room for so many bytes.
fn check_space(out: &Path, place: &Path, bytes_needed: u64) -> Result<()> {
    let bytes_free = fs4::available_space(place).map_err(Error::io("write", out))?;
    match bytes_free < bytes_needed {
        true => Err(Error::NoSpace { path: out.into(), bytes_needed, bytes_free }),
        false => Ok(()),
    }
}

/// The pairs of the model's metadata that hold for the copy, too.
fn pairs_to_copy(
    header: &gguf::Header,
    (file, path): &mut (File, PathBuf),
) -> Result<Vec<Vec<u8>>> {
    let mut bytes = vec![0; header.header_bytes[0] as usize];
    file.rewind().and_then(|()| file.read_exact(&mut bytes)).map_err(Error::io("read", path))?;
    let is_of_the_file = |key: &str| key == "general.alignment" || key.starts_with("split.");
    let pairs = header.pairs.iter().filter(|(key, _)| !is_of_the_file(key));
    Ok(pairs.map(|(_, at)| bytes[at.start as usize..at.end as usize].to_vec()).collect())
}

/// The header of the packed file.
fn head(stamp: &Stamp, pairs: &[Vec<u8>], tensors: &[Tensor], checksums: &[u64]) -> Vec<u8> {
    let mut header = Header::new(ALIGNMENT);
    header.u32(VERSION_KEY, VERSION);
    header.u64(CHECKSUM_KEY, 0);
    header.u64s(SOURCE_KEY, &stamp.numbers());
    header.u64s(CHECKSUMS_KEY, checksums);
    header.u32("general.alignment", ALIGNMENT as u32);
    pairs.iter().for_each(|pair| header.pair(pair));
    for tensor in tensors {
        header.tensor(&tensor.name, &tensor.dims, tensor.type_id(), tensor.size);
    }
    let mut bytes = header.bytes();
    let checksum = head_checksum(&mut bytes);
    bytes[CHECKSUM_AT..CHECKSUM_AT + 8].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// The checksum of a packed file's header; takes the one that is in it out.
fn head_checksum(header: &mut [u8]) -> u64 {
    header[CHECKSUM_AT..CHECKSUM_AT + 8].fill(0);
    XxHash3_64::oneshot(header)
}

/// Copies a tensor, packs it if it shall be, and fills the last page; returns
/// the checksum.
fn copy(
    tensor: &Tensor,
    source: &mut File,
    path: &Path,
    out: &mut Writer<'_>,
    at: &mut dyn FnMut(u64),
) -> Result<u64> {
    source.seek(SeekFrom::Start(tensor.offset)).map_err(Error::io("read", path))?;
    let mut hasher = XxHash3_64::new();
    let group_bytes = tensor.group_bytes();
    let piece_bytes = (PIECE_BYTES / group_bytes).max(1) * group_bytes;
    let piece_bytes = piece_bytes.min(tensor.size) as usize;
    let (mut rows, mut packed) = (vec![0; piece_bytes], vec![0; piece_bytes]);
    let mut left = tensor.size as usize;
    while left > 0 {
        let n = left.min(piece_bytes);
        source.read_exact(&mut rows[..n]).map_err(Error::io("read", path))?;
        let written = match tensor.packed {
            Some(ty) => {
                let row_bytes = tensor.row_bytes() as usize;
                moewe_engine::pack(ty, row_bytes, &rows[..n], &mut packed[..n]);
                &packed[..n]
            }
            None => &rows[..n],
        };
        hasher.write(written);
        out.put(written)?;
        left -= n;
        at(tensor.size - left as u64);
    }
    let padding = tensor.size.next_multiple_of(ALIGNMENT) - tensor.size;
    out.put(&[0; ALIGNMENT as usize][..padding as usize])?;
    Ok(hasher.finish())
}

/// Where the bytes go.
struct Writer<'a> {
    file: BufWriter<&'a File>,
    path: &'a Path,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(self.error())
    }

    fn error(&self) -> impl FnOnce(io::Error) -> Error + use<> {
        Error::io("write", self.path)
    }
}

/// A file that is being written. It is removed unless it is finished; what a
/// killed program left is written over.
struct Part {
    file: File,
    path: PathBuf,
    finished: bool,
}

impl Part {
    fn create(path: PathBuf) -> Result<Self> {
        let error = || Error::io("write", &path);
        let mut options = File::options();
        let file = options.write(true).create(true).truncate(false).open(&path).map_err(error())?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Busy(path)),
            // Some file systems have no locks.
            Err(TryLockError::Error(_)) => {}
        }
        file.set_len(0).map_err(error())?;
        Ok(Self { file, path, finished: false })
    }

    /// Moves the file to its place in `folder`.
    fn finish(mut self, place: &Path, folder: &Path) -> Result<()> {
        settle(&self.path, place, folder)?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.finished {
            // An error is on its way already.
            let _ = fs::remove_file(&self.path);
        }
    }
}
