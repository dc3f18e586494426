//! `raise-rows`: the raised graph of a generator, of one sequence, becomes `@forward(ids: i32[T], pos: i32[T]) -> f32[T, V]`,
//! as a front end builds it: activations are rows of features, and T is a name.
//!
//! Every node is translated in order. Views (reshapes, transpositions) are followed and leave nothing; norms take in their
//! weights, products their biases. What has no counterpart is an error that lists all such nodes, since nothing after this pass
//! can run them.

use super::look::{Look, is_float};
use super::roles::in_order;
use super::theta::theta;
use super::view::{Axis, chunk, heads, is_plain, plain, reshape, transpose};
use crate::{Keeps, Note, Params, PassInfo};
use dlx_ir::{
    Binary, DType, Data, Error, Graph, Mask, Module, Node, Norm, Op, Operand, Origin, Post, Type, Unary, ValueId,
    WeightDef,
};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) const PASS: PassInfo = PassInfo {
    name: "raise-rows",
    doc: "the raised graph of one sequence of ids → @forward(ids, pos) of rows, T a name {mask=RULE}",
    params: &["mask"],
    keeps: |_| Keeps::Rounding,
    run,
};

/// What a view makes of axes.
type ViewOf<'v> = dyn Fn(&[Axis]) -> Result<Vec<Axis>, String> + 'v;

/// What a value of the graph is in rows.
#[derive(Clone)]
pub(super) enum Meaning {
    /// The token ids.
    Ids(Vec<Axis>),
    /// Rows of features.
    Rows { value: ValueId, axes: Vec<Axis> },
    /// Rows whose chunks are divided by their root mean square, and not yet multiplied by a weight.
    Normed { value: ValueId, axes: Vec<Axis>, eps: f32, origin: Origin },
}

fn run(module: &mut Module, params: &Params, notes: &mut Vec<Note>) -> Result<usize, Error> {
    let mask: Option<Mask> = params.optional("mask")?;
    (crate::dce::PASS.run)(module, &Params::default(), notes)?;
    let [old] = &module.graphs[..] else {
        return Err(Error::new("module", format!("has {} graphs, not one", module.graphs.len())));
    };
    let old = old.clone();
    let place = format!("graph @{}", old.name);
    let defs = old.definitions();
    let tokens = one_sequence(&old).map_err(|why| Error::new(&place, why))?;
    let mut rows = Rows::new(module, &old, tokens, mask);
    let mut failures: Vec<String> = Vec::new();
    for node in &old.nodes {
        // What depends on a failure fails with it and is not worth a line.
        let known = |o: &Operand| o.value().is_none_or(|v| rows.meanings.contains_key(&v));
        if !node.inputs.iter().all(known) {
            continue;
        }
        let look = Look::new(rows.module, &old, &defs);
        let text = look.text(node);
        match rows.node(node) {
            Ok(meaning) => {
                if let [result] = node.outputs[..] {
                    rows.meanings.insert(result, meaning);
                }
            }
            Err(why) => failures.push(format!("{text}: {why}")),
        }
    }
    if failures.is_empty() {
        rows.finish(notes).map_err(|why| Error::new(&place, why))?;
        (crate::dce::PASS.run)(module, &Params::default(), notes)?;
        return Ok(old.nodes.len());
    }
    let list = failures.join("\n  ");
    let message = format!("cannot become rows of one sequence, because of {} nodes:\n  {list}", failures.len());
    Err(Error::new(place, message)
        .help("a generator is compiled whole; the notes of the passes before say what was not recognized"))
}

/// The number of tokens that a graph of ids takes.
fn one_sequence(graph: &Graph) -> Result<usize, String> {
    let names: Vec<_> = graph.params.iter().map(|p| format!("%{}", graph.values[*p].name)).collect();
    let [ids] = &graph.params[..] else {
        return Err(format!(
            "takes {}, where a generator takes ids alone: the others have to be bound",
            names.join(", ")
        ));
    };
    if graph.results.len() != 1 {
        return Err(format!("gives {} results, where a generator gives logits", graph.results.len()));
    }
    let ty = &graph.values[*ids].ty;
    match ty.shape().as_deref() {
        Some([1, tokens]) if *tokens > 1 && matches!(ty.dtype, DType::I64 | DType::I32) => Ok(*tokens),
        _ => Err(format!("takes {}: {ty}, not the ids of one sequence, i64[1, T]", names[0])),
    }
}

