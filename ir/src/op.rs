//! The op table: every operation of the IR, its attributes and its meaning.
//!
//! One row per op. The row generates the enum variant, the attribute printer and parser, and the `dlxc ops` listing;
//! shape inference (`infer`) and the reference evaluator (`eval`) match the enum exhaustively. The table is ordered by
//! [`Level`], which says who may be given an op.
//!
//! Ops of the tensor level take any number of dimensions. To all others, activations are two-dimensional `[rows, features]`,
//! and heads are consecutive chunks of `head_dim` features.

use crate::attr::{AttrValue, Mask, Post};
use crate::kinds::{Binary, Compare, Norm, Reduce, Scatter, Unary};
use crate::types::DType;
use std::fmt;

/// What an op belongs to, and so which back ends may be given it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Level {
    /// Arithmetic on tensors that any tensor language has: what a foreign graph can say, and be translated to node by node.
    Tensor,
    /// The blocks of transformers, whole and fused. Pure: a back end without them may be given an expansion.
    Model,
    /// Reads or writes a state, so its position in the schedule matters: only back ends that keep states between calls.
    State,
    /// Makes the bytes of a weight at emission: in weight expressions alone, so that no back end meets it in a graph.
    Weight,
}

impl Level {
    /// Every level, in the order of the op table.
    pub const ALL: [Level; 4] = [Level::Tensor, Level::Model, Level::State, Level::Weight];
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::Tensor => "tensor",
            Level::Model => "model",
            Level::State => "state",
            Level::Weight => "weight",
        })
    }
}

/// One row of the op table.
#[derive(Clone, Copy, Debug)]
pub struct OpInfo {
    /// Name in the text format.
    pub name: &'static str,
    /// Which back ends may be given it.
    pub level: Level,
    /// Attribute names.
    pub attrs: &'static [&'static str],
    /// Operands, results and meaning.
    pub doc: &'static str,
}

/// What is wrong with an attribute: a predicate (`is required`), or a sentence that starts with the text found.
fn attr_error(name: &str, e: &str) -> String {
    format!("attribute `{name}`{} {e}", if e.starts_with('`') { ":" } else { "" })
}

/// Attribute list as parsed: name and text after `=`, empty for a flag.
pub(crate) type AttrList = Vec<(String, String)>;

macro_rules! ops {
    ($($level:ident {
        $($name:literal $variant:ident { $($attr:ident : $ty:ty $(= $default:expr)?),* } $doc:literal;)*
    })*) => {
        /// An operation with its attributes.
        #[derive(Clone, PartialEq, Debug)]
        #[allow(missing_docs, reason = "the attributes are documented by the row's text")]
        pub enum Op {
            $($(#[doc = $doc] $variant { $($attr: $ty),* },)*)*
        }

        /// Every op, in the order of the enum.
        pub const OPS: &[OpInfo] = &[$($(
            OpInfo { name: $name, level: Level::$level, attrs: &[$(stringify!($attr)),*], doc: $doc },
        )*)*];

        impl Op {
            /// Name in the text format.
            pub fn name(&self) -> &'static str {
                match self { $($(Op::$variant { .. } => $name,)*)* }
            }

            /// Which back ends may be given it.
            pub fn level(&self) -> Level {
                match self { $($(Op::$variant { .. } => Level::$level,)*)* }
            }

            /// Attributes that are not at their default, as text.
            pub(crate) fn attrs(&self) -> Vec<(&'static str, String)> {
                match self {
                    $($(Op::$variant { $($attr),* } => {
                        let all: Vec<(&'static str, Option<String>)> = vec![$(
                            (stringify!($attr), $attr.print()$(.filter(|_| *$attr != $default))?)
                        ),*];
                        all.into_iter().filter_map(|(name, text)| Some((name, text?))).collect()
                    })*)*
                }
            }

            /// The op of that name with these attributes; unknown names and attributes are errors.
            pub(crate) fn parse(name: &str, attrs: &AttrList) -> Result<Op, String> {
                match name {
                    $($($name => {
                        let known: &[&str] = &[$(stringify!($attr)),*];
                        for (i, (attr, _)) in attrs.iter().enumerate() {
                            if !known.contains(&attr.as_str()) {
                                return Err(format!("`{name}` has no attribute `{attr}`"));
                            }
                            if attrs[..i].iter().any(|(a, _)| a == attr) {
                                return Err(format!("attribute `{attr}` is given twice"));
                            }
                        }
                        Ok(Op::$variant { $($attr: {
                            let text = attrs.iter().find(|(a, _)| a == stringify!($attr)).map(|(_, t)| t.as_str());
                            match text {
                                $(None => $default,)?
                                text => <$ty>::parse(text)
                                    .map_err(|e| attr_error(stringify!($attr), &e))?,
                            }
                        }),* })
                    })*)*
                    _ => Err(format!("there is no op `{name}`; `dlxc ops` lists them")),
                }
            }
        }
    };
}

