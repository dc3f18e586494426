//! Graphs that QNN's HTP backend accepts and computes wrongly, or cannot build: one row per rule.
//!
//! Each row was measured with onnxruntime-qnn 2.7.0 (QAIRT 2.51) and ONNX Runtime 1.31.1 on the package's x86-64 emulation of HTP,
//! fallback to the CPU disabled. That a graph is accepted says nothing about what it computes. Rules look at what is simple to tell;
//! an export is executed besides.

use std::fmt;

use serde::Serialize;

use super::view::{View, block};
use crate::onnx::{DimText, ElemType, Node, OnnxModel};

/// What is wrong with a graph that a rule finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// It is accepted and computed wrongly.
    Wrong,
    /// It cannot be built.
    Refused,
    /// It is not taken: with fallback it runs on the CPU.
    Elsewhere,
}

/// A row of the table.
pub struct Rule {
    /// Its name.
    pub name: &'static str,
    /// What is wrong.
    pub kind: Kind,
    /// What happens, with the figure that was measured.
    pub what: &'static str,
    /// What to do.
    pub fix: &'static str,
    find: fn(&View<'_>, &Node) -> Option<bool>,
}

/// What a rule found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// The rule.
    pub rule: &'static str,
    /// What is wrong.
    pub kind: Kind,
    /// The node.
    pub node: String,
    /// What happens.
    pub what: &'static str,
    /// What to do.
    pub fix: &'static str,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}\nhelp: {}", self.node, self.rule, self.what, self.fix)
    }
}

/// Columns up to which indices are right.
const NARROW: usize = 65_536;
/// Largest factor of block scales that is computed rightly.
const MAX_FACTOR: u8 = 16;
/// Columns up to which a 16-bit softmax loses less than 1e-2.
const SHORT: usize = 4096;

/// Operators that HTP takes in the forms that were tried.
const TAKEN: &[&str] = &[
    "Abs",
    "Add",
    "And",
    "ArgMax",
    "ArgMin",
    "Cast",
    "Clip",
    "Concat",
    "Conv",
    "Cos",
    "DequantizeLinear",
    "Div",
    "Elu",
    "Equal",
    "Exp",
    "Expand",
    "Floor",
    "Gather",
    "GatherElements",
    "GatherND",
    "Gelu",
    "Gemm",
    "Greater",
    "HardSwish",
    "Identity",
    "LayerNormalization",
    "LeakyRelu",
    "Less",
    "Log",
    "LogSoftmax",
    "MatMul",
    "MatMulNBits",
    "Max",
    "Min",
    "Mul",
    "Neg",
    "Not",
    "Or",
    "Pad",
    "Pow",
    "QuantizeLinear",
    "RMSNormalization",
    "Reciprocal",
    "ReduceL2",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceSum",
    "Relu",
    "Reshape",
    "RotaryEmbedding",
    "Round",
    "ScatterElements",
    "ScatterND",
    "Sigmoid",
    "Sign",
    "Sin",
    "SimplifiedLayerNormalization",
    "Slice",
    "Softmax",
    "Softplus",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Tanh",
    "TopK",
    "Transpose",
    "Unsqueeze",
    "Where",
];

