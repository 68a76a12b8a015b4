//! A batch on its way through the layers.

use super::norm::Norm;
use super::scratch::Scratch;
use crate::error::{Error, Result};
use crate::experts::Experts;
use crate::ops;
use crate::team::{Exchange, Parts};
use crate::weights::Source;

/// What blocks compute with, and what they leave behind for the next one.
pub(crate) struct Pass<'a> {
    pub exchange: &'a Exchange,
    pub experts: &'a Experts,
    pub sources: &'a [Box<dyn Source>],
    pub n_embd: usize,
    /// Position of the first token.
    pub position: usize,
    pub n_tokens: usize,
    pub s: &'a mut Scratch,
}

impl Pass<'_> {
    /// Takes the hidden states from token `first` on as activations, normalised if there
    /// is a norm.
    pub fn normalize(&mut self, first: usize, norm: Option<&Norm>) {
        let s = &mut *self.s;
        s.x.clear();
        s.x.extend_from_slice(&s.hidden[first * self.n_embd..]);
        if let Some(norm) = norm {
            norm.apply(&mut s.x);
        }
        s.activations.take(&mut s.x, self.n_embd);
    }

    /// Gathers what a block computed, and normalises it if there is a norm.
    pub fn gather_out(&mut self, norm: Option<&Norm>) -> Result<()> {
        let split = self.exchange.rows(self.n_embd);
        self.exchange.gather(&mut [Parts::whole(split, &mut self.s.out)])?;
        if let Some(norm) = norm {
            norm.apply(&mut self.s.out);
        }
        Ok(())
    }

    /// Adds what was [gathered](Self::gather_out) to the hidden states, times `scale`.
    pub fn add_to_hidden(&mut self, scale: f32) {
        match scale {
            1.0 => ops::add(&mut self.s.hidden, &self.s.out),
            _ => ops::add_scaled(&mut self.s.hidden, &self.s.out, scale),
        }
    }

    /// Checks what a part of a layer left behind. NaNs and infinities that count for
    /// anything end up in the hidden states, and all members of a team have these
    /// whole, so they fail alike.
    pub fn check_finite(&self, index: usize, part: &str) -> Result<()> {
        if ops::are_finite(&self.s.hidden) {
            return Ok(());
        }
        Err(Error::not_finite(format_args!("what layer {index} computes (blk.{index}.{part}*)")))
    }
}
