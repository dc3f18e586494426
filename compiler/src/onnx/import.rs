//! From an ONNX graph to a portable graph of static shapes.
//!
//! Invariant: the result computes what the ONNX graph computes for inputs of the bound shapes and for the bound values.
//! Differences between versions of operator sets end here. Every node that cannot be imported is told, not just the first.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;

use dlx_ir::{Error, Module, Tensor, Type};

use super::build::{Builder, MAX_VALUE};
use super::call::{Call, dtype_of};
use super::file::OnnxModel;
use super::graph::{DimText, Graph, Node, ValueInfo};
use super::ops;
use super::spec;
use super::stored::{Sources, Stored};
use super::value::{Val, Value, empty};

/// Most iterations of a loop that are unrolled.
pub(super) const MAX_ITERATIONS: usize = 1 << 14;

/// Most subgraphs that are imported, each iteration of each loop counted, and most nodes of all.
const MAX_BODIES: usize = 1 << 16;
const MAX_VISITS: usize = 1 << 21;

/// What is decided about a graph's inputs before it is imported.
#[derive(Clone, Debug, Default)]
pub struct Binding {
    /// Shapes of inputs that stay inputs.
    pub shapes: BTreeMap<String, Vec<usize>>,
    /// Inputs with a value.
    pub values: BTreeMap<String, Tensor>,
    /// Outputs to keep; all of them if empty.
    pub outputs: Vec<String>,
    /// Whether activations are rounded to integers where the graph says so. Else they stay floats, and a note says it.
    pub exact: bool,
    /// Whether weights that are stored as codes become plain numbers, for who has no kernels for codes.
    pub numbers: bool,
}

/// An imported graph.
#[derive(Debug)]
pub struct Import {
    /// One graph, `@main`, with the file's names of inputs and outputs.
    pub module: Module,
    /// Initializers behind the module's source weights.
    pub sources: Sources,
    /// Names of the results, in order.
    pub outputs: Vec<String>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// Imports a model's graph for inputs of these shapes and values.
///
/// # Errors
/// One error that lists every node that cannot be imported; or an input whose shape is not bound.
pub fn import(model: &OnnxModel, name: &str, binding: &Binding) -> Result<Import, Error> {
    let mut importer = Importer::new(model, name, binding.exact);
    importer.b.numbers = binding.numbers;
    let graph = model.graph();
    importer.declared = graph.outputs.iter().filter_map(|o| Some((o.name.clone(), static_shape(o)?))).collect();
    let place = |what: &str| format!("{}: {what}", model.path.display());
    let mut scope = Scope::default();
    for input in &graph.inputs {
        let here = || place(&format!("input `{}`", input.name));
        let value = if let Some(value) = binding.values.get(&input.name) {
            Val::Known(Arc::new(value.clone()))
        } else {
            let shape = binding.shapes.get(&input.name).ok_or_else(|| {
                Error::new(here(), "its shape is not decided")
                    .help("give its dynamic dimensions sizes with --dim NAME=N")
            })?;
            let elem = input.elem.ok_or_else(|| Error::new(here(), "has no element type, or is no tensor"))?;
            let dtype = dtype_of(elem).map_err(|e| Error::new(here(), e))?;
            if shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).is_none_or(|n| n > MAX_VALUE) {
                return Err(Error::new(
                    here(),
                    format!("would be {}, which no machine holds", Type::new(dtype, shape.clone())),
                )
                .help("give its dynamic dimensions smaller sizes with --dim NAME=N, or export the model with some"));
            }
            if shape.contains(&0) {
                // What has no element is known.
                empty(dtype, shape.clone()).into()
            } else {
                Val::Run(importer.b.graph.param(&input.name, Type::new(dtype, shape.iter().copied())))
            }
        };
        scope.values.insert(input.name.clone(), Some(value));
    }
    importer.run(graph, &mut scope)?;
    let wanted = |name: &String| binding.outputs.is_empty() || binding.outputs.contains(name);
    let mut outputs = Vec::new();
    for output in graph.outputs.iter().filter(|o| wanted(&o.name)) {
        let Some(value) = importer.made(&scope, &output.name) else { continue };
        let here = place(&format!("output `{}`", output.name));
        if outputs.contains(&output.name) {
            return Err(Error::new(here, "is listed twice").help("export the model with outputs of different names"));
        }
        let dtype = importer.b.dtype(&value).map_err(|e| Error::new(&here, e))?;
        if let Some(elem) = output.elem.filter(|elem| importer.exact && dtype_of(*elem).ok() != Some(dtype)) {
            importer.b.note(format!("output `{}` is {dtype}, which the file says is {elem}", output.name));
        }
        let value = importer.result(&value).map_err(|e| Error::new(here, e))?;
        importer.b.graph.results.push(value);
        outputs.push(output.name.clone());
    }
    if !importer.failures.is_empty() {
        return Err(importer.failed());
    }
    if outputs.is_empty() {
        return Err(Error::new(model.path.display(), "has no output").help("export the model with what it should give"));
    }
    let Builder { mut module, graph, sources, notes, .. } = importer.b;
    module.graphs.push(graph);
    Ok(Import { module, sources: Sources(sources), outputs, notes })
}

