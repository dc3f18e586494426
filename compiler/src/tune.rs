//! The sweep of `dlxc tune`: which of many settings lie on the Pareto fronts of agreement against seconds and passes.
//!
//! Successive halving (Jamieson & Talwalkar 2016) over prompts: all settings answer a few, the better half of them twice as
//! many, and so on; the last ones answer all. Every setting that is left answers a prompt before the next prompt comes, so
//! that a machine that becomes slow does so for all of them.
//!
//! Invariant: what is decided depends on the trials, the seed and the budget alone, and the budget is counted in the
//! seconds of the trials. So recorded trials lead to the same rounds and the same points. How a trial is made is the
//! caller's business.

pub mod grid;
mod stats;

use std::collections::BTreeMap;
use std::time::Duration;

use dlx_runtime::policies::{Cost, Point, Settings, front, positions};
use serde::{Deserialize, Serialize};

use crate::synth::numbers::mix;

/// Prompts of the first round: fewer say nothing of a share.
pub const MIN_PROMPTS: usize = 8;
/// Settings that answer all prompts; more only where they are all on a front.
const FINALISTS: usize = 8;

/// One setting's answer to one prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    /// Index of the setting.
    pub setting: usize,
    /// Index of the prompt.
    pub prompt: usize,
    /// Agreement with the reference, in millionths.
    pub agreement_ppm: u32,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the answer.
    pub tokens: usize,
    /// Forward passes over the prompt alone.
    pub prefills: usize,
    /// All other forward passes.
    pub passes: usize,
    /// Nanoseconds of the prefill.
    pub prefill_ns: u64,
    /// Nanoseconds of the whole call.
    pub total_ns: u64,
}

/// What a round of the race was.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Round {
    /// Prompts that were answered up to its end.
    pub prompts: usize,
    /// The settings that took part.
    pub settings: Vec<usize>,
}

/// What is raced.
pub struct Race<'a> {
    /// The settings; the first one is the careful one, which takes part in every round.
    pub settings: &'a [Settings],
    /// Number of prompts, at least [`MIN_PROMPTS`].
    pub prompts: usize,
    /// Most tokens of an answer.
    pub max_new: usize,
    /// Order of the prompts.
    pub seed: u64,
    /// Time that the trials may take; the first round is run in any case.
    pub budget: Option<Duration>,
}

/// How a race went.
pub struct Outcome {
    /// Its rounds.
    pub rounds: Vec<Round>,
    /// Its trials, in their order.
    pub trials: Vec<Trial>,
    /// The points of both fronts, by rising seconds.
    pub points: Vec<Point>,
}

