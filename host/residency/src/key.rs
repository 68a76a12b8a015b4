//! Names of experts, and tables with an entry for each.

use std::fmt;

/// One expert of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The layer.
    pub layer: u16,
    /// The expert's number in its layer.
    pub expert: u16,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expert {} of layer {}", self.expert, self.layer)
    }
}

/// A value for each expert of a model.
#[derive(Debug, Clone)]
pub(crate) struct PerExpert<T> {
    n_expert: usize,
    values: Vec<T>,
}

impl<T: Clone> PerExpert<T> {
    pub(crate) fn new(n_layer: usize, n_expert: usize, value: T) -> Self {
        Self { n_expert, values: vec![value; n_layer * n_expert] }
    }

    /// `None` if there is no such expert.
    pub(crate) fn get(&self, key: Key) -> Option<&T> {
        self.values.get(self.index(key)?)
    }

    /// `None` if there is no such expert.
    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let index = self.index(key)?;
        self.values.get_mut(index)
    }

    /// The values of a layer; none if there is no such layer.
    pub(crate) fn layer(&self, layer: u16) -> &[T] {
        let start = usize::from(layer) * self.n_expert;
        self.values.get(start..start + self.n_expert).unwrap_or_default()
    }

    /// The values of a layer; none if there is no such layer.
    pub(crate) fn layer_mut(&mut self, layer: u16) -> &mut [T] {
        let start = usize::from(layer) * self.n_expert;
        self.values.get_mut(start..start + self.n_expert).unwrap_or_default()
    }

    fn index(&self, key: Key) -> Option<usize> {
        let expert = usize::from(key.expert);
        (expert < self.n_expert).then(|| usize::from(key.layer) * self.n_expert + expert)
    }
}
