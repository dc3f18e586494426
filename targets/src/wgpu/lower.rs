//! From nodes to kernels: what each op becomes, on which operands.
//!
//! Invariant: one step never names the same value twice (a copy is made), since a dispatch binds no byte twice.

use dlx_ir::layout::N16;
use dlx_ir::{DType, Error, Graph, Mask, Module, Node, Op, Operand, Post, StateId, Type, ValueId, WeightDef, WeightId};
use dlx_runtime::wgpu::plan::Range;

use super::Job;
use super::attention::Attention;
use super::kernels::{self, Epilogue, Linear, Pointwise};
use super::memory::Temporary;
use super::product::{Product, TILE};

/// What a step binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arg {
    Value(ValueId),
    Temporary(usize),
    Weight(Range),
    State(StateId),
}

/// A kernel on its operands, which follow the call's scalars.
pub(super) struct Step {
    pub(super) job: Job,
    pub(super) node: usize,
    pub(super) args: Vec<Arg>,
}

/// A graph as steps.
pub(super) struct Lowered {
    pub(super) steps: Vec<Step>,
    pub(super) temporaries: Vec<Temporary>,
}

/// Lowers a graph whose rows are `rows`.
///
/// # Errors
/// The first node that no kernel runs, by its text.
pub(super) fn lower(module: &Module, graph: &Graph, rows: usize) -> Result<Lowered, Error> {
    let mut l = Lower { module, graph, rows, node: 0, done: Lowered { steps: Vec::new(), temporaries: Vec::new() } };
    for (i, node) in graph.nodes.iter().enumerate() {
        l.node = i;
        l.lower(node).map_err(|(what, help)| {
            Error::new(format!("graph @{}: {}", graph.name, module.node_text(graph, node)), what).help(help)
        })?;
    }
    Ok(l.done)
}

/// What is wrong with a node, and what to do.
type Refused = (String, &'static str);

struct Lower<'m> {
    module: &'m Module,
    graph: &'m Graph,
    rows: usize,
    node: usize,
    done: Lowered,
}

/// Part of a matrix that fits one binding.
#[derive(Clone, Copy)]
struct Shard {
    /// First row of the matrix, and how many.
    first: usize,
    rows: usize,
    range: Range,
}

/// A packed matrix.
struct Matrix {
    dtype: DType,
    n: usize,
    k: usize,
    shards: Vec<Shard>,
}