pub(super) struct Rows<'a> {
    pub(super) module: &'a mut Module,
    pub(super) old: &'a Graph,
    pub(super) uses: Vec<usize>,
    pub(super) tokens: usize,
    rule: Option<Mask>,
    pub(super) graph: Graph,
    ids: ValueId,
    pos: ValueId,
    meanings: BTreeMap<ValueId, Meaning>,
    masks: BTreeMap<String, ValueId>,
    ropes: Vec<(f32, u32, ValueId)>,
    ones: BTreeMap<usize, Operand>,
    /// Origin of the node that is being translated.
    pub(super) origin: Origin,
    /// Rotated queries and keys whose features are in another order than in the old graph.
    turned: BTreeSet<ValueId>,
    /// Rotations by tables of 16 bits, by their type.
    coarse: BTreeMap<DType, usize>,
    /// Conversions to or from 16 bits that left nothing, and their type.
    casts: BTreeMap<DType, usize>,
    /// Attentions by how their scores are scaled beside the usual.
    scaled: BTreeMap<String, usize>,
    /// What was left out at the end of the graph.
    pub(super) ends: Vec<&'static str>,
}

impl<'a> Rows<'a> {
    fn new(module: &'a mut Module, old: &'a Graph, tokens: usize, rule: Option<Mask>) -> Self {
        let mut graph = Graph::new("forward");
        let ids = graph.param("ids", Type::new(DType::I32, ["T"]));
        let pos = graph.param("pos", Type::new(DType::I32, ["T"]));
        let given = Meaning::Ids(vec![Axis::One, Axis::Rows(tokens)]);
        Rows {
            module,
            old,
            uses: old.use_counts(),
            tokens,
            rule,
            graph,
            ids,
            pos,
            meanings: old.params.iter().map(|p| (*p, given.clone())).collect(),
            masks: BTreeMap::new(),
            ropes: Vec::new(),
            ones: BTreeMap::new(),
            origin: Origin::default(),
            turned: BTreeSet::new(),
            coarse: BTreeMap::new(),
            casts: BTreeMap::new(),
            scaled: BTreeMap::new(),
            ends: Vec::new(),
        }
    }

    /// Appends a node that comes from the one that is being translated.
    pub(super) fn emit(&mut self, op: Op, inputs: Vec<Operand>) -> Result<ValueId, String> {
        let outputs = self.graph.emit(self.module, op, inputs, &["v"]).map_err(|e| e.message)?;
        if let Some(node) = self.graph.nodes.last_mut() {
            node.origin.join(&self.origin);
        }
        Ok(outputs[0])
    }

    pub(super) fn features(&self, value: ValueId) -> usize {
        self.graph.values[value].ty.dims.last().and_then(dlx_ir::Dim::fixed).unwrap_or(0)
    }

    /// Sizes of an operand of the old graph.
    pub(super) fn shape(&self, operand: Operand) -> Vec<usize> {
        self.module.operand_type(self.old, operand).shape().unwrap_or_default()
    }

    /// The rows that an operand is, with all features in order.
    pub(super) fn rows(&mut self, operand: Operand) -> Result<(ValueId, Vec<Axis>), String> {
        let (value, axes) = self.in_any_order(operand)?;
        if self.turned.contains(&value) {
            return Err(
                "reads what a rotation of neighbors has left in another order, which attention alone may".into()
            );
        }
        Ok((value, axes))
    }

