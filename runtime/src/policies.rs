//! Measured ways of decoding: what `dlxc tune` found out about a model, and how a request picks from it.
//!
//! The `policies` section of an artifact is a [`Policies`] as JSON: settings on one of two Pareto fronts, agreement against
//! seconds and agreement against forward passes. Fronts are computed from the points, so they are monotone whatever a file
//! says; a point that lies on neither is an error. Seconds hold on the machine that measured; a call scales them by the
//! pace of its own (`session/aim.rs`).
//!
//! Invariant: what [`Policies::read`] returns holds finite numbers in range and known rules. Whether a model can run the
//! settings is the session's question.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::decode::policy::CacheMode;
use crate::decode::{Overrides, Reveal, reveal};

/// The version of the section that this build reads and writes.
pub const VERSION: u32 = 1;
/// Most points of a section: far more than a front of a sweep has.
const MAX_POINTS: usize = 1024;
/// Longest time that a call is believed to take, in seconds.
const MAX_SECONDS: f64 = 1e9;

/// Settings of the decode loop that a sweep varies; the rest is the model's own policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// See [`crate::decode::DecodePolicy::reveal`].
    pub reveal: Reveal,
    /// See [`crate::decode::DecodePolicy::steps`].
    pub steps: usize,
    /// See [`crate::decode::DecodePolicy::block`].
    pub block: usize,
    /// See [`crate::decode::DecodePolicy::cache`].
    pub cache: CacheMode,
    /// Tokens per draft of the session's drafter, in one pass; nothing is drafted if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draft: Option<usize>,
}

impl Settings {
    /// `others` with these settings put in.
    pub fn over(&self, others: &Overrides) -> Overrides {
        Overrides {
            reveal: Some(self.reveal.clone()),
            steps: Some(self.steps),
            block: Some(self.block),
            cache: Some(self.cache),
            ..others.clone()
        }
    }
}

impl std::fmt::Display for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.reveal.rule)?;
        for (name, value) in &self.reveal.params {
            write!(f, " {name}={value}")?;
        }
        let cache = serde_json::to_value(self.cache).unwrap_or_default();
        let cache = cache.as_str().unwrap_or_default();
        write!(f, ", {} steps per block of {}, cache {cache}", self.steps, self.block)?;
        self.draft.map_or(Ok(()), |draft| write!(f, ", drafts of {draft}"))
    }
}

/// What agreement was measured with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reference {
    /// The answers of the prompts' file: the share of texts that are exactly the expected one.
    Answers,
    /// The model itself, one token per step and without approximate caches: how much of the tokens is the same, one minus
    /// insertions and deletions over the length of both.
    Careful,
}

/// A measured number and where it lies with a confidence of 95 %.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interval {
    /// The number.
    pub mean: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Interval {
    fn check(&self, what: &str, most: f64) -> Result<(), String> {
        let ordered = 0.0 <= self.low && self.low <= self.mean && self.mean <= self.high && self.high <= most;
        if ordered { Ok(()) } else { Err(format!("its {what} is no interval from 0 to {most}")) }
    }
}

/// What predicts the time of a call.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// Mean seconds of prefill per token of a prompt.
    pub prompt_token: f64,
    /// Mean seconds of a pass that is no prefill.
    pub pass: f64,
    /// Seconds of an answer behind its prefill: 39 of 40 took no longer.
    pub answer: f64,
    /// The same per position of the answer, in whole blocks.
    pub position: f64,
    /// Mean number of positions that a pass over a whole sequence feeds.
    pub rows: f64,
}

/// One setting, and what it gave and took per call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// The setting.
    pub settings: Settings,
    /// Agreement with the reference, from 0 to 1.
    pub agreement: Interval,
    /// Seconds per call.
    pub seconds: Interval,
    /// Forward passes per call.
    pub passes: Interval,
    /// Predicts the seconds of other calls.
    pub cost: Cost,
}

