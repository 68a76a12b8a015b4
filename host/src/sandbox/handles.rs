//! What a guest has handles of.

use std::sync::Arc;

use crate::files::WeightFile;
use crate::residency::Table;

/// A file of the model.
pub type WeightFileHandle = Arc<WeightFile>;

/// The store of experts.
pub struct StoreHandle {
    /// What the guest has said of its model, until all is said.
    pub(super) described: Option<Table>,
    /// Demands that it has made.
    pub(super) n_demands: u64,
    /// Whether it has not released the last one.
    pub(super) holds: bool,
}
