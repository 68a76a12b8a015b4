//! [GGUF](https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) files: headers of
//! versions 2 and 3 are read, split files included, and those of version 3 written.
//!
//! ```
//! use moewe_gguf::{Error, ExpertName, Gguf, TensorType, Writer};
//!
//! # fn main() -> Result<(), Error> {
//! let mut writer = Writer::default();
//! writer.string("general.architecture", "olmoe");
//! let size = writer.tensor("blk.0.ffn_up_exps.weight", &[256, 4, 8], TensorType::Q4_K);
//! let mut file = writer.padded();
//! file.resize(file.len() + size as usize, 0);
//!
//! let open = |_: &str| Ok::<_, Error>(&file[..]);
//! let header = Gguf::open("model.gguf", open)?.header;
//! assert_eq!(header.metadata.str("general.architecture")?, Some("olmoe"));
//! let tensor = &header.tensors["blk.0.ffn_up_exps.weight"];
//! assert_eq!((tensor.ty.name(), tensor.size), ("Q4_K", 8 * 4 * 144));
//! let name = ExpertName::parse(&tensor.name).expect("it holds experts");
//! assert_eq!((name.layer, name.expert), (0, None));
//! # Ok(())
//! # }
//! ```
//!
//! Nothing in a file is believed: every count is checked against the bytes
//! that are left before anything is allocated, every tensor against the end
//! of its file.

#![forbid(unsafe_code)]

mod error;
mod expert_name;
mod header;
mod metadata;
mod model;
mod reader;
mod source;
mod split_names;
mod tensor_type;
mod writer;

pub use error::{Error, ErrorKind, Result, one_line};
pub use expert_name::{ExpertName, Part, Projection};
pub use header::{ALIGNMENT, ALIGNMENT_KEY, Header, MAGIC, N_PAIRS_MAX, N_TENSORS_MAX, TensorInfo};
pub use metadata::{Metadata, Strings, Value, ValueType};
pub use model::Gguf;
pub use source::{File, Source};
pub use split_names::{N_SPLIT_MAX, SplitNames};
pub use tensor_type::TensorType;
pub use writer::{PAIRS_AT, RawHeader, Writer, key_bytes, put_text};
