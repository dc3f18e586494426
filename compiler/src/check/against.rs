//! Finds the first stage of a pipeline that is further from a reference than it may be: from numbers in a file, or from what
//! another artifact computes.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::rc::Rc;
use std::str::FromStr;

use dlx_ir::{Error, Tensor, VerifiedModule};
use dlx_passes::{Params, Step, run_pipeline};
use dlx_runtime::artifact::Artifact;
use dlx_runtime::exec::Span;
use dlx_runtime::{LoadOptions, load_executor};
use dlx_targets::WeightSource;
use serde::Serialize;

use super::call::{Call, Run};
use super::compare::{Distance, distance};
use super::each::{Stages, probe_for};
use super::probe::argument;
use crate::arrays::ArrayFile;

/// What is compared with a reference.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// RMS of the difference of the logits over that of the reference.
    Logits,
    /// The same of every value that has the name of a tensor of the reference; the largest counts.
    Hidden,
    /// Rows whose most likely token is another one.
    Tokens,
}

impl FromStr for Metric {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "logits" => Ok(Metric::Logits),
            "hidden" => Ok(Metric::Hidden),
            "tokens" => Ok(Metric::Tokens),
            _ => Err("use logits, hidden or tokens".into()),
        }
    }
}

impl Metric {
    /// What is allowed where nobody says.
    pub fn tolerance(self) -> f32 {
        if self == Metric::Tokens { 0.0 } else { 0.02 }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Metric::Logits => "logits",
            Metric::Hidden => "hidden",
            Metric::Tokens => "tokens",
        })
    }
}

/// What a model should compute of some tokens.
pub struct Reference {
    /// Where it comes from.
    pub name: String,
    /// The tokens.
    pub ids: Vec<i32>,
    /// Tensors by the name of the value; `logits` are those.
    pub values: BTreeMap<String, Tensor>,
}

impl Reference {
    /// Reads `input_ids` (or `ids`), `logits` and tensors that have the names of values from a file of arrays.
    ///
    /// # Errors
    /// A file that cannot be read, or has no tokens.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let mut file = ArrayFile::open(path)?;
        let names: Vec<String> = file.arrays().iter().map(|a| a.name.clone()).collect();
        let at = names.iter().position(|n| n == "input_ids" || n == "ids");
        let at = at.ok_or_else(|| {
            Error::new(path.display(), "has no tensor `input_ids`")
                .help("a reference holds the tokens as `input_ids`, and `logits` or values by name")
        })?;
        let mut values = BTreeMap::new();
        for (i, name) in names.iter().enumerate().filter(|(i, _)| *i != at) {
            values.insert(name.clone(), file.read(i)?);
        }
        let ids = match file.read(at)?.data {
            dlx_ir::Data::I64(ids) => ids.iter().map(|id| i32::try_from(*id).ok()).collect(),
            dlx_ir::Data::I32(ids) => Some(ids),
            _ => None,
        };
        let place = || Error::new(format!("{}: {}", path.display(), names[at]), "holds no tokens");
        let ids: Vec<i32> = ids.filter(|ids| !ids.is_empty()).ok_or_else(place)?;
        Ok(Reference { name: path.display().to_string(), ids, values })
    }

    /// What an artifact computes of tokens, in one step.
    ///
    /// # Errors
    /// An artifact that does not load, or has no step for so many rows.
    pub fn of_artifact(path: &Path, ids: Vec<i32>, options: &LoadOptions) -> Result<Self, Error> {
        let failed = |e: &dyn fmt::Display| Error::new(path.display(), e.to_string());
        let artifact = Artifact::open(path).map_err(|e| Error::new("", e.to_string()))?;
        let mut executor = load_executor(&artifact, options).map_err(|e| Error::new("", e.to_string()))?;
        let pos: Vec<i32> = (0..).take(ids.len()).collect();
        let mut values = BTreeMap::new();
        let rows = ids.len();
        let span = [Span::new(&ids, &pos, 0)];
        let mut see = |name: &str, x: &[f32]| {
            values.insert(name.to_owned(), Tensor::f32(&[rows, x.len() / rows.max(1)], x.to_vec()));
        };
        executor.observe(&span, &mut see).map_err(|e| failed(&e))?;
        let chosen: Vec<usize> = (0..rows).collect();
        let mut logits = vec![0.0; rows * executor.vocab()];
        for (rows, out) in chosen.chunks(1).zip(logits.chunks_mut(executor.vocab())) {
            executor.logits(rows, out).map_err(|e| failed(&e))?;
        }
        values.insert("logits".into(), Tensor::f32(&[rows, executor.vocab()], logits));
        Ok(Reference { name: path.display().to_string(), ids, values })
    }
}

/// Seeded tokens for an imported model: two blocks.
///
/// # Errors
/// It embeds none.
pub fn tokens(module: &VerifiedModule, seed: u64) -> Result<Vec<i32>, Error> {
    let graph = module.graphs.first().ok_or_else(|| Error::new("module", "has no graph"))?;
    let probe = probe_for(module, seed);
    let rows = probe.rows;
    let call = Call { role: "step".into(), rows, step: rows, turn: 0 };
    let ids = graph.params.first().ok_or_else(|| Error::new(format!("graph @{}", graph.name), "takes no tokens"))?;
    let ids = argument(&probe, module, graph, *ids, &call)?;
    ids.ints().map(<[i32]>::to_vec).map_err(|e| Error::new(format!("graph @{}", graph.name), e))
}

