//! Graphs and nodes from the messages of a file.
//!
//! Invariant: what comes out has no attribute or initializer twice, no domain spelled `ai.onnx`, at most [`MAX_NESTING`]
//! graphs inside each other, and knows for each node by which version of its domain to read it. Whether names are defined is
//! checked afterwards (`scope.rs`).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use dlx_ir::Error;

use super::elem::ElemType;
use super::graph::{DimText, Graph, Node, ValueInfo};
use super::proto::attribute_proto::AttributeType;
use super::proto::{
    AttributeProto, FunctionProto, GraphProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto,
    tensor_shape_proto, type_proto,
};

/// How deep graphs may lie inside each other. Exporters write two or three.
pub(super) const MAX_NESTING: usize = 16;

/// Domain of ONNX Runtime's operators, whose files do not always import it.
pub(super) const MICROSOFT: &str = "com.microsoft";

/// Versions by domain.
#[derive(Clone, Debug, Default)]
pub(super) struct Opsets(pub(super) BTreeMap<String, i64>);

/// Attributes by name: values, and graphs.
pub(super) type Attrs = (BTreeMap<String, Box<AttributeProto>>, BTreeMap<String, Vec<Graph>>);

/// Converts the messages of one file.
#[derive(Debug)]
pub(super) struct Convert {
    file: Arc<str>,
}

/// A domain as nodes here spell it.
pub(super) fn domain(name: &str) -> &str {
    if name == "ai.onnx" { "" } else { name }
}

impl Opsets {
    /// What a model or a function imports.
    pub(super) fn read(place: &str, imports: &[OperatorSetIdProto]) -> Result<Opsets, Error> {
        let mut opsets = Opsets::default();
        for import in imports {
            let (name, version) = (domain(import.domain()), import.version());
            let bad = |message: String| Err(Error::new(place, message).help("export the model again"));
            if version < 1 {
                return bad(format!("imports version {version} of domain {name:?}, and versions begin with 1"));
            }
            match opsets.0.insert(name.to_owned(), version) {
                Some(other) if other != version => {
                    return bad(format!("imports versions {other} and {version} of domain {name:?}"));
                }
                _ => {}
            }
        }
        Ok(opsets)
    }

    /// The version by which nodes of a domain are read.
    pub(super) fn version(&self, domain: &str) -> Option<i64> {
        self.0.get(domain).copied().or_else(|| (domain == MICROSOFT).then_some(1))
    }
}

impl Convert {
    pub(super) fn new(path: &Path) -> Convert {
        Convert { file: path.display().to_string().into() }
    }

    /// The main graph of a model.
    pub(super) fn main(&self, proto: GraphProto, opsets: &Opsets) -> Result<Graph, Error> {
        let mut graph = self.graph(proto, opsets, false, 0)?;
        // Such an input has a default, which is used: nobody gives it another value here.
        graph.inputs.retain(|input| !graph.initializers.contains_key(&input.name));
        Ok(graph)
    }

    /// The body of a function as a graph, and the defaults of its attributes.
    pub(super) fn function(&self, proto: FunctionProto, opsets: &Opsets) -> Result<(Graph, Attrs), Error> {
        let value = |name: String| ValueInfo { name, elem: None, dims: None };
        let nodes = proto.node.into_iter().map(|n| self.node(n, opsets, true, 0)).collect::<Result<_, _>>()?;
        let place = format!("{}: function {:?}", self.file, proto.name.as_deref().unwrap_or_default());
        let attrs = self.attrs(&place, proto.attribute_proto, opsets, true, 0)?;
        let graph = Graph {
            name: String::new(),
            nodes,
            initializers: BTreeMap::new(),
            inputs: proto.input.into_iter().map(value).collect(),
            outputs: proto.output.into_iter().map(value).collect(),
        };
        Ok((graph, attrs))
    }

    /// A node that hands `from` on as `to`.
    pub(super) fn identity(&self, from: String, to: String, opset: i64) -> Node {
        Node {
            name: String::new(),
            op: "Identity".into(),
            domain: String::new(),
            overload: String::new(),
            opset,
            inputs: vec![from],
            outputs: vec![to],
            attrs: BTreeMap::new(),
            graphs: BTreeMap::new(),
            file: self.file.clone(),
        }
    }

    fn graph(&self, proto: GraphProto, opsets: &Opsets, in_function: bool, depth: usize) -> Result<Graph, Error> {
        let name = proto.name.unwrap_or_default();
        let bad = |message: String| Error::new(format_args!("{}: graph {name:?}", self.file), message);
        if depth > MAX_NESTING {
            return Err(bad(format!("lies inside {depth} others, and {MAX_NESTING} are enough for any model"))
                .help("simplify the model: move conditions and loops out of each other"));
        }
        if let Some(sparse) = proto.sparse_initializer.first() {
            let name = sparse.values.as_ref().map_or("", TensorProto::name);
            return Err(bad(format!("has a sparse initializer, {name:?}, and dlxc reads only dense ones"))
                .help("export the model with dense weights"));
        }
        let mut initializers = BTreeMap::new();
        for tensor in proto.initializer {
            let name = tensor.name().to_owned();
            if name.is_empty() {
                return Err(bad("has an initializer without a name".into()).help("export the model again"));
            }
            if initializers.insert(name.clone(), tensor).is_some() {
                return Err(bad(format!("has two initializers named {name:?}")).help("export the model again"));
            }
        }
        let nodes = proto.node.into_iter().map(|n| self.node(n, opsets, in_function, depth));
        let nodes = nodes.collect::<Result<_, _>>()?;
        let values = |values: Vec<ValueInfoProto>| values.into_iter().map(|v| self.value(v)).collect::<Result<_, _>>();
        Ok(Graph { nodes, initializers, inputs: values(proto.input)?, outputs: values(proto.output)?, name })
    }

