//! Tensors of experts, by their names.

use std::fmt;

/// What a tensor holds of which experts that the router picks.
///
/// GGUF keeps all experts of a layer in one tensor, `blk.0.ffn_up_exps.weight`; files
/// from early 2024 and packed ones have one for each, `blk.0.ffn_up.7.weight`. A name
/// is parsed if it is written as [`Display`](fmt::Display) writes it, and else names
/// no experts. So do those of experts that every token uses
/// (`blk.0.ffn_up_shexp.weight`), and of the router (`blk.0.ffn_gate_inp.weight`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertName {
    /// The layer, from 0.
    pub layer: u32,
    /// Of which matrix.
    pub projection: Projection,
    /// The expert, from 0; absent if the tensor holds all of the layer.
    pub expert: Option<u32>,
    /// What of it.
    pub part: Part,
}

/// A matrix of an expert. Their order is that in which files have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Projection {
    /// `ffn_gate`.
    Gate,
    /// `ffn_up`.
    Up,
    /// `ffn_gate_up`: the rows of both.
    GateUp,
    /// `ffn_down`.
    Down,
}

/// What a tensor holds of a matrix, or of one for each expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The matrix itself.
    Weight,
    /// What is added to its product.
    Bias,
    /// What its product is multiplied by.
    Scale,
}

impl Part {
    const ALL: [Self; 3] = [Self::Weight, Self::Bias, Self::Scale];

    fn name(self) -> &'static str {
        match self {
            Self::Weight => "weight",
            Self::Bias => "bias",
            Self::Scale => "scale",
        }
    }
}

impl Projection {
    const ALL: [Self; 4] = [Self::Gate, Self::Up, Self::GateUp, Self::Down];

    fn name(self) -> &'static str {
        match self {
            Self::Gate => "ffn_gate",
            Self::Up => "ffn_up",
            Self::Down => "ffn_down",
            Self::GateUp => "ffn_gate_up",
        }
    }
}

impl ExpertName {
    /// What the tensor with this name holds of experts; `None` if nothing.
    pub fn parse(name: &str) -> Option<Self> {
        let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
        let (matrix, part) = rest.rsplit_once('.')?;
        let (matrix, expert) = match matrix.split_once('.') {
            Some((matrix, expert)) => (matrix, Some(number(expert)?)),
            None => (matrix.strip_suffix("_exps")?, None),
        };
        let projection = Projection::ALL.into_iter().find(|p| p.name() == matrix)?;
        let part = Part::ALL.into_iter().find(|p| p.name() == part)?;
        Some(Self { layer: number(layer)?, projection, expert, part })
    }
}

impl fmt::Display for ExpertName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { layer, projection, expert, part } = self;
        let (matrix, part) = (projection.name(), part.name());
        match expert {
            Some(expert) => write!(f, "blk.{layer}.{matrix}.{expert}.{part}"),
            None => write!(f, "blk.{layer}.{matrix}_exps.{part}"),
        }
    }
}

/// A number without a sign or zeros before it.
fn number(text: &str) -> Option<u32> {
    let is_plain = text == "0" || text.starts_with(|c: char| matches!(c, '1'..='9'));
    text.parse().ok().filter(|_| is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_are_known_by_their_names() {
        use {Part::*, Projection::*};
        for (name, layer, projection, expert, part) in [
            ("blk.0.ffn_up_exps.weight", 0, Up, None, Weight),
            ("blk.12.ffn_gate_exps.weight", 12, Gate, None, Weight),
            ("blk.0.ffn_up.7.weight", 0, Up, Some(7), Weight),
            ("blk.47.ffn_down.127.weight", 47, Down, Some(127), Weight),
            // Of experts as well, whatever the matrix is and what of it.
            ("blk.0.ffn_up_exps.bias", 0, Up, None, Bias),
            ("blk.0.ffn_up.7.bias", 0, Up, Some(7), Bias),
            ("blk.0.ffn_down_exps.scale", 0, Down, None, Scale),
            ("blk.3.ffn_gate_up_exps.weight", 3, GateUp, None, Weight),
        ] {
            let expected = ExpertName { layer, projection, expert, part };
            assert_eq!(ExpertName::parse(name), Some(expected), "{name}");
            assert_eq!(expected.to_string(), name);
        }
    }

    #[test]
    fn other_tensors_are_of_no_expert() {
        for name in [
            "token_embd.weight",
            "blk.0.ffn_up.weight",
            "blk.0.ffn_up.bias",
            "blk.0.ffn_up_shexp.weight",
            "blk.0.ffn_gate_inp.weight",
            "blk.0.ffn_gate_inp_shexp.weight",
            "blk.0.exp_probs_b.bias",
            // A number at the fourth place, of something else.
            "mm.model.mlp.0.weight",
            "blk.0.attn_q.7.weight",
            "v.blk.0.ffn_up.weight",
            // Names that nobody gives.
            "blk.0.ffn_up_exps",
            "blk.0.ffn_up_exps.weight.1",
            "blk.0.ffn_up_exps.7.weight",
            "blk.0.ffn_up.7.8.weight",
            "blk.0.ffn_up.7",
            "blk.0.ffn_up.+7.weight",
            "blk.0.ffn_up.07.weight",
            "blk.0.ffn_up.4294967296.weight",
            "blk.-1.ffn_up_exps.weight",
            "blk.ffn_up_exps.weight",
            "x_exps.weight",
        ] {
            assert_eq!(ExpertName::parse(name), None, "{name}");
        }
    }
}
