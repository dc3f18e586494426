//! What the ONNX standard demands of a node before its handler sees it: how many operands, of which element types and how
//! many dimensions, and the attributes that have no default.
//!
//! A demand is in the tables where a handler would otherwise compute something else without a word. What older or newer
//! versions allow is allowed in all of them. Whether sizes fit each other is the handlers' business.

use dlx_ir::DType;

use super::build::Builder;
use super::call::Call;
use super::value::Val;

/// Ops, and their operands in order: an element type, then the number of dimensions, which `+` makes the least number.
///
/// `f` floats, `i` i32 or i64, `b` bool, `x` anything; operands of one capital letter (`T`; `F` floats) are of one type.
/// Behind a last `*` there may be any number of the same.
const OPERANDS: &[(&str, &str)] = &[
    (
        "Abs Acos Acosh ArgMax ArgMin Asin Asinh Atan Atanh BitCast BitwiseNot Cast Ceil Celu Cos Cosh Det Elu Erf Exp \
         Flatten Floor Gelu HardSigmoid HardSwish Hardmax Identity IsInf IsNaN LeakyRelu Log LogSoftmax LpNormalization \
         MeanVarianceNormalization Mish Neg NonZero Not Reciprocal Relu Round Selu Shape Shrink Sigmoid Sign Sin Sinh Size \
         Softmax Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu Transpose Unique",
        "x",
    ),
    (
        "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual MatMul Mod Mul Or \
         PRelu Sub SwiGLU Xor",
        "T T",
    ),
    ("CastLike Pow", "x x"),
    ("Concat Einsum Max Mean Min SequenceConstruct Sum", "T*"),
    (
        "CenterCropPad CumProd CumSum Expand Gather GatherElements GatherND ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp \
         ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Reshape Split SplitToSequence Squeeze TopK Trilu \
         Unsqueeze",
        "x i",
    ),
    ("BlackmanWindow ConstantOfShape HammingWindow HannWindow", "i"),
    ("Scatter ScatterElements ScatterND", "T i T"),
    ("DepthToSpace SpaceToDepth", "x4"),
    ("AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool", "x3+"),
    ("Conv ConvTranspose", "F3+ F3+ F1"),
    ("GRU RNN", "F3 F3 F3 F2 i1 F3"),
    ("NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss", "F2+ i F1"),
    ("AffineGrid", "f3 i"),
    ("Attention", "F3+ F3+ f3+ x f4 f4 i1"),
    ("BatchNormalization", "f1+ f1 f1 f1 f1"),
    ("CausalConvWithState", "F3 F3 F1 F3"),
    ("Clip", "T T T"),
    ("Compress", "x b1"),
    ("ConvInteger", "x3+ x3+ x x"),
    ("DFT", "f2+ i i"),
    ("DeformConv", "F3+ F3+ F3+ F1 F3+"),
    ("Dropout", "x f b"),
    ("EyeLike", "x2"),
    ("Gemm", "T2 T2 T"),
    ("GroupNormalization", "F2+ F1 F1"),
    ("If", "b"),
    ("InstanceNormalization", "F3+ F1 F1"),
    ("LRN", "x2+"),
    ("LSTM", "F3 F3 F3 F2 i1 F3 F3 F2"),
    ("LayerNormalization", "f f f"),
    ("LinearAttention", "f3 f3 f3 f4 f f"),
    ("Loop", "i b x*"),
    ("MatMulInteger", "x x x x"),
    ("MaxRoiPool", "F4 F2"),
    ("MaxUnpool", "x3+ i3+ i1"),
    ("NonMaxSuppression", "f3 f3 i f f"),
    ("OneHot", "x x x"),
    ("Pad", "T i T i"),
    ("QLinearConv", "x3+ x x x3+ x x x x i1"),
    ("QLinearMatMul", "x x x x x x x x"),
    ("RMSNormalization", "f f"),
    ("Range", "T T T"),
    ("Resize", "x f f i"),
    ("ReverseSequence", "x2+ i1"),
    ("RoiAlign", "F4 F2 i1"),
    ("RotaryEmbedding", "F3+ F F i"),
    ("STFT", "f i f i"),
    ("Slice", "x i i i i"),
    ("TensorScatter", "T T i"),
    ("Upsample", "x f"),
    ("Where", "b T T"),
];

