//! From a graph of tensor ops to an ONNX graph.
//!
//! Invariant: the graph is static, computes in f32 but for what [`Profile`] says of products with weights, and calls values what
//! the IR calls them. Spellings are those that QNN's HTP backend takes and computes rightly; they are plain ONNX for everybody else.

use std::collections::{BTreeMap, BTreeSet};

use dlx_ir::{DType, Error, Graph, Module, Node, Norm, Op, Operand, Post, Type, Unary, ValueId, WeightId};
use dlx_targets::{WeightSource, weight};

use super::calibrate::{Range, Ranges};
use super::codes;
use super::profile::{Profile, Weights};
use super::proto::{self, Elem, float, int, ints, node, small};
use super::store::Store;
use crate::onnx::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto};

/// Version of the operators that is written: the first with `RMSNormalization`.
pub const OPSET: i64 = 23;
/// Version of the file format that goes with it.
const IR_VERSION: i64 = 11;

/// What the graphs of an export have in common.
pub struct Common<'a> {
    /// The module that they are graphs of.
    pub module: &'a Module,
    /// Its source weights.
    pub source: &'a dyn WeightSource,
    /// How products are stored.
    pub profile: Profile,
    /// What goes into products and comes out, for profiles with codes.
    pub ranges: &'a Ranges,
    /// Where weights go.
    pub store: &'a mut Store,
    /// Told the bytes of weights that are written, after each product; an error stops.
    pub progress: &'a dyn Fn(u64) -> Result<(), Error>,
}

/// The ONNX model of one graph, whose results get these names.
///
/// # Errors
/// An op without an ONNX form, or a weight that cannot be read or stored.
pub fn write(common: &mut Common<'_>, graph: &Graph, results: &[String]) -> Result<ModelProto, Error> {
    let mut w = Writer {
        graph,
        common,
        nodes: Vec::new(),
        tensors: Vec::new(),
        names: BTreeSet::new(),
        coded: BTreeMap::new(),
        renamed: graph.results.iter().copied().zip(results.iter().cloned()).collect(),
    };
    for node in &graph.nodes {
        w.node(node).map_err(|e| match e.place.is_empty() {
            true => Error { place: w.common.module.node_text(graph, node), ..e },
            false => e,
        })?;
    }
    let value = |v: &ValueId| {
        let ty = &graph.values[*v].ty;
        Ok(proto::value(&w.name(*v), elem(ty.dtype)?, &ty.shape().unwrap_or_default()))
    };
    let made = GraphProto {
        name: Some(graph.name.clone()),
        input: graph.params.iter().map(value).collect::<Result<_, Error>>()?,
        output: graph.results.iter().map(value).collect::<Result<_, Error>>()?,
        node: std::mem::take(&mut w.nodes),
        initializer: std::mem::take(&mut w.tensors),
        ..Default::default()
    };
    let nbits = matches!(common.profile.weights, Weights::NBits(..));
    let opset = |domain: &str, version| OperatorSetIdProto { domain: Some(domain.into()), version: Some(version) };
    let contrib = nbits.then(|| opset("com.microsoft", 1));
    Ok(ModelProto {
        ir_version: Some(IR_VERSION),
        opset_import: [opset("", OPSET)].into_iter().chain(contrib).collect(),
        producer_name: Some("dlxc".into()),
        producer_version: Some(env!("CARGO_PKG_VERSION").into()),
        graph: Some(made),
        ..Default::default()
    })
}

fn elem(dtype: DType) -> Result<Elem, Error> {
    Ok(match dtype {
        DType::F32 => Elem::F32,
        DType::F16 => Elem::F16,
        DType::I64 => Elem::I64,
        other => return Err(Error::new("", format!("{other} is not written to ONNX files"))),
    })
}

struct Writer<'w, 'a> {
    common: &'w mut Common<'a>,
    graph: &'w Graph,
    nodes: Vec<NodeProto>,
    tensors: Vec<TensorProto>,
    /// Names of tensors that the graph has.
    names: BTreeSet<String>,
    /// Values behind their codes, by value.
    coded: BTreeMap<ValueId, String>,
    /// Names of results.
    renamed: BTreeMap<ValueId, String>,
}

impl Writer<'_, '_> {
    fn name(&self, v: ValueId) -> String {
        self.renamed.get(&v).unwrap_or(&self.graph.values[v].name).clone()
    }

    fn put(&mut self, op: &str, inputs: &[&str], output: &str, attributes: Vec<AttributeProto>) {
        self.nodes.push(node(op, inputs, &[output], attributes));
    }

    /// Adds a tensor once.
    fn add(&mut self, tensor: TensorProto) -> String {
        let name = tensor.name().to_owned();
        if self.names.insert(name.clone()) {
            self.tensors.push(tensor);
        }
        name
    }

