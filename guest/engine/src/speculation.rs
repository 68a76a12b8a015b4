//! Guessing the next tokens from what the context says already (prompt lookup,
//! [Saxena, 2023](https://github.com/apoorvumang/prompt-lookup-decoding)).
//!
//! Where the last tokens stood in the context before, the tokens that followed
//! them there are a draft of what follows now. A batch computes the draft
//! along with the token that must be computed anyway. The sampler then chooses
//! from the logits position by position, as ever; as long as it chooses what
//! was drafted, the next logits are there already. Logits do not depend on the
//! batch, so neither does the text.
//!
//! A wrong draft costs time, so there is one only where it is expected to pay.
//! At every token, the guess is compared with the sampler's choice, whether it
//! was computed or not. So the rate at which guesses come true is known without
//! any experiment, for each length of the repeated text. A draft has the length
//! that brings the most tokens for the time, if the rates hold:
//! `(1 + r1 + r1 r2 + ...) / (1 + cost * length)`; often that is none. No clock
//! is read: equal sessions draft equally, which the members of a team rely on.
//!
//! On 18 short conversations with SmolLM2-135M, at a cost of 0.4, this gives
//! 1.08 times the tokens for the time (0.985 in the worst of them); eight tokens
//! after each repetition of three, whatever comes of it, give 0.96 (0.75).

use crate::takes::Takes;

/// The most tokens of a draft.
pub(crate) const DRAFT_MAX: usize = 8;
/// The longest repetition that is told from a longer one.
const REPEATED_MAX: usize = 6;
/// What is thought of the guesses of a new session.
const RATE_FIRST: f32 = 0.5;
/// The weight of the latest guess in a rate.
const RATE_STEP: f32 = 1.0 / 8.0;
/// What a further token of a batch costs, if a lone one costs 1: of weights
/// that all tokens share, and of experts, which it mostly has for itself.
const DENSE_COST: f32 = 0.4;
const EXPERT_COST: f32 = 1.0;

/// A session's guesses.
pub(crate) struct Speculation {
    /// What a further token of a batch costs, if a lone one costs 1.
    cost: f32,
    /// How often the guess came true, by the number of repeated tokens.
    rates: [f32; REPEATED_MAX + 1],
    /// The last guess: the number of repeated tokens, and the next one.
    guess: Option<(usize, u32)>,
    draft: Vec<u32>,
}

impl Speculation {
    /// For a new session with a model that takes so much.
    pub fn new(takes: &Takes) -> Self {
        let (dense, experts) = (takes.products as f32, takes.expert_products as f32);
        Self {
            cost: (DENSE_COST * dense + EXPERT_COST * experts) / (dense + experts),
            rates: [RATE_FIRST; REPEATED_MAX + 1],
            guess: None,
            draft: Vec::new(),
        }
    }

    /// Guesses what follows `tokens`, and returns a draft of what is worth
    /// computing beside their last one.
    pub fn draft(&mut self, tokens: &[u32]) -> &[u32] {
        self.draft.clear();
        self.guess = None;
        let Some((n_repeated, next)) = repetition(tokens) else { return &self.draft };
        self.guess = Some((n_repeated, tokens[next]));
        for i in 0..self.length(n_repeated) {
            // What follows may reach into the draft itself.
            let token =
                tokens.get(next + i).or(self.draft.get((next + i).wrapping_sub(tokens.len())));
            self.draft.extend(token.copied());
        }
        &self.draft
    }

    /// Takes note of the token that the sampler chose behind those of the last
    /// call of [`draft`](Self::draft).
    pub fn chosen(&mut self, token: u32) {
        if let Some((n_repeated, guess)) = self.guess.take() {
            let hit = if token == guess { 1.0 } else { 0.0 };
            let rate = &mut self.rates[n_repeated];
            *rate += (hit - *rate) * RATE_STEP;
        }
    }

