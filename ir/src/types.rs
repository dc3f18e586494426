//! Tensor types: element type, dimensions, layout, and their text spelling.
//!
//! Invariant: a [`Type`] prints to exactly the text that parses back to it. Nothing here knows about bytes in a file;
//! the packed size of a laid-out weight is the layout's (`layout.rs`).

use crate::float::Float;
use crate::name::name;
use std::fmt;
use std::str::FromStr;

/// What the codes of a quantized format stand for, before their scale.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Grid {
    /// Whole numbers around zero.
    Symmetric,
    /// Whole numbers from zero; each group carries a minimum besides its scale.
    Affine,
    /// Numbers of a constant table ([`codebook`](crate::quant::codebook)).
    Table,
}

/// Quantized element format: `q<bits>[g<group>][m]`, or `l16`.
///
/// * `q4g64` – signed 4-bit codes −8…7, one f16 scale per 64 consecutive weights of a row (symmetric);
/// * `q4g64m` – unsigned codes 0…15 with a scale and a minimum per group (`w = scale·code + min`);
/// * `q8g32` – signed codes −127…127 per group of 32; `q8` – one scale per row (per output channel; in a KV cache per
///   row and head);
/// * `l16` – 4-bit codes into one of four constant codebooks, which every 16 consecutive weights of a row choose; one f16
///   scale per 128.
///
/// The last group of a row may be short.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct QuantFormat {
    /// Bits per code: 4 or 8.
    pub bits: u8,
    /// Weights per group along the row (32, 64 or 128), or `None` for one group per row (8 bits only).
    pub group: Option<u32>,
    /// What a code stands for. [`Grid::Table`] goes with 4 bits and groups of 128 alone.
    pub grid: Grid,
}

impl QuantFormat {
    /// `l16`.
    pub const L16: QuantFormat = QuantFormat { bits: 4, group: Some(128), grid: Grid::Table };

    /// A format of whole numbers around zero.
    pub const fn symmetric(bits: u8, group: Option<u32>) -> Self {
        QuantFormat { bits, group, grid: Grid::Symmetric }
    }

    /// A format with minima.
    pub const fn affine(bits: u8, group: Option<u32>) -> Self {
        QuantFormat { bits, group, grid: Grid::Affine }
    }

    /// Whether each group carries a minimum besides its scale.
    pub fn has_min(self) -> bool {
        self.grid == Grid::Affine
    }

    /// Group length for a row of `k` weights: the group size, or the whole row.
    pub fn group_len(self, k: usize) -> usize {
        self.group.map_or(k.max(1), |g| g as usize)
    }

    /// Number of groups in a row of `k` weights; the last one may be short.
    pub fn groups(self, k: usize) -> usize {
        k.div_ceil(self.group_len(k))
    }
}

impl fmt::Display for QuantFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.grid == Grid::Table {
            return write!(f, "l16");
        }
        write!(f, "q{}", self.bits)?;
        if let Some(g) = self.group {
            write!(f, "g{g}")?;
        }
        if self.has_min() { write!(f, "m") } else { Ok(()) }
    }
}

impl FromStr for QuantFormat {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "`{s}` is not a quantized format; use q4g32, q4g64, q4g128, q8, q8g32, q8g64, q8g128, with an optional final m, or l16"
            )
        };
        if s == "l16" {
            return Ok(QuantFormat::L16);
        }
        let rest = s.strip_prefix('q').ok_or_else(bad)?;
        let (rest, grid) = rest.strip_suffix('m').map_or((rest, Grid::Symmetric), |r| (r, Grid::Affine));
        let (bits, group) = rest.split_once('g').map_or((rest, None), |(b, g)| (b, Some(g)));
        let group = match group {
            None => None,
            Some("32") => Some(32),
            Some("64") => Some(64),
            Some("128") => Some(128),
            Some(_) => return Err(bad()),
        };
        match (bits, group) {
            ("4", Some(_)) => Ok(QuantFormat { bits: 4, group, grid }),
            ("8", _) => Ok(QuantFormat { bits: 8, group, grid }),
            _ => Err(bad()),
        }
    }
}