ops! {
    Tensor {
        "add" Add {} "`add %a, %b` – element-wise sum; sizes of 1 repeat as numpy has it, integers wrap.";
        "arg_max" ArgMax { axis: i64, min: bool, last: bool }
            "`arg_max %x {axis, min, last}` – where the largest element (the smallest with `min`) of each row along an axis is: `i64`, size 1 there. Of equals the first one, or the `last`.";
        "binary" Binary { kind: Binary } "`binary %a, %b {kind}` – element-wise function of two; sizes of 1 repeat.";
        "bitcast" Bitcast { to: DType } "`bitcast %x {to}` – the same bits as another type of that size.";
        "cast" Cast { to: DType, wrap: bool }
            "`cast %x {to, wrap}` – converts to another type: to floats to the nearest, ties to even; floats to integers toward zero. Small floats take their largest number for what is larger, or with `wrap` their infinity or NaN.";
        "compare" Compare { kind: Compare } "`compare %a, %b {kind}` – `bool` of each two elements; sizes of 1 repeat.";
        "concat" Concat { axis: i64 = 0 } "`concat %a, %b, … {axis}` – joins along a dimension.";
        "cumulate" Cumulate { axis: i64, prod: bool, exclusive: bool, reverse: bool }
            "`cumulate %x {axis, prod, exclusive, reverse}` – sum (or product) of all elements up to and including each, along a dimension.";
        "expand" Expand { dims: Vec<i64> } "`expand %x {dims}` – repeats sizes of 1, and the whole in front, until the sizes are these.";
        "gather" Gather { axis: i64 } "`gather %x, %i {axis}` – slices of x along a dimension, which the dimensions of i replace; negative indices count from the end.";
        "gather_elements" GatherElements { axis: i64 } "`gather_elements %x, %i {axis}` – for each element of i the one of x in the same place but along the axis, where i says.";
        "gather_nd" GatherNd { batch: i64 } "`gather_nd %x, %i {batch}` – slices of x at the coordinates in the last dimension of i; the first `batch` dimensions are in common.";
        "matmul" Matmul {} "`matmul %a, %b` – `[…, M, K] · […, K, N]`; the dimensions in front repeat as in `add`.";
        "mul" Mul {} "`mul %a, %b` – element-wise product; sizes of 1 repeat, integers wrap.";
        "normalize" Normalize { kind: Norm, eps: f32 } "`normalize %x {kind, eps}` – each row of the last dimension without its mean (`layer`) over its root mean square; statistics in f32 or wider.";
        "reduce" Reduce { kind: Reduce, axes: Vec<i64> } "`reduce %x {kind, axes}` – over some dimensions, whose sizes become 1.";
        "reshape" Reshape { dims: Vec<i64> } "`reshape %x {dims}` – the same elements in the same order under other sizes.";
        "rotary" Rotary { interleaved: bool }
            "`rotary %x, %cos, %sin {interleaved}` – rotary embedding of `[B, H, T, D]` by tables `[B or 1, T, R/2]`: of the first R features of each head, the pairs are (i, i + R/2), or `interleaved` (2i, 2i + 1).";
        "scale" Scale { by: f32 } "`scale %x {by}` – multiplies by a constant.";
        "scatter" Scatter { axis: i64, kind: Scatter } "`scatter %x, %i, %u {axis, kind}` – x with the elements of u put where `gather_elements` would read.";
        "scatter_nd" ScatterNd { kind: Scatter } "`scatter_nd %x, %i, %u {kind}` – x with the slices of u put where `gather_nd` would read.";
        "sdpa" Sdpa { scale: f32, cap: Option<f32>, mask: Option<Mask> }
            "`sdpa %q, %k, %v[, %m] {scale, cap, mask}` – scaled dot-product attention of `[B, H, T, D]` with `[B, G, S, D]` and `[B, G, S, E]`, H a multiple of G. The scores, scaled and then `cap · tanh(s / cap)`, are masked by a rule and by m, which repeats to `[B, H, T, S]`: bool (true = may attend) or added. A row that sees nothing gives zeros.";
        "select" Select {} "`select %c, %a, %b` – a where c, else b; sizes of 1 repeat.";
        "silu" Silu {} "`silu %x` – `x · sigmoid(x)`.";
        "slice" Slice { starts: Vec<i64>, ends: Vec<i64>, steps: Vec<i64> }
            "`slice %x {starts, ends, steps}` – every step-th index from start to before end, for each dimension; a negative step walks down, and `end = −1` then includes index 0.";
        "softmax" Softmax {} "`softmax %x` – along the last dimension.";
        "sort" Sort { axis: i64, descending: bool } "`sort %x {axis, descending}` – sorted along a dimension, and the `i64` index that each came from; equals keep their order.";
        "transpose" Transpose { perm: Vec<i64> = vec![1, 0] } "`transpose %x {perm}` – dimension i of the result is dimension perm[i] of x.";
        "unary" Unary { kind: Unary } "`unary %x {kind}` – function of each element.";
    }

    Model {
        "attention" Attention { head_dim: u32, mask: Option<Mask> }
            "`attention %q, %k, %v[, %mask] {head_dim, mask}` – scaled dot-product attention of a whole sequence. Heads are chunks of head_dim; query head j reads key head j div (heads / kv heads). The mask is an operand `bool[T, S]` or, after block-attention, static.";
        "embed" Embed {} "`embed %ids, @table` – rows of the table as f32.";
        "head_stats" HeadStats { norm: Option<f32>, ban: Option<u32> }
            "`head_stats %x, @w[, @norm] {norm, ban}` – LM head without materialised logits: `i32[R]` most likely token (never `ban`; ties to the lowest id) and `f32[R, 3]` its probability, the margin to the second, and the entropy in nats.";
        "linear" Linear { n: u32 = 1, bias: bool, norm: Option<f32>, post: Post }
            "`linear %x, @w… [, @b…][, @norm][, %residual] {n, bias, norm, post}` – `y = x Wᵀ + b` for n (1 unless given) weights `[N, K]` that share the input. `norm=eps` applies RMSNorm to the input first; `post=add` adds the residual; `post=swiglu` takes (gate, up) and gives `silu(gate) · up`.";
        "mask" Mask { rule: Mask } "`mask %x {rule}` – the `bool[T, T]` mask tensor of a rule, for T rows of x.";
        "rms_norm" RmsNorm { eps: f32 }
            "`rms_norm %x, @w {eps}` – `w · x / sqrt(mean(x²) + eps)` over each consecutive chunk of len(w) features; statistics in f32.";
        "rope" Rope { head_dim: u32, norm: Option<f32> }
            "`rope %x, %table[, @norm] {head_dim, norm}` – rotates each head by half-split RoPE; `norm=eps` applies per-head RMSNorm first.";
        "rope_table" RopeTable { theta: f32, head_dim: u32 }
            "`rope_table %pos {theta, head_dim}` – `f32[T, head_dim]`: cosines, then sines, of `pos · theta^(-2k/head_dim)`.";
    }

    State {
        "cached_attention" CachedAttention { head_dim: u32, mask: Mask }
            "`cached_attention %q, @k, @v, %spans {head_dim, mask}` – attention of each span's rows, which stand at cache rows `at…` of its slot, over rows `from…visible` of that slot under the mask, whose blocks count from the slot's first row. Rows of no span get zeros.";
        "kv_write" KvWrite {}
            "`kv_write %k, %v, @k, @v, %spans` – writes each span's rows of keys and values to cache rows `at…` of its slot. A row of `%spans: i32[64, 5]` is a span: rows, slot, at, from, visible. Rows of no span are not written.";
        "store_rows" StoreRows {} "`store_rows %x, @state` – keeps x in the first rows of a state.";
        "take_rows" TakeRows {} "`take_rows @state, %rows` – chosen rows of a state, as f32.";
    }

    Weight {
        "pack" Pack { layout: Box<str>, shard: Option<u32> }
            "`pack @w {layout, shard}` – the bytes that a target's kernels read; `shard` is the number of rows that a device reads as one piece, which changes no byte.";
        "quantize" Quantize { to: DType } "`quantize @w {to}` – group quantization with scales of least squared error.";
    }
}