/// Attributes without a default, the ops that have them, and the version since which they must be there.
const REQUIRED: &[(&str, &str, i64)] = &[
    ("axis", "Concat", 4),
    ("axis", "ConcatFromSequence", 11),
    ("blocksize", "DepthToSpace SpaceToDepth", 1),
    ("direction", "BitShift", 11),
    ("equation", "Einsum", 12),
    ("kernel_shape", "AveragePool MaxPool MaxUnpool", 1),
    ("kernel_shape", "LpPool", 2),
    ("kv_num_heads", "LinearAttention", 1),
    ("num_groups", "GroupNormalization", 1),
    ("num_scan_inputs", "Scan", 1),
    ("pooled_shape", "MaxRoiPool", 1),
    ("q_num_heads", "LinearAttention", 1),
    ("size", "LRN", 1),
    ("to", "BitCast Cast", 1),
];

/// Checks a node of the standard's own operator set.
pub(super) fn check(b: &Builder<'_>, c: &Call<'_>) -> Result<(), String> {
    if !c.node.domain.is_empty() {
        return Ok(());
    }
    let op = c.node.op.as_str();
    let names = |ops: &str| ops.split(' ').any(|name| name == op);
    for (attr, ops, since) in REQUIRED {
        if c.opset() >= *since && names(ops) && !c.node.attrs.contains_key(*attr) {
            return Err(format!("attribute `{attr}` is missing, which has no default"));
        }
    }
    match OPERANDS.iter().find(|(ops, _)| names(ops)) {
        Some((_, operands)) => fits(b, c, operands),
        None => Ok(()),
    }
}

/// Whether the operands of a node are what a row says.
fn fits(b: &Builder<'_>, c: &Call<'_>, row: &str) -> Result<(), String> {
    let (row, open) = row.strip_suffix('*').map_or((row, false), |row| (row, true));
    let wanted: Vec<&str> = row.split(' ').collect();
    let given = c.args.iter().rposition(Option::is_some).map_or(0, |n| n + 1);
    if given > wanted.len() && !open {
        return Err(format!("has {given} inputs, and {} takes {} at most", c.node.op, wanted.len()));
    }
    // The first operand of each type that several have.
    let mut types: Vec<(char, usize, DType)> = Vec::new();
    for (n, v) in c.args.iter().enumerate() {
        let Some(v) = v else { continue };
        let mut want = wanted[n.min(wanted.len() - 1)].chars();
        let kind = want.next().unwrap_or('x');
        let size = want.as_str();
        let rank: Option<usize> = size.trim_end_matches('+').parse().ok();
        if kind == 'x' && rank.is_none() || matches!(v, Val::List(_) | Val::Nothing) {
            continue;
        }
        let (dtype, shape) = (b.dtype(v)?, b.shape(v)?);
        let held = match kind {
            'f' | 'F' if !dtype.is_real() => Some("floats are needed"),
            'i' if !matches!(dtype, DType::I32 | DType::I64) => Some("whole numbers, i32 or i64, are needed"),
            'b' if dtype != DType::Bool => Some("bool is needed"),
            _ => None,
        };
        if let Some(held) = held {
            return Err(format!("input {n} is {dtype}{shape:?}, and {held}"));
        }
        if let Some(rank) = rank.filter(|r| if size.ends_with('+') { shape.len() < *r } else { shape.len() != *r }) {
            let least = if size.ends_with('+') { "at least " } else { "" };
            let count = if rank == 1 { "dimension is" } else { "dimensions are" };
            return Err(format!("input {n} is {dtype}{shape:?}, and {least}{rank} {count} needed"));
        }
        if kind.is_ascii_uppercase() {
            match types.iter().find(|(k, ..)| *k == kind) {
                Some((_, first, other)) if *other != dtype => {
                    return Err(format!("inputs {first} and {n} are {other} and {dtype}; cast one of them"));
                }
                Some(_) => {}
                None => types.push((kind, n, dtype)),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::supported;

    #[test]
    fn the_tables_are_about_ops_that_there_are() {
        let known = |name: &str| supported().any(|(domain, op)| domain.is_empty() && op == name);
        let mut seen = std::collections::BTreeSet::new();
        for (ops, row) in OPERANDS {
            for op in ops.split(' ') {
                assert!(known(op) && seen.insert(op), "{op}");
            }
            for operand in row.strip_suffix('*').unwrap_or(row).split(' ') {
                let (kind, rank) = operand.split_at(1);
                assert!(
                    "fibxFT".contains(kind) && rank.chars().all(|c| c.is_ascii_digit() || c == '+'),
                    "{ops}: {row}"
                );
            }
        }
        assert!(REQUIRED.iter().flat_map(|(_, ops, _)| ops.split(' ')).all(known));
    }
}
