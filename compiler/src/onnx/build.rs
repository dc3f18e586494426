//! Builds a portable graph, computing at once whatever does not depend on run-time values.
//!
//! Invariant: every [`Val`] has a static shape. An op whose operands are all known, and whose result is not large, leaves no
//! node behind; so what exporters compute from shapes, the masks and the tables of angles disappear by themselves.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use dlx_ir::{
    Arg, ArgKind, Binary, Compare, DType, Data, Graph, MAX_LITERAL, Module, Op, Operand, Origin, Reduce, Tensor, Type,
    Unary, ValueId, WeightDef, WeightId, compute, infer,
};

use super::file::OnnxModel;
use super::stored::Stored;
use super::value::{Val, Value, cast, empty, ints, scalar};

/// Most elements of an operand or result that is computed while importing: a mask of four thousand positions.
const MAX_FOLD: usize = 1 << 24;

/// Most elements of a tensor that is known now and computed when the model runs: a large weight that a graph still changes.
const MAX_CONSTANT: usize = 1 << 28;

/// Most elements of all tensors that are computed while importing one graph.
const MAX_FOLDED: usize = 1 << 29;

/// Most elements of any value: more than any machine holds.
pub(super) const MAX_VALUE: usize = 1 << 36;

/// Most multiplications of a product that is computed while importing.
const MAX_WORK: usize = 1 << 30;

/// Most nodes of an imported graph: what unrolled loops may come to.
const MAX_NODES: usize = 1 << 20;

/// A value of which single features can be computed alone, since they are rows or columns of a stored weight.
#[derive(Clone)]
enum Parts {
    /// A product with a weight, and a bias.
    Linear(Val, Arc<Stored>, Option<Val>),
    /// Rows of a table.
    Rows(Arc<Stored>, Val),
}

/// A graph being built.
pub(super) struct Builder<'m> {
    model: &'m OnnxModel,
    pub(super) module: Module,
    pub(super) graph: Graph,
    /// Initializers that became source weights, by the weight's name.
    pub(super) sources: BTreeMap<String, Arc<Stored>>,
    pub(super) notes: Vec<String>,
    /// Name of the node that is being imported.
    pub(super) origin: String,
    literals: BTreeMap<String, Vec<(Tensor, WeightId)>>,
    /// What values are made of that can be made in parts.
    parts: BTreeMap<ValueId, Parts>,
    folded: usize,
    /// Whether stored codes become plain numbers.
    pub(super) numbers: bool,
}

impl<'m> Builder<'m> {
    pub(super) fn new(model: &'m OnnxModel, name: &str) -> Self {
        Builder {
            model,
            module: Module::new(name),
            graph: Graph::new("main"),
            sources: BTreeMap::new(),
            notes: Vec::new(),
            origin: String::new(),
            literals: BTreeMap::new(),
            parts: BTreeMap::new(),
            folded: 0,
            numbers: false,
        }
    }

    /// Adds a note once.
    pub(super) fn note(&mut self, note: impl Into<String>) {
        let note = note.into();
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    pub(super) fn dtype(&self, v: &Val) -> Result<DType, String> {
        match v {
            Val::Known(t) => Ok(t.dtype),
            Val::Stored(s) => Ok(s.dtype()),
            Val::Run(v) => Ok(self.graph.values[*v].ty.dtype),
            Val::List(_) => Err("is a sequence where a tensor is needed".into()),
            Val::Nothing => Err("is an optional without a value where a tensor is needed".into()),
        }
    }

    pub(super) fn shape(&self, v: &Val) -> Result<Vec<usize>, String> {
        match v {
            Val::Known(t) => Ok(t.shape.clone()),
            Val::Stored(s) => Ok(s.dims().to_vec()),
            Val::Run(v) => self.graph.values[*v].ty.shape().ok_or_else(|| "has a dynamic size".into()),
            Val::List(_) => Err("is a sequence where a tensor is needed".into()),
            Val::Nothing => Err("is an optional without a value where a tensor is needed".into()),
        }
    }

    pub(super) fn rank(&self, v: &Val) -> Result<usize, String> {
        Ok(self.shape(v)?.len())
    }

    pub(super) fn elements(&self, v: &Val) -> Result<usize, String> {
        self.shape(v)?.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).ok_or_else(|| "its size overflows".into())
    }