impl<'m> Lower<'m> {
    fn lower(&mut self, node: &'m Node) -> Result<(), Refused> {
        let inputs = &node.inputs;
        match &node.op {
            Op::Add {} => self.pointwise(Pointwise::Add, node),
            Op::Mul {} => self.pointwise(Pointwise::Mul, node),
            Op::Scale { by } => self.pointwise(Pointwise::Scale(*by), node),
            Op::Silu {} => self.pointwise(Pointwise::Silu, node),
            Op::Embed {} => {
                let (ids, table) = (self.value(inputs[0])?, self.matrix(inputs[1])?);
                for s in &table.shards {
                    let job = kernels::embed(self.rows, s.rows, table.k, table.dtype, s.first);
                    self.push(job, vec![ids, Arg::Weight(s.range), Arg::Value(node.outputs[0])]);
                }
                Ok(())
            }
            Op::RmsNorm { eps } => {
                let (x, weight) = (self.value(inputs[0])?, self.vector(inputs[1])?);
                let (features, width) = (self.width(inputs[0])?, self.len(inputs[1])?);
                let job = kernels::rms_norm(self.rows, features, width, *eps);
                self.push(job, vec![x, weight, Arg::Value(node.outputs[0])]);
                Ok(())
            }
            Op::Rope { head_dim, norm } => {
                let mut args = vec![self.value(inputs[0])?, self.value(inputs[1])?];
                if norm.is_some() {
                    args.push(self.vector(inputs[2])?);
                }
                args.push(Arg::Value(node.outputs[0]));
                let job = kernels::rope(self.rows, self.width(inputs[0])?, *head_dim as usize, *norm);
                self.push(job, args);
                Ok(())
            }
            Op::RopeTable { theta, head_dim } => {
                let positions = self.value(inputs[0])?;
                let job = kernels::rope_table(self.rows, *head_dim as usize, *theta);
                self.push(job, vec![positions, Arg::Value(node.outputs[0])]);
                Ok(())
            }
            Op::Linear { n, bias, norm, post } => self.linear(node, *n as usize, *bias, *norm, *post),
            Op::HeadStats { norm, ban } => self.head(node, *norm, *ban),
            Op::KvWrite {} => {
                let (k, v) = (self.value(inputs[0])?, self.value(inputs[1])?);
                let (caches, ty) = self.caches(inputs[2], inputs[3])?;
                let [max_seq, ..] = shape3(ty)?;
                let job = kernels::kv_write(self.rows, self.width(inputs[0])?, max_seq, ty.dtype);
                self.push(job, vec![k, v, caches[0], caches[1]]);
                Ok(())
            }
            Op::CachedAttention { head_dim, mask } => self.attention(node, *head_dim as usize, *mask),
            Op::StoreRows {} => {
                let (x, width) = (self.value(inputs[0])?, self.width(inputs[0])?);
                let state = self.rows_state(inputs[1])?;
                self.push(kernels::store_rows(self.rows, width), vec![x, state]);
                Ok(())
            }
            Op::TakeRows {} => {
                let (state, rows) = (self.rows_state(inputs[0])?, self.value(inputs[1])?);
                let width = self.out_width(node)?;
                self.push(kernels::take_rows(self.rows, width), vec![rows, state, Arg::Value(node.outputs[0])]);
                Ok(())
            }
            other => Err((format!("the wgpu target does not run `{}`", other.name()), "look at --dump DIR")),
        }
    }

    fn pointwise(&mut self, op: Pointwise, node: &Node) -> Result<(), Refused> {
        let result = &self.graph.values[node.outputs[0]].ty;
        if let Some(other) = node.inputs.iter().map(|i| self.ty(*i)).find(|ty| *ty != result) {
            return Err((format!("an operand is {other}, not {result}: rows do not repeat"), ""));
        }
        if result.dtype != DType::F32 {
            return Err((format!("the result is {result}, not f32"), ""));
        }
        let mut args = node.inputs.iter().map(|i| self.value(*i)).collect::<Result<Vec<_>, _>>()?;
        args.push(Arg::Value(node.outputs[0]));
        self.push(kernels::pointwise(op, self.rows, self.width(node.inputs[0])?), args);
        Ok(())
    }

    fn linear(&mut self, node: &Node, n: usize, bias: bool, norm: Option<f32>, post: Post) -> Result<(), Refused> {
        let x = node.inputs[0];
        let weights = node.inputs[1..=n].iter().map(|w| self.matrix(*w)).collect::<Result<Vec<_>, _>>()?;
        let rest = &node.inputs[1 + n..];
        let (biases, rest) = rest.split_at(if bias { n } else { 0 });
        let biases = biases.iter().map(|b| self.vector(*b)).collect::<Result<Vec<_>, _>>()?;
        let norm = norm.zip(rest.first().copied());
        let mut acts = Activations { x, norm, quantized: None, normed: None };
        let alike = |a: &Matrix, b: &Matrix| a.dtype == b.dtype && a.shards.len() == b.shards.len();
        match post {
            Post::None => {
                for (i, w) in weights.iter().enumerate() {
                    let bias = biases.get(i).copied();
                    let out = Arg::Value(node.outputs[i]);
                    self.product(&[w], bias.as_slice(), Epilogue::Store, None, &mut acts, out)?;
                }
            }
            Post::Add => {
                let residual = self.value(*rest.last().ok_or(("the residual is missing".to_owned(), ""))?)?;
                let out = Arg::Value(node.outputs[0]);
                self.product(&[&weights[0]], &biases, Epilogue::Add, Some(residual), &mut acts, out)?;
            }
            Post::SwiGlu if alike(&weights[0], &weights[1]) => {
                let out = Arg::Value(node.outputs[0]);
                self.product(&[&weights[0], &weights[1]], &biases, Epilogue::SwiGlu, None, &mut acts, out)?;
            }
            Post::SwiGlu => {
                let width = weights[0].n;
                let parts = [0, 1].map(|_| self.temporary(self.rows * width * 4));
                for (i, w) in weights.iter().enumerate() {
                    let bias = biases.get(i).copied();
                    self.product(&[w], bias.as_slice(), Epilogue::Store, None, &mut acts, parts[i])?;
                }
                let job = kernels::pointwise(Pointwise::SiluMul, self.rows, width);
                self.push(job, vec![parts[0], parts[1], Arg::Value(node.outputs[0])]);
            }
        }
        Ok(())
    }

