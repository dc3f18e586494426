//! What an ONNX value is while its graph is imported.

use std::sync::Arc;

use dlx_ir::{DType, Data, Error, Op, Tensor, ValueId};

use super::call::dtype_of;
use super::file::OnnxModel;
use super::proto::TensorProto;
use super::stored::Stored;

/// A value of an ONNX graph.
#[derive(Clone, Debug)]
pub(super) enum Val {
    /// Known now.
    Known(Arc<Tensor>),
    /// An initializer, seen through views and not read.
    Stored(Arc<Stored>),
    /// Known when the model runs.
    Run(ValueId),
    /// A sequence, whose length is known.
    List(Arc<Vec<Val>>),
    /// An optional without a value. One with a value is that value.
    Nothing,
}

/// A value of an ONNX graph, given or computed.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// An optional without a value. One with a value is that value.
    Nothing,
    /// A tensor.
    Tensor(Tensor),
    /// A sequence.
    List(Vec<Value>),
}

impl From<Value> for Val {
    fn from(v: Value) -> Self {
        match v {
            Value::Nothing => Val::Nothing,
            Value::Tensor(t) => t.into(),
            Value::List(list) => Val::List(Arc::new(list.into_iter().map(Val::from).collect())),
        }
    }
}

impl From<Tensor> for Val {
    fn from(t: Tensor) -> Self {
        Val::Known(Arc::new(t))
    }
}

impl OnnxModel {
    /// The elements of a tensor of this model.
    ///
    /// # Errors
    /// It is damaged, or its elements are strings or complex numbers.
    pub fn known(&self, tensor: &TensorProto) -> Result<Tensor, Error> {
        let raw = self.tensor(tensor)?;
        let place = || format!("{}: tensor `{}`", self.path.display(), tensor.name());
        let dtype = dtype_of(raw.elem).map_err(|e| Error::new(place(), e))?;
        unpack(dtype, raw.dims, raw.elem.bits(), &raw.bytes).map_err(|e| Error::new(place(), e))
    }
}

/// Elements from the bytes of a file, where those of fewer than eight bits are packed, the first in the lowest bits.
fn unpack(dtype: DType, shape: Vec<usize>, bits: usize, bytes: &[u8]) -> Result<Tensor, String> {
    fn words<const N: usize, T>(bytes: &[u8], f: impl Fn([u8; N]) -> T) -> Vec<T> {
        bytes.chunks_exact(N).map(|c| f(c.try_into().expect("chunks have N bytes"))).collect()
    }
    let count: usize = shape.iter().product();
    let codes = |bits: usize| -> Vec<i64> {
        let bit = |n: usize| i64::from(bytes[n / 8] >> (n % 8) & 1);
        (0..count).map(|n| (0..bits).map(|b| bit(n * bits + b) << b).sum()).collect()
    };
    let data = match dtype {
        DType::F64 => Data::F64(words(bytes, f64::from_le_bytes)),
        DType::F32 => Data::F32(words(bytes, f32::from_le_bytes)),
        DType::I32 => Data::I32(words(bytes, i32::from_le_bytes)),
        DType::I64 | DType::U64 => Data::I64(words(bytes, i64::from_le_bytes)),
        DType::U32 => Data::I64(words(bytes, |b| u32::from_le_bytes(b).into())),
        DType::I16 => Data::I64(words(bytes, |b| i16::from_le_bytes(b).into())),
        DType::U16 => Data::I64(words(bytes, |b| u16::from_le_bytes(b).into())),
        DType::I8 => Data::I64(words(bytes, |b| i8::from_le_bytes(b).into())),
        DType::U8 => Data::I64(words(bytes, |b| u8::from_le_bytes(b).into())),
        DType::Bool => Data::Bool(bytes.iter().map(|b| *b != 0).collect()),
        DType::F16 => Data::F32(words(bytes, |b| half::f16::from_le_bytes(b).to_f32())),
        DType::BF16 => Data::F32(words(bytes, |b| half::bf16::from_le_bytes(b).to_f32())),
        DType::U4 | DType::U2 => Data::I64(codes(bits)),
        // Sign bits spread.
        DType::I4 | DType::I2 => {
            let shift = 64 - bits;
            Data::I64(codes(bits).into_iter().map(|v| v << shift >> shift).collect())
        }
        small => {
            let holder = if bits < 8 { codes(bits) } else { bytes.iter().map(|b| i64::from(*b)).collect() };
            return bits_as(small, bits, shape, holder);
        }
    };
    Ok(Tensor { dtype, shape, data })
}

/// Floats of at most eight bits from their codes.
fn bits_as(dtype: DType, bits: usize, shape: Vec<usize>, codes: Vec<i64>) -> Result<Tensor, String> {
    let holder = if bits == 4 { DType::U4 } else { DType::U8 };
    let codes = Tensor { dtype: holder, shape, data: Data::I64(codes) };
    if codes.data.is_empty() {
        return Ok(empty(dtype, codes.shape));
    }
    let out = dlx_ir::compute(&Op::Bitcast { to: dtype }, &[&codes])?;
    out.into_iter().next().ok_or_else(|| "a cast has a result".into())
}

/// A tensor of which some size is 0.
pub(super) fn empty(dtype: DType, shape: Vec<usize>) -> Tensor {
    let data = match dtype {
        DType::F64 => Data::F64(vec![]),
        DType::I32 => Data::I32(vec![]),
        DType::Bool => Data::Bool(vec![]),
        dtype if dtype.is_int() => Data::I64(vec![]),
        _ => Data::F32(vec![]),
    };
    Tensor { dtype, shape, data }
}

/// A vector of i64.
pub(super) fn ints(values: impl IntoIterator<Item = i64>) -> Tensor {
    let data: Vec<i64> = values.into_iter().collect();
    Tensor { dtype: DType::I64, shape: vec![data.len()], data: dlx_ir::Data::I64(data) }
}

/// A number as a scalar of a type; whatever the type, the nearest that it has.
pub(super) fn scalar(dtype: DType, value: f64) -> Result<Tensor, String> {
    let wide = Tensor { dtype: DType::F64, shape: vec![], data: dlx_ir::Data::F64(vec![value]) };
    cast(&wide, dtype)
}

/// A tensor as another type.
pub(super) fn cast(t: &Tensor, to: DType) -> Result<Tensor, String> {
    let out = dlx_ir::compute(&dlx_ir::Op::Cast { to, wrap: false }, &[t])?;
    out.into_iter().next().ok_or_else(|| "a cast has a result".into())
}
