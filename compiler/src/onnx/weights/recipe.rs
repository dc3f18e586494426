//! A view of one tensor, plain or quantized, as the rows of a weight.

use std::fmt::Display;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use dlx_ir::quant::zero_point;
use dlx_ir::{DType, Error, Grid, QuantFormat, Type};
use dlx_targets::CodeRows;

use super::codes::{self, Packing};
use super::grid::{self, Axis};
use crate::onnx::elem::ElemType;
use crate::onnx::tensor::RawTensor;

/// How the rows of one weight are read.
///
/// A weight is `[N, K]`, a vector `[n]`, or of any rank: a row is what one index of the first dimension holds.
#[derive(Clone, Debug)]
pub struct Recipe<'a> {
    /// Node and tensor, for errors.
    pub(super) place: String,
    pub(super) dims: Vec<usize>,
    pub(super) rows: Axis,
    pub(super) columns: Axis,
    /// Numbers, or codes if there is a `quant`.
    pub(super) codes: Arc<RawTensor<'a>>,
    pub(super) quant: Option<Quant<'a>>,
    pub(super) factor: f32,
    /// Whether codes may stay codes.
    pub(super) keeps: bool,
    pub(super) format: OnceLock<Option<QuantFormat>>,
}

/// What codes stand for: `(code − zero) · scale`.
#[derive(Clone, Debug)]
pub(super) struct Quant<'a> {
    pub packing: Packing,
    pub scales: Arc<RawTensor<'a>>,
    pub zeros: Zeros<'a>,
    /// Block of each column of the tensor, where blocks are not consecutive columns.
    pub groups: Option<Arc<[u32]>>,
}

