//! One ONNX file, opened.
//!
//! Invariant: once [`OnnxModel::open`] has returned, the file was decoded whole, its graph is valid as `graph.rs` says, its
//! local functions are expanded, and every value that lies in another file is there. Values are not read until asked for.
//! Which operators can be compiled is deliberately not known here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dlx_ir::Error;
use dlx_runtime::mapped::Mapped;
use prost::Message;
use prost::bytes::Bytes;

use super::budget;
use super::convert::{Convert, MICROSOFT, Opsets};
use super::external::External;
use super::graph::Graph;
use super::inline::Inliner;
use super::proto::{ModelProto, TensorProto};
use super::scope;
use super::tensor::{self, RawTensor};
use super::weights::Pages;
use crate::checkpoint::{by_content, check_is_file, unreadable};

/// The first IR version in which a file must say which operator set it uses.
const FIRST_WITH_OPSETS: i64 = 3;

/// The newest version of each domain's operators of which the handlers know.
const NEWEST: &[(&str, i64)] = &[("", 28), ("ai.onnx.ml", 5), ("ai.onnx.preview", 1), (MICROSOFT, 1)];

/// An open ONNX file.
#[derive(Debug)]
pub struct OnnxModel {
    /// The path that was opened.
    pub path: PathBuf,
    /// Version of the file format.
    pub ir_version: i64,
    /// Name of the program that wrote the file; may be empty.
    pub producer: String,
    /// Version of that program; may be empty.
    pub producer_version: String,
    graph: Graph,
    opsets: BTreeMap<String, i64>,
    functions: usize,
    external: External,
    notes: Vec<String>,
}

/// A map that decoded bytes are parts of.
struct Shared(Arc<Mapped>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}

impl OnnxModel {
    /// Maps and decodes a file, expands its local functions, and checks the graph and the files beside it.
    ///
    /// # Errors
    /// When the file is no ONNX file, cut, damaged, or contradicts itself; the message names the file, tensor or node.
    pub fn open(path: &Path) -> Result<OnnxModel, Error> {
        check_is_file(path)?;
        let map = Arc::new(Mapped::open(path).map_err(|e| unreadable(path, &e))?);
        let model = decode(path, &map).map_err(|e| foreign(path, map.bytes()).unwrap_or(e))?;
        let graph = model.graph.ok_or_else(|| {
            let error = Error::new(path.display(), "has no graph").help("the file is damaged: export the model again");
            foreign(path, map.bytes()).unwrap_or(error)
        })?;
        let ir_version = model.ir_version.unwrap_or(0);
        let file = path.display().to_string();
        let mut opsets = Opsets::read(&file, &model.opset_import)?;
        if opsets.0.is_empty() {
            if ir_version >= FIRST_WITH_OPSETS || model.ir_version.is_none() {
                return Err(Error::new(&file, "does not say which version of ONNX's operators it uses")
                    .help("the file is damaged or was written wrongly: export the model again"));
            }
            opsets.0.insert(String::new(), 1);
        }
        let imported = opsets.0.clone();
        for f in &model.functions {
            // A function is found by its name; some exporters import only what is not in the file.
            opsets.0.entry(super::convert::domain(f.domain()).to_owned()).or_insert(1);
        }

        let convert = Convert::new(path);
        let mut graph = convert.main(graph, &opsets)?;
        let mut sorted = scope::check(path, "the graph", &mut graph)?.sorted;
        let functions = model.functions.len();
        if functions > 0 {
            Inliner::new(path, &convert, &opsets, model.functions)?.run(&mut graph)?;
            sorted |= scope::check(path, "the graph, with functions expanded", &mut graph)?.sorted;
        }
        let external = External::open(path, graph.tensors().into_iter())?;

        let mut notes = Vec::new();
        let uses = |domain: &str| graph.nested().iter().any(|g| g.nodes.iter().any(|n| n.domain == domain));
        if !imported.contains_key(MICROSOFT) && uses(MICROSOFT) {
            notes.push(format!("no version of {MICROSOFT} is imported: its operators are read as version 1"));
        }
        for (name, version) in &imported {
            let newest = NEWEST.iter().find(|(domain, newest)| domain == name && version > newest);
            if let Some((_, newest)) = newest {
                let name = if name.is_empty() { "ai.onnx" } else { name };
                notes.push(format!(
                    "opset {version} of {name} is newer than what this was written for ({newest}): ops are read as in {newest}"
                ));
            }
        }
        if sorted {
            notes.push("nodes were not in order: they were sorted".into());
        }
        if !model.training_info.is_empty() {
            notes.push("what the file says of training left unread".into());
        }
        Ok(OnnxModel {
            path: path.to_owned(),
            ir_version,
            producer: model.producer_name.unwrap_or_default(),
            producer_version: model.producer_version.unwrap_or_default(),
            graph,
            opsets: imported,
            functions,
            external,
            notes,
        })
    }

