//! Operands as the typing rules take them: one after the other, each of the kind and type that a rule asks for.

use crate::spans::spans_type;
use crate::types::{DType, Dim, Type};

/// What kind of thing an operand is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ArgKind {
    /// A value.
    Value,
    /// A weight.
    Weight,
    /// A state.
    State,
    /// A tensor at hand, which stands for a value or for a weight.
    Constant,
}

/// An operand as inference sees it.
#[derive(Clone, Copy, Debug)]
pub struct Arg<'a> {
    /// Value, weight or state.
    pub kind: ArgKind,
    /// Its type.
    pub ty: &'a Type,
}

/// The operands of one op, taken in order.
pub(super) struct Operands<'a> {
    args: &'a [Arg<'a>],
    next: usize,
}

impl<'a> Operands<'a> {
    pub(super) fn new(args: &'a [Arg<'a>]) -> Self {
        Operands { args, next: 0 }
    }

    /// How many there are, taken or not.
    pub(super) fn count(&self) -> usize {
        self.args.len()
    }

    /// Whether all are at hand: tensors that no graph holds may be empty.
    pub(super) fn constant(&self) -> bool {
        self.args.iter().all(|arg| arg.kind == ArgKind::Constant)
    }

    /// How many are not taken yet.
    pub(super) fn left(&self) -> usize {
        self.args.len() - self.next
    }

    pub(super) fn take(&mut self, what: &str) -> Result<Arg<'a>, String> {
        let arg = self
            .args
            .get(self.next)
            .copied()
            .ok_or_else(|| format!("operand {} ({what}) is missing", self.next + 1))?;
        self.next += 1;
        Ok(arg)
    }

    pub(super) fn kind(&mut self, kind: ArgKind, what: &str) -> Result<&'a Type, String> {
        let arg = self.take(what)?;
        let stands = arg.kind == ArgKind::Constant && kind != ArgKind::State;
        if arg.kind != kind && !stands {
            return Err(format!("{what} must be a {}", format!("{kind:?}").to_lowercase()));
        }
        Ok(arg.ty)
    }

    pub(super) fn weight(&mut self, what: &str) -> Result<&'a Type, String> {
        let ty = self.kind(ArgKind::Weight, what)?;
        let numbers = ty.dtype.is_float() || matches!(ty.dtype, DType::Quant(_));
        if numbers { Ok(ty) } else { Err(format!("{what} is {ty}, not of f32, f16, bf16 or a quantized type")) }
    }

    pub(super) fn row_major_weight(&mut self) -> Result<&'a Type, String> {
        let ty = self.weight("operand")?;
        if ty.layout.is_none() { Ok(ty) } else { Err(format!("{ty} has a layout already")) }
    }

    /// A state that `kv_write` writes.
    pub(super) fn cache(&mut self, what: &str) -> Result<&'a Type, String> {
        let ty = self.kind(ArgKind::State, what)?;
        if ty.dtype.is_cache() { Ok(ty) } else { Err(format!("{what} is {ty}; a cache holds f32, f16, bf16 or q8")) }
    }

    /// A state that `store_rows` writes.
    pub(super) fn rows(&mut self, what: &str) -> Result<&'a Type, String> {
        let ty = self.kind(ArgKind::State, what)?;
        if ty.dtype.is_float() { Ok(ty) } else { Err(format!("{what} is {ty}; only caches are quantized")) }
    }

    /// A value or a weight of any type.
    pub(super) fn any(&mut self, what: &str) -> Result<&'a Type, String> {
        let arg = self.take(what)?;
        if arg.kind == ArgKind::State { Err(format!("{what} must not be a state")) } else { Ok(arg.ty) }
    }

    /// A row-major value or weight of a float type.
    pub(super) fn float(&mut self, what: &str) -> Result<&'a Type, String> {
        let ty = self.any(what)?;
        if ty.dtype.is_float() && ty.layout.is_none() {
            Ok(ty)
        } else {
            Err(format!("{what} is {ty}, not a plain float tensor"))
        }
    }

    /// An f32 value, or an f32 weight where constants are allowed.
    pub(super) fn activation(&mut self, what: &str) -> Result<&'a Type, String> {
        let ty = self.float(what)?;
        if ty.dtype == DType::F32 { Ok(ty) } else { Err(format!("{what} is {ty}, not f32")) }
    }

    pub(super) fn vector(&mut self, dtype: DType, what: &str) -> Result<Dim, String> {
        let ty = self.kind(ArgKind::Value, what)?;
        match ty.dims.as_slice() {
            [n] if ty.dtype == dtype => Ok(n.clone()),
            _ => Err(format!("{what} is {ty}, not {dtype}[n]")),
        }
    }

    pub(super) fn spans(&mut self) -> Result<(), String> {
        let (ty, wanted) = (self.kind(ArgKind::Value, "spans")?, spans_type());
        if *ty == wanted { Ok(()) } else { Err(format!("spans is {ty}, not {wanted}")) }
    }

    pub(super) fn norm_weight(&mut self, len: &Dim) -> Result<(), String> {
        let w = self.weight("norm weight")?;
        let [c] = rank1(w)?;
        same_dim(len, c, "features and norm weight length")
    }
}

pub(super) fn rank1(ty: &Type) -> Result<[&Dim; 1], String> {
    if let [a] = ty.dims.as_slice() { Ok([a]) } else { Err(format!("{ty} is not one-dimensional")) }
}

pub(super) fn rank2(ty: &Type) -> Result<[&Dim; 2], String> {
    if let [a, b] = ty.dims.as_slice() { Ok([a, b]) } else { Err(format!("{ty} is not two-dimensional")) }
}

pub(super) fn rank3(ty: &Type) -> Result<[&Dim; 3], String> {
    if let [a, b, c] = ty.dims.as_slice() { Ok([a, b, c]) } else { Err(format!("{ty} is not three-dimensional")) }
}

pub(super) fn same(a: &[Dim], b: &[Dim]) -> Result<(), String> {
    let text = |d: &[Dim]| d.iter().map(Dim::to_string).collect::<Vec<_>>().join(", ");
    if a == b { Ok(()) } else { Err(format!("shapes [{}] and [{}] differ", text(a), text(b))) }
}

pub(super) fn same_dim(a: &Dim, b: &Dim, what: &str) -> Result<(), String> {
    if a == b { Ok(()) } else { Err(format!("{what} differ: {a} and {b}")) }
}

pub(super) fn even(head_dim: u32) -> Result<(), String> {
    if head_dim.is_multiple_of(2) { Ok(()) } else { Err(format!("head_dim {head_dim} is odd")) }
}

pub(super) fn chunks(total: &Dim, part: &Dim, what: &str, of: &str) -> Result<(), String> {
    match (total.fixed(), part.fixed()) {
        (Some(t), Some(p)) if p > 0 && t % p == 0 => Ok(()),
        _ => Err(format!("{what} {total} is not a multiple of {of} {part}")),
    }
}

pub(super) fn heads_divide(q_features: &Dim, head_dim: u32, kv_heads: &Dim) -> Result<(), String> {
    let hd = head_dim as usize;
    chunks(q_features, &Dim::Fixed(hd), "q features", "head_dim")?;
    match (q_features.fixed(), kv_heads.fixed()) {
        (Some(f), Some(kv)) if kv > 0 && (f / hd).is_multiple_of(kv) => Ok(()),
        _ => Err(format!("q features {q_features} do not group over {kv_heads} key heads of {hd}")),
    }
}
