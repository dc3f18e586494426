//! ONNX files as a compile reads them: as a generator, when a family is known for it, else as graphs for some shapes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use dlx_ir::{Error, Graph, Mask, ValueId};
use dlx_runtime::graph::Embeds;
use dlx_runtime::text::Tokenizer;
use serde_json::json;

use super::Watch;
use super::graph::{GraphEntry, GraphSummary, Graphs, compile_graphs};
use super::input::{Input, check_text};
use crate::checkpoint::{Config, TextFiles};
use crate::hf::{self, Imported};
use crate::onnx::weights::OnnxWeights;
use crate::onnx::{Generator, OnnxModel, Outlook, Plain, Sources, generator, plain, shapes};
use crate::options::CompileOptions;

/// Positions of a generator about which no config says anything.
const POSITIONS: usize = 4096;

/// Most combinations of sizes that are compiled into one artifact.
const MAX_BUCKETS: usize = 64;

/// An opened generator; its weights are borrowed from it.
pub(super) struct Foreign {
    model: OnnxModel,
    generator: Generator,
    text: TextFiles,
    config: Vec<u8>,
    imported: Imported,
}

/// Whether a model is an ONNX file that is compiled as the graph that it is: unless a family is named, or the config beside
/// it names one.
///
/// # Errors
/// A config that cannot be read.
pub fn is_graph(model: &Path, options: &CompileOptions) -> Result<bool, Error> {
    if !is_onnx(model) {
        return Ok(false);
    }
    if options.graph || options.pooling.is_some() || !options.dims.is_empty() {
        return Ok(true);
    }
    if options.family.is_some() || options.config.is_some() {
        return Ok(false);
    }
    let config = Config::read_optional(&config_dir(model, options.config.as_deref()).join("config.json"))?;
    Ok(!config.is_some_and(|c| hf::is_known(&c)))
}

/// Whether a model is an ONNX file, by its name: whatever else is no directory is told what it is instead.
pub(super) fn is_onnx(model: &Path) -> bool {
    model.is_file() && model.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx"))
}

/// The directory of the file's config: that which was given, else its own.
fn config_dir<'a>(model: &'a Path, given: Option<&'a Path>) -> &'a Path {
    let own = model.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    given.unwrap_or(own)
}

impl Foreign {
    /// Opens, imports and raises a generator.
    pub(super) fn read(path: &Path, options: &CompileOptions) -> Result<Self, Error> {
        let model = OnnxModel::open(path)?;
        let dir = config_dir(path, options.config.as_deref());
        let texts = options.tokenizer.as_deref().unwrap_or(dir);
        let text = TextFiles::read(texts)?;
        let file = dir.join("config.json");
        let config = Config::read_optional(&file)?.filter(|_| options.family.is_none());
        let generation = Config::read_optional(&dir.join("generation_config.json"))?;
        let source = hf::Source {
            config: config.as_ref(),
            generation_config: generation.as_ref(),
            ..hf::Source::of_text(&text)
        };
        let source = options.source(source);
        let (family, policy, mask, max_positions, mut facts, decoder) = match &options.family {
            Some(family) => {
                let largest = text.largest_id().and_then(|id| usize::try_from(id).ok()).map_or(0, |id| id + 1);
                let hf::Decoding { family, mask, policy, facts } = hf::policy_for(family, &source, largest)?;
                (family, policy, mask, options.max_seq.unwrap_or(POSITIONS), facts, None)
            }
            None => {
                let d = hf::describe(&source)?;
                (d.family, d.policy, d.decoder.mask, d.max_positions, d.facts, Some(d.decoder))
            }
        };
        let generator = generator(&model, mask, max_positions)?;
        let place = path.display();
        if generator.mask != mask {
            let message = format!("attends under the mask {}, but {family} under {mask}", generator.mask);
            return Err(Error::new(place, message)
                .help("name the family that it is of with --family, and the length of its blocks with --block"));
        }
        let graph = generator.module.graph("forward").ok_or_else(|| Error::new(place, "has no @forward"))?;
        let vocab = width(graph).ok_or_else(|| Error::new(path.display(), "has logits of no static width"))?;
        if let Some(decoder) = decoder {
            for (what, says, found) in
                [("layers", decoder.layers, generator.attentions), ("rows of the embedding", decoder.vocab, vocab)]
            {
                if says != found {
                    let message = format!("has {found} {what}, but {} says {says}", file.display());
                    return Err(Error::new(path.display(), message).help("use the config that belongs to this file"));
                }
            }
        }
        check_text(texts, &text, vocab)?;
        facts.notes.extend(model.notes().iter().chain(&generator.notes).cloned());
        facts.add("mask", mask.to_string(), format!("{} layers of the graph", generator.attentions));
        let module = generator.module.clone();
        let imported = Imported { family, module, policy, vocab, max_positions, facts };
        let config = std::fs::read(&file).unwrap_or_default();
        Ok(Foreign { model, generator, text, config, imported })
    }

    /// What a compile goes on with.
    pub(super) fn input(&self) -> Result<Input<'_>, Error> {
        let weights = self.generator.sources.weights(&self.model)?;
        let imported = self.imported.clone();
        Ok(Input { weights: Box::new(weights), text: self.text.clone(), imported, config: self.config.clone() })
    }

    /// What the raise passes left alone, and why.
    pub(super) fn reports(&self) -> &[dlx_passes::Report] {
        &self.generator.reports
    }
}

/// Features of a graph's result.
fn width(graph: &Graph) -> Option<usize> {
    graph.values[*graph.results.first()?].ty.dims.last()?.fixed()
}

