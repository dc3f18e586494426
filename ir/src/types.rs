//! Tensor types: element type, dimensions, layout, and their text spelling.
//!
//! Invariant: a [`Type`] prints to exactly the text that parses back to it. Nothing here knows about bytes in a file;
//! the packed size of a laid-out weight is the layout's (`layout.rs`).

use crate::name::name;
use half::{bf16, f16};
use std::fmt;
use std::str::FromStr;

/// Quantized element format: `q<bits>[g<group>][m]`.
///
/// * `q4g64` – signed 4-bit codes −8…7, one f16 scale per 64 consecutive weights of a row (symmetric);
/// * `q4g64m` – unsigned codes 0…15 with a scale and a minimum per group (`w = scale·code + min`);
/// * `q8g32` – signed codes −127…127 per group of 32; `q8` – one scale per row (per output channel; in a KV cache per
///   row and head).
///
/// The last group of a row may be short.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct QuantFormat {
    /// Bits per code: 4 or 8.
    pub bits: u8,
    /// Weights per group along the row (32, 64 or 128), or `None` for one group per row (8 bits only).
    pub group: Option<u32>,
    /// Whether each group carries a minimum besides its scale.
    pub min: bool,
}

impl QuantFormat {
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
        write!(f, "q{}", self.bits)?;
        if let Some(g) = self.group {
            write!(f, "g{g}")?;
        }
        if self.min { write!(f, "m") } else { Ok(()) }
    }
}

impl FromStr for QuantFormat {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "`{s}` is not a quantized format; use q4g32, q4g64, q4g128, q8, q8g32, q8g64, q8g128, with an optional final m"
            )
        };
        let rest = s.strip_prefix('q').ok_or_else(bad)?;
        let (rest, min) = rest.strip_suffix('m').map_or((rest, false), |r| (r, true));
        let (bits, group) = rest.split_once('g').map_or((rest, None), |(b, g)| (b, Some(g)));
        let group = match group {
            None => None,
            Some("32") => Some(32),
            Some("64") => Some(64),
            Some("128") => Some(128),
            Some(_) => return Err(bad()),
        };
        match (bits, group) {
            ("4", Some(_)) => Ok(QuantFormat { bits: 4, group, min }),
            ("8", _) => Ok(QuantFormat { bits: 8, group, min }),
            _ => Err(bad()),
        }
    }
}

/// Element type of a tensor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum DType {
    /// 32-bit IEEE float.
    F32,
    /// 16-bit IEEE float.
    F16,
    /// bfloat16.
    BF16,
    /// 32-bit signed integer: token ids, positions, row numbers.
    I32,
    /// Boolean, one byte: attention masks (true = may attend).
    Bool,
    /// Group-quantized weights.
    Quant(QuantFormat),
}

impl DType {
    /// Bytes of one element, or `None` for quantized formats, whose size depends on the layout.
    pub fn size(self) -> Option<usize> {
        match self {
            DType::F32 | DType::I32 => Some(4),
            DType::F16 | DType::BF16 => Some(2),
            DType::Bool => Some(1),
            DType::Quant(_) => None,
        }
    }

    /// Elements of an int8 KV cache: signed codes −127…127 and, beside them, one f32 scale per cache row and head.
    pub const CACHE_Q8: DType = DType::Quant(QuantFormat { bits: 8, group: None, min: false });

    /// Whether a KV cache may have these elements.
    pub fn is_cache(self) -> bool {
        self.is_float() || self == DType::CACHE_Q8
    }

    /// The nearest number that an element of this type holds; itself for types without a rounding of their own.
    pub(crate) fn round(self, v: f32) -> f32 {
        match self {
            DType::F16 => f16::from_f32(v).to_f32(),
            DType::BF16 => bf16::from_f32(v).to_f32(),
            DType::F32 | DType::I32 | DType::Bool | DType::Quant(_) => v,
        }
    }

    /// Whether this is a floating-point type (quantized formats are not).
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::BF16)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DType::F32 => write!(f, "f32"),
            DType::F16 => write!(f, "f16"),
            DType::BF16 => write!(f, "bf16"),
            DType::I32 => write!(f, "i32"),
            DType::Bool => write!(f, "bool"),
            DType::Quant(q) => write!(f, "{q}"),
        }
    }
}

impl FromStr for DType {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Ok(match s {
            "f32" => DType::F32,
            "f16" => DType::F16,
            "bf16" => DType::BF16,
            "i32" => DType::I32,
            "bool" => DType::Bool,
            _ if s.starts_with('q') => DType::Quant(s.parse()?),
            _ => {
                return Err(format!(
                    "`{s}` is not an element type; use f32, f16, bf16, i32, bool or a quantized format such as q4g64"
                ));
            }
        })
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