/// The shape that a file declares of a value, if it is all numbers.
fn static_shape(value: &ValueInfo) -> Option<Vec<usize>> {
    let size = |dim: &DimText| if let DimText::Known(n) = dim { Some(*n) } else { None };
    value.dims.as_ref()?.iter().map(size).collect()
}

/// What a model's graph makes of values: its outputs, in order, with their names.
///
/// # Errors
/// One error that lists every node that cannot be computed; or an input without a value.
pub fn fold(model: &OnnxModel, inputs: &BTreeMap<String, Value>) -> Result<Vec<(String, Value)>, Error> {
    let mut importer = Importer::new(model, "fold", true);
    let place = |what: &str, name: &str| format!("{}: {what} `{name}`", model.path.display());
    let mut scope = Scope::default();
    for input in &model.graph().inputs {
        let value = inputs.get(&input.name).ok_or_else(|| Error::new(place("input", &input.name), "has no value"))?;
        scope.values.insert(input.name.clone(), Some(value.clone().into()));
    }
    importer.run(model.graph(), &mut scope)?;
    let made: Vec<_> =
        model.graph().outputs.iter().filter_map(|o| Some((o, importer.made(&scope, &o.name)?))).collect();
    if !importer.failures.is_empty() {
        return Err(importer.failed());
    }
    let mut outputs = Vec::new();
    for (output, value) in made {
        let value = importer.b.whole(&value).map_err(|e| Error::new(place("output", &output.name), e))?;
        outputs.push((output.name.clone(), value));
    }
    Ok(outputs)
}

/// A node that could not be imported.
struct Failure {
    /// What it is, with its domain.
    op: String,
    place: String,
    /// Why, where the op itself is known.
    why: Option<String>,
    /// What to do, where more is known than that the node is not imported.
    help: String,
}

impl Failure {
    fn new(node: &Node, why: Option<String>) -> Self {
        let op = if node.domain.is_empty() { node.op.clone() } else { format!("{}::{}", node.domain, node.op) };
        // Why may be the whole text of another error.
        let told = why.map(|why| Error::new("", why));
        let help = told.as_ref().map_or_else(String::new, |e| e.help.clone());
        Failure { op, place: node.place(), why: told.map(|e| e.message), help }
    }
}

/// Values by name; a subgraph sees those around it.
#[derive(Default)]
pub(super) struct Scope<'p> {
    pub(super) parent: Option<&'p Scope<'p>>,
    /// `None` for what a failed node should have made.
    pub(super) values: BTreeMap<String, Option<Val>>,
}

impl Scope<'_> {
    fn lookup(&self, name: &str) -> Option<&Option<Val>> {
        self.values.get(name).or_else(|| self.parent?.lookup(name))
    }

    pub(super) fn find(&self, name: &str) -> Option<Val> {
        self.lookup(name)?.clone()
    }
}

/// The importer of one model.
pub(super) struct Importer<'m> {
    pub(super) model: &'m OnnxModel,
    pub(super) b: Builder<'m>,
    pub(super) exact: bool,
    /// Products of activations with codes that still have to be scaled: the activations, the codes and their zero points.
    pub(super) unscaled: BTreeMap<dlx_ir::ValueId, (Val, Arc<Stored>, Option<Val>)>,
    /// Shapes that the file declares of the graph's outputs.
    declared: BTreeMap<String, Vec<usize>>,
    /// Outputs that no handler made: failures once somebody reads them.
    unmade: BTreeMap<String, Failure>,
    failures: Vec<Failure>,
    /// Graphs and nodes that were imported, again and again in loops.
    bodies: usize,
    visits: usize,
}

impl<'m> Importer<'m> {
    fn new(model: &'m OnnxModel, name: &str, exact: bool) -> Self {
        Importer {
            model,
            b: Builder::new(model, name),
            exact,
            unscaled: BTreeMap::new(),
            declared: BTreeMap::new(),
            unmade: BTreeMap::new(),
            failures: Vec::new(),
            bodies: 0,
            visits: 0,
        }
    }

    /// The shape that the file declares of output `n` of a node, where only the run-time value `decides` it.
    pub(super) fn declared(&mut self, c: &Call<'_>, decides: Option<&Val>, n: usize) -> Option<Vec<usize>> {
        let name = c.node.outputs.get(n).filter(|_| matches!(decides, Some(Val::Run(_))))?;
        let shape = self.declared.get(name)?.clone();
        self.b.note(format!(
            "the declared shape of `{name}` is relied on: what decides it is known only when the model runs"
        ));
        Some(shape)
    }

    /// Whole numbers that must be known now, or follow from the declared shape of the node's result.
    pub(super) fn decided(
        &mut self,
        c: &Call<'_>,
        v: &Val,
        what: &str,
        follow: impl FnOnce(&[usize]) -> Option<Vec<i64>>,
    ) -> Result<Vec<i64>, String> {
        let declared = self.declared(c, Some(v), 0).and_then(|shape| follow(&shape));
        declared.map_or_else(|| self.b.known_ints(v, what), Ok)
    }