    /// One or two weights of the same form, shard by shard.
    fn product(
        &mut self,
        weights: &[&Matrix],
        biases: &[Arg],
        epilogue: Epilogue,
        residual: Option<Arg>,
        acts: &mut Activations,
        out: Arg,
    ) -> Result<(), Refused> {
        let w = weights[0];
        let act = self.activations(acts, w)?;
        for (i, shard) in w.shards.iter().enumerate() {
            let product = Product::new(self.rows, shard.rows, w.k, w.dtype, weights.len());
            let job = kernels::linear(&Linear {
                product,
                epilogue,
                bias: !biases.is_empty(),
                first: shard.first,
                stride: w.n,
            });
            let mut args = vec![act];
            args.extend(weights.iter().map(|w| Arg::Weight(w.shards[i].range)));
            args.extend(biases);
            args.extend(residual);
            args.push(out);
            self.push(job, args);
        }
        Ok(())
    }

    /// The activations as a weight wants them, made when first wanted.
    fn activations(&mut self, acts: &mut Activations, weight: &Matrix) -> Result<Arg, Refused> {
        let x = self.value(acts.x)?;
        let width = self.width(acts.x)?;
        let norm = match acts.norm {
            Some((eps, weight)) => Some((eps, self.vector(weight)?)),
            None => None,
        };
        if let DType::Quant(_) = weight.dtype {
            if acts.quantized.is_none() {
                let to = self.temporary_bytes(kernels::quantized_bytes(self.rows, width));
                let args = [Some(x), norm.map(|n| n.1), Some(to)].into_iter().flatten().collect();
                self.push(kernels::quantize(self.rows, width, norm.map(|n| n.0)), args);
                acts.quantized = Some(to);
            }
            return Ok(acts.quantized.unwrap_or(x));
        }
        let Some((eps, norm)) = norm else { return Ok(x) };
        if acts.normed.is_none() {
            let to = self.temporary(self.rows * width * 4);
            self.push(kernels::rms_norm(self.rows, width, width, eps), vec![x, norm, to]);
            acts.normed = Some(to);
        }
        Ok(acts.normed.unwrap_or(x))
    }

    fn head(&mut self, node: &Node, norm: Option<f32>, ban: Option<u32>) -> Result<(), Refused> {
        let weight = self.matrix(node.inputs[1])?;
        let norm = norm.zip(node.inputs.get(2).copied());
        let mut acts = Activations { x: node.inputs[0], norm, quantized: None, normed: None };
        let act = self.activations(&mut acts, &weight)?;
        let product = |s: &Shard| Product::for_head(self.rows, s.rows, weight.k, weight.dtype);
        let parts: Vec<_> = weight.shards.iter().map(|s| (*s, product(s))).collect();
        let chunks_of = |p: &Product| p.n.div_ceil(kernels::head_chunk(p));
        let all = parts.iter().map(|(_, p)| chunks_of(p)).sum();
        let to = self.temporary_bytes(kernels::head_bytes(self.rows, all));
        let mut first_chunk = 0;
        for (shard, p) in parts {
            let job = kernels::head_part(&p, shard.first, first_chunk, all, ban);
            self.push(job, vec![act, Arg::Weight(shard.range), to]);
            first_chunk += chunks_of(&p);
        }
        let [best, stats] = [0, 1].map(|i| Arg::Value(node.outputs[i]));
        self.push(kernels::head_final(self.rows, all, ban), vec![to, best, stats]);
        Ok(())
    }