    /// The tensor, if it is known now; reads an initializer that is not large.
    ///
    /// # Errors
    /// The initializer cannot be read.
    pub(super) fn known(&self, v: &Val) -> Result<Option<Arc<Tensor>>, String> {
        match v {
            Val::Known(t) => Ok(Some(t.clone())),
            Val::Stored(s) if self.elements(v)? <= MAX_FOLD => s.read(self.model).map(|t| Some(Arc::new(t))),
            Val::Stored(_) | Val::Run(_) | Val::List(_) | Val::Nothing => Ok(None),
        }
    }

    /// A value that is known now.
    pub(super) fn whole(&self, v: &Val) -> Result<Value, String> {
        Ok(match v {
            Val::Nothing => Value::Nothing,
            Val::List(list) => Value::List(list.iter().map(|v| self.whole(v)).collect::<Result<_, _>>()?),
            v => Value::Tensor((*self.known(v)?.ok_or("is not known")?).clone()),
        })
    }

    /// Whole numbers that must be known now.
    pub(super) fn known_ints(&self, v: &Val, what: &str) -> Result<Vec<i64>, String> {
        let help = "it decides a shape: give its value when compiling, as a constant";
        let t = self.known(v)?.ok_or_else(|| format!("`{what}` is known only when the model runs; {help}"))?;
        match &cast(&t, DType::I64)?.data {
            Data::I64(x) => Ok(x.clone()),
            _ => Err(format!("`{what}` holds no whole numbers")),
        }
    }

    /// A known number.
    pub(super) fn known_number(&self, v: &Val, what: &str) -> Result<f64, String> {
        let t = self.known(v)?.ok_or_else(|| format!("`{what}` is known only when the model runs"))?;
        match &cast(&t, DType::F64)?.data {
            Data::F64(x) if x.len() == 1 => Ok(x[0]),
            _ => Err(format!("`{what}` is not one number")),
        }
    }

    /// An operand for a node that takes plain numbers.
    pub(super) fn operand(&mut self, v: &Val) -> Result<Operand, String> {
        match v {
            Val::Run(v) => Ok(Operand::Value(*v)),
            Val::Known(t) => self.literal(t).map(Operand::Weight),
            Val::Stored(s) => {
                // What may be a mask or a table is kept in sight of the passes, and so is what no weight can be.
                let (elements, weight) = (self.elements(v)?, s.dtype().is_float());
                let table = !matches!(s.dims().len(), 1 | 2) || elements == 1;
                if (table && s.is_plain() || !weight) && elements <= MAX_LITERAL {
                    let t = s.read(self.model)?;
                    if !weight || t.data.check(&Type::new(t.dtype, t.shape.iter().copied())).is_ok() {
                        return self.literal(&t).map(Operand::Weight);
                    }
                }
                let plain = if s.is_plain() { s.clone() } else { Arc::new(s.numbers()) };
                self.source(&plain).map(Operand::Weight)
            }
            Val::List(_) => Err("is a sequence where a tensor is needed".into()),
            Val::Nothing => Err("is an optional without a value where a tensor is needed".into()),
        }
    }

