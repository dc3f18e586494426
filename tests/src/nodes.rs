//! The node cases of the `onnx` package: one operator each, with inputs and what must come out.
//!
//! `tests/onnx/cases.py` writes them. A case runs in up to three ways: with its inputs as constants, so that everything is
//! computed while importing; and with its inputs given at run time, on the reference evaluator and on the runtime's executor
//! of graphs.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use dlx_ir::{Data, Evaluator, Module, Tensor, VerifiedModule, WeightDef};
use dlx_runtime::graph::{GraphModel, GraphOptions, Signature};
use dlxc::onnx::weights::OnnxWeights;
use dlxc::onnx::{Binding, OnnxModel, Value, fold, import};
use serde_json::Value as Json;

/// How a case is run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Way {
    /// Inputs are constants.
    Constants,
    /// Inputs are given at run time, to the reference evaluator.
    Evaluator,
    /// Inputs are given at run time, to the runtime.
    Executor,
}

impl Way {
    /// All ways.
    pub const ALL: [Way; 3] = [Way::Constants, Way::Evaluator, Way::Executor];

    /// Its name in the file of expectations.
    pub fn name(self) -> &'static str {
        match self {
            Way::Constants => "constants",
            Way::Evaluator => "evaluator",
            Way::Executor => "executor",
        }
    }
}

/// A value as the index describes it: of names of tensors.
#[derive(Clone, Debug)]
enum Made {
    Nothing,
    Of(String),
    List(Vec<Made>),
}

/// Whether a case that passes relies on a shape that the file declares, where only run-time values decide it; or why it fails.
pub type Outcome = Result<bool, String>;

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its name, without `test_`.
    pub name: String,
    /// Whether its function is spelled out in other operators.
    pub expanded: bool,
    /// Whether its inputs and outputs are tensors of common numbers.
    pub numeric: bool,
    /// Operators in it.
    pub ops: BTreeSet<String>,
    directory: PathBuf,
    rtol: f64,
    atol: f64,
    inputs: Vec<(String, Made)>,
    outputs: Vec<(String, Made)>,
}

/// Every case of a directory that `cases.py` has written.
///
/// # Errors
/// An index that cannot be read.
pub fn cases(directory: &Path) -> Result<Vec<Case>, String> {
    let path = directory.join("index.json");
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let json: Json = serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?;
    let list = json.as_array().ok_or("the index is no list")?;
    list.iter().map(|c| Case::read(directory, c).ok_or_else(|| format!("the index has a strange case: {c}"))).collect()
}

impl Case {
    fn read(directory: &Path, json: &Json) -> Option<Case> {
        let name = json["name"].as_str()?.to_owned();
        let port = |p: &Json| Some((p[0].as_str()?.to_owned(), Made::read(&p[1])?));
        let ports = |side: &str| json[side].as_array()?.iter().map(port).collect::<Option<Vec<_>>>();
        Some(Case {
            directory: directory.join(&name),
            expanded: json["expanded"].as_bool()?,
            numeric: json["numeric"].as_bool()?,
            ops: json["ops"].as_array()?.iter().map(|op| op.as_str().map(str::to_owned)).collect::<Option<_>>()?,
            rtol: json["rtol"].as_f64()?,
            atol: json["atol"].as_f64()?,
            inputs: ports("inputs")?,
            outputs: ports("outputs")?,
            name,
        })
    }

