//! Arrays in a safetensors file.

use dlx_ir::{DType, Tensor};
use dlx_runtime::graph::Tensors;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::{Array, MAX_ARRAYS, size};

/// The types that both sides have.
const TYPES: [(Dtype, DType); 13] = [
    (Dtype::F64, DType::F64),
    (Dtype::F32, DType::F32),
    (Dtype::F16, DType::F16),
    (Dtype::BF16, DType::BF16),
    (Dtype::I64, DType::I64),
    (Dtype::I32, DType::I32),
    (Dtype::I16, DType::I16),
    (Dtype::I8, DType::I8),
    (Dtype::U64, DType::U64),
    (Dtype::U32, DType::U32),
    (Dtype::U16, DType::U16),
    (Dtype::U8, DType::U8),
    (Dtype::BOOL, DType::Bool),
];

/// What a file holds, by name.
pub(super) fn list(file: &[u8]) -> Result<Vec<Array>, String> {
    let tensors = SafeTensors::deserialize(file).map_err(|e| format!("is no file of arrays: {e}"))?;
    if tensors.len() > MAX_ARRAYS {
        return Err(format!("holds {} arrays, more than {MAX_ARRAYS}", tensors.len()));
    }
    let mut arrays = Vec::new();
    for (name, view) in tensors.iter() {
        let dtype = TYPES.iter().find(|(theirs, _)| *theirs == view.dtype()).map(|(_, ours)| *ours);
        let dtype = dtype.ok_or_else(|| format!("`{name}` is {}, which no graph takes", view.dtype()))?;
        size(dtype, view.shape())?;
        arrays.push(Array { name: name.to_owned(), dtype, shape: view.shape().to_vec() });
    }
    arrays.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(arrays)
}

/// One of them.
pub(super) fn read(file: &[u8], array: &Array) -> Result<Tensor, String> {
    let tensors = SafeTensors::deserialize(file).map_err(|e| e.to_string())?;
    let view = tensors.tensor(&array.name).map_err(|e| e.to_string())?;
    Tensor::from_le_bytes(array.dtype, &array.shape, view.data())
}

/// A file of these arrays.
pub(super) fn bytes(arrays: &Tensors) -> Result<Vec<u8>, String> {
    let bytes: Vec<(&String, &Tensor, Vec<u8>)> = arrays.iter().map(|(n, t)| (n, t, t.to_le_bytes())).collect();
    let mut views = Vec::new();
    for (name, t, bytes) in &bytes {
        let dtype = TYPES.iter().find(|(_, ours)| *ours == t.dtype).map(|(theirs, _)| *theirs);
        let dtype = dtype.ok_or_else(|| format!("cannot hold `{name}`, which is {}", t.dtype))?;
        views.push((*name, TensorView::new(dtype, t.shape.clone(), bytes).map_err(|e| e.to_string())?));
    }
    safetensors::serialize(views, None).map_err(|e| e.to_string())
}