    fn attention(&mut self, node: &Node, head_dim: usize, mask: Mask) -> Result<(), Refused> {
        let q = self.value(node.inputs[0])?;
        let (caches, ty) = self.caches(node.inputs[1], node.inputs[2])?;
        let [max_seq, kv_heads, _] = shape3(ty)?;
        let heads = self.width(node.inputs[0])? / head_dim;
        let a = Attention { rows: self.rows, heads, kv_heads, head_dim, max_seq, cache: ty.dtype, mask };
        if let Some(what) = a.refused() {
            return Err((what, "use --target cpu for this model"));
        }
        let out = Arg::Value(node.outputs[0]);
        let to = if a.splits() > 1 { self.temporary_bytes(a.part_bytes()) } else { out };
        self.push(a.job(), vec![q, caches[0], caches[1], to]);
        if a.splits() > 1 {
            self.push(a.merge(), vec![to, out]);
        }
        Ok(())
    }

    /// Adds a step; a value that it names a second time is copied first.
    fn push(&mut self, job: Job, mut args: Vec<Arg>) {
        for i in 1..args.len() {
            if let (Arg::Value(v), true) = (args[i], args[..i].contains(&args[i])) {
                let ty = &self.graph.values[v].ty;
                let width = ty.elements().unwrap_or(0) / self.rows;
                let copy = self.temporary(self.rows * width * 4);
                let job = kernels::pointwise(Pointwise::Copy, self.rows, width);
                self.done.steps.push(Step { job, node: self.node, args: vec![args[i], copy] });
                args[i] = copy;
            }
        }
        self.done.steps.push(Step { job, node: self.node, args });
    }

    fn temporary(&mut self, bytes: usize) -> Arg {
        self.temporary_bytes(bytes as u64)
    }

    fn temporary_bytes(&mut self, bytes: u64) -> Arg {
        self.done.temporaries.push(Temporary { node: self.node, bytes });
        Arg::Temporary(self.done.temporaries.len() - 1)
    }

    /// A value with the rows of the entry.
    fn value(&self, operand: Operand) -> Result<Arg, Refused> {
        let v = operand.value().ok_or(("a weight stands where a value must".to_owned(), ""))?;
        let ty = &self.graph.values[v].ty;
        match ty.shape().as_deref() {
            Some([rows] | [rows, _]) if *rows == self.rows => Ok(Arg::Value(v)),
            _ => Err((format!("%{} is {ty}, not of {} rows", self.graph.values[v].name, self.rows), "")),
        }
    }

