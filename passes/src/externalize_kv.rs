//! `externalize-kv`: the full-sequence `@forward` becomes `@step_M` and `@head_R` without states, for devices whose host keeps
//! the cache.
//!
//! ```text
//! %a = attention %qr, %kr, %k {head_dim=4, mask=causal}: f32[T, 8]
//! ```
//! becomes, for steps of 2 rows, a cache of 8 rows and two query heads that read one key head,
//! ```text
//! %keys = transpose %kr {perm=[0, 2, 1]}: f32[1, 4, 2]
//! %scores = matmul %r.3, %keys: f32[1, 4, 2]
//! %scores.1 = matmul %r.3, %k0.1: f32[1, 4, 8]
//! %scores.2 = concat %scores.1, %scores {axis=2}: f32[1, 4, 10]
//! %masked = add %scores.2, %r.4: f32[1, 4, 10]
//! %p = softmax %masked: f32[1, 4, 10]
//! %a = matmul %part.4, %v0.1: f32[1, 4, 4]
//! %a.1 = matmul %part.5, %heads.2: f32[1, 4, 4]
//! %a.2 = add %a, %a.1: f32[1, 4, 4]
//! ```
//! in a graph that takes embeddings (x, `[M, hidden]`), angles (cos and sin, `[M, head_dim]`, the first half of the sines
//! negated), a mask (`[M, max_seq + M]`, added to the scores; cache rows first), and of each layer the cached keys
//! (`[kv heads, head_dim, max_seq]`) and values (`[kv heads, max_seq, head_dim]`). Its results are the last hidden states, and
//! keys and values of the new rows alone. Keys lie with features as rows, so a cache is never turned over; a cache is never
//! joined with new rows either: scores and weighted values are two products each. All queries of a key head are one matrix.
//! Nothing depends on data, and no dimension has a name.
//!
//! Parameters: `max_seq` (cache rows; 0 for whole sequences), `rows` and `heads` (sizes joined by `:`), `edge` (type of what
//! goes in and out: f16 or f32).

use dlx_ir::{DType, Error, Graph, Module, Node, Op, Operand, SideTable, Type, ValueId};

use crate::pipeline::parse;
use crate::split_head::row_wise_tail;
use crate::{Keeps, Params, PassInfo};

pub(crate) const PASS: PassInfo = PassInfo {
    name: "externalize-kv",
    doc: "@forward → @step_M with caches as operands, @head_R with logits {max_seq, rows=M:M, heads=R:R, edge=f16|f32}",
    params: &["max_seq", "rows", "heads", "edge"],
    // What goes in and out is rounded to the type of the edge.
    keeps: |params| if params.get("edge") == Some("f32") { Keeps::Rounding } else { Keeps::Format(0.02) },
    run,
};

fn run(module: &mut Module, params: &Params, _: &mut Vec<crate::Note>) -> Result<usize, Error> {
    let sizes = |name: &str| -> Result<Vec<usize>, Error> {
        let text: String = params.require(name)?;
        text.split(':').map(|s| parse::<usize>(name, s)).collect()
    };
    let (rows, heads) = (sizes("rows")?, sizes("heads")?);
    let max_seq: usize = params.require("max_seq")?;
    let edge: DType = params.require("edge")?;
    let missing =
        || Error::new("module", "there is no graph @forward").help("externalize-kv runs once, on an imported model");
    let index = module.graphs.iter().position(|g| g.name == "forward").ok_or_else(missing)?;
    let forward = module.graphs.remove(index);
    let tail = row_wise_tail(&forward)?;
    for &rows in &rows {
        let mut graph = Graph::new(format!("step_{rows}"));
        Step::new(module, &forward, &mut graph, Shape { rows, max_seq, edge })?.run(&tail)?;
        module.graphs.push(graph);
    }
    for rows in heads {
        let graph = head(module, &forward, &tail, rows, edge)?;
        module.graphs.push(graph);
    }
    Ok(module.graphs.len())
}

