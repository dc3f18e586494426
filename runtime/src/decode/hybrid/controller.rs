//! How the next draft should be made and how long it should be, or that there should be none: what makes most of the tokens
//! per second.
//!
//! A draft of k tokens is expected to give E(k) = 1 + a₁ + a₁a₂ + … + a₁…a_k tokens, with a_i the decayed rate at which
//! position i of drafts made that way is accepted once it is reached, for the measured time of as many passes as such drafts
//! took and of verifying k + 1 rows; no draft gives one token for one row. Once a draft is there, the entropies that its
//! tokens were chosen with say once more how far it is worth verifying: as long as the next token is expected to come faster
//! than tokens do anyway. Where nothing is expected to pay, a draft is tried only if it would pay at rates that what was seen
//! does not rule out, and the more rarely the longer it has not. A drafter that has rows to catch up with – the prompt, at
//! first – must gain that time too, over an answer that is expected to be as long as those before.
//!
//! Invariant: it changes how much is drafted and verified, never what is accepted, and it looks at entropies and earlier
//! rounds, never at a drafted token. With recorded costs it is a function of these alone.

use std::time::Duration;

use super::costs::{CostTable, Costs, Side};
use super::drafter::Method;

/// Lengths that are considered.
const LENGTHS: [usize; 10] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32];
/// What a rate keeps of itself with every trial.
const DECAY: f64 = 0.99;
/// What it keeps when a pause ends.
const AGED: f64 = 0.25;
/// The rate of a first position before anything is known, and how many trials the position before counts for.
const PRIOR: (f64, f64) = (0.85, 4.0);
/// A rate that is hoped for, and how many trials that counts for.
const HOPE: (f64, f64) = (0.85, 2.0);
/// Tokens of an answer before there was any, what that counts for, and what the mean keeps of itself with every answer.
const ANSWER: (f64, f64, f64) = (16.0, 1.0, 0.97);
/// How many trials the rate of a position counts for in that of a class of entropies.
const OVERALL: f64 = 8.0;
/// Upper ends of the classes of entropies, in nats.
const CLASSES: [f32; 7] = [0.01, 0.05, 0.2, 0.5, 1.0, 2.0, f32::INFINITY];
/// Passes of a draft of several before any was made, and how many drafts that counts for.
const PRIOR_PASSES: (f64, f64) = (2.0, 1.0);
/// Lengths of the first rounds, while no costs are known.
const FIRST: [usize; 3] = [0, 8, 0];
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

    fn given(&self, prior: f64, weight: f64) -> f64 {
        (self.hits + prior * weight) / (self.trials + weight)
    }
}

/// What became of drafts that were made in one way.
#[derive(Clone, Debug, Default)]
struct Seen {
    positions: Vec<Rate>,
    classes: [Rate; CLASSES.len()],
    /// Passes, and drafts that they made.
    passes: (f64, f64),
}

impl Seen {
    /// The rates at which positions are accepted once they are reached, as many as `k`: a position is expected to be like the
    /// one before.
    fn rates(&self, k: usize) -> impl Iterator<Item = f64> + '_ {
        let known = (0..k).map(|i| self.positions.get(i).copied().unwrap_or_default());
        known.scan(PRIOR.0, |last, rate| {
            *last = rate.given(*last, PRIOR.1);
            Some(*last)
        })
    }

    /// The rates that are hoped for.
    fn hopes(&self, k: usize) -> impl Iterator<Item = f64> + '_ {
        (0..k).scan(HOPE.0, |last, i| {
            *last = self.positions.get(i).map_or(*last, |rate| rate.given(HOPE.0, HOPE.1));
            Some(*last)
        })
    }

    fn age(&mut self) {
        self.positions.iter_mut().chain(&mut self.classes).for_each(Rate::age);
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Controller {
    costs: Costs,
    /// By [`Method`].
    seen: [Seen; 2],
    rounds: usize,
    /// Rounds since the last one with a draft, and since the last one that tried something else.
    idle: usize,
    busy: usize,
    /// Rounds without a draft before the next try.
    pause: usize,
    /// Whether this round's draft is there to learn from, whatever is expected of it.
    tries: bool,
    /// Tokens per second that are expected anyway.
    pace: f64,
    /// Tokens of answers, and answers.
    answers: (f64, f64),
}

/// Where a decode stands when a draft is to be chosen.
pub(super) struct Standing<'s> {
    /// The longest draft that there is room for.
    pub(super) limit: usize,
    /// How many rows a pass of the drafter takes for a draft of so many tokens.
    pub(super) rows: &'s dyn Fn(usize) -> usize,
    /// Further rows that the drafter has to catch up with first.
    pub(super) behind: usize,
    /// Tokens until the length limit.
    pub(super) remaining: usize,
}

