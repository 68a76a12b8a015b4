//! Whether prefetching pays, found out while it runs.

/// Tokens in a window of a trial.
const WINDOW: usize = 8;
/// Tokens at a window's start that do not count, because they have to do with
/// what the window before has read.
const SETTLE: usize = 2;
/// Windows of a trial, which alternate.
const N_WINDOW: usize = 4;
/// Tokens between trials, at first and at most.
const HOLD_MIN: usize = 256;
const HOLD_MAX: usize = 4096;
/// What the other side must win to be taken, as a share of the time.
const MARGIN: f64 = 0.01;

/// Turns prefetching off while it loses.
///
/// In a trial, short windows of tokens with and without prefetching alternate. The
/// side whose median token takes less time is kept for a long window; then comes
/// another trial. The long windows get longer as long as trials agree.
///
/// It reads no clock: the same times have the same effect.
#[derive(Debug, Clone)]
pub struct Switch {
    is_on: bool,
    phase: Phase,
    hold: usize,
    /// Times of the tokens of this trial, without and with prefetching.
    times: [Vec<f64>; 2],
    stats: SwitchStats,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Trial { n_token: usize },
    Hold { n_left: usize },
}

/// How a [`Switch`] stands.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub struct SwitchStats {
    /// Whether prefetching is preferred: so it is until a trial decides otherwise.
    pub is_preferred: bool,
    /// Whether a trial is under way.
    pub is_trial: bool,
    /// Tokens that passed.
    pub n_token: u64,
    /// Tokens of them with prefetching.
    pub n_token_on: u64,
    /// Trials that came to their end.
    pub n_trial: u64,
    /// Trials that changed from on to off, or back.
    pub n_change: u64,
    /// Seconds of the median token with prefetching, in the last trial.
    pub seconds_on: Option<f64>,
    /// Seconds of the median token without, in the last trial.
    pub seconds_off: Option<f64>,
}

impl Default for Switch {
    fn default() -> Self {
        Self::new()
    }
}

impl Switch {
    /// It is on, and a trial begins.
    pub fn new() -> Self {
        let stats = SwitchStats { is_preferred: true, ..SwitchStats::default() };
        let phase = Phase::Trial { n_token: 0 };
        Self { is_on: true, phase, hold: HOLD_MIN, times: Default::default(), stats }
    }

    /// Whether to prefetch for the token that comes now.
    pub fn is_on(&self) -> bool {
        self.is_on
    }

    /// A token took so long. Call it for tokens that are alike: one token in each
    /// forward pass. Times that are not positive numbers are ignored.
    pub fn token(&mut self, seconds: f64) {
        if !seconds.is_finite() || seconds <= 0.0 {
            return;
        }
        self.stats.n_token += 1;
        self.stats.n_token_on += u64::from(self.is_on);
        match &mut self.phase {
            Phase::Hold { n_left } => {
                *n_left -= 1;
                if *n_left == 0 {
                    self.phase = Phase::Trial { n_token: 0 };
                }
            }
            Phase::Trial { n_token } => {
                if *n_token % WINDOW >= SETTLE {
                    self.times[usize::from(self.is_on)].push(seconds);
                }
                *n_token += 1;
                if n_token.is_multiple_of(WINDOW) {
                    self.is_on = !self.is_on;
                }
                if *n_token == N_WINDOW * WINDOW {
                    self.decide();
                }
            }
        }
    }

    /// How it stands.
    pub fn stats(&self) -> SwitchStats {
        let is_trial = matches!(self.phase, Phase::Trial { .. });
        SwitchStats { is_trial, ..self.stats }
    }

    /// At the end of a trial. The number of windows is even, so that it is on
    /// exactly if it was when the trial began.
    fn decide(&mut self) {
        let medians = self.times.each_mut().map(|times| median(times));
        let [this, other] = [self.is_on, !self.is_on].map(|side| medians[usize::from(side)]);
        if other < this * (1.0 - MARGIN) {
            self.is_on = !self.is_on;
            self.stats.is_preferred = self.is_on;
            self.hold = HOLD_MIN;
            self.stats.n_change += 1;
        } else if self.stats.n_trial > 0 {
            self.hold = (2 * self.hold).min(HOLD_MAX);
        }
        self.stats.n_trial += 1;
        [self.stats.seconds_off, self.stats.seconds_on] = medians.map(Some);
        self.phase = Phase::Hold { n_left: self.hold };
        self.times.iter_mut().for_each(Vec::clear);
    }
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    let half = times.len() / 2;
    (times[half] + times[times.len() - 1 - half]) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tokens with prefetching among `n`, when a token takes `on` or `off`.
    fn run(switch: &mut Switch, n: usize, on: f64, off: f64) -> usize {
        let mut n_on = 0;
        for i in 0..n {
            n_on += usize::from(switch.is_on());
            // Now and then something else takes its time.
            let hiccup = if i % 7 == 3 { 5.0 } else { 0.0 };
            switch.token(hiccup + if switch.is_on() { on } else { off });
        }
        n_on
    }

    #[test]
    fn it_stays_on_while_it_wins() {
        let mut switch = Switch::new();
        assert!(switch.is_on());
        assert!(run(&mut switch, 10_000, 1.0, 1.2) > 9_900);
        let stats = switch.stats();
        assert!(stats.is_preferred && stats.n_change == 0 && stats.n_trial > 3);
        assert_eq!((stats.seconds_on, stats.seconds_off), (Some(1.0), Some(1.2)));
    }

    #[test]
    fn it_goes_off_while_it_loses_and_comes_back() {
        let mut switch = Switch::new();
        assert!(run(&mut switch, 10_000, 1.2, 1.0) < 150);
        assert!(!switch.stats().is_preferred && switch.stats().n_change == 1);
        run(&mut switch, HOLD_MAX + N_WINDOW * WINDOW, 1.0, 1.2);
        assert_eq!(switch.stats().n_change, 2);
        let n_on = run(&mut switch, 10_000, 1.0, 1.2);
        assert!(n_on > 9_500, "{n_on}");
    }

    #[test]
    fn small_differences_change_nothing() {
        let mut switch = Switch::new();
        run(&mut switch, 10_000, 1.005, 1.0);
        assert_eq!(switch.stats().n_change, 0);
    }

    #[test]
    fn strange_times_are_ignored() {
        let mut switch = Switch::new();
        for seconds in [f64::NAN, f64::INFINITY, -1.0, 0.0] {
            switch.token(seconds);
        }
        assert_eq!(switch.stats().n_token, 0);
    }
}
