//! Addresses of files in the repositories of [Hugging Face](https://huggingface.co).

use crate::recipe::Repository;
use crate::{Error, Result, http};

const HUGGING_FACE: &str = "https://huggingface.co";

/// The hub that Hugging Face's own tools would use.
pub fn configured() -> String {
    let url = std::env::var("HF_ENDPOINT").ok();
    url.filter(|url| !url.trim().is_empty()).unwrap_or_else(|| HUGGING_FACE.into())
}

/// A file of a repository.
#[derive(Clone, Copy, Debug)]
pub struct HubFile<'a> {
    /// The URL of the hub.
    pub hub: &'a str,
    /// The repository in it.
    pub repository: &'a Repository,
    /// The file's name.
    pub name: &'a str,
}

impl HubFile<'_> {
    /// Where it is.
    pub fn url(self) -> Result<String> {
        let revision = &self.repository.revision;
        Ok(format!("{}/resolve/{revision}/{}", self.repository_url()?, self.path()))
    }

    /// Makes an error of asking for it or fetching it one that names the repository.
    pub fn explain(self, error: Error) -> Error {
        match (error, self.repository_url()) {
            (Error::NotFound { status, .. } | Error::Refused { status, .. }, Ok(repository)) => {
                let repository = http::shown(&repository);
                Error::NotInRepository { repository, file: self.path(), status }
            }
            (error, _) => error,
        }
    }

    fn repository_url(self) -> Result<String> {
        let hub = self.hub.trim().trim_end_matches('/');
        if !["http://", "https://"].iter().any(|scheme| hub.starts_with(scheme)) {
            return Err(Error::NoHub(http::shown(hub)));
        }
        Ok(format!("{hub}/{}", self.repository.repository))
    }

    fn path(self) -> String {
        match &self.repository.folder {
            Some(folder) => format!("{folder}/{}", self.name),
            None => self.name.into(),
        }
    }
}
