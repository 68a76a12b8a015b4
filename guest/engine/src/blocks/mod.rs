//! What computes: blocks that are loaded as a [plan](crate::plan) says, and know no
//! architecture.
//!
//! Members of a team make the same pass. What each of them computes a part of
//! is gathered before anybody needs the whole ([`Exchange`](crate::team)).

mod attention;
mod block;
mod embedding;
mod glu;
mod head;
mod latent;
mod layer;
mod linear;
mod loader;
mod mixture;
mod norm;
mod pass;
mod picks;
mod router;
mod scratch;

pub(crate) use self::block::Block;
pub(crate) use self::embedding::Embedding;
pub(crate) use self::head::Head;
pub(crate) use self::layer::Layer;
pub(crate) use self::loader::Loader;
pub(crate) use self::pass::Pass;
pub(crate) use self::scratch::{Scratch, Widths};
