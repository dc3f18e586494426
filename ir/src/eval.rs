//! The naive reference evaluator: what every op means, written for reading.
//!
//! Sums run in f64 and are rounded once, so results are at least as exact as any target's. Nothing here is fast, blocked
//! or shared with a target's kernels.

use crate::arena::{StateId, ValueId, WeightId};
use crate::attr::Post;
use crate::error::Error;
use crate::module::{Graph, Module, Node, Operand, WeightDef};
use crate::op::Op;
use crate::quant::{QuantizedRow, int8_rounded, quantize_row};
use crate::types::{DType, Dim, Type};
use half::{bf16, f16};
use std::collections::BTreeMap;
use std::rc::Rc;

/// A tensor of the evaluator. Quantized weights are held as the numbers that they stand for.
#[derive(Clone, PartialEq, Debug)]
pub struct Tensor {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Elements in row-major order.
    pub data: Data,
}

/// Elements of a tensor.
#[derive(Clone, PartialEq, Debug)]
pub enum Data {
    /// Floats, already rounded to the element type.
    F32(Vec<f32>),
    /// Integers.
    I32(Vec<i32>),
    /// Booleans.
    Bool(Vec<bool>),
}

impl Tensor {
    /// A float tensor.
    pub fn f32(shape: &[usize], data: Vec<f32>) -> Self {
        Tensor { shape: shape.to_vec(), data: Data::F32(data) }
    }

    /// An integer tensor.
    pub fn i32(shape: &[usize], data: Vec<i32>) -> Self {
        Tensor { shape: shape.to_vec(), data: Data::I32(data) }
    }

    /// The floats of a float tensor.
    ///
    /// # Errors
    /// The tensor holds something else.
    pub fn floats(&self) -> Result<&[f32], String> {
        if let Data::F32(x) = &self.data { Ok(x) } else { Err("a float tensor was expected".into()) }
    }

    /// The integers of an integer tensor.
    ///
    /// # Errors
    /// The tensor holds something else.
    pub fn ints(&self) -> Result<&[i32], String> {
        if let Data::I32(x) = &self.data { Ok(x) } else { Err("an integer tensor was expected".into()) }
    }

    fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }
}

/// Gives the source tensor of a name as f32 numbers in row-major order.
pub type Source<'s> = &'s dyn Fn(&str) -> Result<Vec<f32>, String>;

/// A module being evaluated: its weights, computed once, and its states, which live from call to call.
pub struct Evaluator<'m> {
    module: &'m Module,
    source: Source<'m>,
    weights: BTreeMap<WeightId, Rc<Tensor>>,
    states: BTreeMap<StateId, Vec<f32>>,
}

impl<'m> Evaluator<'m> {
    /// An evaluator with zeroed states; weights are computed when first read.
    pub fn new(module: &'m Module, source: Source<'m>) -> Self {
        Evaluator { module, source, weights: BTreeMap::new(), states: BTreeMap::new() }
    }

    /// Runs a graph. `observe` sees every value as it is computed, by name.
    ///
    /// # Errors
    /// A missing graph or weight, arguments that do not fit, or a row number out of range; the place is the node's text.
    pub fn run(
        &mut self,
        graph: &str,
        args: &[Tensor],
        observe: &mut dyn FnMut(&str, &Tensor),
    ) -> Result<Vec<Tensor>, Error> {
        let place = format!("graph @{graph}");
        let graph = self.module.graph(graph).ok_or_else(|| Error::new(&place, "is not in the module"))?;
        if args.len() != graph.params.len() {
            return Err(Error::new(place, format!("takes {} arguments, not {}", graph.params.len(), args.len())));
        }
        let mut env: BTreeMap<ValueId, Rc<Tensor>> = BTreeMap::new();
        let mut sizes = BTreeMap::new();
        for (&p, arg) in graph.params.iter().zip(args) {
            let value = &graph.values[p];
            accepts(&value.ty, arg, &mut sizes).map_err(|e| Error::new(format!("{place}: %{}", value.name), e))?;
            env.insert(p, Rc::new(arg.clone()));
        }
        for node in &graph.nodes {
            let outs = self.node(graph, node, &env).map_err(|e| Error::new(self.module.node_text(graph, node), e))?;
            for (&id, out) in node.outputs.iter().zip(outs) {
                let out = rounded(out, graph.values[id].ty.dtype);
                observe(&graph.values[id].name, &out);
                env.insert(id, Rc::new(out));
            }
        }
        Ok(graph.results.iter().map(|r| (*env[r]).clone()).collect())
    }