impl Controller {
    /// One that measures costs, or goes by recorded ones.
    pub fn new(recorded: Option<CostTable>) -> Self {
        let (costs, seen) = (Costs::new(recorded), Default::default());
        Self { costs, seen, rounds: 0, idle: 0, busy: 0, pause: PAUSES.0, tries: false, pace: 0.0, answers: (0.0, 0.0) }
    }

    /// What passes cost, as far as it is known.
    pub fn costs(&self) -> &CostTable {
        self.costs.table()
    }

    /// Seconds of a pass of the verifier over `k` drafted tokens.
    fn verifying(&self, k: usize) -> f64 {
        self.costs.table().seconds(Side::Verify, k + 1)
    }

    /// Seconds of a draft in passes of so many rows.
    fn drafting(&self, method: Method, rows: usize) -> f64 {
        let (passes, drafts) = self.seen[method as usize].passes;
        let passes = match method {
            Method::OnePass => 1.0,
            Method::Several => (passes + PRIOR_PASSES.0 * PRIOR_PASSES.1) / (drafts + PRIOR_PASSES.1),
        };
        passes * self.costs.table().seconds(Side::Draft, rows)
    }

    /// The way and the length with most tokens per second, and how many; a length of 0 where there is none.
    fn best(&self, methods: &[Method], at: &Standing<'_>, hoping: bool) -> (Method, usize, f64) {
        let speed = |method: Method, k: usize| {
            let seen = &self.seen[method as usize];
            let tokens = if hoping { expected(seen.hopes(k)) } else { expected(seen.rates(k)) };
            tokens / (self.drafting(method, (at.rows)(k)) + self.verifying(k))
        };
        let lengths = || LENGTHS.into_iter().filter(|k| *k <= at.limit);
        let ways = methods.iter().flat_map(|&method| lengths().map(move |k| (method, k)));
        let ways = ways.map(|(method, k)| (method, k, speed(method, k)));
        ways.fold((Method::OnePass, 0, 0.0), |best, one| if one.2 > best.2 { one } else { best })
    }

    /// Whether drafts of `k` tokens at this speed gain more on no drafts than catching up takes.
    fn pays(&self, k: usize, speed: f64, at: &Standing<'_>) -> bool {
        let plain = self.verifying(0);
        let (tokens, answers) = (self.answers.0 + ANSWER.0 * ANSWER.1, self.answers.1 + ANSWER.1);
        let left = (tokens / answers).min(at.remaining as f64);
        let rows = (at.rows)(k);
        let pass = |rows| self.costs.table().seconds(Side::Draft, rows);
        speed > 1.0 / plain && left * (plain - 1.0 / speed) > pass(rows + at.behind) - pass(rows)
    }

