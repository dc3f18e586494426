//! A loaded graph artifact.
//!
//! Invariant: what runs is a verified program of pure ops on static shapes, whose weights and values are known to fit the
//! memory limit before the first of them is made. Values are dropped after their last use.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use dlx_ir::{DType, Error, Id, Node, Op, Operand, Tensor, Type, VerifiedModule, WeightDef, held_bytes};
use serde::Deserialize;

use super::error::GraphError;
use super::golden::{self, GraphVectors, Runs};
use super::manifest::{GraphManifest, GraphMemory, Port, Signature, agree};
use super::plan::{self, Plan};
use super::product;
use crate::artifact::{self, Artifact};
use crate::manifest::kind_of;

/// Tensors by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// How to load a graph artifact.
#[derive(Clone, Debug)]
pub struct GraphOptions {
    /// Most bytes that weights and values may take together, 8 GiB unless said otherwise. Numbers narrower than 32 bits, and
    /// integers other than i32, take more here than in the file.
    pub memory: u64,
    /// Whether to compare the checksum of the weights, which reads them all once more.
    pub verify_weights: bool,
    /// Whether to run every graph once and compare with what was recorded when it was compiled.
    pub self_test: bool,
}

impl Default for GraphOptions {
    fn default() -> Self {
        GraphOptions { memory: 8 << 30, verify_weights: true, self_test: true }
    }
}

/// The graphs of an artifact, ready to run. Share it between threads as you like: a run changes nothing.
pub struct GraphModel {
    module: VerifiedModule,
    entries: Vec<Signature>,
    weights: Vec<Tensor>,
    plans: Vec<Plan>,
    memory: GraphMemory,
}

/// Reads the manifest of a graph artifact.
///
/// # Errors
/// A text generator's artifact, or a missing or malformed section.
pub fn read_graph_manifest(artifact: &Artifact) -> Result<GraphManifest, GraphError> {
    if kind_of(artifact.text(artifact::MANIFEST)?).is_ok_and(|kind| kind.is_none()) {
        return Err(GraphError::Generator { path: artifact.path().into() });
    }
    json(artifact, artifact::MANIFEST)
}

