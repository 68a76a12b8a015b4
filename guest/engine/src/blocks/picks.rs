//! Which experts are picked by their logits, and how they are weighed.

use super::loader::Loader;
use crate::error::Result;
use crate::ops;
use crate::plan::{GroupsPlan, RouterPlan, Score};

/// How a router picks and weighs.
pub(super) struct Picker {
    score: Score,
    correction: Option<Vec<f32>>,
    groups: Option<GroupsPlan>,
    n_used: usize,
    normalize: Option<f32>,
    scale: f32,
    scales: Option<Vec<f32>>,
}

/// What was picked for a token, and room that picking takes.
#[derive(Default)]
pub(crate) struct Picks {
    /// The experts, the best first.
    pub experts: Vec<usize>,
    /// Their weights.
    pub weights: Vec<f32>,
    /// What experts are picked by, and groups.
    scores: Vec<f32>,
    sums: Vec<f32>,
}

impl Picker {
    pub fn load(plan: &RouterPlan, loader: &mut Loader<'_>) -> Result<Self> {
        let &RouterPlan { score, groups, n_used, normalize, scale, .. } = plan;
        let correction = plan.correction.as_ref().map(|plan| loader.vector(plan)).transpose()?;
        let scales = plan.scales.as_ref().map(|plan| loader.vector(plan)).transpose()?;
        Ok(Self { score, correction, groups, n_used, normalize, scale, scales })
    }

    /// Picks experts; what they are weighed by is in the place of the logits then.
    pub fn pick(&self, logits: &mut [f32], picks: &mut Picks) {
        match self.score {
            Score::Softmax => ops::softmax(logits),
            Score::Sigmoid => ops::sigmoids(logits),
            Score::SoftmaxOfPicked | Score::SparseMixer { .. } => {}
        }
        let Picks { experts, scores, sums, .. } = picks;
        scores.clear();
        scores.extend_from_slice(logits);
        if let Some(correction) = &self.correction {
            ops::add(scores, correction);
        }
        if let Some(groups) = &self.groups {
            mask(groups, scores, sums, experts);
        }
        top_k(scores, self.n_used, experts);
    }

    /// Weighs what was picked by `scores`.
    pub fn weigh(&self, scores: &mut [f32], picks: &mut Picks) {
        let Picks { experts, weights, sums, .. } = picks;
        weights.clear();
        match self.score {
            Score::Softmax | Score::Sigmoid | Score::SoftmaxOfPicked => {
                weights.extend(experts.iter().map(|&expert| scores[expert]));
            }
            Score::SparseMixer { share } => weights.extend(experts.iter().map(|&expert| {
                let weight = among_near(scores, expert, share, sums);
                scores[expert] = f32::NEG_INFINITY;
                weight
            })),
        }
        if self.score == Score::SoftmaxOfPicked {
            ops::softmax(weights);
        }
        let divisor = self.normalize.map_or(1.0, |more| weights.iter().sum::<f32>() + more);
        let scale = self.scale / divisor;
        weights.iter_mut().for_each(|weight| *weight *= scale);
        if let Some(scales) = &self.scales {
            weights.iter_mut().zip(&*experts).for_each(|(weight, &e)| *weight *= scales[e]);
        }
    }
}

/// The weight of the largest score in a softmax over those that are less by this share at
/// most.
fn among_near(scores: &[f32], largest: usize, share: f32, room: &mut Vec<f32>) -> f32 {
    let max = scores[largest];
    room.clear();
    room.extend(scores.iter().map(|&score| match (max - score) / score.abs().max(max) {
        less if less > share => f32::NEG_INFINITY,
        _ => score,
    }));
    ops::softmax(room);
    room[largest]
}

/// Masks all groups but the best.
fn mask(groups: &GroupsPlan, scores: &mut [f32], sums: &mut Vec<f32>, order: &mut Vec<usize>) {
    let len = scores.len() / groups.n;
    sums.clear();
    for group in scores.chunks_exact(len) {
        top_k(group, groups.n_summed, order);
        sums.push(order.iter().map(|&i| group[i]).sum());
    }
    top_k(sums, groups.n_used, order);
    for (i, group) in scores.chunks_exact_mut(len).enumerate() {
        if !order.contains(&i) {
            group.fill(f32::NEG_INFINITY);
        }
    }
}

