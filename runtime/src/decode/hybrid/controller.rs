//! How long the next draft should be, or that there should be none: what makes most of the tokens per second.
//!
//! A draft of k tokens is expected to give E(k) = 1 + a₁ + a₁a₂ + … + a₁…a_k tokens, with a_i the decayed rate at which
//! position i is accepted once it is reached, for the measured time of drafting and of verifying k + 1 rows; no draft gives
//! one token for one row. Once a draft is there, the entropies that its tokens were chosen with say once more how far it is
//! worth verifying.
//!
//! Invariant: it changes how much is drafted and verified, never what is accepted, and it looks at entropies and earlier
//! rounds, never at a drafted token. With recorded costs it is a function of these alone.

use std::time::Duration;

use super::costs::{CostTable, Costs, Side};

/// Lengths that are considered.
const LENGTHS: [usize; 10] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32];
/// What a rate keeps of itself with every trial.
const DECAY: f64 = 0.99;
/// What it keeps when a pause ends.
const AGED: f64 = 0.25;
/// The rate before anything is known, and how many trials that counts for.
const PRIOR: (f64, f64) = (0.7, 2.0);
/// Upper ends of the classes of entropies, in nats.
const CLASSES: [f32; 7] = [0.01, 0.05, 0.2, 0.5, 1.0, 2.0, f32::INFINITY];
/// Lengths of the first rounds, while no costs are known.
const FIRST: [usize; 5] = [0, 4, 0, 8, 0];
/// Rounds without a draft before another one is tried, at first and at most.
const PAUSES: (usize, usize) = (64, 1024);
/// Rounds with a draft before one without is timed again.
const RECHECK: usize = 128;

/// Successes of trials, the older the less.
#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    hits: f64,
    trials: f64,
}

impl Rate {
    fn learn(&mut self, hit: bool) {
        self.hits = self.hits * DECAY + f64::from(u8::from(hit));
        self.trials = self.trials * DECAY + 1.0;
    }

    fn age(&mut self) {
        (self.hits, self.trials) = (self.hits * AGED, self.trials * AGED);
    }