    /// Imports the nodes of a graph into a scope that holds its inputs.
    pub(super) fn run(&mut self, graph: &Graph, scope: &mut Scope<'_>) -> Result<(), Error> {
        self.bodies += 1;
        self.visits += graph.nodes.len();
        if self.bodies > MAX_BODIES || self.visits > MAX_VISITS {
            let message = format!("loops come to more than {MAX_BODIES} iterations or {MAX_VISITS} nodes in all");
            return Err(Error::new(self.model.path.display(), message)
                .help("export the model with fewer iterations: loops are unrolled"));
        }
        for (name, tensor) in &graph.initializers {
            if !scope.values.contains_key(name) {
                let value = Stored::open(self.model, tensor)?;
                scope.values.insert(name.clone(), Some(value));
            }
        }
        for node in &graph.nodes {
            self.node(node, scope)?;
        }
        Ok(())
    }

    fn node(&mut self, node: &Node, scope: &mut Scope<'_>) -> Result<(), Error> {
        let mut args = Vec::with_capacity(node.inputs.len());
        let mut failed = false;
        for name in &node.inputs {
            if name.is_empty() {
                args.push(None);
                continue;
            }
            match scope.lookup(name) {
                Some(Some(value)) => args.push(Some(value.clone())),
                Some(None) => {
                    self.failures.extend(self.unmade.remove(name));
                    failed = true;
                }
                None => return Err(Error::new(node.place(), format!("reads `{name}`, which nothing defines"))),
            }
        }
        let outcome = match ops::find(&node.domain, &node.op) {
            None => Err(ops::refusal(&node.domain, &node.op).map(str::to_owned)),
            Some(_) if failed => Ok(None),
            Some(run) => {
                let named = if node.name.is_empty() { node.outputs.first() } else { Some(&node.name) };
                named.map_or("", String::as_str).clone_into(&mut self.b.origin);
                let call = Call { node, args };
                spec::check(&self.b, &call).and_then(|()| run(self, &call, scope)).map(Some).map_err(Some)
            }
        };
        let values = outcome.unwrap_or_else(|why| {
            self.failures.push(Failure::new(node, why));
            None
        });
        let imported = values.is_some();
        let mut values = values.into_iter().flatten();
        for (n, name) in node.outputs.iter().enumerate() {
            let value = values.next();
            if name.is_empty() {
                continue;
            }
            if imported && value.is_none() {
                let why = format!("its output {n}, `{name}`, is read, and dlxc does not make it");
                self.unmade.insert(name.clone(), Failure::new(node, Some(why)));
            }
            scope.values.insert(name.clone(), value);
        }
        Ok(())
    }

    /// A value of a scope, unless the node that should have made it failed.
    pub(super) fn made(&mut self, scope: &Scope<'_>, name: &str) -> Option<Val> {
        let value = scope.find(name);
        if value.is_none() {
            self.failures.extend(self.unmade.remove(name));
        }
        value
    }

    /// A value that the graph returns.
    fn result(&mut self, value: &Val) -> Result<dlx_ir::ValueId, String> {
        match value {
            Val::Run(v) if !self.b.graph.params.contains(v) && !self.b.graph.results.contains(v) => Ok(*v),
            // What is constant, an input, or returned twice, as a value of its own.
            other => {
                let dims = self.b.shape(other)?;
                let operand = self.b.operand(other)?;
                let op = dlx_ir::Op::Reshape { dims: super::build::as_i64(&dims) };
                self.b.emit(op, vec![operand]).map(|v| v[0])
            }
        }
    }

    /// The one error for everything that could not be imported.
    fn failed(&self) -> Error {
        let mut unknown: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let mut text = String::new();
        for failure in self.failures.iter().filter(|f| f.why.is_none()) {
            unknown.entry(&failure.op).or_default().push(&failure.place);
        }
        for (op, places) in &unknown {
            let shown: Vec<_> = places.iter().take(3).copied().collect();
            let more = if places.len() > shown.len() { ", …" } else { "" };
            let _ = write!(text, "\n  {op} ×{}: is not supported ({}{more})", places.len(), shown.join(", "));
        }
        let mut seen = BTreeSet::new();
        for failure in &self.failures {
            let Some(why) = &failure.why else { continue };
            if seen.insert((&failure.op, why)) {
                let same = self.failures.iter().filter(|f| f.op == failure.op && f.why.as_ref() == Some(why)).count();
                let _ = write!(text, "\n  {} ×{same}: {why} ({})", failure.op, failure.place);
            }
        }
        let count = self.failures.len();
        let nodes = if count == 1 { "node" } else { "nodes" };
        let help = self.failures.iter().map(|f| f.help.as_str()).find(|help| unknown.is_empty() && !help.is_empty());
        Error::new(self.model.path.display(), format!("{count} {nodes} cannot be imported:{text}")).help(
            help.unwrap_or(if unknown.is_empty() {
                "change these nodes where the model is exported, or export it again with other options"
            } else {
                "`dlxc ops --onnx` lists the ops that can"
            }),
        )
    }
}
