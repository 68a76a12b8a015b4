//! Which of the tokens before it a token looks at.

/// Which positions a token attends to, its own the last of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Span {
    /// All that there are.
    All,
    /// The last so many ([Longformer](https://arxiv.org/abs/2004.05150)).
    Window(usize),
    /// Those of its chunk; chunks are of so many positions each.
    Chunk(usize),
}

impl Span {
    /// The first position that a token at `position` attends to.
    pub fn first(self, position: usize) -> usize {
        match self {
            Self::All => 0,
            Self::Window(n) => (position + 1).saturating_sub(n),
            Self::Chunk(n) => position / n * n,
        }
    }

    /// The most positions that a token attends to, if there is a limit.
    pub fn len_max(self) -> Option<usize> {
        match self {
            Self::All => None,
            Self::Window(n) | Self::Chunk(n) => Some(n),
        }
    }
}
