//! Local functions, put in place of the nodes that call them.
//!
//! Invariant: no node that comes out calls a function of the file, at any depth. What a function's body defines is named
//! `CALL/NAME` after the calling node, and made unique where that is taken. Bodies are checked (`scope.rs`) before they are
//! used, so messages are about names that the user's file has. Expansion is bounded: functions that call each other double a
//! graph with every level.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;

use dlx_ir::Error;
use prost::Message;

use super::convert::{Attrs, Convert, MAX_NESTING, Opsets, domain};
use super::graph::{Graph, Node};
use super::proto::attribute_proto::AttributeType;
use super::proto::{AttributeProto, FunctionProto, TensorProto};
use super::scope;

/// How deep functions may call each other.
const MAX_CALLS: usize = 16;

/// Nodes that expansion may make: a thousand layers of a thousand nodes. Tests reach less sooner.
const MAX_NODES: usize = if cfg!(test) { 20_000 } else { 1_000_000 };

/// Bytes of names and attributes that expansion may copy; raw tensor data is shared, not copied.
const MAX_BYTES: usize = if cfg!(test) { 1 << 26 } else { 1 << 30 };

/// Domain, name, overload.
type Key = (String, String, String);

/// A function, ready to be put in place of a call.
#[derive(Debug)]
struct Function {
    body: Graph,
    defaults: Attrs,
    /// Version of the standard operators in the body.
    opset: i64,
}

/// The functions of a file, and what has been expanded.
#[derive(Debug)]
pub(super) struct Inliner<'a> {
    path: &'a Path,
    convert: &'a Convert,
    opsets: &'a Opsets,
    protos: BTreeMap<Key, FunctionProto>,
    ready: BTreeMap<Key, Rc<Function>>,
    /// Every name that is in use anywhere.
    used: BTreeSet<String>,
    /// Number that the next name gets which is taken.
    next: usize,
    nodes: usize,
    bytes: usize,
    /// Calls that lead to what is being expanded.
    stack: Vec<Key>,
}