    fn in_any_order(&mut self, operand: Operand) -> Result<(ValueId, Vec<Axis>), String> {
        match operand.value().and_then(|v| self.meanings.get(&v)).cloned() {
            Some(Meaning::Rows { value, axes }) => Ok((value, axes)),
            Some(Meaning::Normed { value, axes, eps, origin }) => {
                let width = chunk(&axes).ok_or("normalizes a single number")?;
                let module = &mut *self.module;
                let ones = *self.ones.entry(width).or_insert_with(|| {
                    let ty = Type::new(DType::F32, [width]);
                    Operand::Weight(module.add_weight("ones", ty, WeightDef::Literal(Data::F32(vec![1.0; width]))))
                });
                self.origin.join(&origin);
                Ok((self.emit(Op::RmsNorm { eps }, vec![Operand::Value(value), ones])?, axes))
            }
            Some(Meaning::Ids(_)) => Err("computes with token ids".into()),
            None => Err("computes with a weight alone".into()),
        }
    }

    fn node(&mut self, node: &Node) -> Result<Meaning, String> {
        self.origin = node.origin.clone();
        let dims = node.outputs.first().and_then(|o| self.old.values[*o].ty.shape()).unwrap_or_default();
        let first = *node.inputs.first().ok_or("reads nothing")?;
        match &node.op {
            Op::Cast { to, .. } => self.cast(first, *to),
            Op::Reshape { .. } => self.view(first, &|axes| reshape(axes, &dims)),
            Op::Transpose { perm } => {
                self.view(first, &|axes| transpose(axes, perm).ok_or("is no transposition".into()))
            }
            Op::Expand { .. } | Op::Slice { .. } if self.shape(first) == dims => {
                self.view(first, &|axes| Ok(axes.to_vec()))
            }
            Op::Expand { .. } if self.shape(first).iter().filter(|n| **n != 1).eq(dims.iter().filter(|n| **n != 1)) => {
                self.view(first, &|axes| reshape(axes, &dims))
            }
            Op::Gather { axis } => self.gather(node, *axis, &dims),
            Op::Linear { n: 1, bias, norm: None, post: Post::None } => self.linear(node, *bias),
            Op::Normalize { kind: Norm::Rms, eps } => {
                let (value, axes) = self.rows(first)?;
                chunk(&axes).ok_or("normalizes something else than features in order")?;
                Ok(Meaning::Normed { value, axes, eps: *eps, origin: node.origin.clone() })
            }
            Op::Silu {} => {
                let (value, axes) = self.rows(first)?;
                Ok(Meaning::Rows { value: self.emit(Op::Silu {}, vec![Operand::Value(value)])?, axes })
            }
            Op::Scale { by } => self.scale(first, f64::from(*by)),
            Op::Binary { kind: Binary::Div } => {
                let by = Look::new(self.module, self.old, &[]).scalar(node.inputs[1]).filter(|by| *by != 0.0);
                self.scale(first, 1.0 / by.ok_or("divides by something that is no constant")?)
            }
            Op::Add {} => self.add(first, node.inputs[1]),
            Op::Mul {} => self.mul(first, node.inputs[1]),
            Op::Rotary { interleaved } => self.rotary(first, node.inputs[1], node.inputs[2], *interleaved),
            Op::Sdpa { scale, cap, mask } => self.sdpa(node, *scale, *cap, *mask),
            Op::Softmax {} | Op::Unary { kind: Unary::Log } if self.is_end(node) => {
                let (value, axes) = self.rows(first)?;
                Ok(Meaning::Rows { value, axes })
            }
            Op::ArgMax { .. } => Err("chooses tokens, which decoding does: export the logits instead".into()),
            Op::Slice { starts, ends, steps } => match self.leaves_last(first, &dims, starts) {
                Some(at) if self.is_tail(node) => self.last(first, at, false),
                _ => self.slice(first, &dims, starts, ends, steps),
            },
            Op::Expand { .. } => Err("repeats elements".into()),
            Op::Normalize { .. } => Err("layer norms have no counterpart in rows yet".into()),
            op => Err(format!("`{}` has no counterpart in rows", op.name())),
        }
    }

