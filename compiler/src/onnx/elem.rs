//! Element types of ONNX tensors.
//!
//! Invariant: every `TensorProto.DataType` of ONNX 1.23 but UNDEFINED has a row here. Nothing here computes with values.

use std::fmt;

/// What the elements of a tensor are; named as in `onnx.proto`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub enum ElemType {
    Float,
    Uint8,
    Int8,
    Uint16,
    Int16,
    Int32,
    Int64,
    String,
    Bool,
    Float16,
    Double,
    Uint32,
    Uint64,
    Complex64,
    Complex128,
    Bfloat16,
    Float8E4m3fn,
    Float8E4m3fnuz,
    Float8E5m2,
    Float8E5m2fnuz,
    Uint4,
    Int4,
    Float4E2m1,
    Float8E8m0,
    Uint2,
    Int2,
    Float6E2m3,
    Float6E3m2,
}

/// Which of a tensor's fields holds its values where they are not raw.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Field {
    Float,
    Int32,
    Int64,
    Double,
    Uint64,
    String,
}

/// Type, number in the file, name, bits of an element (none for strings), field of values that are not raw.
type Row = (ElemType, i32, &'static str, usize, Field);

/// The rows of `TensorProto.DataType`, in the order of the enum above and of the numbers.
const TYPES: &[Row] = &[
    (ElemType::Float, 1, "FLOAT", 32, Field::Float),
    (ElemType::Uint8, 2, "UINT8", 8, Field::Int32),
    (ElemType::Int8, 3, "INT8", 8, Field::Int32),
    (ElemType::Uint16, 4, "UINT16", 16, Field::Int32),
    (ElemType::Int16, 5, "INT16", 16, Field::Int32),
    (ElemType::Int32, 6, "INT32", 32, Field::Int32),
    (ElemType::Int64, 7, "INT64", 64, Field::Int64),
    (ElemType::String, 8, "STRING", 0, Field::String),
    (ElemType::Bool, 9, "BOOL", 8, Field::Int32),
    (ElemType::Float16, 10, "FLOAT16", 16, Field::Int32),
    (ElemType::Double, 11, "DOUBLE", 64, Field::Double),
    (ElemType::Uint32, 12, "UINT32", 32, Field::Uint64),
    (ElemType::Uint64, 13, "UINT64", 64, Field::Uint64),
    (ElemType::Complex64, 14, "COMPLEX64", 64, Field::Float),
    (ElemType::Complex128, 15, "COMPLEX128", 128, Field::Double),
    (ElemType::Bfloat16, 16, "BFLOAT16", 16, Field::Int32),
    (ElemType::Float8E4m3fn, 17, "FLOAT8E4M3FN", 8, Field::Int32),
    (ElemType::Float8E4m3fnuz, 18, "FLOAT8E4M3FNUZ", 8, Field::Int32),
    (ElemType::Float8E5m2, 19, "FLOAT8E5M2", 8, Field::Int32),
    (ElemType::Float8E5m2fnuz, 20, "FLOAT8E5M2FNUZ", 8, Field::Int32),
    (ElemType::Uint4, 21, "UINT4", 4, Field::Int32),
    (ElemType::Int4, 22, "INT4", 4, Field::Int32),
    (ElemType::Float4E2m1, 23, "FLOAT4E2M1", 4, Field::Int32),
    (ElemType::Float8E8m0, 24, "FLOAT8E8M0", 8, Field::Int32),
    (ElemType::Uint2, 25, "UINT2", 2, Field::Int32),
    (ElemType::Int2, 26, "INT2", 2, Field::Int32),
    (ElemType::Float6E2m3, 27, "FLOAT6E2M3", 6, Field::Int32),
    (ElemType::Float6E3m2, 28, "FLOAT6E3M2", 6, Field::Int32),
];

impl ElemType {
    /// The type with a number of `TensorProto.DataType`; none for UNDEFINED and unknown numbers.
    pub fn from_number(number: i32) -> Option<ElemType> {
        TYPES.iter().find(|row| row.1 == number).map(|row| row.0)
    }

    /// Its number in `TensorProto.DataType`.
    pub fn number(self) -> i32 {
        self.row().1
    }

    /// Its name in `TensorProto.DataType`, such as `FLOAT`.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Bits of one element as raw data packs them; 0 for strings, which have no fixed size.
    pub fn bits(self) -> usize {
        self.row().3
    }

    /// All types, in the order of their numbers.
    pub fn all() -> impl Iterator<Item = ElemType> {
        TYPES.iter().map(|row| row.0)
    }

    pub(super) fn field(self) -> Field {
        self.row().4
    }

    fn row(self) -> &'static Row {
        TYPES.iter().find(|row| row.0 == self).expect("every type has a row")
    }
}

impl fmt::Display for ElemType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Field {
    /// The field's name in `TensorProto`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Field::Float => "float_data",
            Field::Int32 => "int32_data",
            Field::Int64 => "int64_data",
            Field::Double => "double_data",
            Field::Uint64 => "uint64_data",
            Field::String => "string_data",
        }
    }
}
