//! Graphs that are no text generators, from portable modules to an artifact: one entry each, weights in common.
//!
//! Weights are stored in the element types that they have; what runs is what was imported, less what nobody reads. The front end
//! that made the modules decides their shapes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use dlx_ir::{Error, Id, Module, Operand, VerifiedModule, WeightDef, WeightId, held_bytes};
use dlx_passes::Report;
use dlx_runtime::artifact;
use dlx_runtime::graph::{Embeds, GraphManifest, GraphModel, GraphOptions, Kind, Signature};
use dlx_targets::artifact_writer::ArtifactWriter;
use dlx_targets::{WeightSource, emit_plain};

use super::programs::run_passes;
use super::{Clock, Watch, in_pool};
use crate::options::{CompileOptions, QuantSpec};

/// Passes that clean graphs up.
const PIPELINE: &str = "dce,cse,dce";

/// What becomes a graph artifact.
#[derive(Clone, Debug)]
pub struct Graphs {
    /// What the model is called.
    pub name: String,
    /// How their hidden states become embeddings, and the bytes of the tokenizer that goes with them.
    pub embeds: Option<(Embeds, Vec<u8>)>,
    /// Its graphs. Source weights of the same name are the same tensor.
    pub entries: Vec<GraphEntry>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// One graph on its way into an artifact.
#[derive(Clone, Debug)]
pub struct GraphEntry {
    /// Name in the artifact.
    pub name: String,
    /// A module of one graph of static shapes.
    pub module: VerifiedModule,
    /// Names of its inputs, in the order of its parameters.
    pub inputs: Vec<String>,
    /// Names of its outputs, in the order of its results.
    pub outputs: Vec<String>,
}

impl GraphEntry {
    /// An entry whose inputs and outputs are called what the values are called.
    ///
    /// # Errors
    /// A module that does not have exactly one graph.
    pub fn new(name: impl Into<String>, module: VerifiedModule) -> Result<Self, Error> {
        let name = name.into();
        let [graph] = &module.graphs[..] else {
            let message = format!("needs a module of one graph, not {}", module.graphs.len());
            return Err(Error::new(format!("entry {name}"), message));
        };
        let names = |ids: &[dlx_ir::ValueId]| ids.iter().map(|v| graph.values[*v].name.clone()).collect();
        let (inputs, outputs) = (names(&graph.params), names(&graph.results));
        Ok(GraphEntry { name, module, inputs, outputs })
    }
}

/// What a compile of graphs did.
#[derive(Debug)]
pub struct GraphSummary {
    /// Passes in order.
    pub passes: Vec<Report>,
    /// The manifest that was written.
    pub manifest: GraphManifest,
    /// Bytes of weights by element type.
    pub weights: BTreeMap<String, u64>,
    /// Bytes of the whole file.
    pub file_bytes: u64,
    /// Wall time by stage.
    pub stages: Vec<(&'static str, Duration)>,
}

/// Compiles graphs, whose source weights come from `source`, into the artifact `output`. Setting `cancel` stops it and
/// leaves nothing.
///
/// # Errors
/// Options that mean nothing to graphs, graphs that do not go together or cannot run, or what source and disk report.
pub fn compile_graphs(
    graphs: Graphs,
    source: &dyn WeightSource,
    output: &Path,
    options: &CompileOptions,
    watch: &dyn Watch,
    cancel: &AtomicBool,
) -> Result<GraphSummary, Error> {
    check_options(options)?;
    in_pool(options, || {
        let mut clock = Clock::start();
        let pipeline = options.pipeline.as_deref().unwrap_or(PIPELINE);
        let module = VerifiedModule::new(merged(&graphs)?).map_err(Error::first_of)?;
        let (module, passes) = run_passes(options, watch, module, pipeline, options.dump.as_deref())?;
        let signed = module.graphs.iter().zip(&graphs.entries).map(|(graph, entry)| {
            let signature = Signature::of(graph, &entry.inputs, &entry.outputs);
            signature.map_err(|e| Error::new(format!("entry {}", entry.name), e))
        });
        let entries = signed.collect::<Result<Vec<_>, _>>()?;
        clock.stage("passes");

        let mut writer = ArtifactWriter::create(output)?;
        let progress = |done, total| watch.progress(done, total);
        let module = emit_plain(&module, source, &mut writer, cancel, &progress)?.module;
        clock.stage("weights");

        let (file, section) = writer.map_weights()?;
        let section = file.bytes().get(section).unwrap_or_default();
        let failed = |e: &dyn std::fmt::Display| Error::new(output.display(), e.to_string());
        // How much a run may take is decided where it runs.
        let unlimited = GraphOptions { memory: u64::MAX, ..GraphOptions::default() };
        let model = GraphModel::new(module.clone(), entries.clone(), section, &unlimited);
        let model = model.map_err(|e| match largest(&module) {
            Some(value) => failed(&format_args!("{e}; the largest value is {value}")),
            None => failed(&e),
        })?;
        let vectors = model.record();
        clock.stage("golden");

        let mut notes = graphs.notes;
        notes.extend(
            vectors
                .missing(&entries)
                .into_iter()
                .map(|name| format!("{name} does not run on made-up inputs, so loading does not test it")),
        );
        let manifest = GraphManifest {
            kind: Kind::Graph,
            compiler: concat!("dlxc ", env!("CARGO_PKG_VERSION")).into(),
            name: graphs.name,
            parameters: module.weights.iter().filter_map(|(_, w)| w.ty.elements()).map(|n| n as u64).sum(),
            pipeline: pipeline.into(),
            memory: model.memory(),
            entries,
            embeds: graphs.embeds.as_ref().map(|(embeds, _)| embeds.clone()),
            notes,
        };
        if let Some((embeds, tokenizer)) = graphs.embeds {
            embeds.width(&manifest.entries).map_err(|e| Error::new("--pooling", e).help("leave --pooling out"))?;
            writer.section(artifact::TOKENIZER, tokenizer);
        }
        writer.section(artifact::MANIFEST, serde_json::to_vec_pretty(&manifest).map_err(|e| failed(&e))?);
        writer.section(artifact::program_section("cpu"), module.to_string());
        writer.section(artifact::GOLDEN, serde_json::to_vec(&vectors).map_err(|e| failed(&e))?);
        let file_bytes = writer.finish()?;
        clock.stage("write");
        let mut weights = BTreeMap::new();
        for (_, w) in module.weights.iter() {
            if let WeightDef::Stored { bytes, .. } = w.def {
                *weights.entry(w.ty.dtype.to_string()).or_default() += bytes;
            }
        }
        Ok(GraphSummary { passes, manifest, weights, file_bytes, stages: clock.stages })
    })
}

/// The largest value that a node makes, its type and the node.
fn largest(module: &Module) -> Option<String> {
    let nodes = module.graphs.iter().flat_map(|g| g.nodes.iter().map(move |n| (g, n)));
    let values = nodes.flat_map(|(g, n)| n.outputs.iter().map(move |v| (&g.values[*v].ty, g, n)));
    let (ty, graph, node) = values.max_by_key(|(ty, ..)| held_bytes(ty).unwrap_or(u64::MAX))?;
    Some(format!("{ty}, made by `{}` of @{}{}", node.op.name(), graph.name, node.origin))
}

/// Refuses what is asked for and would have no effect.
fn check_options(options: &CompileOptions) -> Result<(), Error> {
    let quant = options.quant != QuantSpec::None && options.quant != CompileOptions::default().quant;
    let asked = [
        ("--quant", quant),
        ("--keep", !options.keep.is_empty()),
        ("--max-seq", options.max_seq.is_some()),
        ("--block", options.block.is_some()),
        ("--sampler", options.sampler.is_some()),
        ("--kv", options.kv.is_some()),
    ];
    if let Some((name, _)) = asked.iter().find(|(_, asked)| *asked) {
        let message = "is for models that generate text; graphs keep the weights and shapes of their file";
        return Err(Error::new(*name, message).help(format!("leave {name} out")));
    }
    if options.targets != ["cpu"] {
        return Err(Error::new("--target", "graphs run on the CPU alone").help("leave --target out"));
    }
    Ok(())
}

/// One module of all entries: source weights are shared by name, other weights where they are the same.
fn merged(graphs: &Graphs) -> Result<Module, Error> {
    let mut module = Module::new(graphs.name.clone());
    let sources = graphs.entries.iter().flat_map(|e| e.module.weights.iter().map(move |(_, w)| (e, w)));
    // By the name that they come with. First those that may not be called anything else.
    let mut known: BTreeMap<String, Vec<WeightId>> = BTreeMap::new();
    for (entry, w) in sources.filter(|(_, w)| w.def == WeightDef::Source) {
        match module.weight(&w.name) {
            Some(id) if module.weights[id].ty == w.ty => {}
            Some(id) => {
                let message = format!("is {} here, but {} in an earlier entry", w.ty, module.weights[id].ty);
                return Err(Error::new(format!("entry {}: @{}", entry.name, w.name), message));
            }
            None => known.entry(w.name.clone()).or_default().push(module.weights.push(w.clone())),
        }
    }
    let mut names = BTreeSet::new();
    for entry in &graphs.entries {
        let place = format!("entry {}", entry.name);
        if entry.name.is_empty() || !names.insert(&entry.name) {
            return Err(Error::new(place, "each entry needs a name of its own"));
        }
        if !entry.module.states.is_empty() {
            return Err(Error::new(place, "has states, which only text generators keep"));
        }
        let mut map: Vec<WeightId> = Vec::with_capacity(entry.module.weights.len());
        for (_, w) in entry.module.weights.iter() {
            let mut w = w.clone();
            if let WeightDef::Expr(_, inputs) = &mut w.def {
                inputs.iter_mut().for_each(|i| *i = map[i.index()]);
            }
            let alike = known.entry(w.name.clone()).or_default();
            let same = |id: &&WeightId| module.weights[**id].ty == w.ty && module.weights[**id].def == w.def;
            let id = alike.iter().find(same).copied().unwrap_or_else(|| {
                let id = module.add_weight(&w.name, w.ty, w.def);
                module.weights[id].origin = w.origin;
                alike.push(id);
                id
            });
            map.push(id);
        }
        for graph in &entry.module.graphs {
            let mut graph = graph.clone();
            graph.name.clone_from(&entry.name);
            for input in graph.nodes.iter_mut().flat_map(|n| &mut n.inputs) {
                if let Operand::Weight(w) = input {
                    *w = map[w.index()];
                }
            }
            module.graphs.push(graph);
        }
    }
    if module.graphs.len() != graphs.entries.len() || module.graphs.is_empty() {
        return Err(Error::new(format!("module @{}", graphs.name), "needs entries of one graph each"));
    }
    Ok(module)
}
