//! Graphs, nodes and values as the importer reads them.
//!
//! Invariant: of a graph of an open model, each name is defined once, whatever a node reads stands before it, the domain ""
//! is never spelled `ai.onnx`, and no node calls a local function. What ops mean is deliberately not known here; an
//! attribute's type is compared with what its reader asks for.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use dlx_ir::Error;
use serde::Serialize;

use super::elem::ElemType;
use super::proto::attribute_proto::AttributeType;
use super::proto::{AttributeProto, TensorProto};

/// A graph, or the body of a node such as `If`.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// Its name; often empty.
    pub name: String,
    /// Nodes, each after those that it reads.
    pub nodes: Vec<Node>,
    /// Constant values by name.
    pub initializers: BTreeMap<String, TensorProto>,
    /// What a caller gives, in order; of the main graph, without those that an initializer gives.
    pub inputs: Vec<ValueInfo>,
    /// What a caller gets, in order.
    pub outputs: Vec<ValueInfo>,
}

/// One operation.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name; often empty. Nothing depends on it but messages.
    pub name: String,
    /// The operator, such as `MatMul`.
    pub op: String,
    /// The operator's domain; empty for those of the ONNX standard.
    pub domain: String,
    /// Which of several local functions of one name is meant; empty for operators.
    pub overload: String,
    /// Version of the domain by which the node is to be read.
    pub opset: i64,
    /// Names of what it reads; empty where an optional input is left out.
    pub inputs: Vec<String>,
    /// Names of what it defines; empty where an optional output is left out.
    pub outputs: Vec<String>,
    /// Attributes, but those that are graphs. Each has a type unless it is empty.
    pub attrs: BTreeMap<String, Box<AttributeProto>>,
    /// Attributes that are graphs.
    pub graphs: BTreeMap<String, Vec<Graph>>,
    /// The file that it is from, for messages.
    pub(super) file: Arc<str>,
}

/// What a graph says of one of its inputs or outputs. Exporters get shapes wrong now and then: they are hints.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ValueInfo {
    /// The value's name.
    pub name: String,
    /// Element type, if it is a tensor and says so.
    pub elem: Option<ElemType>,
    /// Dimensions, outermost first, if it is a tensor and says how many it has.
    pub dims: Option<Vec<DimText>>,
}

/// A dimension as a file declares it. In JSON it is a number, a string, or null.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(untagged)]
pub enum DimText {
    /// A number.
    Known(usize),
    /// Free text, such as `seq + 1`: the same text is the same number within a file. It is nothing to parse.
    Named(String),
    /// Nothing.
    Unknown,
}

impl fmt::Display for DimText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DimText::Known(n) => write!(f, "{n}"),
            DimText::Named(name) => f.write_str(name),
            DimText::Unknown => f.write_str("?"),
        }
    }
}

impl fmt::Display for ValueInfo {
    /// The type, such as `FLOAT[1, T, 64]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.elem.map_or("?", ElemType::name))?;
        match &self.dims {
            Some(dims) => {
                let dims: Vec<String> = dims.iter().map(DimText::to_string).collect();
                write!(f, "[{}]", dims.join(", "))
            }
            None => Ok(()),
        }
    }
}

impl Graph {
    /// This graph and all those inside it, outermost first.
    pub fn nested(&self) -> Vec<&Graph> {
        let mut all = vec![self];
        let mut next = 0;
        while let Some(graph) = all.get(next).copied() {
            all.extend(graph.nodes.iter().flat_map(|n| n.graphs.values().flatten()));
            next += 1;
        }
        all
    }

    /// All tensors that this graph and those inside it hold: initializers and attributes.
    pub fn tensors(&self) -> Vec<&TensorProto> {
        let mut all = Vec::new();
        for graph in self.nested() {
            all.extend(graph.initializers.values());
            for attr in graph.nodes.iter().flat_map(|n| n.attrs.values()) {
                all.extend(attr.t.as_deref().into_iter().chain(&attr.tensors));
                let sparse = attr.sparse_tensor.as_deref().into_iter().chain(&attr.sparse_tensors);
                all.extend(sparse.flat_map(|s| s.values.iter().chain(&s.indices)));
            }
        }
        all
    }
}

impl Node {
    /// Where the node is, for messages: `file: node "name" (MatMul)`.
    pub fn place(&self) -> String {
        format!("{}: {}", self.file, self.label())
    }