    /// Runs the case in every way. A panic is a failure like another.
    pub fn run(&self) -> BTreeMap<Way, Outcome> {
        let guarded = |f: &dyn Fn() -> Outcome| {
            catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or_default();
                Err(format!("PANIC: {text}"))
            })
        };
        let loaded =
            catch_unwind(AssertUnwindSafe(|| self.load())).unwrap_or_else(|_| Err("PANIC while it was read".into()));
        let loaded = match loaded {
            Ok(loaded) => loaded,
            Err(error) => return Way::ALL.into_iter().map(|way| (way, Err(error.clone()))).collect(),
        };
        Way::ALL.into_iter().map(|way| (way, guarded(&|| loaded.check(self, way)))).collect()
    }

    fn load(&self) -> Result<Loaded, String> {
        let data = OnnxModel::open(&self.directory.join("data.onnx")).map_err(|e| e.to_string())?;
        let model = OnnxModel::open(&self.directory.join("model.onnx")).map_err(|e| self.text(&e))?;
        let of = |ports: &[(String, Made)]| {
            let value =
                |(name, made): &(String, Made)| Ok((name.clone(), made.value(&data).map_err(|e| self.text(&e))?));
            ports.iter().map(value).collect::<Result<Vec<_>, String>>()
        };
        Ok(Loaded { inputs: of(&self.inputs)?, outputs: of(&self.outputs)?, model })
    }

    /// Why a case fails, in one line and without places: of several nodes the first.
    fn text(&self, error: &dlx_ir::Error) -> String {
        match error.message.split_once("cannot be imported:\n") {
            Some((_, nodes)) => {
                let first = nodes.lines().next().unwrap_or_default().trim();
                let (op, why) = first.split_once(": ").unwrap_or((first, ""));
                let why = why.split_once(&format!(" ({}", self.directory.display())).map_or(why, |(why, _)| why);
                format!("{}: {why}", op.split_once(" ×").map_or(op, |(op, _)| op))
            }
            None => error.to_string().replace(&format!("{}/", self.directory.display()), "").replace('\n', " "),
        }
    }
}

impl Made {
    fn read(json: &Json) -> Option<Made> {
        match json {
            Json::Null => Some(Made::Nothing),
            Json::String(name) => Some(Made::Of(name.clone())),
            Json::Array(list) => list.iter().map(Made::read).collect::<Option<_>>().map(Made::List),
            _ => None,
        }
    }

    fn value(&self, data: &OnnxModel) -> Result<Value, dlx_ir::Error> {
        match self {
            Made::Nothing => Ok(Value::Nothing),
            Made::List(list) => list.iter().map(|m| m.value(data)).collect::<Result<_, _>>().map(Value::List),
            Made::Of(name) => {
                let tensor = data.graph().initializers.get(name);
                let tensor = tensor.ok_or_else(|| dlx_ir::Error::new(name, "is not among the data"))?;
                data.known(tensor).map(Value::Tensor)
            }
        }
    }
}

