//! What a tensor says of itself: element type and dimensions, and how errors name it.
//!
//! Invariant: of a [`Header`], no product of dimensions overflows in any order, nor does the number of bytes. It says
//! nothing about where the values are.

use std::path::Path;

use dlx_ir::Error;

use super::elem::ElemType;
use super::proto::TensorProto;

/// What a tensor says of itself, checked.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) elem: ElemType,
    pub(super) dims: Vec<usize>,
    /// Number of elements.
    pub(super) count: usize,
    /// Bytes of all elements, packed.
    pub(super) bytes: usize,
}

impl Header {
    /// Reads type and dimensions.
    ///
    /// # Errors
    /// When the type is unknown, a dimension is negative, or their product is beyond any memory.
    pub(super) fn of(path: &Path, t: &TensorProto) -> Result<Header, Error> {
        let bad = |message: String| bad(path, t, message);
        let number = t.data_type.unwrap_or(0);
        let elem = ElemType::from_number(number).ok_or_else(|| {
            Error::new(place(path, t), format!("has element type {number}, which is none that ONNX 1.23 knows"))
                .help("the file is damaged, or of a later ONNX: export the model again, with an older opset")
        })?;
        let dims: Option<Vec<usize>> = t.dims.iter().map(|&d| usize::try_from(d).ok()).collect();
        let dims = dims.ok_or_else(|| bad(format!("has a negative dimension: {}", Dims(&t.dims))))?;
        // Zeros count as ones here, so that later no partial product in any order can overflow.
        let product = |floor: usize| dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d.max(floor)));
        let fits = |n: &usize| n.checked_mul(elem.bits().max(8)).is_some();
        product(1).filter(fits).ok_or_else(|| bad(format!("is too large for any memory: {}", Dims(&t.dims))))?;
        let count = product(0).expect("it is at most the product that has just been checked");
        Ok(Header { elem, bytes: (count * elem.bits()).div_ceil(8), dims, count })
    }
}

/// `file: tensor "name"`.
pub(super) fn place(path: &Path, t: &TensorProto) -> String {
    match t.name() {
        "" => format!("{}: a tensor without a name", path.display()),
        name => format!("{}: tensor {name:?}", path.display()),
    }
}

/// An error for a tensor that is not valid.
pub(super) fn bad(path: &Path, t: &TensorProto, message: String) -> Error {
    Error::new(place(path, t), message).help("the file is damaged, or was written wrongly: export the model again")
}

/// `FLOAT[2, 3]`.
pub(super) fn shape(header: &Header) -> String {
    let dims: Vec<i64> = header.dims.iter().map(|d| i64::try_from(*d).unwrap_or(i64::MAX)).collect();
    format!("{}{}", header.elem, Dims(&dims))
}

/// Dimensions for a message, however many a file claims.
struct Dims<'a>(&'a [i64]);

impl std::fmt::Display for Dims<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown: Vec<String> = self.0.iter().take(8).map(i64::to_string).collect();
        let more = if self.0.len() > 8 { ", …" } else { "" };
        write!(f, "[{}{more}]", shown.join(", "))
    }
}