    pub(super) fn view(&mut self, operand: Operand, to: &ViewOf<'_>) -> Result<Meaning, String> {
        match operand.value().and_then(|v| self.meanings.get(&v)).cloned() {
            Some(Meaning::Ids(axes)) => Ok(Meaning::Ids(to(&axes)?)),
            Some(Meaning::Rows { value, axes }) => Ok(Meaning::Rows { value, axes: to(&axes)? }),
            Some(Meaning::Normed { value, axes, eps, origin }) => {
                let (width, axes) = (chunk(&axes), to(&axes)?);
                if chunk(&axes) == width {
                    return Ok(Meaning::Normed { value, axes, eps, origin });
                }
                let (value, _) = self.rows(operand)?;
                Ok(Meaning::Rows { value, axes })
            }
            None => Err("is a view of a weight".into()),
        }
    }

    fn cast(&mut self, operand: Operand, to: DType) -> Result<Meaning, String> {
        let from = self.module.operand_type(self.old, operand).dtype;
        match operand.value().and_then(|v| self.meanings.get(&v)).cloned() {
            Some(Meaning::Ids(axes)) if matches!(to, DType::I64 | DType::I32) => Ok(Meaning::Ids(axes)),
            Some(Meaning::Ids(_)) => Err("computes with token ids".into()),
            Some(same) if is_float(to) => {
                for dtype in [from, to].into_iter().filter(|d| matches!(d, DType::F16 | DType::BF16)) {
                    *self.casts.entry(dtype).or_default() += 1;
                }
                Ok(same)
            }
            _ => Err(format!("converts to {to}")),
        }
    }

    pub(super) fn embed(&mut self, table: Operand, ids: Operand) -> Result<Meaning, String> {
        let Some(Meaning::Ids(axes)) = ids.value().and_then(|v| self.meanings.get(&v)).cloned() else {
            return Err("looks up something else than token ids".into());
        };
        let (Operand::Weight(_), &[_, width]) = (table, &self.shape(table)[..]) else {
            return Err("looks up rows of something that is no weight".into());
        };
        let value = self.emit(Op::Embed {}, vec![Operand::Value(self.ids), table])?;
        let dims: Vec<usize> =
            axes.iter().map(|a| if *a == Axis::One { 1 } else { self.tokens }).chain([width]).collect();
        Ok(Meaning::Rows { value, axes: plain(&dims, self.tokens)? })
    }

    fn linear(&mut self, node: &Node, bias: bool) -> Result<Meaning, String> {
        let (value, mut axes) = self.rows(node.inputs[0])?;
        if !is_plain(&axes, self.features(value)) {
            return Err("multiplies something else than all features of a token, in order".into());
        }
        let inputs = std::iter::once(Operand::Value(value)).chain(node.inputs[1..].iter().copied()).collect();
        let value = self.emit(Op::Linear { n: 1, bias, norm: None, post: Post::None }, inputs)?;
        let n = self.features(value);
        if let Some(last) = axes.last_mut() {
            *last = if n == 1 { Axis::One } else { Axis::Features(n, 1) };
        }
        Ok(Meaning::Rows { value, axes })
    }

    fn scale(&mut self, operand: Operand, by: f64) -> Result<Meaning, String> {
        let (value, axes) = self.rows(operand)?;
        let by = by as f32;
        if !by.is_finite() {
            return Err(format!("scales by {by}"));
        }
        let value = if by == 1.0 { value } else { self.emit(Op::Scale { by }, vec![Operand::Value(value)])? };
        Ok(Meaning::Rows { value, axes })
    }

    fn add(&mut self, a: Operand, b: Operand) -> Result<Meaning, String> {
        match (a, b) {
            (Operand::Value(_), Operand::Value(_)) => self.both(Op::Add {}, a, b),
            (x @ Operand::Value(_), bias) | (bias, x) => self.bias(x, bias),
        }
    }