    /// Value of a weight.
    ///
    /// # Errors
    /// The source has no such tensor, or the wrong number of elements, or the expression cannot be evaluated.
    pub fn weight(&mut self, id: WeightId) -> Result<Rc<Tensor>, String> {
        if let Some(t) = self.weights.get(&id) {
            return Ok(t.clone());
        }
        let w = &self.module.weights[id];
        let shape = w.ty.shape().ok_or("a weight needs static dimensions")?;
        let tensor = match &w.def {
            WeightDef::Source => {
                let data = (self.source)(&w.name)?;
                if Some(data.len()) != w.ty.elements() {
                    return Err(format!("@{} has {} elements, not {}", w.name, data.len(), w.ty));
                }
                Tensor { shape, data: Data::F32(data) }
            }
            WeightDef::Expr(op, inputs) => {
                let args = inputs.iter().map(|&i| self.weight(i)).collect::<Result<Vec<_>, _>>()?;
                let args: Vec<&Tensor> = args.iter().map(|t| &**t).collect();
                rounded(compute(op, &args)?.pop().ok_or("a weight expression needs a result")?, w.ty.dtype)
            }
            WeightDef::Stored { .. } => {
                return Err(format!("@{} is packed; evaluate the module before emission", w.name));
            }
        };
        let tensor = Rc::new(tensor);
        self.weights.insert(id, tensor.clone());
        Ok(tensor)
    }

    fn node(&mut self, graph: &Graph, node: &Node, env: &BTreeMap<ValueId, Rc<Tensor>>) -> Result<Vec<Tensor>, String> {
        let mut args: Vec<Rc<Tensor>> = Vec::new();
        let mut states = Vec::new();
        for &input in &node.inputs {
            match input {
                Operand::Value(v) => args.push(env[&v].clone()),
                Operand::Weight(w) => args.push(self.weight(w)?),
                Operand::State(s) => states.push(s),
            }
        }
        let args: Vec<&Tensor> = args.iter().map(|t| &**t).collect();
        if !node.op.touches_state() {
            let outs = compute(&node.op, &args)?;
            // A symbolic dimension may meet a wrong argument; the written rank and sizes must hold.
            for (out, &id) in outs.iter().zip(&node.outputs) {
                fits(out, &graph.values[id].ty)?;
            }
            return Ok(outs);
        }
        for &s in &states {
            let ty = &self.module.states[s].ty;
            let len = ty.elements().ok_or("a state needs static dimensions")?;
            self.states.entry(s).or_insert_with(|| vec![0.0; len]);
        }
        self.stateful(&node.op, &args, &states)
    }