    /// How the next draft is made, of these ways, and its length; 0 for none.
    pub(super) fn choose(&mut self, methods: &[Method], at: &Standing<'_>) -> (Method, usize) {
        let plain = 1.0 / self.verifying(0);
        let (method, k, speed) = self.best(methods, at, false);
        let pays = self.pays(k, speed, at);
        self.pace = if pays { speed } else { plain };
        let first = matches!(self.costs, Costs::Measured { .. }).then(|| FIRST.get(self.rounds)).flatten();
        self.rounds += 1;
        self.tries = first.is_some();
        let chosen = match first {
            Some(k) => (Method::OnePass, (*k).min(at.limit)),
            None if pays && self.busy < RECHECK => {
                self.pause = PAUSES.0;
                (method, k)
            }
            // The cost of no draft is looked at again, or another way of drafting.
            None if pays => {
                (self.tries, self.busy) = (true, 0);
                let other = methods.iter().copied().find(|other| *other != method && self.rounds.is_multiple_of(2));
                other.map_or((method, 0), |other| (other, k))
            }
            None => {
                let new = self.seen.iter().all(|seen| seen.positions.is_empty());
                let due = self.idle >= self.pause;
                if due {
                    // What was seen so long ago rules out less.
                    self.seen.iter_mut().for_each(Seen::age);
                    (self.idle, self.pause) = (0, (2 * self.pause).min(PAUSES.1));
                }
                let (method, k, speed) = self.best(methods, at, true);
                self.tries = (new || due) && self.pays(k, speed, at);
                (method, if self.tries { k } else { 0 })
            }
        };
        (self.idle, self.busy) = if chosen.1 == 0 { (self.idle + 1, 0) } else { (0, self.busy + 1) };
        chosen
    }

    /// Learns the length of an answer.
    pub(super) fn ended(&mut self, tokens: usize) {
        self.answers = (self.answers.0 * ANSWER.2 + tokens as f64, self.answers.1 * ANSWER.2 + 1.0);
    }

    /// How much of a draft is worth verifying, from the entropies that its tokens were chosen with.
    pub(super) fn cut(&self, method: Method, entropies: &[f32]) -> usize {
        if self.tries {
            return entropies.len();
        }
        let seen = &self.seen[method as usize];
        let (mut reached, mut tokens) = (1.0, 1.0);
        let mut best = (0, tokens - self.pace * self.verifying(0));
        for ((k, entropy), overall) in (1..).zip(entropies).zip(seen.rates(entropies.len())) {
            reached *= seen.classes[class(*entropy)].given(overall, OVERALL);
            tokens += reached;
            let gain = tokens - self.pace * self.verifying(k);
            if gain > best.1 {
                best = (k, gain);
            }
        }
        best.0
    }