    /// A bias becomes an operand of the product that it is added to.
    fn bias(&mut self, x: Operand, bias: Operand) -> Result<Meaning, String> {
        let (value, axes) = self.rows(x)?;
        let once = x.value().is_some_and(|v| self.uses.get(dlx_ir::Id::index(v)) == Some(&1));
        let features = self.features(value);
        let fits = self.shape(bias) == [features] && is_plain(&axes, features);
        let product = self.graph.nodes.iter_mut().rev().find(|n| n.outputs.contains(&value));
        match product {
            Some(node) if once && fits && matches!(node.op, Op::Linear { bias: false, .. }) => {
                node.op = Op::Linear { n: 1, bias: true, norm: None, post: Post::None };
                node.inputs.push(bias);
                node.origin.join(&self.origin);
                Ok(Meaning::Rows { value, axes })
            }
            _ => Err("adds a weight to something that is no product with a weight".into()),
        }
    }

    fn mul(&mut self, a: Operand, b: Operand) -> Result<Meaning, String> {
        let (x, weight) = match (a, b) {
            (Operand::Value(_), Operand::Value(_)) => return self.both(Op::Mul {}, a, b),
            (x @ Operand::Value(_), weight) | (weight, x) => (x, weight),
        };
        let meaning = x.value().and_then(|v| self.meanings.get(&v)).cloned();
        if let Some(Meaning::Normed { value, axes, eps, origin }) = meaning {
            if chunk(&axes).is_none_or(|width| self.shape(weight) != [width]) {
                return Err("multiplies a norm by something that is not one number for each feature".into());
            }
            let own = std::mem::replace(&mut self.origin, origin);
            self.origin.join(&own);
            let value = self.emit(Op::RmsNorm { eps }, vec![Operand::Value(value), weight])?;
            return Ok(Meaning::Rows { value, axes });
        }
        let by = Look::new(self.module, self.old, &[]).scalar(weight);
        self.scale(x, by.ok_or("multiplies something that is no norm by a weight")?)
    }

    /// A function of two, which must be of the same tokens and features; the older one comes first.
    fn both(&mut self, op: Op, a: Operand, b: Operand) -> Result<Meaning, String> {
        let ((a, axes), (b, others)) = (self.rows(a)?, self.rows(b)?);
        let inside = |axes: &[Axis]| axes.iter().copied().filter(|x| *x != Axis::One).collect::<Vec<_>>();
        if inside(&axes) != inside(&others) || self.features(a) != self.features(b) {
            return Err("joins values whose tokens and features do not lie alike".into());
        }
        let silu = |v: ValueId| self.graph.nodes.iter().rev().any(|n| n.outputs == [v] && n.op == Op::Silu {});
        let swap = if op == (Op::Mul {}) { silu(b) && !silu(a) } else { b < a };
        let inputs = if swap { [b, a] } else { [a, b] }.map(Operand::Value).to_vec();
        let longer = if axes.len() >= others.len() { axes } else { others };
        Ok(Meaning::Rows { value: self.emit(op, inputs)?, axes: longer })
    }

    fn rotary(&mut self, x: Operand, cos: Operand, sin: Operand, interleaved: bool) -> Result<Meaning, String> {
        let (value, axes) = self.rows(x)?;
        let (_, width) = heads(&axes, self.features(value)).ok_or("rotates something else than heads of tokens")?;
        let look = Look::new(self.module, self.old, &[]);
        let (cos, sin) = (look.compute(cos, &BTreeMap::new())?, look.compute(sin, &BTreeMap::new())?);
        let theta = theta(&cos, &sin)?;
        if cos.dtype != DType::F32 {
            *self.coarse.entry(cos.dtype).or_default() += 1;
        }
        if cos.shape[2] * 2 != width {
            return Err(format!(
                "rotates {} of the {width} features of a head, which is not compiled yet",
                cos.shape[2] * 2
            ));
        }
        let head_dim = u32::try_from(width).map_err(|_| "has heads that are too wide")?;
        if interleaved {
            self.part_neighbors(x, value, width)?;
        }
        let table = match self.ropes.iter().find(|(t, d, _)| (*t, *d) == (theta, head_dim)) {
            Some((.., table)) => *table,
            None => {
                let table = self.emit(Op::RopeTable { theta, head_dim }, vec![Operand::Value(self.pos)])?;
                self.ropes.push((theta, head_dim, table));
                table
            }
        };
        let value = self.emit(Op::Rope { head_dim, norm: None }, [value, table].map(Operand::Value).to_vec())?;
        if interleaved {
            self.turned.insert(value);
        }
        Ok(Meaning::Rows { value, axes })
    }