/// The `policies` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policies {
    /// [`VERSION`].
    pub version: u32,
    /// What agreement is.
    pub reference: Reference,
    /// Prompts that every point answered.
    pub prompts: usize,
    /// What the seconds were measured on, for people.
    pub device: String,
    /// Seconds of a probe there (`Session::probe`), by which another machine finds its pace.
    pub probe: f64,
    /// The points of both fronts, by rising seconds.
    pub points: Vec<Point>,
}

/// Just enough of a section to know whether the rest can be read.
#[derive(Deserialize)]
struct Peek {
    version: u32,
}

/// What a request wants of the measured settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Aim {
    /// The fewest seconds.
    Fast,
    /// The fewest seconds of those whose agreement cannot be told from the best.
    Balanced,
    /// The highest agreement.
    Best,
    /// The fewest seconds with at least this agreement.
    AtLeast(f64),
    /// The highest agreement that is expected within this time, at which the call ends in any case.
    Within(Duration),
}

/// What is known of a call before it runs.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Most tokens of the answer.
    pub max_new: usize,
}

/// A setting that was picked for a call.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Chosen {
    /// Index of the point.
    pub point: usize,
    /// Its settings.
    pub settings: Settings,
    /// Its agreement.
    pub agreement: f64,
    /// Seconds that 39 of 40 such calls should stay below here.
    pub seconds: f64,
    /// Seconds of one of its passes here.
    pub pass: f64,
    /// Whether it is expected to do what was asked: false only for [`Aim::Within`] when no setting is fast enough, and the
    /// fastest stands in.
    pub fits: bool,
}

impl Policies {
    /// Reads and checks a section.
    ///
    /// # Errors
    /// Another version, or the first thing in it that cannot be.
    pub fn read(text: &str) -> Result<Self, String> {
        let Peek { version } = serde_json::from_str(text).map_err(|e| e.to_string())?;
        if version != VERSION {
            return Err(format!("it has version {version}, this build reads {VERSION}: run `dlxc tune` again"));
        }
        let policies: Self = serde_json::from_str(text).map_err(|e| e.to_string())?;
        policies.check()?;
        Ok(policies)
    }

    /// Checks what [`Policies::read`] promises.
    ///
    /// # Errors
    /// The first thing that cannot be.
    pub fn check(&self) -> Result<(), String> {
        if self.points.is_empty() || self.points.len() > MAX_POINTS {
            return Err(format!("it has {} points, of 1 to {MAX_POINTS}", self.points.len()));
        }
        if !(self.probe > 0.0 && self.probe <= MAX_SECONDS) {
            return Err("its probe is no time".into());
        }
        for (i, point) in self.points.iter().enumerate() {
            point.check().map_err(|why| format!("point {i}: {why}"))?;
        }
        if !self.points.is_sorted_by(|a, b| a.seconds.mean <= b.seconds.mean) {
            return Err("its points are not in the order of their seconds".into());
        }
        let fronts = [self.by_seconds(), self.by_passes()].concat();
        match (0..self.points.len()).find(|i| !fronts.contains(i)) {
            Some(i) => Err(format!("point {i} is on neither front: others agree as much and cost no more")),
            None => Ok(()),
        }
    }

    /// The front of agreement against seconds: indices of points, each dearer than those before and in better agreement.
    pub fn by_seconds(&self) -> Vec<usize> {
        front(&self.points, |point| point.seconds.mean)
    }

    /// The front of agreement against forward passes.
    pub fn by_passes(&self) -> Vec<usize> {
        front(&self.points, |point| point.passes.mean)
    }