    /// Learns from a draft of so many passes, chosen with these entropies: whether the first tokens, which were looked at,
    /// were `kept`.
    pub(super) fn learn(&mut self, method: Method, entropies: &[f32], kept: &[bool], passes: usize) {
        let seen = &mut self.seen[method as usize];
        if passes > 0 {
            seen.passes = (seen.passes.0 * DECAY + passes as f64, seen.passes.1 * DECAY + 1.0);
        }
        seen.positions.resize(seen.positions.len().max(kept.len()), Rate::default());
        for (i, (kept, entropy)) in kept.iter().zip(entropies).enumerate() {
            seen.positions[i].learn(*kept);
            seen.classes[class(*entropy)].learn(*kept);
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

    const ONE: [Method; 1] = [Method::OnePass];

    fn at(limit: usize, rows: &dyn Fn(usize) -> usize) -> Standing<'_> {
        Standing { limit, rows, behind: 0, remaining: 1000 }
    }

    fn table(draft: f64, rows: f64) -> CostTable {
        let line = |of: &dyn Fn(usize) -> f64| (1..=40).map(|r| (r, of(r))).collect();
        CostTable { draft: line(&|_| draft), verify: line(&|r| 1.0 + rows * (r - 1) as f64) }
    }

    /// Rounds with this acceptance.
    fn play(controller: &mut Controller, rate: f64, rounds: usize) -> (f64, f64, Vec<usize>) {
        let (mut tokens, mut time, mut lengths) = (0.0, 0.0, Vec::new());
        for pass in 0..rounds {
            let (_, k) = controller.choose(&ONE, &at(32, &|k| k));
            let mut accepted = 0;
            let heads = |position| {
                let variate = Noise::Seeded(9).of_position(NoiseRow { pass, position }).unwrap();
                f64::from(variate) > -libm::log(rate)
            };
            while accepted < k && heads(accepted) {
                accepted += 1;
            }
            let kept: Vec<bool> = (0..k.min(accepted + 1)).map(|i| i < accepted).collect();
            controller.learn(Method::OnePass, &vec![0.3; k], &kept, usize::from(k > 0));
            tokens += accepted as f64 + 1.0;
            time += controller.verifying(k);
            time += if k > 0 { controller.drafting(Method::OnePass, k) } else { 0.0 };
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
        // Where even the best drafts would not pay, never.
        let mut controller = Controller::new(Some(table(1.0, 1.0)));
        let (tokens, time, lengths) = play(&mut controller, 0.5, 4000);
        assert!(tokens / time > 0.999 && lengths.iter().all(|k| *k == 0), "{}", tokens / time);
        let mut controller = Controller::new(Some(table(1.0, 0.1)));
        let (tokens, time, lengths) = play(&mut controller, 0.1, 4000);
        assert!(tokens / time > 0.97, "{}", tokens / time);
        let tries = lengths[100..].iter().filter(|k| **k > 0).count();
        assert!((2..100).contains(&tries), "{tries}");
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
            let (method, k) = controller.choose(&ONE, &at(32, &|k| k + 4));
            let k = controller.cut(method, &vec![0.5; k]);
            if k > 0 {
                controller.spent(Side::Draft, k + 4, Duration::from_millis(5));
            }
            controller.spent(Side::Verify, k + 1, Duration::from_millis(10 + k as u64));
            controller.learn(method, &vec![0.5; k], &vec![true; k], usize::from(k > 0));
            seen.push(k);
        }
        assert_eq!(seen, FIRST);
        assert!(controller.choose(&ONE, &at(32, &|k| k + 4)).1 >= 8, "all of it was accepted, and rows cost little");
    }

    #[test]
    fn a_draft_is_cut_where_entropies_say_that_it_fails() {
        let mut controller = Controller::new(Some(table(0.5, 0.2)));
        for _ in 0..60 {
            controller.learn(Method::OnePass, &[0.001, 0.001, 0.001, 3.0], &[true, true, true, false], 1);
        }
        assert!(controller.choose(&ONE, &at(8, &|k| k)).1 > 0);
        assert_eq!(controller.cut(Method::OnePass, &[0.001, 0.001, 0.001, 3.0, 0.001]), 3);
        assert_eq!(controller.cut(Method::OnePass, &[3.0, 0.001, 0.001]), 0);
        assert_eq!(controller.cut(Method::OnePass, &[0.001; 6]), 6);
    }

    #[test]
    fn the_way_of_drafting_is_chosen_too() {
        // Drafts of three passes are always right, those of one pass rarely.
        for (rate, better) in [(0.2, Method::Several), (0.97, Method::OnePass)] {
            let mut controller = Controller::new(Some(table(0.4, 0.02)));
            let mut last = Vec::new();
            for round in 0..800u32 {
                let (method, k) = controller.choose(&[Method::OnePass, Method::Several], &at(16, &|k| k));
                let right = |i: u32| f64::from((round * 31 + i * 17) % 100) < rate * 100.0;
                let one_pass = (0..32).take_while(|i| right(*i)).count();
                let accepted = if method == Method::Several { k } else { one_pass.min(k) };
                let kept: Vec<bool> = (0..k.min(accepted + 1)).map(|i| i < accepted).collect();
                let passes = if method == Method::Several { 3 } else { 1 };
                controller.learn(method, &vec![0.3; k], &kept, if k > 0 { passes } else { 0 });
                last.push(method);
            }
            let share = last[400..].iter().filter(|method| **method == better).count();
            assert!(share > 360, "{better:?} {share} of 400");
        }
    }

    #[test]
    fn reading_the_prompt_must_pay_too() {
        let mut controller = Controller::new(Some(table(0.5, 0.05)));
        play(&mut controller, 0.9, 400);
        let rows = |k: usize| k;
        let choice =
            |controller: &mut Controller, behind| controller.choose(&ONE, &Standing { behind, ..at(16, &rows) }).1;
        assert!(choice(&mut controller, 0) > 0);
        // The table's costs are those of 40 rows and grow in proportion behind them: 4000 rows take 50 seconds.
        assert_eq!(choice(&mut controller, 4000), 0, "for answers of 16 tokens");
        (0..200).for_each(|_| controller.ended(2000));
        assert!(choice(&mut controller, 4000) > 0, "for answers of 2000 tokens");
    }
}
