//! Finds the first pass of a pipeline that breaks what a module computes, in about log₂ of its length runs.
//!
//! Between passes that lose something by design (formats of weights and caches) every stage must compute the same, so a
//! stretch of passes is judged by its ends and halved where these differ. Of the pass that is found, the first value
//! that differs says which rewrite it was.

use std::collections::BTreeMap;
use std::rc::Rc;

use dlx_ir::{Error, Module, VerifiedModule};
use dlx_passes::{Keeps, Step, run_pipeline};
use dlx_targets::WeightSource;
use serde::Serialize;

use super::call::{Run, Sizes, outside};
use super::compare::{Between, Breach};
use super::each::{Found, Stages, judge};
use super::reduce::{Repro, reduce};

/// The first pass that broke something.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// Its place in the pipeline, from 1.
    pub number: usize,
    /// The pass with its parameters.
    pub pass: String,
    /// The node that computes the first value that differs, and what it was before.
    pub between: Between,
    /// That value, or the first result that differs.
    pub breach: Option<Breach>,
    /// What the pass or the verifier behind it said, where the pass itself failed.
    pub error: Option<String>,
    /// Stages that were run, of those that there are.
    pub runs: usize,
    /// See `runs`.
    pub stages: usize,
    /// The smallest module on which it still fails, as a file test.
    pub repro: Option<Repro>,
}

/// The stages of a pipeline, behind passes that changed something.
struct Trail {
    /// Place of the pass that made each stage but the first.
    passes: Vec<usize>,
    modules: Vec<VerifiedModule>,
    /// What the pass in front of each stage but the first keeps.
    keeps: Vec<Keeps>,
    /// The pass that failed.
    failed: Option<(usize, Error)>,
}

impl Trail {
    fn of(module: &VerifiedModule, steps: &[Step]) -> Self {
        let mut trail = Trail { passes: vec![], modules: vec![module.clone()], keeps: vec![], failed: None };
        for (i, step) in steps.iter().enumerate() {
            let before = trail.modules.last().expect("it begins with one").clone();
            match run_pipeline(before.clone(), std::slice::from_ref(step), &mut |_, _, _| Ok(())) {
                Ok((after, _)) if *after == *before => {}
                Ok((after, _)) => {
                    trail.modules.push(after);
                    trail.passes.push(i);
                    trail.keeps.push((step.pass.keeps)(&step.params));
                }
                Err(failure) => {
                    trail.failed = Some((i, failure.error));
                    break;
                }
            }
        }
        trail
    }

    /// Stretches of stages, by first and last, whose ends must compute the same up to what is kept.
    fn stretches(&self) -> Vec<(usize, usize, Keeps)> {
        let mut all: Vec<(usize, usize, Keeps)> = Vec::new();
        for (i, &keeps) in self.keeps.iter().enumerate() {
            // What a host gives from there on, such as masks, was computed until here, and must have been right.
            let outside = |stage: usize| self.modules[stage].graphs.iter().any(|g| outside(g).is_some());
            let hosted = outside(i + 1) && !outside(i);
            match (all.last_mut(), keeps) {
                (Some((_, last, of @ (Keeps::Bits | Keeps::Rounding))), Keeps::Bits | Keeps::Rounding) if !hosted => {
                    *last = i + 1;
                    if keeps == Keeps::Rounding {
                        *of = keeps;
                    }
                }
                _ => all.push((i, i + 1, keeps)),
            }
        }
        all
    }
}

/// Runs that were made, by stage.
struct Runs<'a, 'w> {
    stages: Stages<'w>,
    trail: &'a Trail,
    sizes: Sizes,
    known: BTreeMap<usize, Rc<Run>>,
}

impl Runs<'_, '_> {
    fn run(&mut self, stage: usize) -> Result<Rc<Run>, Error> {
        if let Some(run) = self.known.get(&stage) {
            return Ok(run.clone());
        }
        let run = Rc::new(self.stages.run(&self.trail.modules[stage], &self.sizes)?);
        self.known.insert(stage, run.clone());
        Ok(run)
    }

    fn compare(&mut self, first: usize, last: usize, keeps: Keeps) -> Result<Found, Error> {
        let old = self.run(first)?;
        let before = (&*self.trail.modules[first], &*old);
        if let Keeps::Format(_) = keeps {
            return Ok(self.stages.hold(before, &self.trail.modules[last], &self.sizes, keeps)?.0);
        }
        let new = self.run(last)?;
        judge(before, (&self.trail.modules[last], &new), keeps)
    }
}

/// The first pass that does not keep what it says; nothing if all do.
///
/// # Errors
/// A stage that cannot be run.
pub fn bisect(
    module: &VerifiedModule,
    steps: &[Step],
    weights: &dyn WeightSource,
    seed: u64,
) -> Result<Option<Verdict>, Error> {
    let trail = Trail::of(module, steps);
    let stages = Stages::new(module, weights, seed);
    let sizes = stages.sizes(trail.modules.iter().map(|module| &**module));
    let mut runs = Runs { stages, trail: &trail, sizes, known: BTreeMap::new() };
    for (first, last, keeps) in trail.stretches() {
        if runs.compare(first, last, keeps)?.comparison.breach.is_none() {
            continue;
        }
        let (mut good, mut bad) = (first, last);
        while bad - good > 1 {
            let middle = good + (bad - good) / 2;
            let broken = runs.compare(first, middle, keeps)?.comparison.breach.is_some();
            if broken { bad = middle } else { good = middle }
        }
        let keeps = trail.keeps[bad - 1];
        let found = runs.compare(good, bad, keeps)?;
        let step = &steps[trail.passes[bad - 1]];
        let repro = reduce(&trail.modules[good], step, found.name.as_deref(), seed);
        return Ok(Some(Verdict {
            number: trail.passes[bad - 1] + 1,
            pass: step.to_string(),
            between: found.between.unwrap_or_default(),
            breach: found.value.or(found.comparison.breach),
            error: None,
            runs: runs.stages.runs,
            stages: trail.modules.len(),
            repro,
        }));
    }
    // A pass that fails, or whose module the verifier refuses, is the first one that breaks something.
    let Some((number, error)) = &trail.failed else { return Ok(None) };
    let before: &Module = trail.modules.last().expect("it begins with one");
    Ok(Some(Verdict {
        number: number + 1,
        pass: steps[*number].to_string(),
        between: Between::default(),
        breach: None,
        error: Some(error.to_string()),
        runs: runs.stages.runs,
        stages: trail.modules.len(),
        repro: reduce(before, &steps[*number], None, seed),
    }))
}