/// Element type of a tensor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum DType {
    /// 64-bit IEEE float.
    F64,
    /// 32-bit IEEE float.
    F32,
    /// 16-bit IEEE float.
    F16,
    /// bfloat16.
    BF16,
    /// 64-bit signed integer.
    I64,
    /// 32-bit signed integer: token ids, positions, row numbers.
    I32,
    /// 16-bit signed integer.
    I16,
    /// 8-bit signed integer.
    I8,
    /// 64-bit unsigned integer.
    U64,
    /// 32-bit unsigned integer.
    U32,
    /// 16-bit unsigned integer.
    U16,
    /// 8-bit unsigned integer.
    U8,
    /// 4-bit signed integer.
    I4,
    /// 4-bit unsigned integer.
    U4,
    /// 2-bit signed integer.
    I2,
    /// 2-bit unsigned integer.
    U2,
    /// 8-bit float with 3 bits of mantissa, without infinities (E4M3FN).
    F8E4M3,
    /// 8-bit float with 3 bits of mantissa, without infinities and minus zero (E4M3FNUZ).
    F8E4M3Z,
    /// 8-bit float with 2 bits of mantissa (E5M2).
    F8E5M2,
    /// 8-bit float with 2 bits of mantissa, without infinities and minus zero (E5M2FNUZ).
    F8E5M2Z,
    /// Power of two, from 2⁻¹²⁷ to 2¹²⁷: scales of groups.
    F8E8M0,
    /// 6-bit float with 3 bits of mantissa, numbers only.
    F6E2M3,
    /// 6-bit float with 2 bits of mantissa, numbers only.
    F6E3M2,
    /// 4-bit float with 1 bit of mantissa, numbers only.
    F4E2M1,
    /// Boolean, one byte: attention masks (true = may attend).
    Bool,
    /// Group-quantized weights.
    Quant(QuantFormat),
}

impl DType {
    /// Bytes of one element, or `None` for quantized formats, whose size depends on the layout. An element of fewer than
    /// eight bits takes a byte.
    pub fn size(self) -> Option<usize> {
        match self {
            DType::F64 | DType::I64 | DType::U64 => Some(8),
            DType::F32 | DType::I32 | DType::U32 => Some(4),
            DType::F16 | DType::BF16 | DType::I16 | DType::U16 => Some(2),
            DType::I8 | DType::U8 | DType::Bool => Some(1),
            DType::I4 | DType::U4 | DType::I2 | DType::U2 => Some(1),
            DType::F8E4M3 | DType::F8E4M3Z | DType::F8E5M2 | DType::F8E5M2Z | DType::F8E8M0 => Some(1),
            DType::F6E2M3 | DType::F6E3M2 | DType::F4E2M1 => Some(1),
            DType::Quant(_) => None,
        }
    }

    /// Elements of an int8 KV cache: signed codes −127…127 and, beside them, one f32 scale per cache row and head.
    pub const CACHE_Q8: DType = DType::Quant(QuantFormat::symmetric(8, None));

    /// Whether a KV cache may have these elements.
    pub fn is_cache(self) -> bool {
        self.is_float() || self == DType::CACHE_Q8
    }

    /// The nearest number that an element of this type holds; itself for types without a rounding of their own.
    pub fn round(self, v: f32) -> f32 {
        match self {
            DType::F32 => v,
            _ => Float::of(self).map_or(v, |float| float.round(f64::from(v)) as f32),
        }
    }

    /// As [`round`](Self::round), from an f64.
    pub(crate) fn round_f64(self, v: f64) -> f64 {
        match self {
            DType::F32 => f64::from(v as f32),
            _ => Float::of(self).map_or(v, |float| float.round(v)),
        }
    }

    /// An integer as this type holds it: its low bits, with or without a sign. Itself for u64, whose bits it is.
    pub(crate) fn wrap(self, v: i64) -> i64 {
        match self {
            DType::I32 => i64::from(v as i32),
            DType::I16 => i64::from(v as i16),
            DType::I8 => i64::from(v as i8),
            DType::U32 => i64::from(v as u32),
            DType::U16 => i64::from(v as u16),
            DType::U8 => i64::from(v as u8),
            DType::I4 => v << 60 >> 60,
            DType::U4 => v & 15,
            DType::I2 => v << 62 >> 62,
            DType::U2 => v & 3,
            _ => v,
        }
    }

