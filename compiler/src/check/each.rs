//! `--verify-each`: runs a module before and after every pass of a pipeline, and holds the pass to what it says it keeps.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::{Duration, Instant};

use dlx_ir::{DType, Error, Mask, Module, Op, VerifiedModule};
use dlx_passes::{Keeps, PASSES, Step};
use dlx_targets::{Settings, Target, WeightSource};
use serde::Serialize;

use super::call::{Run, Sizes, sizes};
use super::compare::{self, Between, Breach, Comparison};
use super::device::{self, WrongByte};
use super::host::Host;
use super::probe::Probe;
use super::source::Whole;

/// Seed of the inputs where nobody gives one.
pub const SEED: u64 = 0;
/// What int8 activations may cost, as the RMS over that of the result.
const ACTIVATIONS: f32 = 0.05;
/// What sums in f32 may cost.
const FLOATS: f32 = 2e-3;
/// Rows where no mask and no size asks for others.
const ROWS: usize = 8;

/// Errors that are allowed instead of what passes say they keep, by pass; `run` is for the run on a device. They are measured
/// as those of formats are: RMS of the difference over RMS of the result, each node by itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tolerances(pub BTreeMap<String, f32>);

impl Tolerances {
    fn of(&self, pass: &str, keeps: Keeps) -> Keeps {
        self.0.get(pass).map_or(keeps, |error| Keeps::Format(*error))
    }
}

impl FromStr for Tolerances {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let one = |part: &str| {
            let (pass, error) = part.split_once('=').ok_or_else(|| format!("`{part}` is not PASS=ERROR"))?;
            if pass != RUN && PASSES.iter().all(|p| p.name != pass) {
                return Err(format!(
                    "there is no pass `{pass}`; see `dlxc passes`, or use `{RUN}` for the run on the device"
                ));
            }
            let number = error.parse().ok().filter(|e: &f32| (0.0..=1.0).contains(e));
            Ok((pass.to_owned(), number.ok_or_else(|| format!("`{error}` is no error from 0 to 1"))?))
        };
        text.split(',').map(one).collect::<Result<_, _>>().map(Tolerances)
    }
}

/// What the run on a device is called among passes.
const RUN: &str = "run";

/// What a pass did to what the module computes.
#[derive(Clone, Debug, Serialize)]
pub struct Checked {
    /// The pass with its parameters.
    pub pass: String,
    /// What it says it keeps: `bits`, `rounding` or `format`.
    pub keeps: &'static str,
    /// The largest error that this allows.
    pub limit: f32,
    /// What was found.
    pub comparison: Comparison,
    /// Where it went wrong, if it did.
    pub between: Option<Between>,
    /// The first value that differs, if one does.
    pub value: Option<Breach>,
    /// The first number that was packed wrongly, if one was.
    pub byte: Option<WrongByte>,
    /// Why it was not run.
    pub skipped: Option<String>,
    /// What it took.
    #[serde(serialize_with = "seconds")]
    pub time: Duration,
}

fn seconds<S: serde::Serializer>(time: &Duration, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_f64(time.as_secs_f64())
}

impl Checked {
    /// Whether the pass kept what it says it keeps.
    pub fn holds(&self) -> bool {
        self.comparison.breach.is_none() && self.byte.is_none()
    }

    /// The breach as an error, if there is one.
    pub fn error(&self) -> Option<Error> {
        if let Some(byte) = &self.byte {
            let WrongByte { at: [row, column], byte, holds, expected, found, weight, sources } = byte;
            let message = format!(
                "[{row}, {column}] was packed as {found}, and is {expected}: the {holds} at byte {byte} of the weights"
            );
            let help = format!("made of {}", sources.join(", "));
            return Some(Error::new(format!("{}: {weight}", self.pass), message).help(help));
        }
        let result = self.comparison.breach.as_ref()?;
        let Breach { value, at: [row, column], expected, found } = self.value.as_ref().unwrap_or(result);
        let message = format!(
            "{value} is {found:e} at [{row}, {column}], and was {expected:e}; {} of {} is allowed, and {:.2e} was found",
            self.keeps, self.limit, self.comparison.error
        );
        let lines = |nodes: &[String]| nodes.iter().map(|n| format!("\n  {n}")).collect::<String>();
        let help = self.between.as_ref().map_or_else(String::new, |between| {
            let sources = if between.sources.is_empty() {
                String::new()
            } else {
                format!("\nfrom {}", between.sources.join(", "))
            };
            format!(
                "it was computed by{}\nand is computed by{}{sources}",
                lines(&between.before),
                lines(&between.after)
            )
        });
        Some(Error::new(&self.pass, message).help(help))
    }