    fn stateful(&mut self, op: &Op, args: &[&Tensor], states: &[StateId]) -> Result<Vec<Tensor>, String> {
        let ty = |s: usize| &self.module.states[states[s]].ty;
        let rows = ty(0).shape().and_then(|s| s.first().copied()).ok_or("a state needs rows")?;
        let width = ty(0).elements().unwrap_or(0) / rows;
        // What a state holds of a row: int8 has one scale per head, so a state's last dimension.
        let held = |s: usize, row: &[f32]| {
            let (dtype, head_dim) = (ty(s).dtype, ty(s).shape().and_then(|d| d.last().copied()).unwrap_or(1));
            if dtype == DType::CACHE_Q8 { int8_rounded(row, head_dim) } else { round_all(row, dtype) }
        };
        match op {
            Op::KvWrite {} => {
                let (at, end) = (index(args[2])?, index(args[3])?);
                for (place, (x, s)) in args.iter().zip(states).take(2).enumerate() {
                    let state = self.states.get_mut(s).expect("created above");
                    for (i, row) in x.floats()?.chunks(width).enumerate().filter(|(i, _)| at + i < end) {
                        if at + i >= rows {
                            return Err(format!("row {} is beyond the cache's {rows} rows", at + i));
                        }
                        state[(at + i) * width..][..width].copy_from_slice(&held(place, row));
                    }
                }
                Ok(vec![])
            }
            Op::StoreRows {} => {
                let state = self.states.get_mut(&states[0]).expect("created above");
                let x = args[0].floats()?;
                if x.len() > state.len() {
                    return Err(format!("{} rows do not fit a state of {rows}", args[0].shape[0]));
                }
                state[..x.len()].copy_from_slice(&held(0, x));
                Ok(vec![])
            }
            Op::TakeRows {} => {
                let state = &self.states[&states[0]];
                let picked = args[0].ints()?.iter().map(|&r| {
                    let r = usize::try_from(r).ok().filter(|r| *r < rows).ok_or(format!("there is no row {r}"))?;
                    Ok(&state[r * width..][..width])
                });
                let data = picked.collect::<Result<Vec<_>, String>>()?.concat();
                Ok(vec![Tensor::f32(&[args[0].shape[0], width], data)])
            }
            Op::CachedAttention { head_dim, mask } => {
                let (at, from, visible) = (index(args[1])?, index(args[2])?, index(args[3])?);
                if visible > rows {
                    return Err(format!("visible {visible} is beyond the cache's {rows} rows"));
                }
                let (k, v) = (&self.states[&states[0]], &self.states[&states[1]]);
                let sees = |i: usize, j: usize| j >= from && j < visible.min(mask.end(at + i));
                let used = visible * width;
                Ok(vec![attention(args[0], &k[..used], &v[..used], width, *head_dim as usize, &sees)?])
            }
            other => Err(format!("{} does not touch a state", other.name())),
        }
    }
}