impl GraphModel {
    /// Opens an artifact and loads it with the options of [`GraphOptions::default`].
    ///
    /// # Errors
    /// As [`GraphModel::load`], or a file that is no artifact.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, GraphError> {
        Self::load(&Artifact::open(path)?, &GraphOptions::default())
    }

    /// Loads the graphs of an artifact. Weights are copied out of it.
    ///
    /// # Errors
    /// A damaged artifact or one of another kind, a program that cannot run, too little memory, or a failed self-test.
    pub fn load(artifact: &Artifact, options: &GraphOptions) -> Result<Self, GraphError> {
        let manifest = read_graph_manifest(artifact)?;
        if options.verify_weights {
            artifact.verify_weights()?;
        }
        let name = artifact::program_section("cpu");
        let broken = |section: &str, reason: String| section_error(artifact, section, reason);
        let program = dlx_ir::parse(artifact.text(&name)?).map_err(|e| broken(&name, e.to_string()))?;
        let program = VerifiedModule::new(program).map_err(|e| broken(&name, Error::first_of(e).to_string()))?;
        agree(artifact, &manifest, &program).map_err(|e| broken(artifact::MANIFEST, e))?;
        let model = Self::new(program, manifest.entries, artifact.weights(), options)?;
        if options.self_test {
            let vectors: GraphVectors = json(artifact, artifact::GOLDEN)?;
            golden::check(&model, &vectors)?;
        }
        Ok(model)
    }

    /// Graphs of a program whose weights are stored in `section`, with the signatures of its graphs.
    ///
    /// # Errors
    /// A program that cannot run as a graph, or too little memory.
    pub fn new(
        module: VerifiedModule,
        entries: Vec<Signature>,
        section: &[u8],
        options: &GraphOptions,
    ) -> Result<Self, GraphError> {
        plan::check(&module, section.len()).map_err(GraphError::Program)?;
        let plans: Option<Vec<Plan>> = module.graphs.iter().map(|g| Plan::of(&module, g)).collect();
        let held = module.weights.iter().try_fold(0u64, |n, (_, w)| n.checked_add(held_bytes(&w.ty)?));
        let (Some(plans), Some(weights)) = (plans, held) else {
            return Err(GraphError::Program("its sizes overflow".into()));
        };
        let memory = GraphMemory { weights, values: plans.iter().map(|p| p.peak).max().unwrap_or(0) };
        let needed = memory.weights.saturating_add(memory.values);
        let refuse = |why: String| GraphError::Memory { needed, why };
        if needed > options.memory {
            return Err(refuse(format!("the limit is {}; raise it if the model may have them", options.memory)));
        }
        if !available(needed) {
            return Err(refuse("the system does not have them; use a smaller model or sequence".into()));
        }
        let tensor = |w: &dlx_ir::Weight| {
            let shape = w.ty.shape().ok_or("its shape is not known")?;
            match &w.def {
                WeightDef::Literal(data) => Ok(Tensor { dtype: w.ty.dtype, shape, data: data.clone() }),
                WeightDef::Stored { offset, bytes, .. } => {
                    let range = usize::try_from(*offset).ok().zip(usize::try_from(offset + bytes).ok());
                    let bytes = range.and_then(|(start, end)| section.get(start..end)).ok_or("it is not there")?;
                    Tensor::from_le_bytes(w.ty.dtype, &shape, bytes)
                }
                _ => Err("it is not stored".into()),
            }
        };
        let weights =
            module.weights.iter().map(|(_, w)| tensor(w).map_err(|e| GraphError::Program(format!("@{}: {e}", w.name))));
        let weights = weights.collect::<Result<_, _>>()?;
        Ok(GraphModel { module, entries, weights, plans, memory })
    }

    /// What the graphs take and give.
    pub fn entries(&self) -> &[Signature] {
        &self.entries
    }

    /// Memory that weights and the values of the largest graph take.
    pub fn memory(&self) -> GraphMemory {
        self.memory
    }

    /// The graph that takes inputs of these names, types and shapes, and no others.
    ///
    /// # Errors
    /// There is none; says which input is wrong.
    pub fn entry_for(&self, inputs: &[(&str, DType, &[usize])]) -> Result<&Signature, GraphError> {
        self.choose(inputs).map(|i| &self.entries[i])
    }

    /// Runs the graph that takes inputs of these names, types and shapes.
    ///
    /// # Errors
    /// Inputs that no graph takes, or values that an op has no result for.
    pub fn run(&self, inputs: &Tensors) -> Result<Tensors, GraphError> {
        self.run_until(inputs, &AtomicBool::new(false))
    }

    /// As [`GraphModel::run`]; setting `cancel` stops it after the node that is being computed.
    ///
    /// # Errors
    /// As [`GraphModel::run`], and [`GraphError::Interrupted`].
    pub fn run_until(&self, inputs: &Tensors, cancel: &AtomicBool) -> Result<Tensors, GraphError> {
        let given: Vec<_> = inputs.iter().map(|(name, t)| (name.as_str(), t.dtype, t.shape.as_slice())).collect();
        let chosen = self.choose(&given)?;
        let entry = &self.entries[chosen];
        for (name, t) in inputs {
            let elements = t.shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
            if elements != Some(t.data.len()) || !t.data.holds(t.dtype) {
                return Err(self.refuse(format!("the elements of input `{name}` do not fill its type and shape")));
            }
        }
        let ordered: Vec<&Tensor> = entry.inputs.iter().map(|port| &inputs[&port.name]).collect();
        let outputs = self.execute(chosen, &ordered, cancel)?;
        Ok(entry.outputs.iter().map(|port| port.name.clone()).zip(outputs).collect())
    }

    /// Runs every graph on made-up inputs and keeps what comes out, for [`GraphOptions::self_test`].
    pub fn record(&self) -> GraphVectors {
        golden::record(self)
    }

    /// Runs graph `index` on the values of its parameters.
    fn execute(&self, index: usize, inputs: &[&Tensor], cancel: &AtomicBool) -> Result<Vec<Tensor>, GraphError> {
        let (graph, plan) = (&self.module.graphs[index], &self.plans[index]);
        if !available(plan.peak) {
            let why = "the system does not have them; use a smaller model or sequence".into();
            return Err(GraphError::Memory { needed: plan.peak, why });
        }
        let mut values: Vec<Option<Cow<'_, Tensor>>> = vec![None; graph.values.len()];
        for (p, input) in graph.params.iter().zip(inputs) {
            values[p.index()] = Some(Cow::Borrowed(input));
        }
        for (node, dying) in graph.nodes.iter().zip(&plan.dying) {
            if cancel.load(Ordering::Relaxed) {
                return Err(GraphError::Interrupted);
            }
            let types: Vec<&Type> = node.outputs.iter().map(|o| &graph.values[*o].ty).collect();
            let outs = self
                .node(node, &values, &types)
                .map_err(|reason| GraphError::Node { node: self.module.node_text(graph, node), reason })?;
            for (id, out) in node.outputs.iter().zip(outs) {
                values[id.index()] = Some(Cow::Owned(out));
            }
            for v in dying {
                values[v.index()] = None;
            }
        }
        let result = |v: &dlx_ir::ValueId| {
            let value = values[v.index()].as_deref();
            value.cloned().expect("results of a verified graph are computed")
        };
        Ok(graph.results.iter().map(result).collect())
    }

    fn node(&self, node: &Node, values: &[Option<Cow<'_, Tensor>>], types: &[&Type]) -> Result<Vec<Tensor>, String> {
        let operand = |input: &Operand| match input {
            Operand::Value(v) => values[v.index()].as_deref().ok_or("an operand is not computed"),
            Operand::Weight(w) => Ok(&self.weights[w.index()]),
            Operand::State(_) => Err("a graph has no states"),
        };
        let args = node.inputs.iter().map(operand).collect::<Result<Vec<_>, _>>()?;
        compute(&node.op, &args, types)
    }

    /// The first graph that takes inputs of these names, types and shapes, and no others.
    fn choose(&self, given: &[(&str, DType, &[usize])]) -> Result<usize, GraphError> {
        let of = |port: &Port| given.iter().find(|(name, ..)| *name == port.name);
        let named = |e: &&Signature| e.inputs.len() == given.len() && e.inputs.iter().all(|p| of(p).is_some());
        let takes = |e: &Signature| e.inputs.iter().all(|p| of(p).is_some_and(|(_, d, s)| p.takes(*d, s)));
        if let Some(found) = self.entries.iter().position(|e| named(&e) && takes(e)) {
            return Ok(found);
        }
        let alike: Vec<&Signature> = self.entries.iter().filter(named).collect();
        if alike.is_empty() {
            let common = |e: &&Signature| e.inputs.iter().filter(|p| of(p).is_some()).count();
            // Of equals the first.
            let nearest = self.entries.iter().rev().max_by_key(common);
            let missing = nearest.and_then(|e| e.inputs.iter().find(|p| of(p).is_none()));
            let known = |name: &str| nearest.is_some_and(|e| e.inputs.iter().any(|p| p.name == name));
            let extra = given.iter().find(|(name, ..)| !known(name)).map_or("", |(name, ..)| name);
            return Err(self.refuse(match missing {
                Some(port) => format!("input `{port}` is missing"),
                None => format!("there is no input `{extra}`"),
            }));
        }
        for &(name, dtype, shape) in given {
            let ports = || alike.iter().flat_map(|e| &e.inputs).filter(|p| p.name == name);
            if !ports().any(|p| p.takes(dtype, shape)) {
                let mut taken: Vec<String> = ports().map(Port::ty).collect();
                taken.dedup();
                let found = Type::new(dtype, shape.iter().copied());
                return Err(self.refuse(format!("input `{name}` is {found}, but must be {}", taken.join(" or "))));
            }
        }
        Err(self.refuse("no graph takes inputs of these shapes together".into()))
    }

    fn refuse(&self, reason: String) -> GraphError {
        let entries: Vec<_> = self.entries.iter().map(ToString::to_string).collect();
        GraphError::Input { reason, entries: entries.join("\n      and ") }
    }
}