/// How far a stage is from the reference.
#[derive(Clone, Debug, Serialize)]
pub struct Gap {
    /// The value that is furthest.
    pub value: String,
    /// How far, in the measure of the metric.
    pub error: f32,
}

/// The first stage that is too far from a reference.
#[derive(Clone, Debug, Serialize)]
pub struct Departure {
    /// The pass in front of it, from 1; 0 where the imported model is too far already.
    pub number: usize,
    /// The pass with its parameters, or `import`.
    pub pass: String,
    /// The stage before it, if there is one.
    pub before: Option<Gap>,
    /// The stage.
    pub after: Gap,
    /// Stages that were run, of those that there are.
    pub runs: usize,
    /// See `runs`.
    pub stages: usize,
}

/// Finds the first stage whose distance from the reference is above the tolerance; nothing if the last one is near.
///
/// # Errors
/// A stage that cannot be run, or a reference of another shape.
pub fn departs(
    module: &VerifiedModule,
    steps: &[Step],
    weights: &dyn WeightSource,
    reference: &Reference,
    metric: Metric,
    tolerance: f32,
) -> Result<Option<Departure>, Error> {
    let rows = reference.ids.len();
    // Graphs get the size of the reference.
    let sized = steps.iter().map(|step| {
        let params = step.params.0.iter().map(|(key, value)| match (step.pass.name, key.as_str()) {
            ("specialize", _) => (key.clone(), rows.to_string()),
            ("split-head", "rows") => (key.clone(), rows.to_string()),
            _ => (key.clone(), value.clone()),
        });
        Step { pass: step.pass, params: Params(params.collect()) }
    });
    let mut modules = vec![(0, module.clone())];
    for (i, step) in sized.enumerate() {
        let before = modules.last().expect("it begins with one").1.clone();
        let outcome = run_pipeline(before.clone(), &[step], &mut |_, _, _| Ok(()));
        let (after, _) = outcome.map_err(|failure| failure.error)?;
        if *after != *before {
            modules.push((i + 1, after));
        }
    }
    let mut stages = Stages::new(module, weights, 0);
    stages.probe.ids.clone_from(&reference.ids);
    stages.probe.rows = rows;
    let mut known: BTreeMap<usize, Gap> = BTreeMap::new();
    let mut gap = |stage: usize| -> Result<Gap, Error> {
        if let Some(gap) = known.get(&stage) {
            return Ok(gap.clone());
        }
        let sizes = stages.sizes([&*modules[stage].1]);
        let run = stages.run(&modules[stage].1, &sizes)?;
        let gap = of(&run, reference, metric)?;
        known.insert(stage, gap.clone());
        Ok(gap)
    };
    let far = |gap: &Gap| gap.error.is_nan() || gap.error > tolerance;
    let last = modules.len() - 1;
    if !far(&gap(last)?) {
        return Ok(None);
    }
    let (mut good, mut bad) = (None, last);
    if far(&gap(0)?) {
        bad = 0;
    } else {
        let mut near = 0;
        while bad - near > 1 {
            let middle = near + (bad - near) / 2;
            if far(&gap(middle)?) { bad = middle } else { near = middle }
        }
        good = Some(gap(near)?);
    }
    let after = gap(bad)?;
    let number = modules[bad].0;
    let pass = number.checked_sub(1).map_or_else(|| "import".to_owned(), |i| steps[i].to_string());
    Ok(Some(Departure { number, pass, before: good, after, runs: stages.runs, stages: modules.len() }))
}

/// How far a run is from the reference.
fn of(run: &Run, reference: &Reference, metric: Metric) -> Result<Gap, Error> {
    let logits = || {
        let of = |role: &str| {
            let mut all = run.results.iter().filter(|(call, r)| call.role == role && call.turn == 0 && !r.is_empty());
            all.next().map(|(_, results)| results[0].clone())
        };
        of("logits").or_else(|| of("step"))
    };
    let place = |name: &str| format!("{}: {name}", reference.name);
    let mut found: Vec<(&str, &Tensor, Rc<Tensor>)> = Vec::new();
    for (name, expected) in &reference.values {
        let value = match (metric, name.as_str()) {
            (Metric::Hidden, "logits") => None,
            (Metric::Hidden, _) => {
                run.values.iter().find(|v| v.name == *name && v.call.turn == 0).map(|v| v.tensor.clone())
            }
            (_, "logits") => logits(),
            _ => None,
        };
        found.extend(value.map(|v| (name.as_str(), expected, v)));
    }
    if found.is_empty() {
        let (what, help) = match metric {
            Metric::Hidden => ("no tensor that has the name of a value", "use names as in `--dump`, such as l0.out"),
            _ => ("no `logits`", "add them, or use --metric hidden"),
        };
        return Err(Error::new(&reference.name, format!("has {what}")).help(help));
    }
    let mut worst: Option<Gap> = None;
    for (name, expected, value) in found {
        let d = distance(expected, &value).ok_or_else(|| {
            Error::new(place(name), format!("is {:?}, and the model gives {:?}", expected.shape, value.shape))
                .help("a reference is of one sequence, without padding")
        })?;
        let error = measure(d, metric);
        if worst.as_ref().is_none_or(|w| error > w.error) {
            worst = Some(Gap { value: name.to_owned(), error });
        }
    }
    worst.ok_or_else(|| Error::new(&reference.name, "has nothing to compare"))
}

fn measure(d: Distance, metric: Metric) -> f32 {
    if metric == Metric::Tokens { d.flips as f32 } else { d.rms }
}