    fn given(&self, prior: f64) -> f64 {
        (self.hits + prior * PRIOR.1) / (self.trials + PRIOR.1)
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Controller {
    costs: Costs,
    positions: Vec<Rate>,
    classes: [Rate; CLASSES.len()],
    rounds: usize,
    /// Rounds since the last one with a draft, and since the last one without.
    idle: usize,
    busy: usize,
    /// Rounds without a draft before the next try.
    pause: usize,
    /// Whether this round's draft is there to learn from, whatever is expected of it.
    tries: bool,
}

impl Controller {
    /// One that measures costs, or goes by recorded ones.
    pub fn new(recorded: Option<CostTable>) -> Self {
        let (positions, classes) = (Vec::new(), Default::default());
        let costs = Costs::new(recorded);
        Self { costs, positions, classes, rounds: 0, idle: 0, busy: 0, pause: PAUSES.0, tries: false }
    }

    /// What passes cost, as far as it is known.
    pub fn costs(&self) -> &CostTable {
        self.costs.table()
    }

    /// The rates at which positions are accepted once they are reached, as many as `k`.
    fn rates(&self, k: usize) -> impl Iterator<Item = f64> + '_ {
        let mut last = PRIOR.0;
        (0..k).map(move |i| {
            last = self.positions.get(i).copied().unwrap_or_default().given(last);
            last
        })
    }

    /// Seconds of a round that drafts in a pass of `drafted` rows, or not at all, and verifies `k` tokens.
    fn cost(&self, drafted: Option<usize>, k: usize) -> f64 {
        let table = self.costs.table();
        drafted.map_or(0.0, |rows| table.seconds(Side::Draft, rows)) + table.seconds(Side::Verify, k + 1)
    }

    /// Length of the next draft, up to `limit`; 0 for none. `rows` says how many rows drafting takes, all passes together.
    pub(super) fn choose(&mut self, limit: usize, rows: &dyn Fn(usize) -> usize) -> usize {
        let first = matches!(self.costs, Costs::Measured { .. }).then(|| FIRST.get(self.rounds)).flatten();
        self.rounds += 1;
        let lengths = || LENGTHS.into_iter().filter(|k| *k <= limit);
        let speeds = lengths().map(|k| (k, expected(self.rates(k)) / self.cost(Some(rows(k)), k)));
        let best = speeds.fold((0, 0.0), |best: (usize, f64), one| if one.1 > best.1 { one } else { best });
        self.tries = first.is_some();
        let chosen = match first {
            Some(k) => (*k).min(limit),
            None if best.1 > 1.0 / self.cost(None, 0) => {
                self.pause = PAUSES.0;
                if self.busy >= RECHECK { 0 } else { best.0 }
            }
            None if self.idle >= self.pause => {
                self.tries = true;
                self.pause = (2 * self.pause).min(PAUSES.1);
                self.positions.iter_mut().chain(&mut self.classes).for_each(Rate::age);
                best.0
            }
            None => 0,
        };
        (self.idle, self.busy) = if chosen == 0 { (self.idle + 1, 0) } else { (0, self.busy + 1) };
        chosen
    }

    /// How much of a draft is worth verifying, from the entropies that its tokens were chosen with.
    pub(super) fn cut(&self, entropies: &[f32]) -> usize {
        if self.tries {
            return entropies.len();
        }
        let mut best = (0, 1.0 / self.cost(None, 0));
        let (mut reached, mut tokens) = (1.0, 1.0);
        for (k, entropy) in (1..).zip(entropies) {
            let overall = self.rates(k).last().unwrap_or(PRIOR.0);
            reached *= self.classes[class(*entropy)].given(overall);
            tokens += reached;
            let speed = tokens / self.cost(None, k);
            if speed > best.1 {
                best = (k, speed);
            }
        }
        best.0
    }

    /// Learns from drafted tokens that were looked at, chosen with these entropies: the first `accepted` were taken.
    pub(super) fn learn(&mut self, tried: &[f32], accepted: usize) {
        self.positions.resize(self.positions.len().max(tried.len()), Rate::default());
        for (i, entropy) in tried.iter().enumerate() {
            self.positions[i].learn(i < accepted);
            self.classes[class(*entropy)].learn(i < accepted);
        }
    }

    /// Learns what a pass took.
    pub(super) fn spent(&mut self, side: Side, rows: usize, time: Duration) {
        self.costs.learn(side, rows, time);
    }
}

/// Tokens that a draft gives whose positions are accepted at these rates.
fn expected(rates: impl Iterator<Item = f64>) -> f64 {
    let mut reached = 1.0;
    let tokens = rates.map(|rate| {
        reached *= rate;
        reached
    });
    1.0 + tokens.sum::<f64>()
}

fn class(entropy: f32) -> usize {
    CLASSES.iter().position(|end| entropy < *end).unwrap_or(CLASSES.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::noise::{Noise, NoiseRow};

    fn table(draft: f64, rows: f64) -> CostTable {
        let line = |of: &dyn Fn(usize) -> f64| (1..=40).map(|r| (r, of(r))).collect();
        CostTable { draft: line(&|_| draft), verify: line(&|r| 1.0 + rows * (r - 1) as f64) }
    }

    /// Rounds with this acceptance.
    fn play(controller: &mut Controller, rate: f64, rounds: usize) -> (f64, f64, Vec<usize>) {
        let (mut tokens, mut time, mut lengths) = (0.0, 0.0, Vec::new());
        for pass in 0..rounds {
            let k = controller.choose(32, &|k| k);
            let mut accepted = 0;
            let heads = |position| {
                let variate = Noise::Seeded(9).of_position(NoiseRow { pass, position }).unwrap();
                f64::from(variate) > -libm::log(rate)
            };
            while accepted < k && heads(accepted) {
                accepted += 1;
            }
            controller.learn(&vec![0.3; k.min(accepted + 1)], accepted);
            tokens += accepted as f64 + 1.0;
            time += controller.cost((k > 0).then_some(k), k);
            lengths.push(k);
        }
        (tokens, time, lengths)
    }

    #[test]
    fn the_best_length_is_found_for_any_acceptance() {
        for (rate, draft, rows) in
            [(0.95, 0.5, 0.05), (0.8, 1.0, 0.1), (0.6, 0.3, 0.2), (0.3, 1.0, 0.5), (0.9, 1.0, 1.0)]
        {
            let fixed = |k: usize| {
                let cost = if k == 0 { 1.0 } else { draft + 1.0 + rows * k as f64 };
                expected(std::iter::repeat_n(rate, k)) / cost
            };
            let best = [0].into_iter().chain(LENGTHS).map(fixed).fold(0.0, f64::max);
            let mut controller = Controller::new(Some(table(draft, rows)));
            let (tokens, time, _) = play(&mut controller, rate, 4000);
            assert!(tokens / time >= 0.97 * best, "{rate} {draft} {rows}: {} of {best}", tokens / time);
        }
    }

    #[test]
    fn no_draft_is_made_where_none_pays_but_now_and_then_one_is_tried() {
        let mut controller = Controller::new(Some(table(1.0, 1.0)));
        let (tokens, time, lengths) = play(&mut controller, 0.5, 4000);
        assert!(tokens / time > 0.98, "{}", tokens / time);
        let tries = lengths[100..].iter().filter(|k| **k > 0).count();
        assert!((2..40).contains(&tries), "{tries}");
        // What changes is noticed.
        let mut controller = Controller::new(Some(table(0.5, 0.05)));
        play(&mut controller, 0.02, 1000);
        let (.., lengths) = play(&mut controller, 0.95, 3000);
        assert!(lengths[2500..].iter().filter(|k| **k >= 4).count() > 400);
    }

    #[test]
    fn first_rounds_measure_what_nothing_is_known_of() {
        let mut controller = Controller::new(None);
        let mut seen = Vec::new();
        for _ in 0..FIRST.len() {
            let k = controller.choose(32, &|k| k + 4);
            let k = controller.cut(&vec![0.5; k]);
            if k > 0 {
                controller.spent(Side::Draft, k + 4, Duration::from_millis(5));
            }
            controller.spent(Side::Verify, k + 1, Duration::from_millis(10 + k as u64));
            controller.learn(&vec![0.5; k], k);
            seen.push(k);
        }
        assert_eq!(seen, FIRST);
        assert!(controller.choose(32, &|k| k + 4) >= 8, "all of it was accepted, and rows cost little");
    }

    #[test]
    fn a_draft_is_cut_where_entropies_say_that_it_fails() {
        let mut controller = Controller::new(Some(table(0.5, 0.2)));
        for _ in 0..60 {
            controller.learn(&[0.001, 0.001, 0.001, 3.0], 3);
        }
        assert_eq!(controller.cut(&[0.001, 0.001, 0.001, 3.0, 0.001]), 3);
        assert_eq!(controller.cut(&[3.0, 0.001, 0.001]), 0);
        assert_eq!(controller.cut(&[0.001; 6]), 6);
    }
}