/// What a compile would make of an ONNX file, with these sizes of its dynamic dimensions where it is no generator. The mask
/// of a config beside the file counts; without one, a mask that is an input is taken to be causal.
pub fn outlook(model: &OnnxModel, sizes: &BTreeMap<String, usize>) -> Outlook {
    let described = || -> Result<Option<(Mask, usize)>, Error> {
        let dir = config_dir(&model.path, None);
        let config = Config::read_optional(&dir.join("config.json"))?.filter(hf::is_known);
        let Some(config) = &config else { return Ok(None) };
        let text = TextFiles::read(dir)?;
        let described = hf::describe(&hf::Source { config: Some(config), ..hf::Source::of_text(&text) })?;
        Ok(Some((described.decoder.mask, described.max_positions)))
    };
    let (described, problem) = described().map_or_else(|e| (None, Some(e.to_string())), |d| (d, None));
    let (rule, positions) = described.unwrap_or((Mask::Causal, POSITIONS));
    let mut outlook = Outlook::of(model, rule, positions, sizes);
    outlook.notes.extend(problem);
    outlook
}

/// Compiles an ONNX file that is no generator: one entry for each combination of sizes of its dynamic dimensions.
///
/// # Errors
/// A file that cannot be imported, or sizes that are missing or too many; and as [`compile_graphs`].
pub fn compile_file(
    path: &Path,
    output: &Path,
    options: &CompileOptions,
    watch: &dyn Watch,
    cancel: &AtomicBool,
) -> Result<GraphSummary, Error> {
    super::keep_input(path, output)?;
    let model = OnnxModel::open(path)?;
    let name = path.file_stem().map_or_else(|| "model".into(), |n| n.to_string_lossy().into_owned());
    let mut graphs = Graphs { name, embeds: None, entries: Vec::new(), notes: model.notes().to_vec() };
    let mut sources = Sources::default();
    for (entry, sizes) in buckets(&options.dims)? {
        let Plain { module, sources: more, outputs, notes, .. } = plain(&model, &graphs.name, shapes(&model, &sizes)?)?;
        let mut made = GraphEntry::new(entry, module)?;
        made.outputs = outputs;
        graphs.entries.push(made);
        sources.0.extend(more.0);
        for note in notes {
            if !graphs.notes.contains(&note) {
                graphs.notes.push(note);
            }
        }
    }
    graphs.embeds = embeds(path, &graphs, options)?;
    if let Some((Embeds { output, pooling, .. }, _)) = &graphs.embeds {
        graphs.notes.push(format!("embeddings are made of `{output}`, pooling {}", json!(pooling)));
    }
    let weights: OnnxWeights<'_> = sources.weights(&model)?;
    compile_graphs(graphs, &weights, output, options, watch, cancel)
}

/// How embeddings are made, if they are asked for, and the tokenizer's file.
fn embeds(path: &Path, graphs: &Graphs, options: &CompileOptions) -> Result<Option<(Embeds, Vec<u8>)>, Error> {
    let Some(pooling) = options.pooling else {
        let alone = [("--tokenizer", options.tokenizer.is_some()), ("--normalize", options.normalize)];
        return match alone.iter().find(|(_, asked)| *asked) {
            Some((flag, _)) => Err(Error::new(*flag, "is for embeddings, and a graph alone makes none")
                .help(format!("say how they are made with --pooling, or leave {flag} out"))),
            None => Ok(None),
        };
    };
    let first = graphs.entries.first().and_then(|entry| Some((entry.module.graphs.first()?, &entry.outputs)));
    let hidden = first.and_then(|(graph, names)| {
        let hidden = |value: &ValueId| graph.values[*value].ty.shape().is_some_and(|shape| shape.len() == 3);
        graph.results.iter().position(hidden).and_then(|at| names.get(at).cloned())
    });
    let output = hidden.ok_or_else(|| Error::new("--pooling", "no output has the hidden states of tokens"))?;
    let file = options.tokenizer.as_deref().unwrap_or(config_dir(path, None)).join("tokenizer.json");
    let failed =
        |e: String| Error::new(file.display(), e).help("name the directory of tokenizer.json with --tokenizer");
    let bytes = std::fs::read(&file).map_err(|e| failed(format!("cannot be read: {e}")))?;
    Tokenizer::from_bytes(&bytes).map_err(|e| failed(e.to_string()))?;
    Ok(Some((Embeds { output, pooling, normalize: options.normalize }, bytes)))
}

/// Name of an entry, and the sizes that it is for.
type Bucket = (String, BTreeMap<String, usize>);

/// Every combination of sizes, named by those that have several.
fn buckets(dims: &[(String, Vec<usize>)]) -> Result<Vec<Bucket>, Error> {
    let mut all = vec![(String::from("main"), BTreeMap::new())];
    for (n, (dim, sizes)) in dims.iter().enumerate() {
        if dims[..n].iter().any(|(other, _)| other == dim) {
            return Err(Error::new("--dim", format!("gives `{dim}` twice"))
                .help(format!("give all its sizes at once: --dim \"{dim}=N,N\"")));
        }
        let several = sizes.len() > 1;
        let next = all.iter().flat_map(|(name, chosen)| {
            sizes.iter().map(move |size| {
                let mut chosen: BTreeMap<String, usize> = chosen.clone();
                chosen.insert(dim.clone(), *size);
                let word: String = dim.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
                (if several { format!("{name}_{word}{size}") } else { name.clone() }, chosen)
            })
        });
        all = next.collect();
        if all.len() > MAX_BUCKETS {
            return Err(Error::new("--dim", format!("{} combinations of sizes", all.len()))
                .help(format!("give at most {MAX_BUCKETS}")));
        }
    }
    Ok(all)
}
