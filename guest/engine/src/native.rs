//! Weights from the file system of a native program, for tests, tools and
//! measurements.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::{Mmap, MmapOptions};

use crate::error::{Error, ErrorKind, Result};
use crate::weights::{Source, Weights, Window};

/// The files of one folder.
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// The folder that holds `model`, and the name of `model` in it.
    pub fn of(model: &Path) -> Result<(Self, String)> {
        let name = model.file_name().and_then(|n| n.to_str());
        let name =
            name.ok_or_else(|| Error::input(format!("{}: no file name", model.display())))?;
        let path = model.parent().unwrap_or(Path::new("")).to_owned();
        Ok((Self { path }, name.to_owned()))
    }
}

impl Weights for Folder {
    fn open(&self, name: &str) -> Result<Box<dyn Source>> {
        let path = self.path.join(name);
        let fail =
            |e: std::io::Error| Error::new(ErrorKind::Weights, format!("{}: {e}", path.display()));
        let file = File::open(&path).map_err(fail)?;
        let meta = file.metadata().map_err(fail)?;
        if meta.is_dir() {
            let message = format!("{}: is a folder; give a .gguf file", path.display());
            return Err(Error::new(ErrorKind::Weights, message));
        }
        if meta.len() == 0 {
            let message = format!("{}: is empty; download it again", path.display());
            return Err(Error::new(ErrorKind::InvalidModel, message));
        }
        // SAFETY: the mapping is private and read-only. Should another program
        // truncate the file meanwhile, this process dies of SIGBUS; native
        // tools accept that, the sandbox's host does not use this module.
        let map = unsafe { Mmap::map(&file) }.map_err(fail)?;
        Ok(Box::new(Mapped { file, map, path }))
    }
}

struct Mapped {
    file: File,
    map: Mmap,
    path: PathBuf,
}

impl Source for Mapped {
    fn size(&self) -> u64 {
        self.map.len() as u64
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(out.len() as u64).filter(|&end| end <= self.size());
        let Some(end) = end else {
            let message = format!("{}: read past the end", self.path.display());
            return Err(Error::new(ErrorKind::Weights, message));
        };
        out.copy_from_slice(&self.map[offset as usize..end as usize]);
        Ok(())
    }

    fn window(&self, offset: u64, length: usize) -> Result<Box<dyn Window>> {
        // SAFETY: as for the whole file, in `open`.
        let map = unsafe { MmapOptions::new().offset(offset).len(length).map(&self.file) };
        let map = map
            .map_err(|e| Error::new(ErrorKind::Weights, format!("{}: {e}", self.path.display())))?;
        Ok(Box::new(MapWindow(map)))
    }

    fn prefetch(&self, _offset: u64, _length: u64) {}
}

struct MapWindow(Mmap);

impl Window for MapWindow {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}