    /// A source weight for an initializer under its views; the same one twice is one weight.
    pub(super) fn source(&mut self, s: &Arc<Stored>) -> Result<WeightId, String> {
        let s = &if self.numbers && !s.is_plain() { Arc::new(s.numbers()) } else { s.clone() };
        if let Some((name, _)) = self.sources.iter().find(|(_, known)| known.same(s)) {
            return self.module.weight(name).ok_or_else(|| format!("@{name} is lost"));
        }
        let ty = s.ty(self.model)?;
        if ty.elements() == Some(0) || !s.dtype().is_float() {
            return Err(format!("`{}` is {ty}, which no weight can be", s.name()));
        }
        let id = self.module.add_weight(&s.name(), ty, WeightDef::Source);
        let weight = &mut self.module.weights[id];
        if weight.name != s.tensor_name() {
            weight.origin = Origin::new([s.tensor_name()]);
        }
        let name = weight.name.clone();
        self.sources.insert(name, s.clone());
        Ok(id)
    }

    fn literal(&mut self, t: &Tensor) -> Result<WeightId, String> {
        let ty = Type::new(t.dtype, t.shape.iter().copied());
        if ty.elements() == Some(0) {
            return Err("an empty tensor is an operand of a run-time op".into());
        }
        let known = self.literals.entry(ty.to_string()).or_default();
        if let Some((_, id)) = known.iter().find(|(k, _)| k.data == t.data) {
            return Ok(*id);
        }
        t.data.check(&ty)?;
        let id = self.module.add_weight("const", ty, WeightDef::Literal(t.data.clone()));
        known.push((t.clone(), id));
        Ok(id)
    }

    /// The results of an op: computed now if all operands are known, else a node.
    ///
    /// # Errors
    /// Operands that do not fit the op.
    pub(super) fn op(&mut self, op: Op, args: &[&Val]) -> Result<Vec<Val>, String> {
        let mut types = Vec::with_capacity(args.len());
        for arg in args {
            types.push(Type::new(self.dtype(arg)?, self.shape(arg)?));
        }
        // What has no element is known, whatever it is made of.
        let constants: Vec<_> = types.iter().map(|ty| Arg { kind: ArgKind::Constant, ty }).collect();
        if let Ok(results) = infer(&op, &constants) {
            if results.iter().all(|ty| ty.elements() == Some(0)) {
                let made = results.iter().map(|ty| empty(ty.dtype, ty.shape().unwrap_or_default()).into());
                return Ok(made.collect());
            }
            let sizes = results.iter().map(|ty| ty.elements().unwrap_or(usize::MAX));
            let size = sizes.fold(0usize, usize::saturating_add);
            let constant = !args.iter().any(|a| matches!(a, Val::Run(_)));
            if constant && size > MAX_CONSTANT {
                return Err(format!(
                    "would make a constant {}; {MAX_CONSTANT} elements are the most",
                    types_of(&results)
                ));
            }
            let work = work(&op, &types);
            let may = constant && size <= MAX_FOLD && work <= MAX_WORK;
            let known = args.iter().filter(|_| may).map(|a| self.known(a)).collect::<Result<Option<Vec<_>>, _>>()?;
            if let Some(known) = known.filter(|_| may) {
                self.folded = self.folded.saturating_add(size).saturating_add(work / 16);
                if self.folded > MAX_FOLDED {
                    return Err(format!("constants of more than {MAX_FOLDED} elements in all; this is no model"));
                }
                let known: Vec<&Tensor> = known.iter().map(|t| &**t).collect();
                return Ok(compute(&op, &known)?.into_iter().map(Val::from).collect());
            }
        }
        if self.graph.nodes.len() >= MAX_NODES {
            return Err(format!("the graph has more than {MAX_NODES} nodes"));
        }
        let mut operands = Vec::with_capacity(args.len());
        for (n, arg) in args.iter().enumerate() {
            operands.push(match (arg, &op) {
                // Rows of a table come as numbers, whatever is stored.
                (Val::Stored(s), Op::Gather { axis: 0 }) if n == 0 && !s.is_plain() && s.dims().len() == 2 => {
                    self.source(s).map(Operand::Weight)?
                }
                _ => self.operand(arg)?,
            });
        }
        self.emit(op, operands).map(|out| out.into_iter().map(Val::Run).collect())
    }

