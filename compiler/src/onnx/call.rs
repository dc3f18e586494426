//! One node as its importer sees it: operands, attributes, and the version of its operator set.

use dlx_ir::DType;

use super::elem::ElemType;
use super::graph::{Graph, Node};
use super::value::Val;

/// A node with its operands.
pub(super) struct Call<'n> {
    pub(super) node: &'n Node,
    /// Operands; `None` for an optional one that is absent.
    pub(super) args: Vec<Option<Val>>,
}

impl<'n> Call<'n> {
    /// Version of the operator set of the node's domain.
    pub(super) fn opset(&self) -> i64 {
        self.node.opset
    }

    /// Operand `i`.
    pub(super) fn arg(&self, i: usize) -> Result<&Val, String> {
        self.opt(i).ok_or_else(|| format!("input {i} is missing"))
    }

    /// Operand `i`, if it is there.
    pub(super) fn opt(&self, i: usize) -> Option<&Val> {
        self.args.get(i).and_then(Option::as_ref)
    }

    /// All operands, none of which may be absent.
    pub(super) fn all(&self) -> Result<Vec<&Val>, String> {
        (0..self.args.len()).map(|i| self.arg(i)).collect()
    }

    /// Whether output `i` has a name, so that somebody may read it.
    pub(super) fn wants(&self, i: usize) -> bool {
        self.node.outputs.get(i).is_some_and(|name| !name.is_empty())
    }

    pub(super) fn int(&self, name: &str) -> Result<Option<i64>, String> {
        self.node.int(name).map_err(|e| e.message)
    }

    pub(super) fn int_or(&self, name: &str, default: i64) -> Result<i64, String> {
        Ok(self.int(name)?.unwrap_or(default))
    }

    pub(super) fn flag(&self, name: &str) -> Result<bool, String> {
        Ok(self.int_or(name, 0)? != 0)
    }

    /// An integer that has no default.
    pub(super) fn needed(&self, name: &str) -> Result<i64, String> {
        self.int(name)?.ok_or_else(|| format!("attribute `{name}` is missing, which has no default"))
    }

    /// A required size or count, positive.
    pub(super) fn size(&self, name: &str) -> Result<usize, String> {
        let value = self.needed(name)?;
        usize::try_from(value).ok().filter(|n| *n > 0).ok_or_else(|| format!("attribute `{name}` is {value}"))
    }

    pub(super) fn ints(&self, name: &str) -> Result<Option<Vec<i64>>, String> {
        Ok(self.node.ints(name).map_err(|e| e.message)?.map(<[i64]>::to_vec))
    }

    pub(super) fn float(&self, name: &str) -> Result<Option<f32>, String> {
        self.node.float(name).map_err(|e| e.message)
    }

    pub(super) fn float_or(&self, name: &str, default: f32) -> Result<f32, String> {
        Ok(self.float(name)?.unwrap_or(default))
    }

    pub(super) fn floats(&self, name: &str) -> Result<Option<Vec<f32>>, String> {
        Ok(self.node.floats(name).map_err(|e| e.message)?.map(<[f32]>::to_vec))
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<String>, String> {
        Ok(self.node.string(name).map_err(|e| e.message)?.map(str::to_owned))
    }

    pub(super) fn text_or(&self, name: &str, default: &str) -> Result<String, String> {
        Ok(self.text(name)?.unwrap_or_else(|| default.into()))
    }

    /// A text that is one of these, the first of which is the default.
    pub(super) fn choice<'s>(&self, name: &str, known: &[&'s str]) -> Result<&'s str, String> {
        let Some(text) = self.text(name)? else { return Ok(known[0]) };
        let found = known.iter().find(|k| **k == text);
        found.copied().ok_or_else(|| format!("{name} `{text}` is not supported; it may be {}", known.join(", ")))
    }

    /// Several texts.
    pub(super) fn texts(&self, name: &str) -> Result<Option<Vec<String>>, String> {
        let list = self.node.strings(name).map_err(|e| e.message)?;
        Ok(list.map(|l| l.into_iter().map(|t| t.to_string()).collect()))
    }

    /// A subgraph.
    pub(super) fn graph(&self, name: &str) -> Result<&'n Graph, String> {
        let graph = self.node.graph(name).map_err(|e| e.message)?;
        graph.ok_or_else(|| format!("attribute `{name}` is missing"))
    }

    /// An element type by its number, as attributes have it.
    pub(super) fn elem(&self, name: &str) -> Result<Option<DType>, String> {
        self.int(name)?.map(dtype_numbered).transpose()
    }
}

/// The element type with a number of `TensorProto.DataType`.
pub(super) fn dtype_numbered(number: i64) -> Result<DType, String> {
    let elem = i32::try_from(number).ok().and_then(ElemType::from_number);
    dtype_of(elem.ok_or_else(|| format!("there is no element type {number}"))?)
}

/// The element type of the IR that holds an ONNX one.
pub(super) fn dtype_of(elem: ElemType) -> Result<DType, String> {
    Ok(match elem {
        ElemType::Float => DType::F32,
        ElemType::Double => DType::F64,
        ElemType::Float16 => DType::F16,
        ElemType::Bfloat16 => DType::BF16,
        ElemType::Int64 => DType::I64,
        ElemType::Int32 => DType::I32,
        ElemType::Int16 => DType::I16,
        ElemType::Int8 => DType::I8,
        ElemType::Uint64 => DType::U64,
        ElemType::Uint32 => DType::U32,
        ElemType::Uint16 => DType::U16,
        ElemType::Uint8 => DType::U8,
        ElemType::Bool => DType::Bool,
        ElemType::Int4 => DType::I4,
        ElemType::Uint4 => DType::U4,
        ElemType::Int2 => DType::I2,
        ElemType::Uint2 => DType::U2,
        ElemType::Float8E4m3fn => DType::F8E4M3,
        ElemType::Float8E4m3fnuz => DType::F8E4M3Z,
        ElemType::Float8E5m2 => DType::F8E5M2,
        ElemType::Float8E5m2fnuz => DType::F8E5M2Z,
        ElemType::Float8E8m0 => DType::F8E8M0,
        ElemType::Float6E2m3 => DType::F6E2M3,
        ElemType::Float6E3m2 => DType::F6E3M2,
        ElemType::Float4E2m1 => DType::F4E2M1,
        other => return Err(format!("element type {other} is not supported")),
    })
}

/// A dimension's number, counted from the end when negative; `rank` itself is allowed where `open`.
pub(super) fn axis(axis: i64, rank: usize) -> Result<usize, String> {
    let n = rank as i64;
    let wrapped = if axis < 0 { axis.saturating_add(n) } else { axis };
    usize::try_from(wrapped)
        .ok()
        .filter(|a| *a < rank)
        .ok_or_else(|| format!("axis {axis} of a tensor of {rank} dimensions"))
}

/// Several of them, none twice, in ascending order.
pub(super) fn axes(list: &[i64], rank: usize) -> Result<Vec<usize>, String> {
    let mut out = list.iter().map(|a| axis(*a, rank)).collect::<Result<Vec<_>, _>>()?;
    out.sort_unstable();
    if out.windows(2).any(|w| w[0] == w[1]) {
        return Err(format!("axes {list:?} name one dimension twice"));
    }
    Ok(out)
}