/// The results of a pure op, of the types that are written for them, as a run of a graph computes them.
///
/// # Errors
/// Operands that do not fit the op, or results of other types.
pub fn compute(op: &Op, args: &[&Tensor], types: &[&Type]) -> Result<Vec<Tensor>, String> {
    if let &[ty] = types
        && let Some(out) = product::compute(op, args, ty)
    {
        return Ok(vec![out]);
    }
    let outs = dlx_ir::compute(op, args)?;
    // What follows relies on the written types.
    let fits = |(out, ty): (&Tensor, &&Type)| {
        ty.shape().as_ref() == Some(&out.shape) && ty.elements() == Some(out.data.len()) && out.data.holds(ty.dtype)
    };
    if outs.len() == types.len() && outs.iter().zip(types).all(fits) {
        Ok(outs)
    } else {
        Err("the result is not of the written type".into())
    }
}

impl Runs for GraphModel {
    fn entries(&self) -> &[Signature] {
        &self.entries
    }

    fn run(&self, inputs: &Tensors) -> Result<Tensors, GraphError> {
        GraphModel::run(self, inputs)
    }
}

/// Whether the system would give that much memory: better asked at once than found out in the middle of an op.
fn available(bytes: u64) -> bool {
    let mut probe = Vec::<u8>::new();
    let given = usize::try_from(bytes).is_ok_and(|n| probe.try_reserve_exact(n).is_ok());
    // Without this the compiler may leave the request out.
    std::hint::black_box(&probe);
    given
}

fn json<T: for<'de> Deserialize<'de>>(artifact: &Artifact, section: &str) -> Result<T, GraphError> {
    serde_json::from_str(artifact.text(section)?).map_err(|e| section_error(artifact, section, e.to_string()))
}

fn section_error(artifact: &Artifact, section: &str, reason: String) -> GraphError {
    GraphError::Section { path: artifact.path().into(), section: section.into(), reason }
}