/// The indices of the `k` largest numbers, the largest first, of equals the first.
fn top_k(x: &[f32], k: usize, out: &mut Vec<usize>) {
    let order = |a: &usize, b: &usize| x[*b].total_cmp(&x[*a]).then(a.cmp(b));
    out.clear();
    out.extend(0..x.len());
    if k < out.len() {
        out.select_nth_unstable_by(k, order);
        out.truncate(k);
    }
    out.sort_unstable_by(order);
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 8] = [0.9, -0.4, 1.1, 0.3, 1.09, -2.0, 0.2, 1.0];

    const PLAIN: Picker = Picker {
        score: Score::Softmax,
        correction: None,
        groups: None,
        n_used: 3,
        normalize: None,
        scale: 1.0,
        scales: None,
    };

    /// Fails unless these experts are picked, with these weights.
    #[track_caller]
    fn check(picker: &Picker, want: &[(usize, f64)]) {
        let (mut logits, mut picks) = (LOGITS, Picks::default());
        // What is left of other picks does not matter.
        picks.sums.push(3.0);
        picker.pick(&mut logits, &mut picks);
        picker.weigh(&mut logits, &mut picks);
        let experts: Vec<_> = want.iter().map(|(expert, _)| *expert).collect();
        assert_eq!(picks.experts, experts);
        for (got, (expert, want)) in picks.weights.iter().zip(want) {
            assert!((f64::from(*got) / want - 1.0).abs() < 1e-6, "{expert}: {got}, not {want}");
        }
    }

    fn exp(expert: usize) -> f64 {
        f64::from(LOGITS[expert]).exp()
    }

    fn sigmoid(expert: usize) -> f64 {
        1.0 / (1.0 + 1.0 / exp(expert))
    }

    #[test]
    fn softmax_over_all() {
        let sum: f64 = (0..8).map(exp).sum();
        let want = [2, 4, 7].map(|i| (i, exp(i) / sum));
        check(&PLAIN, &want);
        check(&Picker { scale: 16.0, ..PLAIN }, &want.map(|(i, w)| (i, 16.0 * w)));
        let picked: f64 = want.iter().map(|(_, w)| w).sum();
        let normal = |more: f32| Picker { normalize: Some(more), scale: 2.5, ..PLAIN };
        check(&normal(0.0), &want.map(|(i, w)| (i, 2.5 * w / picked)));
        let scales = Some((1..=8).map(|expert| expert as f32).collect());
        let own = Picker { scales, ..normal(0.0) };
        check(&own, &want.map(|(i, w)| (i, 2.5 * w / picked * (i + 1) as f64)));
        check(&normal(0.25), &want.map(|(i, w)| (i, 2.5 * w / (picked + 0.25))));
    }

    #[test]
    fn softmax_over_those_that_are_picked() {
        let sum = exp(2) + exp(4) + exp(7);
        let picker = Picker { score: Score::SoftmaxOfPicked, ..PLAIN };
        check(&picker, &[2, 4, 7].map(|i| (i, exp(i) / sum)));
    }

    #[test]
    fn a_correction_picks_and_does_not_weigh() {
        let picker = || Picker { score: Score::Sigmoid, ..PLAIN };
        check(&picker(), &[2, 4, 7].map(|i| (i, sigmoid(i))));
        // Of expert 5 most of all, and it takes expert 2 out.
        let correction = Some(vec![0.0, 0.0, -0.5, 0.0, 0.0, 3.0, 0.0, 0.0]);
        let want = [5, 4, 7].map(|i| (i, sigmoid(i)));
        check(&Picker { correction: correction.clone(), ..picker() }, &want);
        let sum: f64 = want.iter().map(|(_, w)| w).sum();
        let picker = Picker { correction, normalize: Some(0.0), ..picker() };
        check(&picker, &want.map(|(i, w)| (i, w / sum)));
        let all: f64 = (0..8).map(exp).sum();
        let picker = Picker { score: Score::Softmax, ..picker };
        let sum: f64 = [5, 4, 7].map(exp).iter().sum();
        check(&picker, &[5, 4, 7].map(|i| (i, exp(i) / all / (sum / all))));
    }

    #[test]
    fn groups_are_picked_before_experts() {
        let groups = |n_used, n_summed| Some(GroupsPlan { n: 4, n_used, n_summed });
        let picker = |groups| Picker { score: Score::Sigmoid, groups, ..PLAIN };
        // The largest are 0.9, 1.1, 1.09 and 1.0.
        check(&picker(groups(2, 1)), &[2, 4, 3].map(|i| (i, sigmoid(i))));
        // The sums of sigmoids: 0.71 + 0.40, 0.75 + 0.57, 0.75 + 0.12, 0.55 + 0.73.
        check(&picker(groups(2, 2)), &[2, 7, 3].map(|i| (i, sigmoid(i))));
        check(&picker(groups(4, 2)), &[2, 4, 7].map(|i| (i, sigmoid(i))));
        // The correction counts for groups too.
        let correction = Some(vec![0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        let picker = Picker { correction, ..picker(groups(2, 2)) };
        check(&picker, &[0, 1, 2].map(|i| (i, sigmoid(i))));
    }

    #[test]
    fn sparse_mixer_takes_what_is_near() {
        // Near 1.1 is 1.09, which is less by 0.9 %; near 1.09 without that is nothing.
        let two = |share| Picker { score: Score::SparseMixer { share }, n_used: 2, ..PLAIN };
        check(&two(0.02), &[(2, exp(2) / (exp(2) + exp(4))), (4, 1.0)]);
        check(&two(0.001), &[(2, 1.0), (4, 1.0)]);
        let second = exp(4) + exp(7);
        check(&two(0.1), &[(2, exp(2) / (second + exp(2))), (4, exp(4) / second)]);
    }

    #[test]
    fn equals_are_picked_in_their_order() {
        let mut order = Vec::new();
        for k in 0..=6 {
            top_k(&[1.0, 2.0, 1.0, 2.0, -0.0, 0.0], k, &mut order);
            assert_eq!(order, [1, 3, 0, 2, 5, 4][..k]);
        }
    }
}