/// Evaluates an op that touches no state.
fn compute(op: &Op, args: &[&Tensor]) -> Result<Vec<Tensor>, String> {
    let arg = |i: usize| args.get(i).copied().ok_or_else(|| format!("operand {} is missing", i + 1));
    let map = |x: &Tensor, f: &dyn Fn(f32) -> f32| -> Result<Vec<Tensor>, String> {
        Ok(vec![Tensor::f32(&x.shape, x.floats()?.iter().map(|&v| f(v)).collect())])
    };
    let zip = |f: &dyn Fn(f32, f32) -> f32| -> Result<Vec<Tensor>, String> {
        let (a, b) = (arg(0)?, arg(1)?);
        if a.shape != b.shape {
            return Err(format!("shapes {:?} and {:?} differ", a.shape, b.shape));
        }
        let data = a.floats()?.iter().zip(b.floats()?).map(|(&a, &b)| f(a, b)).collect();
        Ok(vec![Tensor::f32(&a.shape, data)])
    };
    match op {
        Op::Add {} => zip(&|a, b| a + b),
        Op::Mul {} => zip(&|a, b| a * b),
        // Every result is rounded to its type.
        Op::Cast { .. } => map(arg(0)?, &|v| v),
        Op::Scale { by } => map(arg(0)?, &|v| v * by),
        Op::Silu {} => map(arg(0)?, &silu),
        Op::Concat {} => {
            let mut shape = arg(0)?.shape.clone();
            let mut data = Vec::new();
            shape[0] = 0;
            for a in args {
                shape[0] += a.shape[0];
                data.extend_from_slice(a.floats()?);
            }
            Ok(vec![Tensor::f32(&shape, data)])
        }
        Op::Transpose {} => {
            let (x, (rows, cols)) = (arg(0)?, matrix(arg(0)?)?);
            let data = x.floats()?;
            let flipped = (0..cols).flat_map(|c| (0..rows).map(move |r| data[r * cols + c])).collect();
            Ok(vec![Tensor::f32(&[cols, rows], flipped)])
        }
        Op::Matmul {} => {
            let ((m, k), (k2, n)) = (matrix(arg(0)?)?, matrix(arg(1)?)?);
            if k != k2 {
                return Err(format!("inner dimensions {k} and {k2} differ"));
            }
            let (a, b) = (arg(0)?.floats()?, arg(1)?.floats()?);
            let cell =
                |i: usize, j: usize| (0..k).map(|l| f64::from(a[i * k + l]) * f64::from(b[l * n + j])).sum::<f64>();
            let data = (0..m * n).map(|i| cell(i / n, i % n) as f32).collect();
            Ok(vec![Tensor::f32(&[m, n], data)])
        }
        Op::Softmax {} => {
            let x = arg(0)?;
            let data = x.floats()?.chunks(x.cols()).flat_map(softmax).map(|p| p as f32).collect();
            Ok(vec![Tensor::f32(&x.shape, data)])
        }
        Op::Attention { head_dim, mask } => {
            let (q, k) = (arg(0)?, arg(1)?);
            let (hd, rows) = (*head_dim as usize, k.shape[0]);
            let (k, v) = (k.floats()?, arg(2)?.floats()?);
            let allowed: Vec<bool> = match mask {
                Some(rule) => (0..q.shape[0]).flat_map(|i| (0..rows).map(move |j| j < rule.end(i))).collect(),
                None => match &arg(3)?.data {
                    Data::Bool(m) if m.len() == q.shape[0] * rows => m.clone(),
                    _ => return Err("the mask must be bool[T, S]".into()),
                },
            };
            Ok(vec![attention(q, k, v, arg(1)?.cols(), hd, &|i, j| allowed[i * rows + j])?])
        }
        Op::Embed {} => {
            let (ids, table) = (arg(0)?.ints()?, arg(1)?);
            let (rows, cols) = matrix(table)?;
            let table = table.floats()?;
            let mut data = Vec::with_capacity(ids.len() * cols);
            for &id in ids {
                let row = usize::try_from(id).ok().filter(|r| *r < rows).ok_or(format!("there is no token {id}"))?;
                data.extend_from_slice(&table[row * cols..][..cols]);
            }
            Ok(vec![Tensor::f32(&[ids.len(), cols], data)])
        }
        Op::Linear { n, bias, norm, post } => linear(*n as usize, *bias, *norm, *post, args),
        Op::HeadStats { norm, ban } => head_stats(*norm, *ban, args),
        Op::Mask { rule } => {
            let t = arg(0)?.shape.first().copied().unwrap_or(1);
            let data = (0..t).flat_map(|i| (0..t).map(move |j| j < rule.end(i))).collect();
            Ok(vec![Tensor { shape: vec![t, t], data: Data::Bool(data) }])
        }
        Op::RmsNorm { eps } => {
            let x = arg(0)?;
            Ok(vec![Tensor::f32(&x.shape, rms_norm(x.floats()?, arg(1)?.floats()?, *eps))])
        }
        Op::Rope { head_dim, norm } => {
            let (x, table, hd) = (arg(0)?, arg(1)?.floats()?, *head_dim as usize);
            let data = match norm {
                Some(eps) => rms_norm(x.floats()?, arg(2)?.floats()?, *eps),
                None => x.floats()?.to_vec(),
            };
            let mut out = Vec::with_capacity(data.len());
            for (row, cs) in data.chunks(x.cols()).zip(table.chunks(hd)) {
                let (cos, sin) = cs.split_at(hd / 2);
                for head in row.chunks(hd) {
                    let (a, b) = head.split_at(hd / 2);
                    out.extend((0..hd / 2).map(|i| a[i] * cos[i] - b[i] * sin[i]));
                    out.extend((0..hd / 2).map(|i| b[i] * cos[i] + a[i] * sin[i]));
                }
            }
            Ok(vec![Tensor::f32(&x.shape, out)])
        }
        Op::RopeTable { theta, head_dim } => {
            let (pos, half) = (arg(0)?.ints()?, (*head_dim / 2) as usize);
            let mut data = Vec::with_capacity(pos.len() * half * 2);
            for &p in pos {
                let angle = |k: usize| {
                    let inv_freq = 1.0 / libm::powf(*theta, (2 * k) as f32 / *head_dim as f32);
                    f64::from(p as f32 * inv_freq)
                };
                data.extend((0..half).map(|k| libm::cos(angle(k)) as f32));
                data.extend((0..half).map(|k| libm::sin(angle(k)) as f32));
            }
            Ok(vec![Tensor::f32(&[pos.len(), half * 2], data)])
        }
        Op::Pack { .. } => Ok(vec![arg(0)?.clone()]),
        Op::Quantize { to } => {
            let DType::Quant(format) = to else { return Err(format!("{to} is not a quantized format")) };
            let x = arg(0)?;
            let mut data = Vec::with_capacity(x.floats()?.len());
            for row in x.floats()?.chunks(x.cols()) {
                let mut q = QuantizedRow::zeroed(*format, row.len());
                if !quantize_row(*format, row, &mut q) {
                    return Err("a scale does not fit f16".into());
                }
                data.extend(q.dequantize(*format));
            }
            Ok(vec![Tensor::f32(&x.shape, data)])
        }
        Op::CachedAttention { .. } | Op::KvWrite {} | Op::StoreRows {} | Op::TakeRows {} => {
            Err(format!("{} needs a state", op.name()))
        }
    }
}

