//! The room that passes take, and keep for the next ones.

use std::cell::Cell;

use super::picks::Picks;
use crate::error::{Error, ErrorKind, Result};
use crate::experts::Choice;
use crate::quant::{Activations, Format};
use crate::rope::Angles;
use crate::takes::{BATCH_MAX, Room};

/// The most tokens for which the next layer's experts are predicted: many tokens
/// want nearly all of them.
pub(super) const N_PREDICTED_MAX: usize = 4;

/// Room is made for so many tokens: for fewer, as much as for the next of these.
const STEPS: [usize; 9] = [16, 32, 64, 96, 128, 192, 256, 384, BATCH_MAX];
/// The most bytes for each number of a batch while it is multiplied with a matrix.
const PANEL_BYTES: usize = 4;
/// The most bytes for a choice of the router, while it is sorted, told and exchanged.
const CHOICE_BYTES: usize = 64;

/// How wide the vectors are that a pass has for each of its tokens.
#[derive(Debug, Clone)]
pub(crate) struct Widths {
    room: Room,
    /// So many inner numbers of experts are computed at once, or those of one expert.
    exchange: usize,
    /// Numbers that share a scale, for all kinds of matrices that there are.
    blocks: Vec<usize>,
}

/// What passes leave behind for the next one: room, but no numbers.
#[derive(Default)]
pub(crate) struct Scratch {
    /// For how many tokens there is room.
    n_tokens: usize,
    /// Index of each token in the batch.
    pub all: Vec<usize>,
    /// Each RoPE at each token's position.
    pub angles: Vec<Angles>,
    /// The residual stream: `[n_tokens][n_embd]`.
    pub hidden: Vec<f32>,
    /// The hidden states, while they are normalised.
    pub x: Vec<f32>,
    pub activations: Activations,
    /// What a block adds to the residual stream.
    pub out: Vec<f32>,
    /// What the first of two networks adds, where both are one block.
    pub sum: Vec<f32>,
    /// `[n_tokens][n_head][head_dim]`, as far as this member needs them; so are
    /// keys and values.
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    pub mixed: Vec<f32>,
    /// Inner numbers of a feed-forward network, and of experts.
    pub gate: Vec<f32>,
    pub up: Vec<f32>,
    pub expert_gate: Vec<f32>,
    pub expert_up: Vec<f32>,
    /// The bias of an expert.
    pub bias: Vec<f32>,
    /// Quantised input of the second matrix of a block.
    pub inner: Activations,
    pub router: Vec<f32>,
    /// Input of the next layer's router, as far as it can be guessed.
    pub guess_x: Vec<f32>,
    pub guess: Activations,
    pub latent: Latent,
    pub order: Vec<usize>,
    pub picks: Picks,
    pub choices: Vec<Choice>,
    pub tokens: Vec<usize>,
    /// What the last pass was made for: `[n_logits][n_vocab]`.
    pub logits: Vec<f32>,
}

/// What attention over latents computes with, of some heads at a time.
#[derive(Default)]
pub(crate) struct Latent {
    /// Queries as they meet latents: `[n_tokens][heads][query]`.
    pub q: Vec<f32>,
    /// What goes into the matrices of heads: `[n_tokens][heads][..]`.
    pub x: Vec<f32>,
    pub activations: Activations,
    /// A chunk of latents, as floats.
    pub chunk: Vec<f32>,
    /// Latents that the members of a team have gathered.
    pub gathered: Vec<f32>,
}

impl Widths {
    /// For a model whose blocks need `room`, and whose matrices have these formats.
    pub fn new(room: Room, exchange: usize, formats: impl Iterator<Item = Format>) -> Self {
        let mut blocks: Vec<_> = formats.map(|f| f.block().0).filter(|&len| len > 1).collect();
        blocks.sort_unstable();
        blocks.dedup();
        Self { room, exchange, blocks }
    }

    /// Bytes that a scratch for `n` tokens takes.
    fn kept_bytes(&self, n: usize) -> u64 {
        let sum = Cell::new(0_u64);
        let add = |bytes: usize| sum.set(sum.get().saturating_add(bytes as u64));
        let counted = Scratch::with(
            self,
            n,
            |len| {
                add(len.saturating_mul(size_of::<f32>()));
                Ok(Vec::new())
            },
            |len| {
                add(Activations::bytes(len, &self.blocks));
                Ok(Activations::default())
            },
        );
        debug_assert!(counted.is_ok());
        sum.get()
    }

    /// Bytes that a pass over `n` tokens takes.
    pub fn bytes(&self, n: usize) -> u64 {
        let n = step(n);
        // What comes and goes.
        let room = &self.room;
        let width = room.n_embd.max(room.heads).max(room.n_ff).max(room.n_ff_expert);
        let angles = 2 * room.angles * size_of::<f32>();
        let choices = room.n_expert_used.saturating_mul(CHOICE_BYTES);
        let for_each = width.saturating_mul(PANEL_BYTES).saturating_add(angles + choices);
        self.kept_bytes(n).saturating_add(n.saturating_mul(for_each) as u64)
    }

    /// Bytes that a pass over as few tokens takes as there is ever room for.
    pub fn bytes_min(&self) -> u64 {
        self.bytes(STEPS[0])
    }