    /// The only result of an op.
    pub(super) fn op1(&mut self, op: Op, args: &[&Val]) -> Result<Val, String> {
        self.op(op, args)?.into_iter().next().ok_or_else(|| "has no result".into())
    }

    /// Emits a node on these operands.
    pub(super) fn emit(&mut self, op: Op, operands: Vec<Operand>) -> Result<Vec<ValueId>, String> {
        let name = op.name();
        let out = self.graph.emit(&self.module, op, operands, &[name, name]).map_err(|e| e.message)?;
        let types: Vec<_> = out.iter().map(|v| self.graph.values[*v].ty.clone()).collect();
        if types.iter().any(|ty| ty.elements().is_none_or(|n| n > MAX_VALUE)) {
            return Err(format!("would make {}; {MAX_VALUE} elements are the most", types_of(&types)));
        }
        if let Some(node) = self.graph.nodes.last_mut() {
            node.origin = Origin::new([self.origin.as_str()]);
        }
        Ok(out)
    }

    pub(super) fn number(&self, dtype: DType, value: f64) -> Result<Val, String> {
        scalar(dtype, value).map(Val::from)
    }

    pub(super) fn ints(&self, values: impl IntoIterator<Item = i64>) -> Val {
        ints(values).into()
    }

    pub(super) fn cast(&mut self, x: &Val, to: DType) -> Result<Val, String> {
        if self.dtype(x)? == to { Ok(x.clone()) } else { self.op1(Op::Cast { to, wrap: false }, &[x]) }
    }

    pub(super) fn add(&mut self, a: &Val, b: &Val) -> Result<Val, String> {
        let out = self.op1(Op::Add {}, &[a, b])?;
        let parts = |v: &Val| if let Val::Run(v) = v { self.parts.get(v).cloned() } else { None };
        for (sum, bias) in [(a, b), (b, a)] {
            if let (Some(Parts::Linear(x, w, None)), Val::Run(v), Val::Stored(s)) = (parts(sum), &out, bias)
                && s.dims().len() == 1
            {
                self.parts.insert(*v, Parts::Linear(x, w, Some(bias.clone())));
                break;
            }
        }
        Ok(out)
    }

    pub(super) fn mul(&mut self, a: &Val, b: &Val) -> Result<Val, String> {
        self.op1(Op::Mul {}, &[a, b])
    }

    pub(super) fn sub(&mut self, a: &Val, b: &Val) -> Result<Val, String> {
        self.binary(Binary::Sub, a, b)
    }

    pub(super) fn div(&mut self, a: &Val, b: &Val) -> Result<Val, String> {
        self.binary(Binary::Div, a, b)
    }

    pub(super) fn binary(&mut self, kind: Binary, a: &Val, b: &Val) -> Result<Val, String> {
        self.op1(Op::Binary { kind }, &[a, b])
    }

    /// `y`, which was made by laying an operand on `x` and must have kept its shape.
    pub(super) fn kept(&self, x: &Val, y: Val) -> Result<Val, String> {
        let (have, made) = (self.shape(x)?, self.shape(&y)?);
        if have == made { Ok(y) } else { Err(format!("an operand that is laid on {have:?} makes {made:?} of it")) }
    }

    pub(super) fn unary(&mut self, kind: Unary, x: &Val) -> Result<Val, String> {
        self.op1(Op::Unary { kind }, &[x])
    }

    pub(super) fn compare(&mut self, kind: Compare, a: &Val, b: &Val) -> Result<Val, String> {
        self.op1(Op::Compare { kind }, &[a, b])
    }

    pub(super) fn select(&mut self, c: &Val, a: &Val, b: &Val) -> Result<Val, String> {
        self.op1(Op::Select {}, &[c, a, b])
    }