    fn sdpa(&mut self, node: &Node, scale: f32, cap: Option<f32>, mask: Option<Mask>) -> Result<Meaning, String> {
        if cap.is_some() {
            return Err("caps its scores, which is not compiled yet".into());
        }
        let [q, k, v] = node.inputs[..] else { return Err("attends under a mask that follows no known rule".into()) };
        let dtype = self.module.operand_type(self.old, q).dtype;
        let ((mut q, axes), (k, k_axes), (v, v_axes)) = (self.in_any_order(q)?, self.in_any_order(k)?, self.rows(v)?);
        if self.turned.contains(&q) != self.turned.contains(&k) {
            return Err("has queries or keys rotated by neighbors, but not both".into());
        }
        let of = |value, axes: &[Axis]| heads(axes, self.features(value));
        let (Some((_, width)), Some(keys), Some(values)) = (of(q, &axes), of(k, &k_axes), of(v, &v_axes)) else {
            return Err("attends with something else than heads of tokens".into());
        };
        if keys != values || keys.1 != width {
            return Err(format!("has keys of {} features and values of {}", keys.1, values.1));
        }
        let found = mask.unwrap_or(Mask::Full);
        let rule = self.rule.unwrap_or(found);
        let differs = (0..self.tokens * self.tokens).map(|i| (i / self.tokens, i % self.tokens));
        if let Some((i, j)) = differs.into_iter().find(|(i, j)| rule.sees(*i, *j) != found.sees(*i, *j)) {
            return Err(format!("attends under {found}, which differs from {rule} at [{i}, {j}]"));
        }
        let head_dim = u32::try_from(width).map_err(|_| "has heads that are too wide")?;
        // Attention scales by 1 / √head_dim itself; the rest is put on the queries.
        let rest = f64::from(scale) * (width as f64).sqrt();
        let near = match dtype {
            DType::BF16 => 8e-3,
            DType::F16 => 2e-3,
            _ => 1e-6,
        };
        if (rest - 1.0).abs() > near {
            *self.scaled.entry(format!("{rest:.6}")).or_default() += 1;
            q = self.emit(Op::Scale { by: rest as f32 }, vec![Operand::Value(q)])?;
        }
        let mask = match self.masks.get(&rule.to_string()) {
            Some(mask) => *mask,
            None => {
                let mask = self.emit(Op::Mask { rule }, vec![Operand::Value(self.ids)])?;
                self.masks.insert(rule.to_string(), mask);
                mask
            }
        };
        let op = Op::Attention { head_dim, mask: None };
        let value = self.emit(op, [q, k, v, mask].map(Operand::Value).to_vec())?;
        Ok(Meaning::Rows { value, axes })
    }

    /// Puts the new graph in the place of the old one.
    fn finish(mut self, notes: &mut Vec<Note>) -> Result<(), String> {
        let result = Operand::Value(self.old.results[0]);
        let (value, axes) = self.rows(result)?;
        if !is_plain(&axes, self.features(value)) {
            return Err("does not give one row of logits for each token".into());
        }
        self.graph.results = vec![value];
        let mut note = |why: String| notes.push(Note { what: "rows", node: format!("graph @{}", self.old.name), why });
        for (dtype, n) in &self.casts {
            note(format!("{n} conversions from or to {dtype} are left out: activations are f32"));
        }
        for (dtype, n) in &self.coarse {
            note(format!("{n} rotations by tables in {dtype} are computed by the exact angles of their base"));
        }
        for end in &self.ends {
            note((*end).to_owned());
        }
        for (by, n) in &self.scaled {
            note(format!("{n} attentions scale their scores by {by} / √head_dim: the queries are multiplied by {by}"));
        }
        self.module.graphs = vec![in_order(&self.graph)];
        Ok(())
    }
}