    fn ty(&self, operand: Operand) -> &'m Type {
        self.module.operand_type(self.graph, operand)
    }

    fn width(&self, operand: Operand) -> Result<usize, Refused> {
        width(self.ty(operand))
    }

    fn out_width(&self, node: &Node) -> Result<usize, Refused> {
        width(&self.graph.values[node.outputs[0]].ty)
    }

    /// Length of a vector.
    fn len(&self, operand: Operand) -> Result<usize, Refused> {
        self.ty(operand).elements().ok_or(("it has no static size".to_owned(), ""))
    }

    fn stored(&self, w: WeightId) -> Result<Range, Refused> {
        match self.module.weights[w].def {
            WeightDef::Stored { offset, bytes, .. } => Ok(Range { offset, bytes }),
            _ => Err((format!("@{} is not stored", self.module.weights[w].name), "plan the emitted module")),
        }
    }

    fn vector(&self, operand: Operand) -> Result<Arg, Refused> {
        let ty = self.ty(operand);
        match operand.weight() {
            Some(w) if ty.dims.len() == 1 && ty.dtype == DType::F32 && ty.layout.is_none() => {
                Ok(Arg::Weight(self.stored(w)?))
            }
            _ => Err((format!("an operand is {ty}, not a stored f32 vector"), "run the lower pass")),
        }
    }

    fn matrix(&self, operand: Operand) -> Result<Matrix, Refused> {
        let ty = self.ty(operand);
        let packed = ty.layout.as_deref() == Some(N16);
        let (Some(w), Some(&[n, k]), true) = (operand.weight(), ty.shape().as_deref(), packed) else {
            return Err((format!("an operand is {ty}, not a packed matrix"), "run the lower pass"));
        };
        let range = self.stored(w)?;
        let tile = dlx_runtime::cpu::tile_bytes(ty.dtype, k).unwrap_or(0) as u64;
        if dlx_runtime::cpu::packed_bytes(ty.dtype, n, k).map(|b| b as u64) != Some(range.bytes) {
            return Err((format!("{} bytes do not hold {ty}", range.bytes), ""));
        }
        let per = match self.module.weights[w].def {
            WeightDef::Stored { shard: Some(rows), .. } => rows as usize,
            _ => n,
        };
        let shards = (0..n).step_by(per).map(|first| {
            let rows = per.min(n - first);
            let tiles = |rows: usize| (rows.div_ceil(TILE) as u64) * tile;
            Shard { first, rows, range: Range { offset: range.offset + tiles(first), bytes: tiles(rows) } }
        });
        Ok(Matrix { dtype: ty.dtype, n, k, shards: shards.collect() })
    }

    fn caches(&self, k: Operand, v: Operand) -> Result<([Arg; 2], &'m Type), Refused> {
        let (Some(ks), Some(vs)) = (k.state(), v.state()) else {
            return Err(("an operand is not a cache".into(), ""));
        };
        let (ty, other) = (self.ty(k), self.ty(v));
        if ty.dtype == DType::CACHE_Q8 {
            return Err(("the wgpu target has no int8 caches".into(), "compile with --kv f16"));
        }
        let rows = |ty: &Type| ty.layout.as_deref() == Some("wgpu.rows");
        if ks == vs || ty != other || !rows(ty) {
            let what = format!("caches of {ty} and {other} are not two of the same form in rows");
            return Err((what, "run the lower pass"));
        }
        if ty.dtype != DType::F32 && !shape3(ty)?[2].is_multiple_of(2) {
            return Err((format!("heads of {ty} are odd"), "compile with --kv f32"));
        }
        Ok(([Arg::State(ks), Arg::State(vs)], ty))
    }

    fn rows_state(&self, operand: Operand) -> Result<Arg, Refused> {
        let ty = self.ty(operand);
        match operand.state() {
            Some(s) if ty.dtype == DType::F32 && ty.dims.len() == 2 && ty.layout.is_none() => Ok(Arg::State(s)),
            _ => Err((format!("an operand is {ty}, not a state of f32 rows"), "")),
        }
    }
}

/// What a node multiplies, and what has been made of it.
struct Activations {
    x: Operand,
    norm: Option<(f32, Operand)>,
    quantized: Option<Arg>,
    normed: Option<Arg>,
}

fn width(ty: &Type) -> Result<usize, Refused> {
    match ty.shape().as_deref() {
        Some(&[_, width]) => Ok(width),
        _ => Err((format!("an operand is {ty}, not rows"), "")),
    }
}

fn shape3(ty: &Type) -> Result<[usize; 3], Refused> {
    match ty.shape().as_deref() {
        Some(&[a, b, c]) => Ok([a, b, c]),
        _ => Err((format!("a cache is {ty}"), "")),
    }
}