impl<'a> Inliner<'a> {
    /// Reads which functions there are. `opsets` are the model's, which a function uses where it has none of its own.
    ///
    /// # Errors
    /// When there are two of one name.
    pub(super) fn new(
        path: &'a Path,
        convert: &'a Convert,
        opsets: &'a Opsets,
        functions: Vec<FunctionProto>,
    ) -> Result<Inliner<'a>, Error> {
        let mut protos = BTreeMap::new();
        for f in functions {
            let key = (domain(f.domain()).to_owned(), f.name().to_owned(), f.overload().to_owned());
            let place = format!("{}: {}", path.display(), title(&key));
            if protos.insert(key, f).is_some() {
                return Err(Error::new(place, "is there twice").help("export the model again"));
            }
        }
        Ok(Inliner {
            path,
            convert,
            opsets,
            protos,
            ready: BTreeMap::new(),
            used: BTreeSet::new(),
            next: 2,
            nodes: 0,
            bytes: 0,
            stack: Vec::new(),
        })
    }

    /// Replaces all calls in a graph that has been checked, and in the graphs inside it.
    ///
    /// # Errors
    /// When a function calls itself, a call does not fit its function, or the expansion becomes too deep or too large.
    pub(super) fn run(&mut self, graph: &mut Graph) -> Result<(), Error> {
        for g in graph.nested() {
            let outputs = g.nodes.iter().flat_map(|n| &n.outputs);
            let values = g.inputs.iter().map(|v| &v.name).chain(g.initializers.keys()).chain(outputs);
            self.used.extend(values.cloned());
        }
        self.graph(graph, 0)
    }

    fn graph(&mut self, graph: &mut Graph, depth: usize) -> Result<(), Error> {
        let nodes = std::mem::take(&mut graph.nodes);
        for node in nodes {
            self.node(node, &mut graph.nodes, depth)?;
        }
        Ok(())
    }

    fn node(&mut self, mut node: Node, out: &mut Vec<Node>, depth: usize) -> Result<(), Error> {
        for graph in node.graphs.values_mut().flatten() {
            if depth >= MAX_NESTING {
                let message =
                    format!("holds graphs inside each other, more than {MAX_NESTING} deep once functions are expanded");
                return Err(Error::new(node.file.as_ref(), message).help("export the model without local functions"));
            }
            self.graph(graph, depth + 1)?;
        }
        let key = (node.domain.clone(), node.op.clone(), node.overload.clone());
        match self.function(&node, &key)? {
            Some(function) => {
                self.stack.push(key);
                self.expand(&node, &function, out, depth)?;
                self.stack.pop();
            }
            None => out.push(node),
        }
        Ok(())
    }

    /// The function that a node calls, if it calls one.
    fn function(&mut self, node: &Node, key: &Key) -> Result<Option<Rc<Function>>, Error> {
        if !self.protos.contains_key(key) && !self.ready.contains_key(key) {
            return Ok(None);
        }
        let help = "export the model without local functions";
        if let Some(at) = self.stack.iter().position(|k| k == key) {
            let circle: Vec<String> = self.stack.iter().skip(at).chain([key]).map(title).collect();
            let message = format!("calls itself without end: {}", circle.join(", "));
            return Err(Error::new(format_args!("{}: {}", self.path.display(), title(key)), message).help(help));
        }
        if self.stack.len() >= MAX_CALLS {
            return Err(Error::new(node.place(), format!("is a call inside {MAX_CALLS} others")).help(help));
        }
        if let Some(proto) = self.protos.remove(key) {
            let what = title(key);
            let mut opsets = self.opsets.clone();
            opsets.0.extend(Opsets::read(&format!("{}: {what}", self.path.display()), &proto.opset_import)?.0);
            let opset = opsets.version("").unwrap_or(1);
            let (mut body, defaults) = self.convert.function(proto, &opsets)?;
            scope::check(self.path, &what, &mut body)?;
            self.ready.insert(key.clone(), Rc::new(Function { body, defaults, opset }));
        }
        Ok(self.ready.get(key).cloned())
    }

    fn expand(&mut self, call: &Node, f: &Function, out: &mut Vec<Node>, depth: usize) -> Result<(), Error> {
        for (what, given, there) in
            [("inputs", call.inputs.len(), f.body.inputs.len()), ("outputs", call.outputs.len(), f.body.outputs.len())]
        {
            if given > there {
                let message = format!("has {given} {what}, and the function that it calls has {there}");
                return Err(Error::new(call.place(), message).help("export the model again"));
            }
        }
        let formal = f.body.inputs.iter().chain(&f.body.outputs);
        self.spend(call, 0, formal.map(|v| v.name.len() + size_of_val(v)).sum())?;
        let mut names = BTreeMap::new();
        for (i, input) in f.body.inputs.iter().enumerate() {
            names.insert(input.name.clone(), call.inputs.get(i).cloned().unwrap_or_default());
        }
        let mut handed_on = Vec::new();
        for (output, wanted) in f.body.outputs.iter().zip(&call.outputs).filter(|(_, wanted)| !wanted.is_empty()) {
            if names.contains_key(&output.name) {
                handed_on.push((&output.name, wanted));
            } else {
                names.insert(output.name.clone(), wanted.clone());
            }
        }
        let label = [&call.name].into_iter().chain(&call.outputs).find(|name| !name.is_empty()).unwrap_or(&call.op);
        for node in &f.body.nodes {
            let node = self.copy(node, label, &mut names, call, f)?;
            self.node(node, out, depth)?;
        }
        for (from, to) in handed_on {
            let from = names.get(from).filter(|from| !from.is_empty()).ok_or_else(|| {
                Error::new(call.place(), format!("leaves out {from:?}, which the function that it calls returns"))
                    .help("export the model again")
            })?;
            self.spend(call, 1, from.len() + to.len())?;
            out.push(self.convert.identity(from.clone(), to.clone(), f.opset));
        }
        Ok(())
    }

    /// A node of a body, with the names and attributes of a call.
    fn copy(
        &mut self,
        node: &Node,
        label: &str,
        names: &mut BTreeMap<String, String>,
        call: &Node,
        f: &Function,
    ) -> Result<Node, Error> {
        let mut copy = Node {
            name: if node.name.is_empty() { String::new() } else { format!("{label}/{}", node.name) },
            op: node.op.clone(),
            domain: node.domain.clone(),
            overload: node.overload.clone(),
            opset: node.opset,
            inputs: node.inputs.iter().map(|name| names.get(name).cloned().unwrap_or_default()).collect(),
            outputs: Vec::with_capacity(node.outputs.len()),
            attrs: BTreeMap::new(),
            graphs: BTreeMap::new(),
            file: node.file.clone(),
        };
        for (name, attr) in &node.attrs {
            self.attr(name, attr, &mut copy, call, f)?;
        }
        for (name, graphs) in &node.graphs {
            let mut copies = Vec::with_capacity(graphs.len());
            for graph in graphs {
                copies.push(self.copy_graph(graph, label, names, call, f)?);
            }
            copy.graphs.insert(name.clone(), copies);
        }
        for output in &node.outputs {
            copy.outputs.push(self.define(output, label, names));
        }
        let text = copy.inputs.iter().chain(&copy.outputs).map(String::len).sum::<usize>();
        self.spend(call, 1, copy.name.len() + text)?;
        Ok(copy)
    }

    fn copy_graph(
        &mut self,
        graph: &Graph,
        label: &str,
        names: &mut BTreeMap<String, String>,
        call: &Node,
        f: &Function,
    ) -> Result<Graph, Error> {
        let mut copy = Graph { name: graph.name.clone(), ..Graph::default() };
        for input in &graph.inputs {
            let mut input = input.clone();
            input.name = self.define(&input.name, label, names);
            copy.inputs.push(input);
        }
        for (name, tensor) in &graph.initializers {
            self.spend(call, 0, weight(tensor))?;
            let mut tensor = tensor.clone();
            let name = self.define(name, label, names);
            tensor.name = Some(name.clone());
            copy.initializers.insert(name, tensor);
        }
        for node in &graph.nodes {
            copy.nodes.push(self.copy(node, label, names, call, f)?);
        }
        for output in &graph.outputs {
            let mut output = output.clone();
            output.name = names.get(&output.name).cloned().unwrap_or_default();
            copy.outputs.push(output);
        }
        Ok(copy)
    }

    /// Gives `copy` an attribute of a body's node: as it is, or what the call or the function's defaults say.
    fn attr(
        &mut self,
        name: &str,
        attr: &AttributeProto,
        copy: &mut Node,
        call: &Node,
        f: &Function,
    ) -> Result<(), Error> {
        let reference = attr.ref_attr_name();
        let (values, graphs) = &f.defaults;
        let mut found = attr.clone();
        if !reference.is_empty() {
            if let Some(graphs) = call.graphs.get(reference).or_else(|| graphs.get(reference)) {
                for graph in graphs.iter().flat_map(Graph::nested) {
                    self.spend_graph(call, graph)?;
                }
                copy.graphs.insert(name.to_owned(), graphs.clone());
                return Ok(());
            }
            // An attribute that neither the call nor a default gives is left out of the body too.
            let Some(given) = call.attrs.get(reference).or_else(|| values.get(reference)) else { return Ok(()) };
            let (want, have) = (attr.r#type(), given.r#type());
            if want != have && want != AttributeType::Undefined && have != AttributeType::Undefined {
                return Err(call.wrong(
                    reference,
                    &format!("is {}, and the function that it calls needs {}", have.as_str_name(), want.as_str_name()),
                ));
            }
            found = (**given).clone();
            found.name = Some(name.to_owned());
        }
        self.spend(call, 0, weight_of(&found))?;
        copy.attrs.insert(name.to_owned(), Box::new(found));
        Ok(())
    }

    /// The name for what a body calls `name`: as the call gave it, or a new one.
    fn define(&mut self, name: &str, label: &str, names: &mut BTreeMap<String, String>) -> String {
        if name.is_empty() {
            return String::new();
        }
        if let Some(known) = names.get(name) {
            return known.clone();
        }
        let plain = format!("{label}/{name}");
        let mut new = plain.clone();
        while !self.used.insert(new.clone()) {
            new = format!("{plain}_{}", self.next);
            self.next += 1;
        }
        names.insert(name.to_owned(), new.clone());
        new
    }

    /// Counts what a copy of a graph takes, without the graphs inside it.
    fn spend_graph(&mut self, call: &Node, graph: &Graph) -> Result<(), Error> {
        let values: usize = graph.inputs.iter().chain(&graph.outputs).map(|v| v.name.len() + size_of_val(v)).sum();
        self.spend(call, 0, values + graph.initializers.values().map(weight).sum::<usize>())?;
        for node in &graph.nodes {
            let names: usize = node.inputs.iter().chain(&node.outputs).map(String::len).sum();
            self.spend(call, 1, node.name.len() + names + node.attrs.values().map(|a| weight_of(a)).sum::<usize>())?;
        }
        Ok(())
    }

    /// Counts nodes that are made, and bytes of what comes with them.
    fn spend(&mut self, call: &Node, nodes: usize, bytes: usize) -> Result<(), Error> {
        self.nodes = self.nodes.saturating_add(nodes);
        self.bytes = self.bytes.saturating_add(bytes);
        if self.nodes <= MAX_NODES && self.bytes <= MAX_BYTES {
            return Ok(());
        }
        let message = format!(
            "expanding the functions that it calls makes more than {MAX_NODES} nodes or {} MiB of names and attributes",
            MAX_BYTES >> 20
        );
        Err(Error::new(call.place(), message).help("export the model without local functions"))
    }
}

fn title((domain, name, overload): &Key) -> String {
    let domain = if domain.is_empty() { String::new() } else { format!("{domain}.") };
    let overload = if overload.is_empty() { String::new() } else { format!(":{overload}") };
    format!("function {:?}", format!("{domain}{name}{overload}"))
}

/// Bytes of a tensor that a copy shares.
fn shared(t: &TensorProto) -> usize {
    t.raw_data.as_ref().map_or(0, |raw| raw.len())
}

/// Bytes of a tensor that a copy has of its own.
fn weight(t: &TensorProto) -> usize {
    t.encoded_len() - shared(t)
}

/// Bytes of an attribute that a copy has of its own.
fn weight_of(attr: &AttributeProto) -> usize {
    attr.encoded_len() - attr.t.as_deref().into_iter().chain(&attr.tensors).map(shared).sum::<usize>()
}