impl Op {
    /// Whether the op reads or writes a state, so that its position matters.
    pub fn touches_state(&self) -> bool {
        self.level() == Level::State
    }

    /// Whether the op exists for its effect on a state and has no result.
    pub fn has_effect(&self) -> bool {
        matches!(self, Op::KvWrite {} | Op::StoreRows {})
    }

    /// Operand whose bytes result 0 may take over when nothing reads the operand afterwards and it has the result's type.
    pub fn may_alias(&self) -> Option<usize> {
        match self {
            Op::Add {} | Op::Mul {} | Op::Silu {} | Op::Scale { .. } | Op::Rope { .. } => Some(0),
            Op::Linear { n, bias, norm, post: Post::Add } => {
                let weights = *n as usize;
                Some(1 + weights + if *bias { weights } else { 0 } + usize::from(norm.is_some()))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_ordered_by_level_and_name() {
        let rows: Vec<_> = OPS.iter().map(|o| (o.level, o.name)).collect();
        assert!(rows.is_sorted(), "{rows:?}");
        assert!(Level::ALL.is_sorted() && Level::ALL.iter().all(|l| OPS.iter().any(|o| o.level == *l)));
    }

    #[test]
    fn an_op_has_the_level_of_its_row() {
        let ops = [Op::Silu {}, Op::Embed {}, Op::KvWrite {}, Op::Quantize { to: DType::CACHE_Q8 }];
        for (op, level) in ops.iter().zip(Level::ALL) {
            let row = OPS.iter().find(|o| o.name == op.name());
            assert_eq!((op.level(), row.map(|o| o.level)), (level, Some(level)));
            assert_eq!(op.touches_state(), level == Level::State);
        }
    }
}