    fn indices(&mut self, values: &[i64]) -> String {
        let text: Vec<String> = values.iter().map(i64::to_string).collect();
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.add(small(&format!("i64.{}", text.join("_")), Elem::I64, &[values.len()], bytes))
    }

    fn scalar(&mut self, value: f32) -> String {
        self.add(small(&format!("f32.{value:e}"), Elem::F32, &[], value.to_le_bytes().into()))
    }

    fn operand(&mut self, operand: Operand) -> Result<String, Error> {
        match operand {
            Operand::Value(v) => Ok(self.name(v)),
            Operand::Weight(w) => self.constant(w),
            Operand::State(_) => Err(Error::new("", "reads a state, which a file has not")),
        }
    }

    /// A weight as it is, in f32.
    fn constant(&mut self, id: WeightId) -> Result<String, Error> {
        let Common { module, source, store, .. } = &mut *self.common;
        let w = &module.weights[id];
        let shape = w.ty.shape().unwrap_or_default();
        let made =
            store.tensor(&w.name, elem(w.ty.dtype)?, &shape, || Ok(weight(module, id, *source)?.to_le_bytes()))?;
        Ok(self.add(made))
    }

    fn node(&mut self, n: &Node) -> Result<(), Error> {
        if let Op::Linear { n: 1, bias: false, norm: None, post: Post::None } = n.op {
            self.linear(n)?;
            return (self.common.progress)(self.common.store.written());
        }
        if !self.common.profile.codes {
            if matches!(n.op, Op::Normalize { .. }) && self.only_weighted(n.outputs[0]) {
                return Ok(());
            }
            if let Some((x, eps)) = self.weighted(n) {
                let (x, w) = (self.operand(x)?, self.operand(n.inputs[1])?);
                let attributes = vec![int("axis", -1), float("epsilon", eps)];
                self.put("RMSNormalization", &[&x, &w], &self.name(n.outputs[0]), attributes);
                return Ok(());
            }
        }
        let inputs = n.inputs.iter().map(|o| self.operand(*o)).collect::<Result<Vec<_>, _>>()?;
        let mut inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let y = self.name(n.outputs[0]);
        let out: &Type = &self.graph.values[n.outputs[0]].ty;
        let extra;
        let (op, attributes) = match &n.op {
            Op::Add {} => ("Add", vec![]),
            Op::Mul {} => ("Mul", vec![]),
            Op::Matmul {} => ("MatMul", vec![]),
            Op::Concat { axis } => ("Concat", vec![int("axis", *axis)]),
            Op::Softmax {} => ("Softmax", vec![int("axis", -1)]),
            Op::Unary { kind: Unary::Sigmoid } => ("Sigmoid", vec![]),
            Op::Transpose { perm } => ("Transpose", vec![ints("perm", perm.clone())]),
            Op::Cast { to, .. } => ("Cast", vec![int("to", elem(*to)? as i64)]),
            Op::Reshape { dims } | Op::Expand { dims } => {
                extra = self.indices(dims);
                inputs.push(&extra);
                (if matches!(n.op, Op::Expand { .. }) { "Expand" } else { "Reshape" }, vec![])
            }
            Op::Slice { starts, ends, steps } if steps.iter().all(|s| *s == 1) => {
                let axes: Vec<i64> = (0..starts.len() as i64).collect();
                let x = inputs[0].to_owned();
                let [starts, ends, axes] = [starts, ends, &axes].map(|v| self.indices(v));
                self.put("Slice", &[&x, &starts, &ends, &axes], &y, vec![]);
                return Ok(());
            }
            Op::Scale { by } => {
                extra = self.scalar(*by);
                inputs.push(&extra);
                ("Mul", vec![])
            }
            Op::Normalize { kind: Norm::Rms, eps } => {
                // The weight is a product of its own: a norm with a weight in front of codes is refused by some devices. Without
                // codes it is part of the norm, where fp16 loses less.
                let width = out.dims.last().and_then(|d| d.fixed()).unwrap_or(1);
                let name = format!("ones.{width}");
                let ones = || Ok(codes::bytes(std::iter::repeat_n(1.0, width)));
                let made = self.common.store.tensor(&name, Elem::F32, &[width], ones)?;
                extra = self.add(made);
                inputs.push(&extra);
                ("RMSNormalization", vec![int("axis", -1), float("epsilon", *eps)])
            }
            other => {
                return Err(Error::new("", format!("`{}` has no form in an exported file", other.name()))
                    .help("export before anything is fused"));
            }
        };
        self.put(op, &inputs, &y, attributes);
        Ok(())
    }

