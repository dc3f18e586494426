//! What is in an ONNX file, in numbers.
//!
//! Invariant: a summary is made from names, types and counts; no value is read. Operators are counted as they are once local
//! functions have been expanded.

use std::collections::BTreeMap;

use serde::Serialize;

use super::elem::ElemType;
use super::file::OnnxModel;
use super::graph::{DimText, ValueInfo};
use super::header::Header;
use super::ops;

/// What is in an ONNX file.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Summary {
    /// The program that wrote the file, and its version.
    pub producer: String,
    /// Version of the file format.
    pub ir_version: i64,
    /// Imported versions by domain; `ai.onnx` for ONNX's own operators.
    pub opsets: BTreeMap<String, i64>,
    /// What a caller gives.
    pub inputs: Vec<Value>,
    /// What a caller gets.
    pub outputs: Vec<Value>,
    /// Constant values.
    pub initializers: Initializers,
    /// How often each operator occurs, those outside the standard with their domain.
    pub ops: BTreeMap<String, usize>,
    /// Operators of these that cannot be imported, and why.
    pub unsupported: BTreeMap<String, &'static str>,
    /// Local functions in the file.
    pub functions: usize,
    /// Graphs inside nodes.
    pub subgraphs: usize,
    /// What was found and not taken as it stands.
    pub notes: Vec<String>,
}

/// An input or an output.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Value {
    /// Its name.
    pub name: String,
    /// Its element type, such as `FLOAT`.
    pub elem: Option<&'static str>,
    /// Its dimensions.
    pub dims: Option<Vec<DimText>>,
    /// Both, for people.
    #[serde(skip)]
    pub text: String,
}

/// Initializers, in numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Initializers {
    /// How many there are, those in subgraphs counted too.
    pub count: usize,
    /// Bytes of their values.
    pub bytes: u64,
    /// Of these, bytes in other files.
    pub external_bytes: u64,
}

impl Summary {
    /// Counts what is in a model.
    ///
    /// # Errors
    /// When an initializer's type or dimensions are not valid.
    pub fn of(model: &OnnxModel) -> Result<Summary, dlx_ir::Error> {
        let graphs = model.graph().nested();
        let mut initializers = Initializers::default();
        let (mut counts, mut unsupported) = (BTreeMap::new(), BTreeMap::new());
        for graph in &graphs {
            for t in graph.initializers.values() {
                let header = Header::of(&model.path, t)?;
                let bytes = match header.elem {
                    ElemType::String => t.string_data.iter().map(Vec::len).sum(),
                    _ => header.bytes,
                };
                initializers.count += 1;
                initializers.bytes = initializers.bytes.saturating_add(bytes as u64);
                if super::external::is_external(t) {
                    initializers.external_bytes = initializers.external_bytes.saturating_add(bytes as u64);
                }
            }
            for node in &graph.nodes {
                let op = if node.domain.is_empty() { node.op.clone() } else { format!("{}.{}", node.domain, node.op) };
                if ops::find(&node.domain, &node.op).is_none() {
                    let why = ops::refusal(&node.domain, &node.op).unwrap_or("is not supported");
                    unsupported.insert(op.clone(), why);
                }
                *counts.entry(op).or_insert(0) += 1;
            }
        }
        let standard = |domain: &String| if domain.is_empty() { "ai.onnx".to_owned() } else { domain.clone() };
        Ok(Summary {
            producer: format!("{} {}", model.producer, model.producer_version).trim().to_owned(),
            ir_version: model.ir_version,
            opsets: model.opsets().iter().map(|(domain, version)| (standard(domain), *version)).collect(),
            inputs: model.graph().inputs.iter().map(Value::of).collect(),
            outputs: model.graph().outputs.iter().map(Value::of).collect(),
            initializers,
            ops: counts,
            unsupported,
            functions: model.functions(),
            subgraphs: graphs.len() - 1,
            notes: model.notes().to_vec(),
        })
    }
}

impl Value {
    fn of(value: &ValueInfo) -> Value {
        Value {
            name: value.name.clone(),
            elem: value.elem.map(ElemType::name),
            dims: value.dims.clone(),
            text: value.to_string(),
        }
    }
}