    /// The main graph.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The version of a domain that the model imports; 0 if it imports none. A node knows the version that is meant for it,
    /// which may be another inside functions: see [`super::graph::Node::opset`].
    pub fn opset(&self, domain: &str) -> i64 {
        self.opsets.get(super::convert::domain(domain)).copied().unwrap_or(0)
    }

    /// Imported versions by domain; the domain of ONNX's own operators is empty.
    pub fn opsets(&self) -> &BTreeMap<String, i64> {
        &self.opsets
    }

    /// How many local functions the file has.
    pub fn functions(&self) -> usize {
        self.functions
    }

    /// The files beside the model that hold values, resolved, and their lengths.
    pub fn external_files(&self) -> impl Iterator<Item = (&Path, u64)> {
        self.external.files()
    }

    /// What was found and not taken as it stands, for the user to know. It holds no path.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The values of a tensor of this model.
    ///
    /// # Errors
    /// When type, dimensions and values do not fit each other, or the values are strings.
    pub fn tensor<'a>(&'a self, t: &'a TensorProto) -> Result<RawTensor<'a>, Error> {
        RawTensor::read(&self.path, &self.external, t)
    }

    /// The strings of a tensor of strings.
    ///
    /// # Errors
    /// When it is none, has not as many strings as its dimensions ask for, or one is not UTF-8.
    pub fn strings<'a>(&self, t: &'a TensorProto) -> Result<Vec<&'a str>, Error> {
        tensor::strings(&self.path, t)
    }
}

/// Only external tensors are advised on: what the model's own file holds is small, or was read when it was decoded.
impl Pages for OnnxModel {
    fn prefetch(&self, bytes: &[u8]) {
        if let Some((map, range)) = self.external.map_of(bytes) {
            map.prefetch(range);
        }
    }

    fn release(&self, bytes: &[u8]) {
        if let Some((map, range)) = self.external.map_of(bytes) {
            map.release(range);
        }
    }
}

/// The messages of a file. Raw tensor data stays in the map.
fn decode(path: &Path, map: &Arc<Mapped>) -> Result<ModelProto, Error> {
    budget::check(path, map.bytes())?;
    ModelProto::decode(Bytes::from_owner(Shared(map.clone()))).map_err(|e| {
        Error::new(path.display(), format!("is not a valid ONNX file: {e}")).help("download or export the file again")
    })
}

/// What a file is that is no ONNX file.
fn foreign(path: &Path, bytes: &[u8]) -> Option<Error> {
    let error = |what: &str, help: &str| Some(Error::new(path.display(), what).help(help));
    let start = bytes.get(..512).unwrap_or(bytes);
    let text = start.trim_ascii_start();
    if start.get(8) == Some(&b'{') && start.get(6..8) == Some(&[0, 0]) {
        return error(
            "is a safetensors file, which holds weights and no graph",
            "give the directory that it is in, with its config.json and tokenizer.json",
        );
    }
    if let Some(error) = by_content(path, bytes) {
        return Some(error);
    }
    match text.first() {
        Some(b'{' | b'[') => error("is a JSON file", "give the .onnx file, or the directory of a checkpoint"),
        _ if text.iter().all(|b| (b' '..=b'~').contains(b) || b.is_ascii_whitespace()) => {
            error("is a text file", "give the .onnx file, which is binary")
        }
        _ => None,
    }
}