    fn node(&self, proto: NodeProto, opsets: &Opsets, in_function: bool, depth: usize) -> Result<Node, Error> {
        let mut node = Node {
            name: proto.name.unwrap_or_default(),
            op: proto.op_type.unwrap_or_default(),
            domain: domain(proto.domain.as_deref().unwrap_or_default()).to_owned(),
            overload: proto.overload.unwrap_or_default(),
            opset: 0,
            inputs: proto.input,
            outputs: proto.output,
            attrs: BTreeMap::new(),
            graphs: BTreeMap::new(),
            file: self.file.clone(),
        };
        if node.op.is_empty() {
            return Err(Error::new(node.place(), "has no operator").help("the file is damaged: export the model again"));
        }
        node.opset = opsets.version(&node.domain).ok_or_else(|| {
            let domain = if node.domain.is_empty() { "the ONNX standard".into() } else { format!("{:?}", node.domain) };
            Error::new(node.place(), format!("is of domain {domain}, of which the file imports no version"))
                .help("export the model again: without a version, nobody can say what the node does")
        })?;
        (node.attrs, node.graphs) = self.attrs(&node.place(), proto.attribute, opsets, in_function, depth)?;
        Ok(node)
    }

    fn attrs(
        &self,
        place: &str,
        protos: Vec<AttributeProto>,
        opsets: &Opsets,
        in_function: bool,
        depth: usize,
    ) -> Result<Attrs, Error> {
        let (mut attrs, mut graphs) = Attrs::default();
        for mut attr in protos {
            let name = attr.name().to_owned();
            let bad = |message: &str| {
                Err(Error::new(place, format!("attribute {name:?} {message}")).help("export the model again"))
            };
            if attrs.contains_key(&name) || graphs.contains_key(&name) {
                return bad("is given twice");
            }
            if attr.r#type.is_some_and(|t| AttributeType::try_from(t).is_err()) {
                return bad("has a type that ONNX 1.23 does not know");
            }
            if attr.ref_attr_name.as_ref().is_some_and(|r| !r.is_empty()) {
                if !in_function {
                    return bad("is said to be that of a function, and the node is in none");
                }
            } else {
                let kind = kind(&attr);
                attr.r#type = Some(kind.into());
                if matches!(kind, AttributeType::Graph | AttributeType::Graphs) {
                    let inner = attr.g.take().map(|g| *g).into_iter().chain(std::mem::take(&mut attr.graphs));
                    let inner = inner.map(|g| self.graph(g, opsets, in_function, depth + 1));
                    graphs.insert(name, inner.collect::<Result<_, _>>()?);
                    continue;
                }
            }
            attr.doc_string = None;
            attrs.insert(name, Box::new(attr));
        }
        Ok((attrs, graphs))
    }

    fn value(&self, proto: ValueInfoProto) -> Result<ValueInfo, Error> {
        let name = proto.name.unwrap_or_default();
        let mut ty = proto.r#type.and_then(|t| t.value);
        // An optional that is given is its value.
        if let Some(type_proto::Value::OptionalType(optional)) = ty {
            ty = optional.elem_type.and_then(|t| t.value);
        }
        let Some(type_proto::Value::TensorType(tensor)) = ty else {
            return Ok(ValueInfo { name, elem: None, dims: None });
        };
        let number = tensor.elem_type.unwrap_or(0);
        let elem = ElemType::from_number(number);
        if elem.is_none() && number != 0 {
            let message = format!("has element type {number}, which is none that ONNX 1.23 knows");
            return Err(Error::new(format_args!("{}: value {name:?}", self.file), message)
                .help("the file is damaged, or of a later ONNX: export the model again, with an older opset"));
        }
        let dim = |dim: tensor_shape_proto::Dimension| match dim.value {
            // Some writers spell an unknown dimension as -1 or as an empty name.
            Some(tensor_shape_proto::dimension::Value::DimValue(n)) => {
                usize::try_from(n).map_or(DimText::Unknown, DimText::Known)
            }
            Some(tensor_shape_proto::dimension::Value::DimParam(name)) if !name.is_empty() => DimText::Named(name),
            _ => DimText::Unknown,
        };
        Ok(ValueInfo { name, elem, dims: tensor.shape.map(|s| s.dim.into_iter().map(dim).collect()) })
    }
}

/// What an attribute holds. Files of IR version 1 need not say; then it is what is there.
fn kind(attr: &AttributeProto) -> AttributeType {
    let said = attr.r#type();
    if said != AttributeType::Undefined {
        return said;
    }
    let found = [
        (attr.f.is_some(), AttributeType::Float),
        (attr.i.is_some(), AttributeType::Int),
        (attr.s.is_some(), AttributeType::String),
        (attr.t.is_some(), AttributeType::Tensor),
        (attr.g.is_some(), AttributeType::Graph),
        (!attr.floats.is_empty(), AttributeType::Floats),
        (!attr.ints.is_empty(), AttributeType::Ints),
        (!attr.strings.is_empty(), AttributeType::Strings),
        (!attr.tensors.is_empty(), AttributeType::Tensors),
        (!attr.graphs.is_empty(), AttributeType::Graphs),
    ];
    found.into_iter().find(|(there, _)| *there).map_or(AttributeType::Undefined, |(_, kind)| kind)
}