impl Race<'_> {
    /// Runs the race; `run` answers a prompt with a setting, and `planned` hears how many trials there will be.
    ///
    /// # Errors
    /// What `run` says.
    pub fn run<E>(
        &self,
        planned: &dyn Fn(usize),
        run: &mut dyn FnMut(usize, usize) -> Result<Trial, E>,
    ) -> Result<Outcome, E> {
        let order = self.order();
        let mut racing: Vec<usize> = (0..self.settings.len()).collect();
        let mut trials: Vec<Trial> = Vec::new();
        let mut rounds: Vec<Round> = Vec::new();
        let mut plan = self.plan(self.prompts);
        planned(planned_trials(&plan, racing.len(), 0));
        let mut answered = 0;
        while let Some(until) = plan.first().copied() {
            for &prompt in &order[answered..until] {
                for &setting in &racing {
                    trials.push(run(setting, prompt)?);
                }
            }
            answered = until;
            rounds.push(Round { prompts: until, settings: racing.clone() });
            plan.remove(0);
            if rounds.len() == 1 {
                plan = self.within_budget(&trials);
                planned(trials.len() + planned_trials(&plan, racing.len().div_ceil(2), answered));
            }
            // A plan is an estimate; what was spent is not.
            let spent: u64 = trials.iter().map(|t| t.total_ns).sum();
            if plan.is_empty() || self.budget.is_some_and(|budget| u128::from(spent) >= budget.as_nanos()) {
                break;
            }
            racing = self.better_half(&racing, &trials);
        }
        let mut points = self.points(&racing, &trials);
        // Of equals the first lies on a front, so the order comes first.
        points.sort_by(|a, b| a.seconds.mean.total_cmp(&b.seconds.mean));
        let on_fronts = [front(&points, |p| p.seconds.mean), front(&points, |p| p.passes.mean)].concat();
        let points = points.into_iter().enumerate().filter(|(i, _)| on_fronts.contains(i)).map(|(_, p)| p).collect();
        Ok(Outcome { rounds, trials, points })
    }

    /// The prompts in the order in which they are answered.
    fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.prompts).collect();
        order.sort_by_key(|&prompt| mix(mix(self.seed) ^ prompt as u64));
        order
    }

    /// Number of prompts answered after each round, the last of them `prompts`.
    fn plan(&self, prompts: usize) -> Vec<usize> {
        let (mut left, mut halvings) = (self.settings.len(), 0);
        while left > FINALISTS {
            (left, halvings) = (left.div_ceil(2), halvings + 1);
        }
        let mut plan = vec![MIN_PROMPTS];
        let rounds = (0..=halvings).rev().map(|halving| prompts >> halving);
        plan.extend(rounds.filter(|&n| n > MIN_PROMPTS));
        plan.dedup();
        plan
    }

    /// What is left of the plan after the first round, with as many prompts as the budget is expected to allow.
    fn within_budget(&self, trials: &[Trial]) -> Vec<usize> {
        let spent: u64 = trials.iter().map(|t| t.total_ns).sum();
        let mean = spent / (trials.len() as u64).max(1);
        let mut prompts = self.prompts;
        loop {
            let plan = self.plan(prompts)[1..].to_vec();
            let trials = planned_trials(&plan, self.settings.len().div_ceil(2), MIN_PROMPTS);
            let cost = u128::from(spent) + u128::from(mean) * trials as u128;
            if plan.is_empty() || self.budget.is_none_or(|budget| cost <= budget.as_nanos()) {
                return plan;
            }
            prompts = prompts * 3 / 4;
        }
    }

    /// The better half of the settings, all that lie on a front, and the careful one.
    fn better_half(&self, racing: &[usize], trials: &[Trial]) -> Vec<usize> {
        let points = self.points(racing, trials);
        let seconds = layers(&points, |p| p.seconds.mean);
        let passes = layers(&points, |p| p.passes.mean);
        // Surely worse: another one is better in everything, and no interval touches its own.
        let worse = |p: &Point| {
            points.iter().any(|q| {
                q.agreement.low > p.agreement.high && q.seconds.high < p.seconds.low && q.passes.mean <= p.passes.mean
            })
        };
        let mut order: Vec<usize> = (0..points.len()).collect();
        order.sort_by(|&a, &b| {
            let rank = |i: usize| (worse(&points[i]), seconds[i].min(passes[i]));
            let agreement = |i: usize| points[i].agreement.mean;
            rank(a).cmp(&rank(b)).then(agreement(b).total_cmp(&agreement(a))).then(a.cmp(&b))
        });
        let half = racing.len().div_ceil(2).max(FINALISTS);
        let kept = order.iter().enumerate().filter(|(place, i)| *place < half || seconds[**i].min(passes[**i]) == 0);
        let mut kept: Vec<usize> = kept.map(|(_, &i)| racing[i]).chain([0]).collect();
        kept.sort_unstable();
        kept.dedup();
        kept
    }

    /// What is known of each of some settings.
    fn points(&self, racing: &[usize], trials: &[Trial]) -> Vec<Point> {
        let mut of: BTreeMap<usize, Vec<&Trial>> = BTreeMap::new();
        for trial in trials {
            of.entry(trial.setting).or_default().push(trial);
        }
        let none = Vec::new();
        racing.iter().map(|i| self.point(&self.settings[*i], of.get(i).unwrap_or(&none))).collect()
    }

    fn point(&self, settings: &Settings, trials: &[&Trial]) -> Point {
        let all = |f: &dyn Fn(&Trial) -> f64| trials.iter().map(|t| f(t)).collect::<Vec<f64>>();
        let sum = |f: &dyn Fn(&Trial) -> f64| all(f).iter().sum::<f64>();
        let ratio = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
        let behind = |t: &Trial| t.total_ns.saturating_sub(t.prefill_ns) as f64 * 1e-9;
        // The token that ends an answer was decoded too.
        let decoded = |t: &Trial| positions((t.tokens + 1).min(self.max_new), settings.block) as f64;
        let agreement = sum(&|t| f64::from(t.agreement_ppm) * 1e-6) / trials.len().max(1) as f64;
        Point {
            settings: settings.clone(),
            agreement: stats::wilson(agreement, trials.len()),
            seconds: stats::bootstrap(&all(&|t| t.total_ns as f64 * 1e-9), self.seed),
            passes: stats::bootstrap(&all(&|t| (t.prefills + t.passes) as f64), self.seed),
            cost: Cost {
                prompt_token: ratio(sum(&|t| t.prefill_ns as f64 * 1e-9), sum(&|t| t.prompt_tokens as f64)),
                pass: ratio(sum(&behind), sum(&|t| t.passes as f64)),
                answer: stats::upper(all(&behind)),
                position: stats::upper(all(&|t| behind(t) / decoded(t))),
                rows: ratio(sum(&|t| (t.prompt_tokens + self.max_new) as f64), trials.len() as f64).max(1.0),
            },
        }
    }
}

/// Trials of a plan that begins with `settings` settings behind `answered` prompts, and halves them in each further round.
fn planned_trials(plan: &[usize], mut settings: usize, mut answered: usize) -> usize {
    let mut trials = 0;
    for &until in plan {
        trials += settings * until.saturating_sub(answered);
        (answered, settings) = (until, settings.div_ceil(2).max(FINALISTS.min(settings)));
    }
    trials
}

/// For each point, how many fronts must be taken away before it lies on one.
fn layers(points: &[Point], cost: impl Fn(&Point) -> f64 + Copy) -> Vec<usize> {
    let mut layer = vec![usize::MAX; points.len()];
    let mut left: Vec<usize> = (0..points.len()).collect();
    let mut depth = 0;
    while !left.is_empty() {
        let these: Vec<Point> = left.iter().map(|&i| points[i].clone()).collect();
        let on: Vec<usize> = front(&these, cost).into_iter().map(|i| left[i]).collect();
        on.iter().for_each(|&i| layer[i] = depth);
        left.retain(|i| !on.contains(i));
        depth += 1;
    }
    layer
}

#[cfg(test)]
mod tests;