    /// The node without its file: `node "name" (MatMul)`.
    pub fn label(&self) -> String {
        let dot = if self.domain.is_empty() { "" } else { "." };
        let op = format!("{}{dot}{}", self.domain.escape_debug(), self.op.escape_debug());
        match (self.name.as_str(), self.outputs.iter().find(|o| !o.is_empty())) {
            ("", Some(output)) => format!("node of {output:?} ({op})"),
            (name, _) => format!("node {name:?} ({op})"),
        }
    }

    /// An integer.
    ///
    /// # Errors
    /// When the attribute has another type.
    pub fn int(&self, name: &str) -> Result<Option<i64>, Error> {
        Ok(self.attr(name, AttributeType::Int)?.map(|a| a.i()))
    }

    /// A list of integers.
    ///
    /// # Errors
    /// When the attribute has another type.
    pub fn ints(&self, name: &str) -> Result<Option<&[i64]>, Error> {
        Ok(self.attr(name, AttributeType::Ints)?.map(|a| a.ints.as_slice()))
    }

    /// A number.
    ///
    /// # Errors
    /// When the attribute has another type.
    pub fn float(&self, name: &str) -> Result<Option<f32>, Error> {
        Ok(self.attr(name, AttributeType::Float)?.map(|a| a.f()))
    }

    /// A list of numbers.
    ///
    /// # Errors
    /// When the attribute has another type.
    pub fn floats(&self, name: &str) -> Result<Option<&[f32]>, Error> {
        Ok(self.attr(name, AttributeType::Floats)?.map(|a| a.floats.as_slice()))
    }

    /// A string.
    ///
    /// # Errors
    /// When the attribute has another type or is not UTF-8.
    pub fn string(&self, name: &str) -> Result<Option<&str>, Error> {
        self.attr(name, AttributeType::String)?.map(|a| self.text(name, a.s())).transpose()
    }

    /// A list of strings.
    ///
    /// # Errors
    /// When the attribute has another type or one is not UTF-8.
    pub fn strings(&self, name: &str) -> Result<Option<Vec<&str>>, Error> {
        let list = self.attr(name, AttributeType::Strings)?;
        list.map(|a| a.strings.iter().map(|s| self.text(name, s)).collect()).transpose()
    }

    /// A tensor.
    ///
    /// # Errors
    /// When the attribute has another type or holds nothing.
    pub fn tensor(&self, name: &str) -> Result<Option<&TensorProto>, Error> {
        let Some(attr) = self.attr(name, AttributeType::Tensor)? else { return Ok(None) };
        attr.t.as_deref().map(Some).ok_or_else(|| self.wrong(name, "holds no tensor"))
    }

    /// A graph.
    ///
    /// # Errors
    /// When the attribute is no graph, or several.
    pub fn graph(&self, name: &str) -> Result<Option<&Graph>, Error> {
        match self.graphs.get(name).map(Vec::as_slice) {
            Some([graph]) => Ok(Some(graph)),
            Some(_) => Err(self.wrong(name, "is a list where one graph is needed")),
            None if self.attrs.contains_key(name) => Err(self.wrong(name, "is no graph")),
            None => Ok(None),
        }
    }

    /// An error about one of the node's attributes.
    pub(super) fn wrong(&self, attr: &str, what: &str) -> Error {
        Error::new(self.place(), format!("attribute {attr:?} {what}"))
            .help("the file was written wrongly: export the model again, with another version of the exporter")
    }

    fn text<'a>(&self, name: &str, bytes: &'a [u8]) -> Result<&'a str, Error> {
        std::str::from_utf8(bytes).map_err(|_| self.wrong(name, "is not UTF-8"))
    }

    fn attr(&self, name: &str, want: AttributeType) -> Result<Option<&AttributeProto>, Error> {
        if self.graphs.contains_key(name) {
            return Err(self.wrong(name, &format!("is a graph where {} is needed", want.as_str_name())));
        }
        let Some(attr) = self.attrs.get(name) else { return Ok(None) };
        match attr.r#type() {
            // Old files need not say what an attribute is, so an empty one may be an empty list of anything.
            AttributeType::Undefined
                if matches!(want, AttributeType::Ints | AttributeType::Floats | AttributeType::Strings) =>
            {
                Ok(Some(attr))
            }
            have if have == want => Ok(Some(attr)),
            have => Err(self.wrong(name, &format!("is {} where {} is needed", have.as_str_name(), want.as_str_name()))),
        }
    }
}