/// The logits of rows of hidden states.
fn head(module: &Module, forward: &Graph, tail: &[Node], rows: usize, edge: DType) -> Result<Graph, Error> {
    let mut graph = Graph::new(format!("head_{rows}"));
    let hidden = tail[0].inputs[0].value().ok_or_else(|| Error::new("graph @forward", "has a constant head"))?;
    let features = forward.values[hidden].ty.dims.get(1).and_then(dlx_ir::Dim::fixed).unwrap_or(0);
    let h = graph.param("h", Type::new(edge, [rows, features]));
    let mut x = to(module, &mut graph, h.into(), DType::F32, "x")?;
    for node in tail {
        let inputs = std::iter::once(x).chain(node.inputs[1..].iter().copied()).collect();
        let name = &forward.values[node.outputs[0]].name;
        x = emit(module, &mut graph, node.op.clone(), inputs, name)?;
        graph.nodes.last_mut().expect("just emitted").origin = node.origin.clone();
    }
    graph.results = x.value().into_iter().collect();
    Ok(graph)
}

fn emit(module: &Module, g: &mut Graph, op: Op, inputs: Vec<Operand>, name: &str) -> Result<Operand, Error> {
    Ok(Operand::Value(g.emit(module, op, inputs, &[name])?[0]))
}

fn to(module: &Module, g: &mut Graph, x: Operand, dtype: DType, name: &str) -> Result<Operand, Error> {
    if module.operand_type(g, x).dtype == dtype {
        return Ok(x);
    }
    emit(module, g, Op::Cast { to: dtype, wrap: false }, vec![x], name)
}

/// Sizes of a step.
#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    max_seq: usize,
    edge: DType,
}

/// What stands for a value of `@forward`.
#[derive(Clone, Copy)]
enum Stands {
    /// `[rows, features]`, as there.
    Rows(Operand),
    /// `[heads, rows, head_dim]`.
    Heads(Operand),
    /// Angles or the mask, which are parameters.
    Given,
}

/// `@forward` being copied to a step.
struct Step<'a> {
    module: &'a Module,
    forward: &'a Graph,
    graph: &'a mut Graph,
    shape: Shape,
    map: SideTable<ValueId, Option<Stands>>,
    x: Operand,
    cos: Operand,
    sin: Operand,
    /// Angles for a number of heads.
    angles: Vec<(usize, Operand, Operand)>,
    mask: Operand,
    /// The mask for a number of queries of a key head.
    masks: Vec<(usize, Operand)>,
    layers: usize,
    new: Vec<ValueId>,
}