    /// Whether this is a floating-point type that weights and caches may have: f32, f16 or bf16.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::BF16)
    }

    /// Whether ops of the tensor level compute with it as a floating-point type.
    pub fn is_real(self) -> bool {
        self == DType::F64 || self.is_float()
    }

    /// Whether ops of the tensor level compute with it: a floating-point or an integer type.
    pub fn is_numeric(self) -> bool {
        self.is_real() || self.is_int()
    }

    /// Whether this is an integer type without a sign.
    pub fn is_unsigned(self) -> bool {
        use DType::{U2, U4, U8, U16, U32, U64};
        matches!(self, U64 | U32 | U16 | U8 | U4 | U2)
    }

    /// Bits of one element, or `None` for quantized formats.
    pub fn bits(self) -> Option<usize> {
        match self {
            DType::I4 | DType::U4 | DType::F4E2M1 => Some(4),
            DType::I2 | DType::U2 => Some(2),
            DType::F6E2M3 | DType::F6E3M2 => Some(6),
            _ => self.size().map(|bytes| bytes * 8),
        }
    }

    /// Whether this is a floating-point type of eight bits or fewer, which is stored and cast but not computed with.
    pub fn is_small_float(self) -> bool {
        Float::of(self).is_some() && !self.is_float()
    }

    /// Whether this is an integer type; a bool is none.
    pub fn is_int(self) -> bool {
        use DType::{I2, I4, I8, I16, I32, I64};
        matches!(self, I64 | I32 | I16 | I8 | I4 | I2) || self.is_unsigned()
    }

    /// Plain types with their names in the text format.
    const NAMES: [(DType, &'static str); 25] = [
        (DType::F64, "f64"),
        (DType::F32, "f32"),
        (DType::F16, "f16"),
        (DType::BF16, "bf16"),
        (DType::I64, "i64"),
        (DType::I32, "i32"),
        (DType::I16, "i16"),
        (DType::I8, "i8"),
        (DType::U64, "u64"),
        (DType::U32, "u32"),
        (DType::U16, "u16"),
        (DType::U8, "u8"),
        (DType::I4, "i4"),
        (DType::U4, "u4"),
        (DType::I2, "i2"),
        (DType::U2, "u2"),
        (DType::F8E4M3, "f8e4m3"),
        (DType::F8E4M3Z, "f8e4m3z"),
        (DType::F8E5M2, "f8e5m2"),
        (DType::F8E5M2Z, "f8e5m2z"),
        (DType::F8E8M0, "f8e8m0"),
        (DType::F6E2M3, "f6e2m3"),
        (DType::F6E3M2, "f6e3m2"),
        (DType::F4E2M1, "f4e2m1"),
        (DType::Bool, "bool"),
    ];
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, DType::NAMES.iter().find(|(dtype, _)| dtype == self)) {
            (DType::Quant(q), _) => write!(f, "{q}"),
            (_, Some((_, name))) => f.write_str(name),
            (_, None) => unreachable!("every plain type is in the table"),
        }
    }
}

impl FromStr for DType {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if let Some((dtype, _)) = DType::NAMES.iter().find(|(_, name)| *name == s) {
            return Ok(*dtype);
        }
        if s.starts_with('q') || s == "l16" {
            return s.parse().map(DType::Quant);
        }
        let names: Vec<_> = DType::NAMES.iter().map(|(_, name)| *name).collect();
        Err(format!("`{s}` is not an element type; use {} or a quantized format such as q4g64", names.join(", ")))
    }
}

/// One dimension: a number, or a bare name until `specialize` replaces it. There is no arithmetic on names.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Dim {
    /// A static size.
    Fixed(usize),
    /// A name such as `T`; equal names are equal sizes.
    Named(Box<str>),
}

impl Dim {
    /// The static size, if it is one.
    pub fn fixed(&self) -> Option<usize> {
        match self {
            Dim::Fixed(n) => Some(*n),
            Dim::Named(_) => None,
        }
    }
}

impl From<usize> for Dim {
    fn from(n: usize) -> Self {
        Dim::Fixed(n)
    }
}

impl From<&str> for Dim {
    fn from(s: &str) -> Self {
        Dim::Named(s.into())
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Fixed(n) => write!(f, "{n}"),
            Dim::Named(s) => write!(f, "{s}"),
        }
    }
}

/// Type of a value, weight or state: element type, dimensions and, for what a target has packed, a layout name.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Type {
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first; empty for a scalar.
    pub dims: Vec<Dim>,
    /// Target layout such as `n16`; `None` is plain row-major.
    pub layout: Option<Box<str>>,
}

impl Type {
    /// A row-major type.
    pub fn new(dtype: DType, dims: impl IntoIterator<Item = impl Into<Dim>>) -> Self {
        Type { dtype, dims: dims.into_iter().map(Into::into).collect(), layout: None }
    }

    /// A scalar.
    pub fn scalar(dtype: DType) -> Self {
        Type { dtype, dims: Vec::new(), layout: None }
    }

    /// The static sizes, or `None` while a dimension is a name.
    pub fn shape(&self) -> Option<Vec<usize>> {
        self.dims.iter().map(Dim::fixed).collect()
    }

    /// Number of elements, or `None` while a dimension is a name or the product overflows.
    pub fn elements(&self) -> Option<usize> {
        self.dims.iter().try_fold(1usize, |n, d| n.checked_mul(d.fixed()?))
    }

    /// Bytes of a row-major tensor, or `None` for names, quantized formats and overflow.
    pub fn bytes(&self) -> Option<usize> {
        self.elements()?.checked_mul(self.dtype.size()?)
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (i, d) in self.dims.iter().enumerate() {
            write!(f, "{}{d}", if i == 0 { "" } else { ", " })?;
        }
        write!(f, "]")?;
        match &self.layout {
            Some(l) => write!(f, " {}", name('@', l)),
            None => Ok(()),
        }
    }
}