    /// The number of tokens that brings the most for the time.
    fn length(&self, n_repeated: usize) -> usize {
        let (mut best, mut best_length) = (1.0, 0);
        let (mut tokens, mut probability) = (1.0, 1.0);
        for length in 1..=DRAFT_MAX {
            // With every token that comes true, the repetition is longer.
            probability *= self.rates[(n_repeated + length - 1).min(REPEATED_MAX)];
            tokens += probability;
            let gain = tokens / (1.0 + self.cost * length as f32);
            if gain > best {
                (best, best_length) = (gain, length);
            }
        }
        best_length
    }
}

/// The longest text at the end that stood in `tokens` before, the latest of
/// equally long ones: how many tokens it has, at least 2 and at most
/// [`REPEATED_MAX`], and the index of the token that followed it.
fn repetition(tokens: &[u32]) -> Option<(usize, usize)> {
    let (&last, before) = tokens.split_last()?;
    let mut best = None;
    let mut best_n = 1;
    for (i, _) in before.iter().enumerate().rev().filter(|&(_, &token)| token == last) {
        let pairs = tokens[..=i].iter().rev().zip(tokens.iter().rev());
        let n = pairs.take(REPEATED_MAX).take_while(|(a, b)| a == b).count();
        if n > best_n {
            (best, best_n) = (Some((n, i + 1)), n);
            if n == REPEATED_MAX {
                break;
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speculation(cost: f32) -> Speculation {
        Speculation { cost, rates: [RATE_FIRST; REPEATED_MAX + 1], guess: None, draft: Vec::new() }
    }

    #[test]
    fn the_longest_and_latest_repetition_is_found() {
        assert_eq!(repetition(&[]), None);
        assert_eq!(repetition(&[1]), None);
        assert_eq!(repetition(&[1, 2, 3, 2]), None);
        assert_eq!(repetition(&[1, 2, 7, 1, 2, 8, 1, 2]), Some((2, 5)));
        assert_eq!(repetition(&[0, 1, 2, 7, 9, 1, 2, 8, 0, 1, 2]), Some((3, 3)));
        assert_eq!(repetition(&[5; 20]), Some((REPEATED_MAX, 19)));
    }

    /// A list whose lines begin alike.
    #[test]
    fn repetitions_are_drafted_when_they_come_true() {
        let text: Vec<u32> = (0..400).map(|i| if i % 10 == 9 { 100 + i } else { i % 10 }).collect();
        let mut speculation = speculation(0.4);
        let mut right = Vec::new();
        for n in 1..text.len() {
            let draft = speculation.draft(&text[..n]);
            right.push(text[n..].iter().zip(draft).take_while(|(a, b)| a == b).count());
            speculation.chosen(text[n]);
        }
        assert!(right[300..].iter().sum::<usize>() > 150, "{right:?}");
    }

    #[test]
    fn a_draft_may_repeat_itself() {
        let mut speculation = speculation(0.4);
        let text: Vec<u32> = (0..100).map(|i| i % 3).collect();
        for n in 1..99 {
            speculation.draft(&text[..n]);
            speculation.chosen(text[n]);
        }
        assert_eq!(speculation.draft(&text[..99]), [0, 1, 2, 0, 1, 2, 0, 1]);
    }

    /// Pairs that come again, followed by something else each time.
    #[test]
    fn drafts_that_never_come_true_end_soon() {
        let mut speculation = speculation(0.4);
        let text: Vec<u32> = (0..600).map(|i| if i % 3 == 2 { i } else { i % 3 }).collect();
        let mut drafted = 0;
        for n in 1..text.len() {
            drafted += speculation.draft(&text[..n]).len();
            speculation.chosen(text[n]);
        }
        assert!(drafted < 5, "{drafted} tokens were drafted");
    }

    /// The dearer a token, the surer it must be.
    #[test]
    fn dear_tokens_are_drafted_less() {
        let mut last = DRAFT_MAX;
        for cost in [0.05, 0.3, 0.6, 0.9, 1.0] {
            let mut speculation = speculation(cost);
            speculation.rates = [0.8; REPEATED_MAX + 1];
            let length = speculation.length(2);
            assert!(length <= last);
            last = length;
        }
        assert_eq!(last, 0);
    }
}