impl<'a> Step<'a> {
    /// A step whose parameters are there, but for the caches.
    fn new(module: &'a Module, forward: &'a Graph, graph: &'a mut Graph, shape: Shape) -> Result<Self, Error> {
        let node = |wanted: fn(&Op) -> bool| forward.nodes.iter().find(|n| wanted(&n.op));
        let embed = node(|op| matches!(op, Op::Embed {}));
        let table = node(|op| matches!(op, Op::RopeTable { .. }));
        let (Some(embed), Some(table)) = (embed, table) else {
            return Err(Error::new("graph @forward", "has no embedding or no rotary table"));
        };
        let width = |n: &Node| forward.values[n.outputs[0]].ty.dims.get(1).and_then(dlx_ir::Dim::fixed).unwrap_or(0);
        let Shape { rows, max_seq, edge } = shape;
        let mut given = |name: &str, columns: usize| {
            let v = graph.param(name, Type::new(edge, [rows, columns]));
            to(module, graph, v.into(), DType::F32, name)
        };
        let x = given("x", width(embed))?;
        let (cos, sin) = (given("cos", width(table))?, given("sin", width(table))?);
        let mask = given("mask", max_seq + rows)?;
        let map = forward.values.side_table(None);
        let (angles, masks, new) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Step { module, forward, graph, shape, map, x, cos, sin, angles, mask, masks, layers: 0, new })
    }

    fn run(mut self, tail: &[Node]) -> Result<(), Error> {
        let ends: Vec<ValueId> = tail.iter().flat_map(|n| n.outputs.clone()).collect();
        for node in &self.forward.nodes {
            if node.outputs.iter().any(|v| ends.contains(v)) {
                continue;
            }
            let first = self.graph.nodes.len();
            let stands = self.node(node).map_err(|e| Error {
                place: format!("{}: {}", self.module.node_text(self.forward, node), e.place),
                ..e
            })?;
            for made in &mut self.graph.nodes[first..] {
                made.origin.join(&node.origin);
            }
            self.map[node.outputs[0]] = Some(stands);
        }
        let hidden = self.rows_of(tail[0].inputs[0])?;
        let h = to(self.module, self.graph, hidden, self.shape.edge, "h")?;
        self.graph.results = h.value().into_iter().chain(self.new).collect();
        Ok(())
    }

    fn node(&mut self, node: &Node) -> Result<Stands, Error> {
        let name = self.forward.values[node.outputs[0]].name.clone();
        Ok(match &node.op {
            Op::Embed {} => Stands::Rows(self.x),
            Op::RopeTable { .. } | Op::Mask { .. } => Stands::Given,
            Op::Rope { head_dim, norm: None } => {
                let x = self.heads_of(node.inputs[0], *head_dim as usize)?;
                Stands::Heads(self.rotated(x, &name)?)
            }
            Op::Attention { head_dim, mask: Some(_) } => {
                let head_dim = *head_dim as usize;
                let [q, k, v] = [0, 1, 2].map(|i| node.inputs[i]);
                let [q, k, v] = [self.heads_of(q, head_dim)?, self.heads_of(k, head_dim)?, self.heads_of(v, head_dim)?];
                Stands::Heads(self.attend(q, k, v, &name)?)
            }
            op @ (Op::Linear { n: 1, norm: None, .. }
            | Op::RmsNorm { .. }
            | Op::Silu {}
            | Op::Add {}
            | Op::Mul {}
            | Op::Scale { .. }) => {
                let inputs = node.inputs.iter().map(|i| self.rows_of(*i)).collect::<Result<_, _>>()?;
                Stands::Rows(self.emit(op.clone(), inputs, &name)?)
            }
            op => {
                let help = "externalize-kv runs after block-attention and dce, before anything is fused";
                return Err(Error::new("", format!("`{}` cannot be part of a step", op.name())).help(help));
            }
        })
    }

    fn emit(&mut self, op: Op, inputs: Vec<Operand>, name: &str) -> Result<Operand, Error> {
        emit(self.module, self.graph, op, inputs, name)
    }

    fn dims(&self, x: Operand) -> Vec<usize> {
        self.module.operand_type(self.graph, x).shape().unwrap_or_default()
    }

    fn reshape(&mut self, x: Operand, dims: &[usize]) -> Result<Operand, Error> {
        self.emit(Op::Reshape { dims: signed(dims) }, vec![x], "r")
    }

    fn transpose(&mut self, x: Operand, perm: [i64; 3], name: &str) -> Result<Operand, Error> {
        self.emit(Op::Transpose { perm: perm.into() }, vec![x], name)
    }

    fn stands(&self, operand: Operand) -> Result<Stands, Error> {
        let Some(v) = operand.value() else { return Ok(Stands::Rows(operand)) };
        self.map[v].ok_or_else(|| Error::new(format!("%{}", self.forward.values[v].name), "is no row of the sequence"))
    }

    /// A value as `[rows, features]`.
    fn rows_of(&mut self, operand: Operand) -> Result<Operand, Error> {
        match self.stands(operand)? {
            Stands::Rows(x) => Ok(x),
            Stands::Heads(x) => {
                let dims = self.dims(x);
                let turned = self.transpose(x, [1, 0, 2], "rows")?;
                self.reshape(turned, &[dims[1], dims[0] * dims[2]])
            }
            Stands::Given => Err(Error::new(self.forward.name.clone(), "reads angles or masks as rows")),
        }
    }

    /// A value as `[heads, rows, head_dim]`.
    fn heads_of(&mut self, operand: Operand, head_dim: usize) -> Result<Operand, Error> {
        if let Stands::Heads(x) = self.stands(operand)? {
            return Ok(x);
        }
        let x = self.rows_of(operand)?;
        let dims = self.dims(x);
        let parts = self.reshape(x, &[dims[0], dims[1] / head_dim, head_dim])?;
        self.transpose(parts, [1, 0, 2], "heads")
    }

    /// `x · cos + swapped(x) · sin`, half by half. The tables are repeated for all heads: some devices compute a norm wrongly
    /// that is followed by a product which repeats its other operand.
    fn rotated(&mut self, x: Operand, name: &str) -> Result<Operand, Error> {
        let dims = self.dims(x);
        let (cos, sin) = match self.angles.iter().find(|(heads, ..)| *heads == dims[0]) {
            Some((_, cos, sin)) => (*cos, *sin),
            None => {
                let all = || Op::Expand { dims: signed(&dims) };
                let (cos, sin) = (self.emit(all(), vec![self.cos], "cos")?, self.emit(all(), vec![self.sin], "sin")?);
                self.angles.push((dims[0], cos, sin));
                (cos, sin)
            }
        };
        let half = dims[2] / 2;
        let (low, high) = (self.part(x, 2, 0..half)?, self.part(x, 2, half..dims[2])?);
        let swapped = self.emit(Op::Concat { axis: 2 }, vec![high, low], "swapped")?;
        let straight = self.emit(Op::Mul {}, vec![x, cos], "straight")?;
        let turned = self.emit(Op::Mul {}, vec![swapped, sin], "turned")?;
        self.emit(Op::Add {}, vec![straight, turned], name)
    }

    fn part(&mut self, x: Operand, axis: usize, range: std::ops::Range<usize>) -> Result<Operand, Error> {
        let mut starts = vec![0; 3];
        let mut ends = signed(&self.dims(x));
        (starts[axis], ends[axis]) = (range.start as i64, range.end as i64);
        self.emit(Op::Slice { starts, ends, steps: vec![1; 3] }, vec![x], "part")
    }

    /// Attention of `[heads, rows, head_dim]` over this layer's cache and the new rows.
    fn attend(&mut self, q: Operand, k: Operand, v: Operand, name: &str) -> Result<Operand, Error> {
        let Shape { rows, max_seq, edge } = self.shape;
        let (heads, kv, head_dim) = (self.dims(q)[0], self.dims(k)[0], self.dims(q)[2]);
        let group = heads / kv * rows;
        let q = self.emit(Op::Scale { by: (1.0 / (head_dim as f64).sqrt()) as f32 }, vec![q], "scaled")?;
        let q = self.reshape(q, &[kv, group, head_dim])?;
        let k = self.transpose(k, [0, 2, 1], "keys")?;
        let layer = self.layers;
        self.layers += 1;
        let mut scores = self.emit(Op::Matmul {}, vec![q, k], "scores")?;
        let mut cached = None;
        if max_seq > 0 {
            let mut given = |name: String, dims: [usize; 3]| {
                let v = self.graph.param(&name, Type::new(edge, dims));
                to(self.module, self.graph, v.into(), DType::F32, &name)
            };
            let keys = given(format!("k{layer}"), [kv, head_dim, max_seq])?;
            let values = given(format!("v{layer}"), [kv, max_seq, head_dim])?;
            let earlier = self.emit(Op::Matmul {}, vec![q, keys], "scores")?;
            scores = self.emit(Op::Concat { axis: 2 }, vec![earlier, scores], "scores")?;
            cached = Some(values);
        }
        let mask = self.mask_of(heads / kv)?;
        let masked = self.emit(Op::Add {}, vec![scores, mask], "masked")?;
        let p = self.emit(Op::Softmax {}, vec![masked], "p")?;
        let mut out = match cached {
            None => self.emit(Op::Matmul {}, vec![p, v], name)?,
            Some(values) => {
                let (old, new) = (self.part(p, 2, 0..max_seq)?, self.part(p, 2, max_seq..max_seq + rows)?);
                let old = self.emit(Op::Matmul {}, vec![old, values], name)?;
                let new = self.emit(Op::Matmul {}, vec![new, v], name)?;
                self.emit(Op::Add {}, vec![old, new], name)?
            }
        };
        out = self.reshape(out, &[heads, rows, head_dim])?;
        for (x, name) in [(k, format!("k{layer}_new")), (v, format!("v{layer}_new"))] {
            let new = to(self.module, self.graph, x, edge, &name)?;
            self.new.extend(new.value());
        }
        Ok(out)
    }

    /// The mask for `group` queries of each row: `[1, group · rows, columns]`.
    fn mask_of(&mut self, group: usize) -> Result<Operand, Error> {
        if let Some((_, mask)) = self.masks.iter().find(|(g, _)| *g == group) {
            return Ok(*mask);
        }
        let dims = self.dims(self.mask);
        let all = Op::Expand { dims: signed(&[group, dims[0], dims[1]]) };
        let all = self.emit(all, vec![self.mask], "mask")?;
        let mask = self.reshape(all, &[1, group * dims[0], dims[1]])?;
        self.masks.push((group, mask));
        Ok(mask)
    }
}

fn signed(dims: &[usize]) -> Vec<i64> {
    dims.iter().map(|d| i64::try_from(*d).unwrap_or(i64::MAX)).collect()
}