    /// Picks a point for a call on a machine that takes `pace` times as long as the one that measured.
    ///
    /// # Errors
    /// An agreement that no point has.
    pub fn pick(&self, aim: Aim, call: &Call, pace: f64) -> Result<Chosen, String> {
        let front: Vec<usize> = self.by_seconds();
        let agreement = |i: usize| self.points[i].agreement;
        let seconds = |i: usize| pace * self.points[i].seconds_of(call);
        let (fast, best) = (front[0], front[front.len() - 1]);
        let cheapest = |least: f64| front.iter().copied().find(|&i| agreement(i).mean >= least);
        let (point, fits) = match aim {
            Aim::Fast => (fast, true),
            Aim::Balanced => (cheapest(agreement(best).low).unwrap_or(best), true),
            Aim::Best => (best, true),
            Aim::AtLeast(least) => {
                let found = cheapest(least);
                let most = agreement(best).mean;
                (found.ok_or_else(|| format!("no measured setting has an agreement of {least}: ask for {most:.3} at most, or compile to a less compressed format and tune that"))?, true)
            }
            Aim::Within(limit) => match front.iter().rev().find(|&&i| seconds(i) <= limit.as_secs_f64()) {
                Some(&point) => (point, true),
                // The order of their means need not be that of calls of another length.
                None => {
                    (front.iter().copied().min_by(|&a, &b| seconds(a).total_cmp(&seconds(b))).unwrap_or(fast), false)
                }
            },
        };
        let Point { settings, cost, .. } = &self.points[point];
        let (agreement, seconds, pass) = (agreement(point).mean, seconds(point), pace * cost.pass);
        Ok(Chosen { point, settings: settings.clone(), agreement, seconds, pass, fits })
    }
}

/// Indices of the points that nothing else beats in agreement at the same cost or less, by rising cost. Of equals the first.
pub fn front(points: &[Point], cost: impl Fn(&Point) -> f64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..points.len()).collect();
    let agreement = |i: usize| points[i].agreement.mean;
    order.sort_by(|&a, &b| cost(&points[a]).total_cmp(&cost(&points[b])).then(agreement(b).total_cmp(&agreement(a))));
    let mut best = f64::NEG_INFINITY;
    order.retain(|&i| {
        let better = agreement(i) > best;
        best = best.max(agreement(i));
        better
    });
    order
}

/// Positions that an answer of at most so many tokens takes, in whole blocks.
pub fn positions(tokens: usize, block: usize) -> usize {
    tokens.max(1).checked_next_multiple_of(block.max(1)).unwrap_or(usize::MAX)
}

impl Point {
    fn check(&self) -> Result<(), String> {
        let Settings { reveal, steps, block, draft, .. } = &self.settings;
        let rule = reveal::find(&reveal.rule);
        let rule = rule.ok_or_else(|| format!("there is no rule `{}`: {}", reveal.rule, reveal::names()))?;
        if let Some(name) = reveal.params.keys().find(|name| !rule.params.iter().any(|p| p.name == *name)) {
            return Err(format!("the rule `{}` has no parameter `{name}`", reveal.rule));
        }
        if *steps == 0 || *block == 0 {
            return Err("its steps and its block must be at least 1".into());
        }
        if *draft == Some(0) {
            return Err("its drafts must have at least one token".into());
        }
        self.agreement.check("agreement", 1.0)?;
        self.seconds.check("seconds", MAX_SECONDS)?;
        self.passes.check("passes", MAX_SECONDS)?;
        let Cost { prompt_token, pass, answer, position, rows } = self.cost;
        let sound = |n: f64| (0.0..=MAX_SECONDS).contains(&n);
        if ![prompt_token, pass, answer, position, rows].into_iter().all(sound) || rows < 1.0 {
            return Err("its cost holds a number that is no time or no count of rows".into());
        }
        Ok(())
    }

    /// Seconds that 39 of 40 calls like this one stayed below, on the machine that measured.
    fn seconds_of(&self, call: &Call) -> f64 {
        let cost = &self.cost;
        let most = cost.position * positions(call.max_new, self.settings.block) as f64;
        // Where every pass or the first of each block feeds the whole sequence, a longer one takes longer.
        let whole = matches!(self.settings.cache, CacheMode::None | CacheMode::Prefix | CacheMode::Dual);
        let rows = (call.prompt as f64 + call.max_new as f64) / cost.rows;
        cost.prompt_token * call.prompt as f64 + cost.answer.min(most) * if whole { rows.max(1.0) } else { 1.0 }
    }
}

#[cfg(test)]
mod tests;