fn linear(n: usize, bias: bool, norm: Option<f32>, post: Post, args: &[&Tensor]) -> Result<Vec<Tensor>, String> {
    let (x, rest) = args.split_first().ok_or("x is missing")?;
    let (weights, rest) = rest.split_at_checked(n).ok_or("a weight is missing")?;
    let (biases, rest) = rest.split_at_checked(if bias { n } else { 0 }).ok_or("a bias is missing")?;
    let (m, k) = matrix(x)?;
    let normed = match norm {
        Some(eps) => rms_norm(x.floats()?, rest.first().ok_or("the norm weight is missing")?.floats()?, eps),
        None => x.floats()?.to_vec(),
    };
    let mut outs = Vec::with_capacity(n);
    for (i, w) in weights.iter().enumerate() {
        let (out, k2) = matrix(w)?;
        if k != k2 {
            return Err(format!("x has {k} features, the weight {k2}"));
        }
        let mut y = product(&normed, w.floats()?, k);
        if let Some(b) = biases.get(i) {
            let b = b.floats()?;
            y.chunks_mut(out).for_each(|row| row.iter_mut().zip(b).for_each(|(y, b)| *y += b));
        }
        outs.push(Tensor::f32(&[m, out], y));
    }
    match post {
        Post::None => Ok(outs),
        Post::Add => compute(&Op::Add {}, &[rest.last().ok_or("the residual is missing")?, &outs[0]]),
        Post::SwiGlu => {
            let gate = compute(&Op::Silu {}, &[&outs[0]])?;
            compute(&Op::Mul {}, &[&gate[0], &outs[1]])
        }
    }
}

/// `x Wᵀ` for rows of length k.
fn product(x: &[f32], w: &[f32], k: usize) -> Vec<f32> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>() as f32;
    x.chunks(k).flat_map(|row| w.chunks(k).map(move |col| dot(row, col))).collect()
}

fn head_stats(norm: Option<f32>, ban: Option<u32>, args: &[&Tensor]) -> Result<Vec<Tensor>, String> {
    let logits = linear(1, false, norm, Post::None, args)?.remove(0);
    let (rows, vocab) = matrix(&logits)?;
    let (mut best, mut stats) = (Vec::new(), Vec::new());
    for row in logits.floats()?.chunks(vocab) {
        let p = softmax(row);
        let mut order: Vec<usize> = (0..vocab).filter(|&i| Some(i) != ban.map(|b| b as usize)).collect();
        order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
        let first = *order.first().ok_or("the vocabulary is empty")?;
        let second = order.get(1).map_or(0.0, |&i| p[i]);
        let entropy: f64 = p.iter().filter(|&&p| p > 0.0).map(|&p| -p * libm::log(p)).sum();
        best.push(i32::try_from(first).map_err(|_| "the vocabulary is too large")?);
        stats.extend([p[first] as f32, (p[first] - second) as f32, entropy as f32]);
    }
    Ok(vec![Tensor::i32(&[rows], best), Tensor::f32(&[rows, 3], stats)])
}

