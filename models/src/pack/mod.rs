//! Packed copies of models: rows interleaved by eights or fours.
//!
//! The kernels multiply rows by fours. In a packed file, one load brings
//! something of each of the four, and memory is read from the first byte to the
//! last. The bytes are those of the original in another order, and so is what
//! the model computes, to the bit. `docs/design.md` describes the layout.

mod check;
mod error;
mod plan;

use std::fs::File;
use std::hash::Hasher as _;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use moewe_engine::native::Folder;
use moewe_engine::{LoadOptions, Model};
use moewe_gguf::{ALIGNMENT_KEY, Gguf, Header, N_TENSORS_MAX, TensorInfo};
use moewe_output::{Place, is_one_of};
use moewe_packed::{SourceFile, Stamp, VERSION_KEY, seal};
use twox_hash::XxHash3_64;

use crate::part::Part;
use crate::{Progress, Step};
use plan::{CHECKSUMS_KEY, PIECE_BYTES, Tensor};

pub use check::{check, check_source};
pub use error::{Error, Result};
pub use moewe_packed::copy_path;

/// Tensors begin at multiples of a page: windows on experts start where their
/// matrices do, and experts can be read around the page cache.
const ALIGNMENT: u64 = 4096;

/// Writes a packed copy of the model in `source`, of a split model its first
/// file, to `out`. The same file always gives the same bytes.
///
/// A file that is there is replaced only if `force` is set, and once all is
/// written; of one that fails or is stopped nothing is left. A pipe or a device gets
/// the bytes one after another; for that, the model is read twice.
///
/// # Errors
///
/// See [`Error`].
pub fn pack(source: &Path, out: &Path, force: bool, progress: &mut dyn Progress) -> Result<()> {
    let (folder, name) = Folder::of(source)?;
    let Gguf { header, names, .. } = Gguf::read(source)?;
    let is_packed = |t: &TensorInfo| t.ty.is_packed();
    if header.metadata.get(VERSION_KEY).is_some() || header.tensors.values().any(is_packed) {
        return Err(Error::AlreadyPacked(source.into()));
    }
    // What the engine cannot run need not be packed.
    Model::load(&folder, &name, u64::MAX, &LoadOptions::default())?;
    let tensors = plan::tensors(&header);
    if tensors.iter().all(|tensor| tensor.packed.is_none()) {
        return Err(Error::NothingToPack(source.into()));
    }
    if tensors.len() as u64 > N_TENSORS_MAX {
        return Err(Error::TooManyTensors { path: source.into(), n_tensors: tensors.len() });
    }

    let paths: Vec<_> = names.iter().map(|name| source.with_file_name(name)).collect();
    let place = Place::of(out, &paths)?;
    let part = match &place {
        Place::File(place) => Some(begin(out, place, &paths, force)?),
        Place::Stream(_) => None,
    };
    let out_name = out.file_name().unwrap_or_default().to_string_lossy();
    let n_passes = if part.is_some() { 1 } else { 2 };
    let data_bytes = tensors.iter().map(|t| t.size.next_multiple_of(ALIGNMENT)).sum::<u64>();
    let source_bytes = paths.iter().map(|path| path.metadata().map_or(0, |m| m.len())).sum::<u64>();
    progress.start(Step::Pack, &out_name, source_bytes + n_passes * data_bytes);
    let mut done = Done { progress, bytes: 0 };

    let mut sources = Vec::new();
    let mut stamp = Stamp { files: Vec::new() };
    for (path, &header_bytes) in paths.iter().zip(&header.header_bytes) {
        let mut file = File::open(path).map_err(Error::io("read", path))?;
        let at = &mut |bytes| done.at(bytes).map_err(|_| io::ErrorKind::Interrupted.into());
        let found = SourceFile::of(&mut file, header_bytes, at);
        stamp.files.push(found.map_err(Error::source(path))?);
        done.bytes += stamp.files.last().map_or(0, |file| file.size);
        sources.push((file, path.clone()));
    }
    let pairs = pairs_to_copy(&header, &mut sources[0])?;
    let head = |checksums: &[u64]| head(&stamp, &pairs, &tensors, checksums);
    let data_start = (head(&vec![0; tensors.len()]).len() as u64).next_multiple_of(ALIGNMENT);
    match &place {
        Place::File(place) => {
            let part = part.as_ref().expect("it was made for this place");
            check_space(out, place, data_start + data_bytes)?;
            let mut file = BufWriter::new(&part.file);
            let failed = || Error::io("write", out);
            file.seek(SeekFrom::Start(data_start)).map_err(failed())?;
            let checksums = copy_all(&tensors, &mut sources, &mut file, out, &mut done)?;
            file.rewind().map_err(failed())?;
            file.write_all(&head(&checksums)).map_err(failed())?;
            file.flush().map_err(failed())?;
        }
        // The header comes first, and has the checksums of all that follows.
        Place::Stream(stream) => {
            let checksums = copy_all(&tensors, &mut sources, &mut io::sink(), out, &mut done)?;
            let mut file = BufWriter::new(stream);
            let mut head = head(&checksums);
            head.resize(data_start as usize, 0);
            file.write_all(&head).map_err(Error::io("write", out))?;
            copy_all(&tensors, &mut sources, &mut file, out, &mut done)?;
            file.flush().map_err(Error::io("write", out))?;
        }
    }
    for ((file, path), stamped) in sources.iter().zip(&stamp.files) {
        stamped.require_unchanged(file).map_err(Error::source(path))?;
    }
    if let Some(part) = &part {
        // This can take long, too.
        part.file.sync_all().map_err(Error::io("write", out))?;
        done.at(0)?;
    }
    part.map_or(Ok(()), Part::finish).map_err(Error::io("write", out))
}