    /// What a product of a normalized value with a weight normalizes, and its epsilon.
    fn weighted(&self, n: &Node) -> Option<(Operand, f32)> {
        let (Op::Mul {}, [Operand::Value(v), Operand::Weight(_)]) = (&n.op, &n.inputs[..]) else { return None };
        let def = self.graph.nodes.iter().find(|d| d.outputs.contains(v))?;
        match def.op {
            Op::Normalize { kind: Norm::Rms, eps } => Some((def.inputs[0], eps)),
            _ => None,
        }
    }

    fn only_weighted(&self, v: ValueId) -> bool {
        let reads = |n: &&Node| n.inputs.contains(&v.into());
        !self.graph.results.contains(&v) && self.graph.nodes.iter().filter(reads).all(|n| self.weighted(n).is_some())
    }

    /// `x Wᵀ` in the profile's way.
    fn linear(&mut self, n: &Node) -> Result<(), Error> {
        let (Some(x), Some(w)) = (n.inputs[0].value(), n.inputs[1].weight()) else {
            return Err(Error::new("", "is no product of a value with a weight"));
        };
        let y = self.name(n.outputs[0]);
        let module = self.common.module;
        let matrix = &module.weights[w];
        let Some(&[rows, k]) = matrix.ty.shape().as_deref() else { return Err(Error::new("", "is no matrix")) };
        let m = self.graph.values[x].ty.dims.first().and_then(|d| d.fixed()).unwrap_or(0);
        if let Weights::NBits(bits, block) = self.common.profile.weights {
            return self.nbits(&self.name(x), w, &y, [m, rows, k], bits, block);
        }
        let turned = self.matrix(w, rows, k)?;
        if !self.common.profile.codes {
            self.put("MatMul", &[&self.name(x), &turned], &y, vec![]);
            return Ok(());
        }
        let ranges = self.common.ranges;
        let range = ranges
            .get(&matrix.name)
            .ok_or_else(|| Error::new("", format!("no range was calibrated for @{}", matrix.name)))?;
        let input = match self.coded.get(&x) {
            Some(name) => name.clone(),
            None => {
                let plain = self.name(x);
                let name = format!("{plain}.in");
                self.codes_of(&plain, &name, range.input);
                self.coded.insert(x, name.clone());
                name
            }
        };
        let raw = format!("{y}.raw");
        self.put("MatMul", &[&input, &turned], &raw, vec![]);
        self.codes_of(&raw, &y, range.output);
        Ok(())
    }

    /// A value through 16-bit codes.
    fn codes_of(&mut self, x: &str, y: &str, range: Range) {
        let (scale, zero) = range.code();
        let scale = self.add(small(&format!("{y}.scale"), Elem::F32, &[], scale.to_le_bytes().into()));
        let zero = self.add(small(&format!("{y}.zero"), Elem::U16, &[], zero.to_le_bytes().into()));
        let q = format!("{y}.q");
        self.put("QuantizeLinear", &[x, &scale, &zero], &q, vec![]);
        self.put("DequantizeLinear", &[&q, &scale, &zero], y, vec![]);
    }

    /// A matrix as `[K, N]`, in f32 behind what decodes it.
    fn matrix(&mut self, w: WeightId, n: usize, k: usize) -> Result<String, Error> {
        let Common { module, source, store, profile, .. } = &mut *self.common;
        let name = module.weights[w].name.clone();
        let rows = || -> Result<Vec<f32>, Error> { floats(module, w, *source) };
        let at = |part: &str| format!("{name}.{part}");
        match profile.weights {
            Weights::F32 => {
                let bytes = || Ok(codes::bytes(codes::turned(rows()?.chunks(k), k).into_iter()));
                let made = store.tensor(&at("t"), Elem::F32, &[k, n], bytes)?;
                Ok(self.add(made))
            }
            Weights::F16 => {
                let half = |v: &f32| half::f16::from_f32(*v).to_le_bytes();
                let bytes = || Ok(codes::turned(rows()?.chunks(k), k).iter().flat_map(half).collect());
                let made = store.tensor(&at("t"), Elem::F16, &[k, n], bytes)?;
                let half = self.add(made);
                let wide = at("f32");
                self.put("Cast", &[&half], &wide, vec![int("to", Elem::F32 as i64)]);
                Ok(wide)
            }
            Weights::Channels => {
                let mut made = None;
                let q = store.tensor(&at("q"), Elem::I8, &[k, n], || {
                    let codes = codes::channels(&rows()?, k);
                    made = Some(codes.scales);
                    Ok(codes.codes)
                })?;
                let s = store.tensor(&at("scale"), Elem::F32, &[n], || Ok(made.unwrap_or_default()))?;
                let z = store.tensor(&format!("zeros.i8.{n}"), Elem::I8, &[n], || Ok(vec![0; n]))?;
                let [q, s, z] = [q, s, z].map(|t| self.add(t));
                self.put("DequantizeLinear", &[&q, &s, &z], &at("f32"), vec![int("axis", 1)]);
                Ok(at("f32"))
            }
            Weights::Blocks(block) => {
                fits(&name, k, block)?;
                let groups = k / block;
                let (mut scales, mut factors) = (None, None);
                let q = store.tensor(&at("q"), Elem::I4, &[k, n], || {
                    let codes = codes::blocks(&rows()?, k, block);
                    (scales, factors) = (Some(codes.scales), Some(codes.factors));
                    Ok(codes.codes)
                })?;
                let s = store.tensor(&at("scale"), Elem::F32, &[n], || Ok(scales.unwrap_or_default()))?;
                let f = store.tensor(&at("factor"), Elem::U8, &[groups, n], || Ok(factors.unwrap_or_default()))?;
                let zeros = vec![0; (groups * n).div_ceil(2)];
                let z = store.tensor(&format!("zeros.i4.{groups}x{n}"), Elem::I4, &[groups, n], || Ok(zeros))?;
                let none = store.tensor(&format!("zeros.u8.{n}"), Elem::U8, &[n], || Ok(vec![0; n]))?;
                let [q, s, f, z, none] = [q, s, f, z, none].map(|t| self.add(t));
                self.put("DequantizeLinear", &[&f, &s, &none], &at("scales"), vec![int("axis", 1)]);
                let attributes = vec![int("axis", 0), int("block_size", block as i64)];
                self.put("DequantizeLinear", &[&q, &at("scales"), &z], &at("f32"), attributes);
                Ok(at("f32"))
            }
            Weights::NBits(..) => Err(Error::new("", "has no matrix of its own")),
        }
    }

