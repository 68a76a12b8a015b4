//! What all blocks have in common.

use super::loader::Loader;
use crate::error::Result;
use crate::takes::Takes;

/// A part of a model that computes.
pub(crate) trait Block: Sized {
    type Plan;

    /// What a block that is planned so will take, in a team of `size` members.
    fn takes(plan: &Self::Plan, size: usize) -> Takes;

    /// The block, as far as this member of the team needs it.
    fn load(plan: &Self::Plan, loader: &mut Loader<'_>) -> Result<Self>;
}
