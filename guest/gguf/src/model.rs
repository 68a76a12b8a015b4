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