    fn nbits(
        &mut self,
        x: &str,
        w: WeightId,
        y: &str,
        [m, n, k]: [usize; 3],
        bits: u8,
        block: usize,
    ) -> Result<(), Error> {
        let Common { module, source, store, .. } = &mut *self.common;
        let name = module.weights[w].name.clone();
        fits(&name, k, block)?;
        let mut scales = None;
        let blob = block * usize::from(bits) / 8;
        let q = store.tensor(&format!("{name}.q"), Elem::U8, &[n, k / block, blob], || {
            let codes = codes::nbits(&floats(module, w, *source)?, k, bits, block).ok_or_else(|| {
                Error::new(format!("@{name}"), "has numbers so far apart that no f16 scale holds them")
                    .help("use weights without blocks: --profile w8a16 or f16 for qnn, --quant none or f16 for onnx")
            })?;
            scales = Some(codes.scales);
            Ok(codes.codes)
        })?;
        let s =
            store.tensor(&format!("{name}.scale"), Elem::F32, &[n, k / block], || Ok(scales.unwrap_or_default()))?;
        let [q, s] = [q, s].map(|t| self.add(t));
        // Devices take three dimensions alone.
        let (before, after) = (self.indices(&[1, m as i64, k as i64]), self.indices(&[m as i64, n as i64]));
        let [deep, raw] = [format!("{y}.x"), format!("{y}.raw")];
        self.put("Reshape", &[x, &before], &deep, vec![]);
        let attributes = [("K", k), ("N", n), ("bits", usize::from(bits)), ("block_size", block)];
        let attributes = attributes.map(|(name, v)| int(name, v as i64)).to_vec();
        let product = NodeProto {
            domain: Some("com.microsoft".into()),
            ..node("MatMulNBits", &[&deep, &q, &s], &[&raw], attributes)
        };
        self.nodes.push(product);
        self.put("Reshape", &[&raw, &after], y, vec![]);
        Ok(())
    }
}

fn fits(name: &str, k: usize, block: usize) -> Result<(), Error> {
    if k.is_multiple_of(block) {
        return Ok(());
    }
    Err(Error::new(format!("@{name}"), format!("has rows of {k}, which blocks of {block} do not divide"))
        .help("use weights without blocks: --profile w8a16 or f16 for qnn, --quant none or f16 for onnx"))
}

/// A matrix as f32, row by row.
fn floats(module: &Module, id: WeightId, source: &dyn WeightSource) -> Result<Vec<f32>, Error> {
    let w = &module.weights[id];
    if w.def == dlx_ir::WeightDef::Source {
        let Some(&[n, k]) = w.ty.shape().as_deref() else { return Err(Error::new(&w.name, "is no matrix")) };
        let mut out = vec![0.0; n * k];
        source.read_rows(&w.name, 0..n, &mut out)?;
        source.release_rows(&w.name, 0..n);
        return Ok(out);
    }
    match weight(module, id, source)?.data {
        dlx_ir::Data::F32(values) => Ok(values),
        _ => Err(Error::new(&w.name, "holds no floats")),
    }
}