/// Zero points.
#[derive(Clone, Debug)]
pub(super) enum Zeros<'a> {
    /// One for all.
    Of(i64),
    Codes(Packing, Arc<RawTensor<'a>>),
    Floats(Arc<RawTensor<'a>>),
}

impl<'a> Recipe<'a> {
    /// Dimensions of the weight.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Number of rows.
    #[allow(clippy::len_without_is_empty, reason = "a weight without rows is refused where recipes are made")]
    pub fn len(&self) -> usize {
        self.rows.len
    }

    /// Elements of a row.
    pub fn width(&self) -> usize {
        self.columns.len
    }

    /// The tensor, for errors.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The type that the weight has in the module: a quantized one where a format holds the codes as they are, that of the
    /// tensor where it is f32, f16 or bf16, else f32.
    pub fn ty(&self) -> Type {
        let dtype = match (self.format(), self.codes.elem) {
            (Some(format), _) => DType::Quant(format),
            (None, ElemType::Float16) if self.factor == 1.0 => DType::F16,
            (None, ElemType::Bfloat16) if self.factor == 1.0 => DType::BF16,
            _ => DType::F32,
        };
        Type::new(dtype, self.dims.iter().copied())
    }

    /// The same weight as numbers, whatever it is stored as: for vectors, and for uses that read no codes.
    #[must_use]
    pub fn numbers(self) -> Self {
        Recipe { keeps: false, ..self }.fresh()
    }

    /// The matrix with rows and columns exchanged.
    ///
    /// # Errors
    /// The weight is no matrix, or the order of its columns is bound to its groups.
    pub fn transposed(self) -> Result<Self, Error> {
        let &[n, k] = self.dims.as_slice() else { return Err(self.not("is turned and no matrix")) };
        if self.quant.as_ref().is_some_and(|q| q.groups.is_some()) {
            return Err(self.not("is turned, and its columns have group numbers of their own"));
        }
        Ok(Recipe { dims: vec![k, n], rows: self.columns, columns: self.rows, ..self }.fresh())
    }

    /// Some of the rows.
    ///
    /// # Errors
    /// They are none, or not all there.
    pub fn slice_rows(mut self, range: Range<usize>) -> Result<Self, Error> {
        if range.is_empty() || range.end > self.rows.len || self.dims.is_empty() {
            return Err(self.not(format!("has no rows {range:?}")));
        }
        self.rows.from += range.start;
        self.rows.len = range.len();
        self.dims[0] = range.len();
        Ok(self.fresh())
    }

    /// Some of the columns of a matrix.
    ///
    /// # Errors
    /// They are none, or not all there.
    pub fn slice_columns(mut self, range: Range<usize>) -> Result<Self, Error> {
        if range.is_empty() || range.end > self.columns.len || self.dims.len() != 2 {
            return Err(self.not(format!("has no columns {range:?}")));
        }
        self.columns.from += range.start;
        self.columns.len = range.len();
        self.dims[1] = range.len();
        Ok(self.fresh())
    }

    /// The same elements in the same order under other dimensions.
    ///
    /// # Errors
    /// They are not as many, or the view does not lie in one piece.
    pub fn reshaped(mut self, dims: &[usize]) -> Result<Self, Error> {
        let count = dims.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        if count != self.rows.len.checked_mul(self.columns.len) {
            return Err(self.not(format!("does not have the elements of {dims:?}")));
        }
        let n = dims.first().copied().unwrap_or(1);
        if n != self.rows.len {
            let whole = self.columns.stride == 1 && self.rows.stride == self.columns.len;
            if self.quant.is_some() || !(whole || self.columns.len == 1 && self.rows.stride == 1) {
                return Err(self.not(format!("cannot be read as {dims:?}")));
            }
            let width = self.columns.len * self.rows.len / n;
            let from = self.rows.at(0) + self.columns.at(0);
            self.rows = Axis::plain(n, width);
            self.columns = Axis { from, ..Axis::plain(width, 1) };
        }
        self.dims = dims.into();
        Ok(self.fresh())
    }

    /// The weight times a number.
    #[must_use]
    pub fn scaled(self, by: f32) -> Self {
        Recipe { factor: self.factor * by, ..self }.fresh()
    }

    /// Reads rows as numbers into `out`, which has exactly their length.
    ///
    /// # Errors
    /// Rows that are not there, or a buffer of another length.
    pub fn read(&self, range: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        self.check(&range, out.len(), self.width())?;
        let axes = [self.rows, self.columns];
        match &self.quant {
            None => grid::read(axes, range, out, &|first, out| codes::floats(&self.codes, first, out)),
            Some(quant) => {
                let mut raw = vec![0i32; out.len()];
                grid::read(axes, range.clone(), &mut raw, &|first, out| self.integers(quant.packing, first, out));
                let width = self.width();
                for (row, (raw, out)) in range.zip(raw.chunks(width).zip(out.chunks_mut(width))) {
                    let mut column = 0;
                    while column < width {
                        let end = self.block_end(quant, column);
                        let (scale, zero) = self.block(quant, row, column);
                        let codes = raw[column..end].iter().zip(&mut out[column..end]);
                        match zero {
                            Zero::Int(z) => codes.for_each(|(q, v)| *v = (i64::from(*q) - z) as f32 * scale),
                            Zero::Float(z) => codes.for_each(|(q, v)| *v = (*q as f32 - z) * scale),
                        }
                        column = end;
                    }
                }
            }
        }
        if self.factor != 1.0 {
            out.iter_mut().for_each(|v| *v *= self.factor);
        }
        Ok(())
    }

    /// Reads rows as codes of the format that the weight has.
    ///
    /// # Errors
    /// As for [`Recipe::read`], or the weight is not quantized in that format.
    pub fn read_codes(&self, format: QuantFormat, range: Range<usize>, out: CodeRows<'_>) -> Result<(), Error> {
        let (Some(quant), true) = (&self.quant, self.format() == Some(format)) else {
            return Err(self.not(format!("has no codes of {format}")));
        };
        let (width, groups, len) = (self.width(), format.groups(self.width()), format.group_len(self.width()));
        self.check(&range, out.codes.len(), width)?;
        self.check(&range, out.scales.len(), groups)?;
        self.check(&range, out.mins.len(), if format.has_min() { groups } else { 0 })?;
        let axes = [self.rows, self.columns];
        grid::read(axes, range.clone(), out.codes, &|first, out| quant.packing.bytes(&self.codes.bytes, first, out));
        let lowest = quant.packing.range().0;
        // Flips the sign bit, which makes of a code with a sign one that counts from the lowest.
        let flip = if quant.packing.signed { 1u8 << (quant.packing.bits - 1) } else { 0 };
        for ((i, row), codes) in range.enumerate().zip(out.codes.chunks_mut(width)) {
            for (g, codes) in codes.chunks_mut(len).enumerate() {
                let (scale, zero) = self.block(quant, row, g * len);
                out.scales[i * groups + g] = scale * self.factor;
                let zero = match zero {
                    Zero::Int(z) => z - lowest,
                    Zero::Float(z) => {
                        out.mins[i * groups + g] = (lowest as f32 - z) * scale * self.factor;
                        codes.iter_mut().for_each(|c| *c ^= flip);
                        continue;
                    }
                };
                if format.has_min() {
                    out.mins[i * groups + g] = -zero as f32 * scale * self.factor;
                    codes.iter_mut().for_each(|c| *c ^= flip);
                } else {
                    let shift = i64::from(zero_point(format)) - zero;
                    codes.iter_mut().for_each(|c| *c = (*c ^ flip).wrapping_add(shift as u8));
                }
            }
        }
        Ok(())
    }

    pub(super) fn codes(&self) -> &RawTensor<'a> {
        &self.codes
    }

    /// Whether the elements of a row are not neighbors.
    pub(super) fn is_across(&self) -> bool {
        self.columns.len > 1 && self.columns.stride != 1
    }

    /// The bytes of rows that are not across.
    pub(super) fn row_bytes(&self, range: &Range<usize>) -> Option<&[u8]> {
        let bits = self.codes.elem.bits().min(self.quant.as_ref().map_or(usize::MAX, |q| q.packing.bits));
        let first = self.rows.at(range.start).checked_add(self.columns.at(0))?;
        let end = self.rows.at(range.end.checked_sub(1)?).checked_add(self.columns.at(self.columns.len))?;
        self.codes.bytes.get(first * bits / 8..(end * bits).div_ceil(8))
    }

    /// Whether both show the same elements of the same tensor.
    pub(super) fn is_same_view(&self, other: &Self) -> bool {
        let plain = self.quant.is_none() && other.quant.is_none();
        let tensor = self.codes.elem == other.codes.elem && std::ptr::eq(&*self.codes.bytes, &*other.codes.bytes);
        plain && tensor && (self.rows, self.columns, self.factor) == (other.rows, other.columns, other.factor)
    }

    pub(super) fn not(&self, what: impl Display) -> Error {
        Error::new(&self.place, format!("as a weight {:?}, {what}", self.dims))
    }

    fn fresh(self) -> Self {
        Recipe { format: OnceLock::new(), ..self }
    }

    fn check(&self, range: &Range<usize>, found: usize, per_row: usize) -> Result<(), Error> {
        if range.start <= range.end && range.end <= self.rows.len && range.len().checked_mul(per_row) == Some(found) {
            return Ok(());
        }
        Err(self.not(format!("rows {range:?} do not fit a buffer of {found}")))
    }

    /// Consecutive codes.
    fn integers(&self, packing: Packing, first: usize, out: &mut [i32]) {
        if packing.bits > 8 {
            let all = out.iter_mut().enumerate();
            return all.for_each(|(i, v)| *v = packing.get(&self.codes.bytes, first + i) as i32);
        }
        let mut bytes = [0u8; 256];
        let unused = 32 - packing.bits as u32;
        for (part, out) in out.chunks_mut(bytes.len()).enumerate() {
            packing.bytes(&self.codes.bytes, first + part * bytes.len(), &mut bytes[..out.len()]);
            for (v, b) in out.iter_mut().zip(bytes) {
                *v = if packing.signed { i32::from(b) << unused >> unused } else { i32::from(b) };
            }
        }
    }

    /// Column after the last one that shares the block of a column.
    fn block_end(&self, quant: &Quant<'_>, column: usize) -> usize {
        if quant.groups.is_some() {
            return column + 1;
        }
        let next = (self.columns.block_of(column) + 1).saturating_mul(self.columns.block);
        (next - self.columns.from).min(self.columns.len)
    }

    /// Scale and zero point of an element.
    fn block(&self, quant: &Quant<'_>, row: usize, column: usize) -> (f32, Zero) {
        let row = self.rows.block_of(row);
        let column = match &quant.groups {
            Some(groups) => groups.get(self.columns.from + column).map_or(0, |g| *g as usize),
            None => self.columns.block_of(column),
        };
        let scale = codes::float(&quant.scales, row * self.rows.scales + column * self.columns.scales);
        let at = row * self.rows.zeros + column * self.columns.zeros;
        let zero = match &quant.zeros {
            Zeros::Of(z) => Zero::Int(*z),
            Zeros::Codes(packing, tensor) => Zero::Int(packing.get(&tensor.bytes, at)),
            Zeros::Floats(tensor) => Zero::Float(codes::float(tensor, at)),
        };
        (scale, zero)
    }

    /// The format that holds the codes as they are. A block of several groups becomes groups of the same scale.
    fn format(&self) -> Option<QuantFormat> {
        *self.format.get_or_init(|| {
            let quant = self.quant.as_ref().filter(|q| self.keeps && q.packing.bits <= 8 && self.dims.len() == 2)?;
            let bits = if quant.packing.bits <= 4 { 4 } else { 8 };
            let whole = self.one_block(quant, self.width());
            let group = [128, 64, 32].into_iter().find(|g| whole || self.one_block(quant, *g));
            let group = if whole && bits == 8 { None } else { Some(u32::try_from(group?).ok()?) };
            let grid = if self.is_symmetric(quant, bits) { Grid::Symmetric } else { Grid::Affine };
            Some(QuantFormat { bits, group, grid })
        })
    }

    /// Whether each `len` columns, counted from the first, share a scale.
    fn one_block(&self, quant: &Quant<'_>, len: usize) -> bool {
        let Axis { from, len: width, block, .. } = self.columns;
        match &quant.groups {
            Some(groups) => {
                let shown = groups.get(from..from + width).unwrap_or_default();
                shown.chunks(len).all(|c| c.iter().all(|g| *g == c[0]))
            }
            None if len >= width => self.columns.block_of(0) == self.columns.block_of(width - 1),
            None => from.is_multiple_of(len) && block.is_multiple_of(len),
        }
    }

    /// Whether all codes, less their zero points, have a sign and at most `bits` bits.
    fn is_symmetric(&self, quant: &Quant<'_>, bits: u8) -> bool {
        let ((lowest, highest), half) = (quant.packing.range(), 1i64 << (bits - 1));
        let fits = |z: i64| lowest - z >= -half && highest - z < half;
        let blocks = |axis: &Axis, whole: bool| {
            if whole { 0..1 } else { axis.block_of(0)..axis.block_of(axis.len - 1) + 1 }
        };
        match &quant.zeros {
            Zeros::Of(z) => fits(*z),
            Zeros::Floats(_) => false,
            Zeros::Codes(packing, tensor) => {
                let columns = match &quant.groups {
                    Some(groups) => 0..groups.iter().max().map_or(0, |g| *g as usize + 1),
                    None => blocks(&self.columns, self.columns.zeros == 0),
                };
                blocks(&self.rows, self.rows.zeros == 0).all(|r| {
                    let at = |c: usize| r * self.rows.zeros + c * self.columns.zeros;
                    columns.clone().all(|c| fits(packing.get(&tensor.bytes, at(c))))
                })
            }
        }
    }
}

enum Zero {
    Int(i64),
    Float(f32),
}