/// Begins the file that gets to `place`, if it may.
fn begin(out: &Path, place: &Path, sources: &[PathBuf], force: bool) -> Result<Part> {
    let check = || match place.exists() && !force {
        true => Err(Error::Exists(out.into())),
        false => Ok(()),
    };
    check()?;
    let path = Part::path_of(place);
    if is_one_of(&path, sources) {
        return Err(moewe_output::Error::Input(path).into());
    }
    let part = Part::create(place).map_err(Error::io("write", out))?;
    let part = part.ok_or_else(|| Error::Busy(out.into()))?;
    // Another program may have finished it until now.
    check()?;
    Ok(part)
}

/// How far packing has come.
struct Done<'a> {
    progress: &'a mut dyn Progress,
    bytes: u64,
}

impl Done<'_> {
    /// So many bytes more, which do not count yet.
    fn at(&mut self, bytes: u64) -> Result<()> {
        self.progress.at(self.bytes + bytes);
        if self.progress.is_stopped() { Err(Error::Stopped) } else { Ok(()) }
    }
}

/// Fails if the disk has no room for so many bytes at `place`.
fn check_space(out: &Path, place: &Path, bytes_needed: u64) -> Result<()> {
    let folder = place.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let bytes_free = fs4::available_space(folder).map_err(Error::io("write", out))?;
    match bytes_free < bytes_needed {
        true => Err(Error::NoSpace { path: out.into(), bytes_needed, bytes_free }),
        false => Ok(()),
    }
}

/// The pairs of the model's metadata that hold for the copy, too.
fn pairs_to_copy(header: &Header, (file, path): &mut (File, PathBuf)) -> Result<Vec<Vec<u8>>> {
    let mut bytes = vec![0; header.header_bytes[0] as usize];
    file.rewind().and_then(|()| file.read_exact(&mut bytes)).map_err(Error::io("read", path))?;
    let is_of_the_file = |key: &str| key == ALIGNMENT_KEY || key.starts_with("split.");
    let pairs = header.pairs.iter().filter(|(key, _)| !is_of_the_file(key));
    Ok(pairs.map(|(_, at)| bytes[at.start as usize..at.end as usize].to_vec()).collect())
}

/// The header of the packed file.
fn head(stamp: &Stamp, pairs: &[Vec<u8>], tensors: &[Tensor], checksums: &[u64]) -> Vec<u8> {
    let mut header = stamp.header();
    header.u64s(CHECKSUMS_KEY, checksums);
    header.align(ALIGNMENT as u32);
    pairs.iter().for_each(|pair| header.pair(pair));
    for tensor in tensors {
        header.tensor(&tensor.name, &tensor.dims, tensor.packed.unwrap_or(tensor.ty));
    }
    let mut bytes = header.bytes();
    seal(&mut bytes);
    bytes
}

/// Copies all tensors; returns the checksum of each.
fn copy_all(
    tensors: &[Tensor],
    sources: &mut [(File, PathBuf)],
    out: &mut dyn Write,
    out_path: &Path,
    done: &mut Done<'_>,
) -> Result<Vec<u64>> {
    let mut checksums = Vec::new();
    for tensor in tensors {
        let (file, path) = &mut sources[tensor.file];
        let mut out = Writer { file: out, path: out_path };
        checksums.push(copy(tensor, file, path, &mut out, &mut |bytes| done.at(bytes))?);
        done.bytes += tensor.size.next_multiple_of(ALIGNMENT);
    }
    done.at(0)?;
    Ok(checksums)
}

/// Copies a tensor, packs it if it shall be, and fills the last page; returns
/// the checksum.
fn copy(
    tensor: &Tensor,
    source: &mut File,
    path: &Path,
    out: &mut Writer<'_>,
    at: &mut dyn FnMut(u64) -> Result<()>,
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
        at(tensor.size - left as u64)?;
    }
    let padding = tensor.size.next_multiple_of(ALIGNMENT) - tensor.size;
    out.put(&[0; ALIGNMENT as usize][..padding as usize])?;
    Ok(hasher.finish())
}

/// Where the bytes go.
struct Writer<'a> {
    file: &'a mut dyn Write,
    path: &'a Path,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(Error::io("write", self.path))
    }
}