/// Every rule.
pub const RULES: &[Rule] = &[
    Rule {
        name: "int4-without-zero-point",
        kind: Kind::Wrong,
        what: "int4 codes with a scale per tensor or output and without a zero point are read as unsigned: error 2.2 to 7",
        fix: "give zeros as INT4",
        find: |v, n| {
            let whole = n.op == "DequantizeLinear" && block(n).is_none() && View::given(n, 2).is_none();
            Some(whole && v.elem(View::given(n, 0)?)? == ElemType::Int4)
        },
    },
    Rule {
        name: "wide-indices",
        kind: Kind::Wrong,
        what: "TopK, and ArgMax of 16-bit codes, over more than 65,536 columns give indices off by multiples of 65,536",
        fix: "split the columns into pieces of at most 65,536, and merge what they say on the host",
        find: |v, n| {
            let x = View::given(n, 0)?;
            let coded = || v.made_by(x, "DequantizeLinear").is_some();
            let counts = n.op == "TopK" || (n.op == "ArgMax" || n.op == "ArgMin") && coded();
            Some(counts && v.shape(x)?.iter().any(|d| *d > NARROW))
        },
    },
    Rule {
        name: "two-16-bit-activations",
        kind: Kind::Wrong,
        what: "of a product of two 16-bit activations the second is computed in 8 bits: error 9e-3 for a range of 4, 0.14 for 64",
        fix: "leave the codes around products of activations out: HTP computes them in fp16",
        find: |v, n| {
            let (a, b) = (View::given(n, 0)?, View::given(n, 1)?);
            let codes = v.codes(a)? == ElemType::Uint16 && v.codes(b)? == ElemType::Uint16;
            Some(n.op == "MatMul" && codes && v.weight(a).is_none() && v.weight(b).is_none())
        },
    },
    Rule {
        name: "norm-times-repeated-input",
        kind: Kind::Wrong,
        what: "a norm multiplied by a quantized graph input that is repeated over heads: off by 70 to 97 % (tried by hand)",
        fix: "repeat the input with Expand first, make it a constant, or give it in float",
        find: |v, n| {
            let sides = [(View::given(n, 0)?, View::given(n, 1)?), (View::given(n, 1)?, View::given(n, 0)?)];
            let repeats = |norm: &str, other: &str| {
                v.made_by(norm, "RMSNormalization")?;
                let codes = v.made_by(other, "DequantizeLinear")?;
                v.input(View::given(codes, 0)?)?;
                Some(v.shape(norm)? != v.shape(other)?)
            };
            Some(n.op == "Mul" && sides.into_iter().any(|(a, b)| repeats(a, b) == Some(true)))
        },
    },
    Rule {
        name: "weighted-norm-before-blocks",
        kind: Kind::Refused,
        what: "a norm with a weight, then codes, then a block-quantized product: \"Failed to finalize … 1002\" at 1024 features to 3072",
        fix: "give the norm a scale of ones and multiply by the weight after it",
        find: |v, n| {
            if n.op != "MatMul" {
                return None;
            }
            block(v.weight(View::given(n, 1)?)?)?;
            let codes = v.made_by(View::given(n, 0)?, "DequantizeLinear")?;
            let quantized = v.made_by(View::given(codes, 0)?, "QuantizeLinear")?;
            let norm = v.made_by(View::given(quantized, 0)?, "RMSNormalization")?;
            let scale = v.bytes(View::given(norm, 1)?)?;
            Some(scale.as_chunks::<4>().0.iter().any(|b| f32::from_le_bytes(*b) != 1.0))
        },
    },
    Rule {
        name: "scatter-of-unequal-scales",
        kind: Kind::Wrong,
        what: "ScatterElements copies codes as they are, whatever the scales of cache, updates and result: error 0.13 to 1",
        fix: "give all three one scale, or use ScatterND or Concat, which convert",
        find: |v, n| {
            if n.op != "ScatterElements" {
                return None;
            }
            let scale = |q: &Node| v.bytes(View::given(q, 1)?);
            let read = |i: usize| v.made_by(View::given(n, i)?, "DequantizeLinear").and_then(scale);
            let written = v.readers(n.outputs.first()?).iter().find(|r| r.op == "QuantizeLinear");
            let all = [read(0), read(2), written.and_then(|q| scale(q))];
            let known: Vec<_> = all.into_iter().flatten().collect();
            Some(known.windows(2).any(|w| w[0] != w[1]))
        },
    },
    Rule {
        name: "block-factor-too-large",
        kind: Kind::Wrong,
        what: "factors of block scales (LPBQ) above 16: error 1.4 to 2.6",
        fix: "choose the scales of outputs so that factors are 1 to 15",
        find: |v, n| {
            let factors = v.weight(View::given(n, 1)?)?;
            let large = || Some(v.bytes(View::given(factors, 0)?)?.iter().any(|f| *f > MAX_FACTOR));
            Some(n.op == "DequantizeLinear" && block(n).is_some() && large()?)
        },
    },
    Rule {
        name: "blocks-without-zeros",
        kind: Kind::Refused,
        what: "int4 codes with factors of block scales (LPBQ) and without a zero point are refused",
        fix: "give zeros as INT4 of the scales' shape",
        find: |v, n| {
            let factors = n.op == "DequantizeLinear" && block(n).is_some() && v.weight(View::given(n, 1)?).is_some();
            Some(factors && View::given(n, 2).is_none())
        },
    },
    Rule {
        name: "blocks-in-gemm",
        kind: Kind::Refused,
        what: "block-quantized weights (LPBQ) of a Gemm are refused",
        fix: "use MatMul, and Add for the bias",
        find: |v, n| Some(n.op == "Gemm" && block(v.weight(View::given(n, 1)?)?).is_some()),
    },
    Rule {
        name: "norm-weight-of-signed-codes",
        kind: Kind::Refused,
        what: "a norm whose weight is int8 is refused",
        fix: "store the weight of a norm as float, or as 16-bit codes",
        find: |v, n| Some(n.op == "RMSNormalization" && v.codes(View::given(n, 1)?)? == ElemType::Int8),
    },
    Rule {
        name: "too-many-dimensions",
        kind: Kind::Refused,
        what: "six dimensions anywhere, five of a norm, and a Reshape to five are refused",
        fix: "join dimensions: heads and rows fit three",
        find: |v, n| {
            let rank = v.shape(n.outputs.first()?)?.len();
            let fewer = n.op == "RMSNormalization" || n.op == "Reshape";
            Some(rank >= if fewer { 5 } else { 6 })
        },
    },
    Rule {
        name: "nbits-form",
        kind: Kind::Refused,
        what: "MatMulNBits of other than three dimensions, or with zero points of floats, is refused",
        fix: "reshape to [1, rows, features]; store zero points as codes, or none",
        find: |v, n| {
            if n.op != "MatMulNBits" {
                return None;
            }
            let zeros = View::given(n, 3).and_then(|z| v.elem(z));
            let floats = zeros.is_some_and(|e| e != ElemType::Uint8);
            Some(floats || v.shape(View::given(n, 0)?).is_some_and(|s| s.len() != 3))
        },
    },
    Rule {
        name: "weights-alone-per-output",
        kind: Kind::Refused,
        what: "int8 weights with a scale per output beside an activation without codes are refused",
        fix: "put 16-bit codes around the product, or use MatMulNBits",
        find: |v, n| {
            let weight = v.weight(View::given(n, 1)?)?;
            let scales: usize = v.shape(View::given(weight, 1)?)?.iter().product();
            let bytes = v.elem(View::given(weight, 0)?)? == ElemType::Int8;
            Some(n.op == "MatMul" && bytes && scales > 1 && v.codes(View::given(n, 0)?).is_none())
        },
    },
    Rule {
        name: "long-16-bit-softmax",
        kind: Kind::Wrong,
        what: "a softmax whose result has 16-bit codes loses with the length of its rows: 1.1e-2 at 4,096, 4.9e-2 at 32,768",
        fix: "leave the codes around it out: HTP computes it in fp16",
        find: |v, n| {
            let coded = v.readers(n.outputs.first()?).iter().any(|r| r.op == "QuantizeLinear");
            Some(n.op == "Softmax" && coded && *v.shape(View::given(n, 0)?)?.last()? >= SHORT)
        },
    },
    Rule {
        name: "operator",
        kind: Kind::Elsewhere,
        what: "the operator is not among those that HTP was seen to take",
        fix: "write it another way, or allow it to run on the CPU",
        find: |_, n| Some(!TAKEN.contains(&n.op.as_str())),
    },
];

/// Everything that rules find in a file.
pub fn lint(model: &OnnxModel) -> Vec<Finding> {
    let view = View::of(model);
    let mut findings = Vec::new();
    for input in &model.graph().inputs {
        let known = |d: &DimText| matches!(d, DimText::Known(_));
        if !input.dims.as_ref().is_some_and(|dims| dims.iter().all(known)) {
            findings.push(Finding {
                rule: "dynamic-shape",
                kind: Kind::Elsewhere,
                node: format!("{}: input `{}`", model.path.display(), input.name),
                what: "a graph with dimensions that are no numbers is not taken",
                fix: "export with static shapes",
            });
        }
    }
    for node in &model.graph().nodes {
        for rule in RULES.iter().filter(|r| (r.find)(&view, node) == Some(true)) {
            let Rule { name, kind, what, fix, .. } = *rule;
            findings.push(Finding { rule: name, kind, node: node.place(), what, fix });
        }
    }
    findings
}

#[cfg(test)]
mod tests;