    fn new(pass: String, keeps: Keeps) -> Self {
        Checked {
            pass,
            keeps: name(keeps),
            limit: compare::limit(keeps),
            comparison: Comparison::default(),
            between: None,
            value: None,
            byte: None,
            skipped: None,
            time: Duration::ZERO,
        }
    }
}

/// Runs stages of one module, each once for the sizes that it is asked for.
pub struct Stages<'a> {
    /// What they are run on.
    pub probe: Probe,
    /// Their weights.
    pub weights: &'a dyn WeightSource,
    /// Runs so far.
    pub runs: usize,
    /// What feeds stages whose caches are outside.
    host: Option<Host<'a>>,
}

impl<'a> Stages<'a> {
    /// Runs that suit a module.
    pub fn new(module: &Module, weights: &'a dyn WeightSource, seed: u64) -> Self {
        Stages { probe: probe_for(module, seed), weights, runs: 0, host: Host::of(module, weights) }
    }

    /// What a stage computes.
    ///
    /// # Errors
    /// What the evaluator says.
    pub fn run(&mut self, module: &Module, sizes: &Sizes) -> Result<Run, Error> {
        self.run_along(None, module, sizes)
    }

    fn run_along(&mut self, along: Option<&Run>, module: &Module, sizes: &Sizes) -> Result<Run, Error> {
        self.runs += 1;
        let (source, host) = (Whole { module, rows: self.weights }, self.host.as_ref());
        self.probe.run(module, &source, sizes, host, along)
    }

    /// The sizes that a comparison of stages takes.
    pub(super) fn sizes<'m>(&self, modules: impl IntoIterator<Item = &'m Module>) -> Sizes {
        sizes(modules, self.probe.rows)
    }

    /// Holds a stage to what an earlier one computed. Where a format loses something, each node is judged by itself.
    pub(super) fn hold(
        &mut self,
        before: (&Module, &Run),
        after: &Module,
        sizes: &Sizes,
        keeps: Keeps,
    ) -> Result<(Found, Run), Error> {
        let along = matches!(keeps, Keeps::Format(_)).then_some(before.1);
        let run = self.run_along(along, after, sizes)?;
        Ok((judge(before, (after, &run), keeps)?, run))
    }

    /// Holds what lies between two stages to what is to be kept.
    ///
    /// # Errors
    /// What the evaluator says.
    pub fn compare(&mut self, before: &Module, after: &Module, keeps: Keeps) -> Result<Found, Error> {
        let all = self.sizes([before, after]);
        let old = self.run(before, &all)?;
        Ok(self.hold((before, &old), after, &all, keeps)?.0)
    }
}

/// What a module is run on: two blocks where its masks have blocks.
pub fn probe_for(module: &Module, seed: u64) -> Probe {
    let masks = module.graphs.iter().flat_map(|g| &g.nodes).filter_map(|n| match n.op {
        Op::Mask { rule } | Op::CachedAttention { mask: rule, .. } => Some(rule),
        Op::Attention { mask, .. } => mask,
        _ => None,
    });
    let masks: Vec<Mask> = masks.collect();
    let blocks = masks.iter().map(|mask| if let Mask::BlockCausal(block) = mask { 2 * *block as usize } else { ROWS });
    let unit = masks.first().and_then(|m| m.prefix_unit()).filter(|_| masks.iter().all(|m| *m == masks[0]));
    Probe { seed, rows: blocks.max().unwrap_or(ROWS), unit, ids: Vec::new() }
}

/// A comparison, and where it went wrong if it did.
pub struct Found {
    /// Of the results.
    pub comparison: Comparison,
    /// The first value that differs.
    pub value: Option<Breach>,
    /// Its name.
    pub name: Option<String>,
    /// What lies between it and what agrees.
    pub between: Option<Between>,
}