/// Attention of q `[M, heads · hd]` over keys and values `[S, width]`; `sees(i, j)` says whether row i may attend row j.
fn attention(
    q: &Tensor,
    k: &[f32],
    v: &[f32],
    width: usize,
    hd: usize,
    sees: &dyn Fn(usize, usize) -> bool,
) -> Result<Tensor, String> {
    let (m, features) = matrix(q)?;
    let (heads, kv_heads) = (features / hd, width / hd);
    let data = q.floats()?;
    let mut out = vec![0.0f32; data.len()];
    for i in 0..m {
        let keys: Vec<usize> = (0..k.len() / width).filter(|&j| sees(i, j)).collect();
        for h in 0..heads {
            let offset = h / (heads / kv_heads) * hd;
            let head = &data[i * features + h * hd..][..hd];
            let score = |&j: &usize| -> f32 {
                let key = &k[j * width + offset..][..hd];
                let dot: f64 = head.iter().zip(key).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                (dot / (hd as f64).sqrt()) as f32
            };
            let p = softmax(&keys.iter().map(score).collect::<Vec<_>>());
            for (d, o) in out[i * features + h * hd..][..hd].iter_mut().enumerate() {
                *o = keys.iter().zip(&p).map(|(&j, p)| p * f64::from(v[j * width + offset + d])).sum::<f64>() as f32;
            }
        }
    }
    Ok(Tensor::f32(&q.shape, out))
}

fn rms_norm(x: &[f32], w: &[f32], eps: f32) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for chunk in x.chunks(w.len()) {
        let mean = chunk.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / w.len() as f64;
        let r = 1.0 / (mean + f64::from(eps)).sqrt();
        out.extend(chunk.iter().zip(w).map(|(&v, &w)| (f64::from(v) * r) as f32 * w));
    }
    out
}

fn softmax(x: &[f32]) -> Vec<f64> {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let e: Vec<f64> = x.iter().map(|&v| libm::exp(f64::from(v) - f64::from(max))).collect();
    let sum: f64 = e.iter().sum();
    e.into_iter().map(|v| v / sum).collect()
}

fn silu(v: f32) -> f32 {
    let v = f64::from(v);
    (v / (1.0 + libm::exp(-v))) as f32
}

/// Rounds a number to what an element type can hold.
fn round(v: f32, dtype: DType) -> f32 {
    match dtype {
        DType::F16 => f16::from_f32(v).to_f32(),
        DType::BF16 => bf16::from_f32(v).to_f32(),
        DType::F32 | DType::I32 | DType::Bool | DType::Quant(_) => v,
    }
}

/// A result as its written type holds it.
fn rounded(mut tensor: Tensor, dtype: DType) -> Tensor {
    if let (Data::F32(data), DType::F16 | DType::BF16) = (&mut tensor.data, dtype) {
        data.iter_mut().for_each(|v| *v = round(*v, dtype));
    }
    tensor
}

fn round_all(row: &[f32], dtype: DType) -> Vec<f32> {
    row.iter().map(|&v| round(v, dtype)).collect()
}

fn matrix(t: &Tensor) -> Result<(usize, usize), String> {
    if let [a, b] = t.shape[..] { Ok((a, b)) } else { Err(format!("shape {:?} is not two-dimensional", t.shape)) }
}

fn index(t: &Tensor) -> Result<usize, String> {
    let v = t.ints()?.first().copied().ok_or("a position is missing")?;
    usize::try_from(v).map_err(|_| format!("position {v} is negative"))
}

/// Whether an argument is of a parameter's type; equal names must be equal sizes.
fn accepts<'g>(ty: &'g Type, t: &Tensor, sizes: &mut BTreeMap<&'g str, usize>) -> Result<(), String> {
    let len = match (&t.data, ty.dtype) {
        (Data::F32(x), d) if d.is_float() => x.len(),
        (Data::I32(x), DType::I32) => x.len(),
        (Data::Bool(x), DType::Bool) => x.len(),
        _ => return Err(format!("the argument has other elements than {ty}")),
    };
    let size = |(n, dim): (&usize, &'g Dim)| match dim {
        Dim::Fixed(fixed) => n == fixed,
        Dim::Named(name) => sizes.entry(&**name).or_insert(*n) == n,
    };
    let matches = t.shape.len() == ty.dims.len() && t.shape.iter().zip(&ty.dims).all(size);
    if matches && t.shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)) == Some(len) {
        Ok(())
    } else {
        Err(format!("an argument of shape {:?} with {len} elements is not {ty}", t.shape))
    }
}

fn fits(t: &Tensor, ty: &Type) -> Result<(), String> {
    let same =
        t.shape.len() == ty.dims.len() && t.shape.iter().zip(&ty.dims).all(|(&n, d)| d.fixed().is_none_or(|f| f == n));
    if same { Ok(()) } else { Err(format!("computed shape {:?} is not {ty}", t.shape)) }
}