/// Runs a module's only graph.
type Execute<'e> = &'e dyn Fn(&Module, &OnnxWeights<'_>, &[Tensor]) -> Result<Vec<Tensor>, String>;

/// A case with its values.
struct Loaded {
    model: OnnxModel,
    inputs: Vec<(String, Value)>,
    outputs: Vec<(String, Value)>,
}

impl Loaded {
    fn check(&self, case: &Case, way: Way) -> Outcome {
        let (found, declared) = match way {
            Way::Constants => {
                let found = fold(&self.model, &self.inputs.iter().cloned().collect()).map_err(|e| case.text(&e))?;
                (found.into_iter().collect(), false)
            }
            Way::Evaluator => self.run(case, &|module, weights, args| {
                let mut evaluator = Evaluator::new(module, weights, 1);
                evaluator.run(&module.graphs[0].name, args, &mut |_, _| {}).map_err(|e| e.to_string())
            })?,
            Way::Executor => self.run(case, &executed)?,
        };
        for (name, expected) in &self.outputs {
            let found = found.get(name).ok_or_else(|| format!("there is no output `{name}`"))?;
            same(expected, found, case).map_err(|e| format!("output differs: {e}"))?;
        }
        Ok(declared)
    }

    /// Imports the graph for inputs of these shapes, and runs it on their values; with whether declared shapes were relied on.
    fn run(&self, case: &Case, execute: Execute<'_>) -> Result<(BTreeMap<String, Value>, bool), String> {
        let mut binding = Binding { exact: true, ..Binding::default() };
        let mut args = BTreeMap::new();
        for (name, value) in &self.inputs {
            match value {
                Value::Tensor(t) => {
                    binding.shapes.insert(name.clone(), t.shape.clone());
                    args.insert(name.clone(), t.clone());
                }
                _ => return Err("a sequence or an optional is an input at run time".into()),
            }
        }
        let import = import(&self.model, "case", &binding).map_err(|e| case.text(&e))?;
        dlx_ir::verify(&import.module).map_err(|e| format!("the module is not valid: {}", e[0]))?;
        let graph = &import.module.graphs[0];
        let args = graph.params.iter().map(|p| args.get(&graph.values[*p].name).cloned());
        let args: Vec<Tensor> = args.collect::<Option<_>>().ok_or("a parameter has another name than its input")?;
        let weights = import.sources.weights(&self.model).map_err(|e| case.text(&e))?;
        let found = execute(&import.module, &weights, &args)?;
        let declared = import.notes.iter().any(|note| note.contains("declared shape"));
        Ok((import.outputs.iter().cloned().zip(found.into_iter().map(Value::Tensor)).collect(), declared))
    }
}

/// Runs a module's graph on the runtime's executor, with source weights as literals.
fn executed(module: &Module, weights: &OnnxWeights<'_>, args: &[Tensor]) -> Result<Vec<Tensor>, String> {
    let mut module = module.clone();
    let of_source = module.weights.iter().filter(|(_, w)| matches!(w.def, WeightDef::Source)).map(|(id, _)| id);
    for id in of_source.collect::<Vec<_>>() {
        let data = Evaluator::new(&module, weights, 1).weight(id)?.data.clone();
        module.weights[id].def = WeightDef::Literal(data);
    }
    let module =
        VerifiedModule::new(module).map_err(|e| format!("with literals, the module is not valid: {}", e[0]))?;
    let graph = &module.graphs[0];
    let names = |count: usize, what: &str| (0..count).map(|n| format!("{what}{n}")).collect::<Vec<_>>();
    let (inputs, outputs) = (names(graph.params.len(), "in"), names(graph.results.len(), "out"));
    let entry = Signature::of(graph, &inputs, &outputs)?;
    let model = GraphModel::new(module, vec![entry], &[], &GraphOptions::default()).map_err(|e| e.to_string())?;
    let mut found = model.run(&inputs.into_iter().zip(args.iter().cloned()).collect()).map_err(|e| e.to_string())?;
    outputs.iter().map(|name| found.remove(name).ok_or_else(|| format!("there is no result {name}"))).collect()
}

/// Compares as numpy's `assert_allclose` does, in types and shapes too.
fn same(expected: &Value, found: &Value, case: &Case) -> Result<(), String> {
    match (expected, found) {
        (Value::Nothing, Value::Nothing) => Ok(()),
        (Value::List(a), Value::List(b)) if a.len() == b.len() => {
            a.iter().zip(b).try_for_each(|(a, b)| same(a, b, case))
        }
        (Value::Tensor(a), Value::Tensor(b)) => same_tensor(a, b, case),
        _ => Err("another kind of value".into()),
    }
}

fn same_tensor(expected: &Tensor, found: &Tensor, case: &Case) -> Result<(), String> {
    if (expected.dtype, &expected.shape) != (found.dtype, &found.shape) {
        let text = |t: &Tensor| format!("{}{:?}", t.dtype, t.shape);
        return Err(format!("{} instead of {}", text(found), text(expected)));
    }
    if expected.data == found.data {
        return Ok(());
    }
    let (a, b) = (numbers(expected), numbers(found));
    let near =
        |a: f64, b: f64| a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= case.atol + case.rtol * a.abs();
    match a.iter().zip(&b).position(|(a, b)| !near(*a, *b)) {
        None => Ok(()),
        Some(i) => {
            let wrong = a.iter().zip(&b).filter(|(a, b)| !near(**a, **b)).count();
            Err(format!("{} of {} numbers, the first {} instead of {}", wrong, a.len(), b[i], a[i]))
        }
    }
}

fn numbers(t: &Tensor) -> Vec<f64> {
    match &t.data {
        Data::F64(x) => x.clone(),
        Data::F32(x) => x.iter().map(|v| f64::from(*v)).collect(),
        Data::I32(x) => x.iter().map(|v| f64::from(*v)).collect(),
        Data::I64(x) if t.dtype == dlx_ir::DType::U64 => x.iter().map(|v| (*v as u64) as f64).collect(),
        Data::I64(x) => x.iter().map(|v| *v as f64).collect(),
        Data::Bool(x) => x.iter().map(|v| f64::from(u8::from(*v))).collect(),
    }
}