/// Compares two runs and, where they differ by more than may be, says where that begins.
pub(super) fn judge(before: (&Module, &Run), after: (&Module, &Run), keeps: Keeps) -> Result<Found, Error> {
    let comparison = compare::results(before.1, after.1, after.0, keeps);
    let mut found = Found { comparison, value: None, name: None, between: None };
    if let Keeps::Format(_) = keeps {
        let error = &mut found.comparison.error;
        *error = error.max(compare::largest_error(before.1, after.1, keeps));
    } else if found.comparison.breach.is_none() {
        return Ok(found);
    }
    let seen = match compare::first_value(before.1, after.1, keeps) {
        Some((seen, breach)) => {
            found.comparison.breach.get_or_insert_with(|| breach.clone());
            found.value = Some(breach);
            Some(seen)
        }
        None => compare::result(after, found.comparison.at.as_ref()),
    };
    if let Some(seen) = seen {
        found.between = Some(compare::between(before, after, &seen, keeps)?);
        found.name = Some(seen.name);
    }
    Ok(found)
}

/// Runs a pipeline and holds every pass that changes something to what it says it keeps. `tell` is called after each.
///
/// # Errors
/// A pass that fails, or a stage that cannot be run.
pub fn verify_each(
    module: &VerifiedModule,
    steps: &[Step],
    weights: &dyn WeightSource,
    seed: u64,
    tolerances: &Tolerances,
    tell: &mut dyn FnMut(&Checked),
) -> Result<(Vec<Checked>, VerifiedModule), Error> {
    let mut stages = Stages::new(module, weights, seed);
    let mut all = Vec::new();
    let mut known: Option<(Sizes, Run)> = None;
    let mut before = module.clone();
    for step in steps {
        let started = Instant::now();
        let outcome = dlx_passes::run_pipeline(before.clone(), std::slice::from_ref(step), &mut |_, _, _| Ok(()));
        let (after, _) = outcome.map_err(|failure| failure.error)?;
        let keeps = tolerances.of(step.pass.name, (step.pass.keeps)(&step.params));
        let mut checked = Checked::new(step.to_string(), keeps);
        // Whatever the pass reports.
        if *after != *before {
            let sizes = stages.sizes([&*before, &*after]);
            let old = match known.take().filter(|(for_sizes, _)| *for_sizes == sizes) {
                Some((_, run)) => run,
                None => stages.run(&before, &sizes)?,
            };
            let (found, new) = stages.hold((&before, &old), &after, &sizes, keeps)?;
            (checked.comparison, checked.between, checked.value) = (found.comparison, found.between, found.value);
            known = Some((sizes, new)).filter(|_| !matches!(keeps, Keeps::Format(_)));
        }
        checked.time = started.elapsed();
        tell(&checked);
        all.push(checked);
        before = after;
    }
    Ok((all, before))
}

/// Packs the weights of the last stage, and runs it where it is meant to run. Quantized products have int8 activations there.
///
/// # Errors
/// What cannot be packed or run.
pub fn verify_target(
    target: (&Target, &Settings),
    module: &VerifiedModule,
    weights: &dyn WeightSource,
    seed: u64,
    tolerances: &Tolerances,
    tell: &mut dyn FnMut(&Checked),
) -> Result<Vec<Checked>, Error> {
    let mut stages = Stages::new(module, weights, seed);
    let started = Instant::now();
    let emitted = device::pack(module, weights)?;
    let mut packed = Checked::new("pack weights".into(), Keeps::Bits);
    (packed.comparison.compared, packed.byte) =
        device::first_wrong(module, weights, &emitted.module, emitted.section())?;
    packed.time = started.elapsed();
    tell(&packed);

    let started = Instant::now();
    let quantized = module.weights.iter().any(|(_, w)| matches!(w.ty.dtype, DType::Quant(_)));
    let keeps = if quantized { Keeps::Format(ACTIVATIONS) } else { Keeps::Format(FLOATS) };
    let keeps = tolerances.of(RUN, keeps);
    let mut run = Checked::new(format!("{RUN} on {}", target.0.name), keeps);
    match device::load(target.0, &emitted, target.1, None) {
        Ok(mut executor) => {
            let sizes = stages.sizes([&**module]);
            // Each node from what the device computed in front of it: what codes lose does not add up.
            let found = device::run(&stages.probe, module, &mut *executor, &sizes)?;
            let expected = stages.run_along(Some(&found), module, &sizes)?;
            let found = judge((module, &expected), (module, &found), keeps)?;
            (run.comparison, run.between, run.value) = (found.comparison, found.between, found.value);
        }
        Err(e) => run.skipped = Some(e.to_string()),
    }
    run.time = started.elapsed();
    tell(&run);
    Ok(vec![packed, run])
}

/// The word for what a pass keeps.
pub fn name(keeps: Keeps) -> &'static str {
    match keeps {
        Keeps::Bits => "bits",
        Keeps::Rounding => "rounding",
        Keeps::Format(_) => "format",
    }
}
