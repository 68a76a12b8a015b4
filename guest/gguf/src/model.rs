//! All files of a model.

use std::path::Path;

use crate::error::{Error, ErrorKind, Result};
use crate::header::{FileHeader, Header};
use crate::source::{File, Source};
use crate::split_names::{N_SPLIT_MAX, SplitNames};

/// A model's header and its open files.
#[derive(Debug)]
pub struct Gguf<S> {
    /// What the headers say.
    pub header: Header,
    /// The files, in the order of [`TensorInfo::file`](crate::TensorInfo::file).
    pub sources: Vec<S>,
    /// Their names.
    pub names: Vec<String>,
}

impl Gguf<File> {
    /// Opens the model in the file at `path`; of a split model, the first of its
    /// files. The others lie beside it.
    ///
    /// # Errors
    ///
    /// See [`ErrorKind`]. The message names the file.
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.file_name().and_then(|n| n.to_str());
        let name = name.ok_or_else(|| {
            Error::new(ErrorKind::Source, format!("{}: no file name", path.display()))
        })?;
        Self::open(name, |name| File::open(&path.with_file_name(name)))
    }
}

impl<S: Source> Gguf<S> {
    /// Opens a model by the name of its file; of a split model, by the name
    /// of its first file (`NAME-00001-of-00003.gguf`). `open` opens a file by its name.
    ///
    /// # Errors
    ///
    /// Those of `open`, and see [`ErrorKind`]. The message names the file.
    pub fn open<E: From<Error>>(
        name: &str,
        mut open: impl FnMut(&str) -> Result<S, E>,
    ) -> Result<Self, E> {
        let first = open(name)?;
        let FileHeader { metadata, pairs, mut tensors, end } = FileHeader::read(&first, name, 0)?;
        let mut header_bytes = vec![end];
        let mut sources = vec![first];
        let mut names = vec![name.to_owned()];

        let n_split = metadata.u32("split.count")?.unwrap_or(1).max(1);
        if n_split > N_SPLIT_MAX {
            return Err(Error::invalid(format!(
                "{name}: says it is split into {n_split} files, at most {N_SPLIT_MAX} are possible"
            ))
            .into());
        }
        if n_split > 1 {
            let last_of_name = SplitNames { stem: "", n_files: n_split }.name(0);
            if metadata.u32("split.no")? != Some(0) {
                return Err(Error::invalid(format!(
                    "{name}: is not the first file of a split model; open the one that ends in \
                     {last_of_name}"
                ))
                .into());
            }
            let shards = SplitNames::of_first(name).filter(|names| names.n_files == n_split);
            let shards = shards.ok_or_else(|| {
                Error::invalid(format!(
                    "{name}: is split into {n_split} files, so its name must end in \
                     {last_of_name}; give it back the name it was published under"
                ))
            })?;
            for (file, shard) in shards.iter().enumerate().skip(1) {
                let source = open(&shard)?;
                let other = FileHeader::read(&source, &shard, file)?;
                if other.metadata.u32("split.no")? != u32::try_from(file).ok()
                    || other.metadata.u32("split.count")? != Some(n_split)
                {
                    return Err(Error::invalid(format!(
                        "{shard}: does not belong to {name}; fetch all files of the model again"
                    ))
                    .into());
                }
                for (name, tensor) in other.tensors {
                    if let Some(twice) = tensors.insert(name, tensor) {
                        return Err(Error::invalid(format!(
                            "{shard}: tensor {} is in two files",
                            twice.name
                        ))
                        .into());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{TensorType, Writer};

    const NAMES: SplitNames<'_> = SplitNames { stem: "m", n_files: 2 };

    /// File number `no` of a model in so many files, with a tensor of this name.
    fn file(no: u16, count: u16, tensor: &str) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.u16("split.no", no);
        writer.u16("split.count", count);
        let size = writer.tensor(tensor, &[8], TensorType::F32);
        let mut file = writer.padded();
        file.resize(file.len() + size as usize, 0);
        file
    }

    /// The tensors of a model in two files, and which file has each.
    fn open(name: &str, files: [&[u8]; 2]) -> Result<Vec<(String, usize)>> {
        let gguf = Gguf::open(name, |name| match name == NAMES.name(1) {
            true => Ok::<_, Error>(files[1]),
            false => Ok(files[0]),
        })?;
        assert_eq!(gguf.sources, files);
        let tensors = gguf.header.tensors.into_values();
        Ok(tensors.map(|tensor| (tensor.name, tensor.file)).collect())
    }

    #[test]
    fn a_split_model_is_read_as_one() {
        let (first, second) = (file(0, 2, "a"), file(1, 2, "b"));
        let tensors = open(&NAMES.name(0), [&first, &second]).unwrap();
        assert_eq!(tensors, [("a".to_owned(), 0), ("b".to_owned(), 1)]);
        let refused = |name: &str, files: [&[u8]; 2], words: &str| {
            let error = open(name, files).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().contains(words), "{error}");
        };
        let name = NAMES.name(0);
        refused("m.gguf", [&first, &second], "its name must end in -00001-of-00002.gguf;");
        refused(&name, [&second, &first], "is not the first file of a split model");
        refused(&name, [&file(0, 3, "a"), &second], "its name must end in -00001-of-00003.gguf;");
        refused(&name, [&file(0, 1025, "a"), &second], "into 1025 files, at most 1024");
        refused(&name, [&first, &first], "m-00002-of-00002.gguf: does not belong to m-00001");
        refused(&name, [&first, &file(1, 2, "a")], "m-00002-of-00002.gguf: tensor a is in two");
    }
}