    /// How many tokens to compute together, if that may take so many bytes more than a
    /// few tokens do.
    pub fn n_batch(&self, bytes: u64) -> usize {
        let bytes = self.bytes_min().saturating_add(bytes);
        STEPS.into_iter().rev().find(|&n| self.bytes(n) <= bytes).unwrap_or(STEPS[0])
    }
}

/// For how many tokens room is made, if it is wanted for `n`.
fn step(n: usize) -> usize {
    STEPS.into_iter().find(|&step| step >= n).unwrap_or(n)
}

impl Scratch {
    /// A scratch for `n` tokens, of vectors and activations that have room for so many
    /// numbers.
    fn with(
        widths: &Widths,
        n: usize,
        vector: impl Fn(usize) -> Result<Vec<f32>>,
        activations: impl Fn(usize) -> Result<Activations>,
    ) -> Result<Self> {
        let w = &widths.room;
        let of = |width: usize| n.saturating_mul(width);
        let experts = of(w.n_expert_used).saturating_mul(w.n_ff_expert);
        let experts = experts.min(widths.exchange.max(of(w.n_ff_expert)));
        // Inner numbers of any kind are quantised, and trade places for that.
        let inner = of(w.heads).max(of(w.n_ff)).max(experts);
        let n_queries = w.latent.n_queries(n);
        let n_guess = n.min(N_PREDICTED_MAX) * w.n_embd;
        Ok(Self {
            n_tokens: n,
            hidden: vector(of(w.n_embd))?,
            x: vector(of(w.n_embd))?,
            activations: activations(of(w.n_embd))?,
            out: vector(of(w.n_embd))?,
            sum: vector(of(w.sum))?,
            q: vector(of(w.heads))?,
            k: vector(of(w.kv_heads))?,
            v: vector(of(w.kv_heads))?,
            mixed: vector(inner)?,
            gate: vector(if w.n_ff > 0 { inner } else { 0 })?,
            up: vector(of(w.n_ff))?,
            expert_gate: vector(if experts > 0 { inner } else { 0 })?,
            expert_up: vector(experts)?,
            bias: vector(w.expert_bias)?,
            inner: activations(inner)?,
            router: vector(of(w.n_expert))?,
            latent: Latent {
                q: vector(n_queries.saturating_mul(w.latent.query))?,
                x: vector(n_queries.saturating_mul(w.latent.inner))?,
                activations: activations(n_queries.saturating_mul(w.latent.inner))?,
                chunk: vector(w.latent.chunk)?,
                gathered: vector(w.latent.gathered)?,
            },
            guess_x: vector(n_guess)?,
            guess: activations(n_guess)?,
            ..Self::default()
        })
    }

    /// Makes room for `n` tokens, unless there is as much.
    pub fn reserve(&mut self, widths: &Widths, n: usize) -> Result<()> {
        if n <= self.n_tokens {
            return Ok(());
        }
        self.clear();
        let logits = std::mem::take(&mut self.logits);
        let vector = |len: usize| {
            let mut vector = Vec::new();
            vector.try_reserve_exact(len).map_err(|_| no_memory())?;
            Ok(vector)
        };
        let activations =
            |len| Activations::with_room(len, &widths.blocks).map_err(|_| no_memory());
        *self = Self { logits, ..Self::with(widths, step(n), vector, activations)? };
        Ok(())
    }

    /// Makes room for so many logits, no more, as a vocabulary is large.
    pub fn reserve_logits(&mut self, n: usize) -> Result<()> {
        self.logits.clear();
        self.logits.try_reserve_exact(n).map_err(|_| no_memory())
    }

    /// Logits that there is room for.
    pub fn n_logits(&self) -> usize {
        self.logits.capacity()
    }

    /// For how many tokens there is room.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Bytes of the vectors, as they are.
    #[cfg(test)]
    pub fn bytes(&self) -> u64 {
        let vectors = [
            &self.hidden,
            &self.x,
            &self.out,
            &self.sum,
            &self.q,
            &self.k,
            &self.v,
            &self.mixed,
            &self.gate,
            &self.up,
            &self.expert_gate,
            &self.expert_up,
            &self.bias,
            &self.router,
            &self.guess_x,
            &self.latent.q,
            &self.latent.x,
            &self.latent.chunk,
            &self.latent.gathered,
        ];
        let vectors = vectors.map(|v| v.capacity() * size_of::<f32>());
        let latent = &self.latent.activations;
        let activations = [&self.activations, &self.inner, &self.guess, latent];
        let activations = activations.map(Activations::room);
        vectors.into_iter().chain(activations).sum::<usize>() as u64
    }

    /// Bytes of the room that was made.
    #[cfg(test)]
    pub fn made(&self, widths: &Widths) -> u64 {
        widths.kept_bytes(self.n_tokens)
    }

    /// Gives all room back, but for the logits.
    pub fn clear(&mut self) {
        let logits = std::mem::take(&mut self.logits);
        *self = Self { logits, ..Self::default() };
    }
}

fn no_memory() -> Error {
    Error::new(
        ErrorKind::OutOfMemory,
        "no memory to compute with; use a shorter prompt or raise the memory limit",
    )
}
