//! What the blocks of a model take: of a team's shared memory, of time, of room for
//! vectors, of memory for what they remember.

/// Tokens that go through the layers together.
pub const BATCH_MAX: usize = 512;

/// Numbers that are exchanged at a time, unless a single vector has more.
const EXCHANGE_LEN: usize = 1 << 20;

/// What a block takes, or all blocks of a model together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Takes {
    /// The longest vector that is exchanged.
    pub vector_len: usize,
    /// The most numbers that are exchanged at once for each token of a batch.
    pub token_len: usize,
    /// Products of a token with weights that all tokens share, but for the few of norms
    /// and routers.
    pub products: u64,
    /// Products of a token with experts, which it mostly has for itself.
    pub expert_products: u64,
    pub room: Room,
    pub state: State,
    /// Bytes of weights that a member has copies of.
    pub copied_bytes: u64,
}

/// The longest vectors that a token needs at a time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Room {
    /// Of hidden states.
    pub n_embd: usize,
    /// Of queries, and of keys and values.
    pub heads: usize,
    pub kv_heads: usize,
    /// Numbers that positions turn, for each RoPE.
    pub angles: usize,
    /// Of hidden states, where two networks add up.
    pub sum: usize,
    /// Of networks that are no experts; 0 if there are none.
    pub n_ff: usize,
    /// Of experts; 0 if there are none.
    pub n_ff_expert: usize,
    /// Of biases of experts; 0 if there are none.
    pub expert_bias: usize,
    pub n_expert: usize,
    pub n_expert_used: usize,
    pub latent: LatentRoom,
}

/// Queries of latents that are computed together: of as many heads as that are. One head's
/// of a whole batch are as many.
const N_QUERIES: usize = BATCH_MAX;

/// What attention over latents needs; nothing if there is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LatentRoom {
    /// Heads of the member that has most.
    pub n_head: usize,
    /// Numbers of a query where it meets a latent.
    pub query: usize,
    /// Numbers that go into a matrix of a head.
    pub inner: usize,
    /// Numbers of a chunk of latents.
    pub chunk: usize,
    /// Numbers of what is gathered of a team's latents.
    pub gathered: usize,
}

impl LatentRoom {
    /// How many of `n_head` heads are computed together for `n_tokens` tokens.
    pub fn n_together(n_head: usize, n_tokens: usize) -> usize {
        (N_QUERIES / n_tokens).clamp(1, n_head.max(1))
    }

    /// The most queries that are computed together, for up to `n_tokens` tokens.
    pub fn n_queries(&self, n_tokens: usize) -> usize {
        n_tokens.saturating_mul(self.n_head).min(n_tokens.max(N_QUERIES))
    }

    fn max(self, other: Self) -> Self {
        Self {
            n_head: self.n_head.max(other.n_head),
            query: self.query.max(other.query),
            inner: self.inner.max(other.inner),
            chunk: self.chunk.max(other.chunk),
            gathered: self.gathered.max(other.gathered),
        }
    }
}

/// Bytes of what is remembered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// Of each token, by all members of a team together.
    pub bytes_per_token: u64,
    /// By the member that remembers most.
    pub member_bytes_per_token: u64,
    /// By that member in layers that remember the latest tokens only, at most.
    pub member_window_bytes: u64,
}

impl Takes {
    /// What both take, one after the other.
    pub fn and(self, other: Self) -> Self {
        let (a, b) = (self.room, other.room);
        Self {
            vector_len: self.vector_len.max(other.vector_len),
            token_len: self.token_len.max(other.token_len),
            products: self.products.saturating_add(other.products),
            expert_products: self.expert_products.saturating_add(other.expert_products),
            room: Room {
                n_embd: a.n_embd.max(b.n_embd),
                heads: a.heads.max(b.heads),
                kv_heads: a.kv_heads.max(b.kv_heads),
                angles: a.angles.max(b.angles),
                sum: a.sum.max(b.sum),
                n_ff: a.n_ff.max(b.n_ff),
                n_ff_expert: a.n_ff_expert.max(b.n_ff_expert),
                expert_bias: a.expert_bias.max(b.expert_bias),
                n_expert: a.n_expert.max(b.n_expert),
                n_expert_used: a.n_expert_used.max(b.n_expert_used),
                latent: a.latent.max(b.latent),
            },
            state: State {
                bytes_per_token: (self.state.bytes_per_token)
                    .saturating_add(other.state.bytes_per_token),
                member_bytes_per_token: (self.state.member_bytes_per_token)
                    .saturating_add(other.state.member_bytes_per_token),
                member_window_bytes: (self.state.member_window_bytes)
                    .saturating_add(other.state.member_window_bytes),
            },
            copied_bytes: self.copied_bytes.saturating_add(other.copied_bytes),
        }
    }

    /// How many numbers a team exchanges at a time: those of a batch if that is not too
    /// much, and a whole vector at least.
    pub fn exchange_len(&self) -> usize {
        self.token_len.saturating_mul(BATCH_MAX).min(EXCHANGE_LEN).max(self.vector_len)
    }
}
