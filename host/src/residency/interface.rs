//! What guests say of their models, and what they are told of experts.

/// What a whole model takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Layers, those without experts included.
    pub(crate) n_layer: u32,
    /// Experts in a layer.
    pub(crate) n_expert: u32,
    /// Experts that the router picks for a token.
    pub(crate) n_expert_used: u32,
    /// Bytes of the weights that every token needs.
    pub(crate) dense_bytes: u64,
    /// Bytes of KV cache that a token costs the member of the team that has most of it.
    pub(crate) kv_bytes_per_token: u64,
    /// The KV cache grows by so many tokens.
    pub(crate) kv_chunk: u32,
    /// Bytes that each member takes for a session beside its KV cache.
    pub(crate) session_bytes: u64,
}

/// Bytes of one of the model's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FilePiece {
    /// Index into the list of files.
    pub(crate) file: u32,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// What there is room for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Capacity {
    /// Bytes of a slot: whole pages.
    pub(crate) slot_bytes: u64,
    /// The most experts that may be demanded at once.
    pub(crate) n_demand_max: u32,
    /// Bytes that each member may take for its KV cache, and to compute more tokens
    /// together.
    pub(crate) member_bytes_max: u64,
}

/// That the router picked an expert for a token.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Choice {
    pub(crate) expert: u32,
    /// Index of the token among those that are computed together.
    pub(crate) token: u32,
}

/// Where an expert is, or will be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) slot: u32,
    /// Whether it is there already.
    pub(crate) loaded: bool,
}
