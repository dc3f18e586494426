//! Tensors as bytes: row-major, little-endian, as files of plain arrays hold them. A bool is a byte that is 0 or not, and
//! elements of less than eight bits have a byte each.
//!
//! Invariant: what [`Tensor::to_le_bytes`] writes, [`Tensor::from_le_bytes`] reads back. Memory that the system does not
//! give is an error, not an abort.

use crate::eval::{Data, Tensor};
use crate::float::Float;
use crate::types::{DType, Type};
use half::{bf16, f16};

/// Bytes that a tensor of a type takes while it is computed with, where small elements are held in wider ones; `None` for
/// names, quantized formats and overflow.
pub fn held_bytes(ty: &Type) -> Option<u64> {
    let width = match ty.dtype {
        DType::Quant(_) => return None,
        DType::Bool => 1,
        DType::I32 => 4,
        dtype if dtype.is_float() || dtype.is_small_float() => 4,
        _ => 8,
    };
    u64::try_from(ty.elements()?).ok()?.checked_mul(width)
}

impl Tensor {
    /// The tensor of these bytes.
    ///
    /// # Errors
    /// A type without plain elements, another number of bytes, or too little memory.
    pub fn from_le_bytes(dtype: DType, shape: &[usize], bytes: &[u8]) -> Result<Self, String> {
        let ty = Type::new(dtype, shape.iter().copied());
        let wanted = ty.bytes().ok_or_else(|| format!("{ty} has no plain elements"))?;
        if bytes.len() != wanted {
            return Err(format!("{} bytes are not {ty}", bytes.len()));
        }
        let data = match dtype {
            DType::F64 => Data::F64(read(bytes, f64::from_le_bytes)?),
            DType::F32 => Data::F32(read(bytes, f32::from_le_bytes)?),
            DType::F16 => Data::F32(read(bytes, |b| f16::from_le_bytes(b).to_f32())?),
            DType::BF16 => Data::F32(read(bytes, |b| bf16::from_le_bytes(b).to_f32())?),
            DType::I32 => Data::I32(read(bytes, i32::from_le_bytes)?),
            DType::I64 | DType::U64 => Data::I64(read(bytes, i64::from_le_bytes)?),
            DType::I16 => Data::I64(read(bytes, |b| i16::from_le_bytes(b).into())?),
            DType::I8 => Data::I64(read(bytes, |b| i8::from_le_bytes(b).into())?),
            DType::U32 => Data::I64(read(bytes, |b| u32::from_le_bytes(b).into())?),
            DType::U16 => Data::I64(read(bytes, |b| u16::from_le_bytes(b).into())?),
            DType::U8 => Data::I64(read(bytes, |[b]: [u8; 1]| b.into())?),
            DType::Bool => Data::Bool(read(bytes, |[b]: [u8; 1]| b != 0)?),
            dtype => match Float::of(dtype) {
                Some(format) => Data::F32(read(bytes, |[b]: [u8; 1]| format.decode(b.into()) as f32)?),
                None => Data::I64(read(bytes, |[b]: [u8; 1]| dtype.wrap(b.into()))?),
            },
        };
        Ok(Tensor { dtype, shape: shape.to_vec(), data })
    }

    /// A tensor of 64-bit integers.
    pub fn i64(shape: &[usize], data: Vec<i64>) -> Self {
        Tensor { dtype: DType::I64, shape: shape.to_vec(), data: Data::I64(data) }
    }

    /// The bytes of the tensor; numbers that its type does not hold are rounded or wrapped to ones that it does.
    pub fn to_le_bytes(&self) -> Vec<u8> {
        match (&self.data, self.dtype) {
            (Data::F64(x), _) => write(x, |v| v.to_le_bytes()),
            (Data::F32(x), DType::F16) => write(x, |v| f16::from_f32(v).to_le_bytes()),
            (Data::F32(x), dtype) if dtype.is_small_float() => {
                let format = Float::of(dtype).expect("small floats are in the table of formats");
                write(x, |v| [format.encode(v.into()) as u8])
            }
            (Data::F32(x), DType::BF16) => write(x, |v| bf16::from_f32(v).to_le_bytes()),
            (Data::F32(x), _) => write(x, |v| v.to_le_bytes()),
            (Data::I32(x), _) => write(x, |v| v.to_le_bytes()),
            (Data::I64(x), DType::U32) => write(x, |v| (v as u32).to_le_bytes()),
            (Data::I64(x), DType::I16 | DType::U16) => write(x, |v| (v as u16).to_le_bytes()),
            (Data::I64(x), dtype) if dtype.size() == Some(1) => write(x, |v| [v as u8]),
            (Data::I64(x), _) => write(x, |v| v.to_le_bytes()),
            (Data::Bool(x), _) => write(x, |v| [u8::from(v)]),
        }
    }
}

/// Elements of N bytes each.
fn read<const N: usize, T>(bytes: &[u8], element: impl Fn([u8; N]) -> T) -> Result<Vec<T>, String> {
    let (elements, _) = bytes.as_chunks::<N>();
    let mut out = Vec::new();
    out.try_reserve_exact(elements.len()).map_err(|_| format!("not enough memory for {} elements", elements.len()))?;
    out.extend(elements.iter().map(|b| element(*b)));
    Ok(out)
}

fn write<const N: usize, T: Copy>(values: &[T], bytes: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|v| bytes(*v)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back() {
        for (name, size) in [
            ("f64", 8),
            ("f32", 4),
            ("f16", 2),
            ("bf16", 2),
            ("i64", 8),
            ("i32", 4),
            ("i16", 2),
            ("i8", 1),
            ("u64", 8),
            ("u32", 4),
            ("u16", 2),
            ("u8", 1),
        ] {
            let dtype: DType = name.parse().unwrap();
            // No NaN, whose bits need not come back.
            let bytes: Vec<u8> = (0..6 * size).map(|i| (i * 37 + 11) as u8 & 0x7b | (i % 2) as u8).collect();
            let tensor = Tensor::from_le_bytes(dtype, &[2, 3], &bytes).unwrap();
            assert!(tensor.data.holds(dtype) && tensor.data.len() == 6, "{name}");
            assert_eq!(tensor.to_le_bytes(), bytes, "{name}");
        }
        let bools = Tensor::from_le_bytes(DType::Bool, &[3], &[0, 1, 7]).unwrap();
        assert_eq!((bools.to_le_bytes(), &bools.data), (vec![0, 1, 1], &Data::Bool(vec![false, true, true])));
        let scalar = Tensor::from_le_bytes(DType::I8, &[], &[0xfe]).unwrap();
        assert_eq!(scalar.data, Data::I64(vec![-2]));
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        assert!(Tensor::from_le_bytes(DType::F32, &[2], &[0; 7]).unwrap_err().contains("7 bytes are not f32[2]"));
        assert!(Tensor::from_le_bytes(DType::CACHE_Q8, &[2], &[0; 2]).unwrap_err().contains("no plain elements"));
        assert!(Tensor::from_le_bytes(DType::F32, &[usize::MAX, 8], &[]).is_err());
        let held = |ty: &str| {
            held_bytes(
                &crate::parse(&format!("module @m {{ weight @w: {ty} }}")).unwrap().weights[crate::Id::new(0)].ty,
            )
        };
        assert_eq!(
            [held("u8[3]"), held("f16[3]"), held("bool[3]"), held("q8[3, 3]")],
            [Some(24), Some(12), Some(3), None]
        );
    }
}