    /// A number of the type of `x`, as an operand beside it.
    pub(super) fn like(&self, x: &Val, value: f64) -> Result<Val, String> {
        self.number(self.dtype(x)?, value)
    }

    pub(super) fn add_number(&mut self, x: &Val, value: f64) -> Result<Val, String> {
        let number = self.like(x, value)?;
        self.add(x, &number)
    }

    pub(super) fn mul_number(&mut self, x: &Val, value: f64) -> Result<Val, String> {
        let number = self.like(x, value)?;
        self.mul(x, &number)
    }

    pub(super) fn reduce(&mut self, kind: Reduce, x: &Val, axes: &[usize], keep: bool) -> Result<Val, String> {
        let shape = self.shape(x)?;
        let out = if axes.is_empty() {
            x.clone()
        } else {
            self.op1(Op::Reduce { kind, axes: axes.iter().map(|a| *a as i64).collect() }, &[x])?
        };
        if keep {
            return Ok(out);
        }
        let left = shape.iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, n)| *n);
        self.reshape(&out, &left.collect::<Vec<_>>())
    }

    pub(super) fn reshape(&mut self, x: &Val, dims: &[usize]) -> Result<Val, String> {
        if self.shape(x)? == dims {
            return Ok(x.clone());
        }
        if let Val::Stored(s) = x
            && let Some(view) = s.reshaped(dims)
        {
            return Ok(Val::Stored(Arc::new(view)));
        }
        self.op1(Op::Reshape { dims: as_i64(dims) }, &[x])
    }

    pub(super) fn expand(&mut self, x: &Val, dims: &[usize]) -> Result<Val, String> {
        if self.shape(x)? == dims {
            return Ok(x.clone());
        }
        self.op1(Op::Expand { dims: as_i64(dims) }, &[x])
    }

    pub(super) fn transpose(&mut self, x: &Val, perm: &[usize]) -> Result<Val, String> {
        if perm.iter().enumerate().all(|(i, p)| i == *p) {
            return Ok(x.clone());
        }
        if let Val::Stored(s) = x
            && perm == [1, 0]
            && let Some(view) = s.transposed()
        {
            return Ok(Val::Stored(Arc::new(view)));
        }
        self.op1(Op::Transpose { perm: as_i64(perm) }, &[x])
    }

    /// Exchanges the last two dimensions.
    pub(super) fn swap_last(&mut self, x: &Val) -> Result<Val, String> {
        let rank = self.rank(x)?;
        if rank < 2 {
            return Err("needs two dimensions".into());
        }
        let mut perm: Vec<usize> = (0..rank).collect();
        perm.swap(rank - 1, rank - 2);
        self.transpose(x, &perm)
    }

    /// Elements `start..end` along one dimension.
    pub(super) fn slice(&mut self, x: &Val, axis: usize, start: usize, end: usize) -> Result<Val, String> {
        let shape = self.shape(x)?;
        let size = *shape.get(axis).ok_or("has no such dimension")?;
        if (start, end) == (0, size) {
            return Ok(x.clone());
        }
        if let Val::Stored(s) = x
            && let Some(view) = s.sliced(axis, start..end)
        {
            return Ok(Val::Stored(Arc::new(view)));
        }
        if let Val::Run(v) = x
            && axis + 1 == shape.len()
            && let Some(part) = self.parts.get(v).cloned()
            && let Some(out) = self.part(&part, start..end)?
        {
            return Ok(out);
        }
        let mut starts = vec![0; shape.len()];
        let mut ends = as_i64(&shape);
        (starts[axis], ends[axis]) = (start as i64, end as i64);
        self.op1(Op::Slice { starts, ends, steps: vec![1; shape.len()] }, &[x])
    }

    /// Some features of a value, computed without the others.
    fn part(&mut self, parts: &Parts, range: Range<usize>) -> Result<Option<Val>, String> {
        match parts {
            Parts::Linear(x, w, bias) => {
                let Some(w) = w.sliced(0, range.clone()) else { return Ok(None) };
                let y = self.linear(x, &Arc::new(w))?;
                let Some(bias) = bias else { return Ok(Some(y)) };
                let bias = self.slice(bias, 0, range.start, range.end)?;
                self.add(&y, &bias).map(Some)
            }
            Parts::Rows(table, indices) => {
                let Some(table) = table.sliced(1, range) else { return Ok(None) };
                self.gather(&Val::Stored(Arc::new(table)), indices, 0).map(Some)
            }
        }
    }

    /// Table and indices of gathered rows.
    pub(super) fn gathered(&self, v: &Val) -> Option<(Arc<Stored>, Val)> {
        match v {
            Val::Run(v) => match self.parts.get(v) {
                Some(Parts::Rows(table, indices)) => Some((table.clone(), indices.clone())),
                _ => None,
            },
            _ => None,
        }
    }

    pub(super) fn concat(&mut self, parts: &[&Val], axis: usize) -> Result<Val, String> {
        let mut full = Vec::new();
        for part in parts {
            if self.elements(part)? > 0 {
                full.push(*part);
            }
        }
        match full.as_slice() {
            [] => parts.first().map(|p| (*p).clone()).ok_or_else(|| "nothing is joined".into()),
            [one] => Ok((*one).clone()),
            several => self.op1(Op::Concat { axis: axis as i64 }, several),
        }
    }

    pub(super) fn gather(&mut self, x: &Val, indices: &Val, axis: usize) -> Result<Val, String> {
        let out = self.op1(Op::Gather { axis: axis as i64 }, &[x, indices])?;
        if let (Val::Stored(table), Val::Run(v), 0) = (x, &out, axis) {
            self.parts.insert(*v, Parts::Rows(table.clone(), indices.clone()));
        }
        Ok(out)
    }

    /// `x Wᵀ` for a weight `[N, K]` and any `x` of K features; floats below f32 are computed in f32 and rounded back.
    pub(super) fn linear(&mut self, x: &Val, w: &Arc<Stored>) -> Result<Val, String> {
        let dtype = self.dtype(x)?;
        let wide = self.cast(x, DType::F32)?;
        let (operand, weight) = (self.operand(&wide)?, self.source(w)?);
        let op = Op::Linear { n: 1, bias: false, norm: None, post: dlx_ir::Post::None };
        let out = self.emit(op, vec![operand, Operand::Weight(weight)])?;
        let out = self.cast(&Val::Run(out[0]), dtype)?;
        if let Val::Run(v) = out {
            self.parts.insert(v, Parts::Linear(x.clone(), w.clone(), None));
        }
        Ok(out)
    }
}

/// Multiplications of a product of matrices.
fn work(op: &Op, operands: &[Type]) -> usize {
    let (Op::Matmul {} | Op::Sdpa { .. }, [a, b, ..]) = (op, operands) else { return 0 };
    let columns = if matches!(op, Op::Matmul {}) { b.dims.last() } else { b.dims.iter().nth_back(1) };
    let columns = columns.and_then(dlx_ir::Dim::fixed).unwrap_or(1);
    // Of a batch, each operand may be the one that repeats.
    let batch = |ty: &Type| ty.dims.iter().rev().skip(2).filter_map(dlx_ir::Dim::fixed).product::<usize>().max(1);
    let repeats = batch(b).div_ceil(batch(a));
    a.elements().unwrap_or(usize::MAX).saturating_mul(columns).saturating_mul(repeats)
}

/// Types of results, for a message.
fn types_of(types: &[Type]) -> String {
    types.iter().map(Type::to_string).collect::<Vec<_>>().join(", ")
}

/// Sizes as attributes have them.
pub(super) fn as_i64(dims: &[usize]) -> Vec<i64> {
    dims.iter().map(|d| i64::try_from(*d).unwrap_or(i64::MAX)).collect()
}
