//! Shape inference: the result types of an op for given operand types, and every typing rule of the IR.
//!
//! Operands are seen through [`Arg`], so that the same rules serve nodes and weight expressions. The written types are
//! not consulted; the verifier compares them with what is inferred here.

use crate::attr::Post;
use crate::op::Op;
use crate::print::plain_name_char;
use crate::types::{DType, Dim, Type};

/// Shards of a packed weight are whole multiples of this many rows.
pub const SHARD_ROWS: u32 = 16;

/// What kind of thing an operand is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ArgKind {
    /// A value.
    Value,
    /// A weight.
    Weight,
    /// A state.
    State,
}

/// An operand as inference sees it.
#[derive(Clone, Copy, Debug)]
pub struct Arg<'a> {
    /// Value, weight or state.
    pub kind: ArgKind,
    /// Its type.
    pub ty: &'a Type,
}

/// Result types of `op` on `args`.
///
/// # Errors
/// A sentence about the first operand that does not fit.
pub fn infer(op: &Op, args: &[Arg<'_>]) -> Result<Vec<Type>, String> {
    Rule { args, next: 0 }.apply(op)
}

struct Rule<'a> {
    args: &'a [Arg<'a>],
    next: usize,
}

impl<'a> Rule<'a> {
    fn apply(mut self, op: &Op) -> Result<Vec<Type>, String> {
        let results = match op {
            Op::Add {} | Op::Mul {} => {
                let a = self.float("left")?;
                let b = self.float("right")?;
                same(&a.dims, &b.dims)?;
                if a.dtype != b.dtype {
                    return Err(format!("element types {} and {} differ; cast one of them", a.dtype, b.dtype));
                }
                vec![a.clone()]
            }
            Op::Cast { to } => {
                if !to.is_float() {
                    return Err(format!("cannot cast to {to}"));
                }
                let x = self.float("operand")?;
                vec![Type { dtype: *to, ..x.clone() }]
            }
            Op::Concat {} => vec![self.concat()?],
            Op::Matmul {} => {
                let (a, b) = (self.activation("left")?, self.float("right")?);
                let [m, k] = rank2(a)?;
                let [k2, n] = rank2(b)?;
                same_dim(k, k2, "inner dimensions")?;
                vec![Type::new(DType::F32, [m.clone(), n.clone()])]
            }
            Op::Scale { .. } => vec![self.float("operand")?.clone()],
            Op::Silu {} => vec![self.activation("operand")?.clone()],
            Op::Softmax {} => {
                let x = self.activation("operand")?;
                if x.dims.is_empty() {
                    return Err("softmax needs a dimension".into());
                }
                vec![x.clone()]
            }
            Op::Transpose {} => {
                let x = self.float("operand")?;
                let [a, b] = rank2(x)?;
                vec![Type::new(x.dtype, [b.clone(), a.clone()])]
            }
            Op::Attention { head_dim, mask } => vec![self.attention(*head_dim, mask.is_none())?],
            Op::Embed {} => {
                let ids = self.vector(DType::I32, "ids")?;
                let [_, h] = rank2(self.weight("table")?)?;
                vec![Type::new(DType::F32, [ids, h.clone()])]
            }
            Op::HeadStats { norm, ban: _ } => {
                let x = self.activation("x")?;
                let [r, k] = rank2(x)?;
                let [_, k2] = rank2(self.weight("head weight")?)?;
                same_dim(k, k2, "features of x and of the head weight")?;
                if norm.is_some() {
                    self.norm_weight(k)?;
                }
                vec![Type::new(DType::I32, [r.clone()]), Type::new(DType::F32, [r.clone(), Dim::Fixed(3)])]
            }
            Op::Linear { n, bias, norm, post } => self.linear(*n, *bias, norm.is_some(), *post)?,
            Op::Mask { rule: _ } => {
                let x = self.any("operand")?;
                let t = x.dims.first().ok_or("mask needs an operand with rows")?;
                vec![Type::new(DType::Bool, [t.clone(), t.clone()])]
            }
            Op::RmsNorm { .. } => {
                let x = self.activation("x")?;
                let [_, f] = rank2(x)?;
                let w = self.weight("weight")?;
                let [c] = rank1(w)?;
                chunks(f, c, "features", "weight length")?;
                vec![x.clone()]
            }
            Op::Rope { head_dim, norm } => {
                let x = self.activation("x")?;
                let [m, f] = rank2(x)?;
                let hd = Dim::Fixed(*head_dim as usize);
                even(*head_dim)?;
                chunks(f, &hd, "features", "head_dim")?;
                let table = self.activation("table")?;
                same(&table.dims, &[m.clone(), hd.clone()])?;
                if norm.is_some() {
                    self.norm_weight(&hd)?;
                }
                vec![x.clone()]
            }
            Op::RopeTable { theta, head_dim } => {
                if *theta <= 0.0 {
                    return Err("theta must be positive".into());
                }
                even(*head_dim)?;
                let pos = self.vector(DType::I32, "positions")?;
                vec![Type::new(DType::F32, [pos, Dim::Fixed(*head_dim as usize)])]
            }
            Op::CachedAttention { head_dim, mask: _ } => {
                let q = self.activation("q")?;
                let [_, f] = rank2(q)?;
                let k = self.cache("k")?;
                let v = self.cache("v")?;
                let [rows, heads, hd] = rank3(k)?;
                same(&v.dims, &k.dims)?;
                same_dim(hd, &Dim::Fixed(*head_dim as usize), "head_dim and the state's")?;
                heads_divide(f, *head_dim, heads)?;
                if rows.fixed().is_none() {
                    return Err("the cache needs a static number of rows".into());
                }
                self.position("at")?;
                self.position("from")?;
                self.position("visible")?;
                vec![q.clone()]
            }
            Op::KvWrite {} => {
                let k = self.activation("k")?;
                let v = self.activation("v")?;
                same(&v.dims, &k.dims)?;
                let [_, f] = rank2(k)?;
                let k_state = self.cache("k cache")?;
                let v_state = self.cache("v cache")?;
                same(&v_state.dims, &k_state.dims)?;
                let [_, heads, hd] = rank3(k_state)?;
                match (f.fixed(), heads.fixed(), hd.fixed()) {
                    (Some(f), Some(h), Some(d)) if h.checked_mul(d) == Some(f) => {}
                    _ => return Err(format!("{f} features do not fill {heads} heads of {hd}")),
                }
                self.position("at")?;
                self.position("end")?;
                vec![]
            }
            Op::StoreRows {} => {
                let [m, f] = rank2(self.activation("x")?)?;
                let [rows, f2] = rank2(self.rows("state")?)?;
                same_dim(f, f2, "features of x and of the state")?;
                if m.fixed().zip(rows.fixed()).is_some_and(|(m, rows)| m > rows) {
                    return Err(format!("{m} rows do not fit a state of {rows} rows"));
                }
                vec![]
            }
            Op::TakeRows {} => {
                let [_, f] = rank2(self.rows("state")?)?;
                let r = self.vector(DType::I32, "rows")?;
                vec![Type::new(DType::F32, [r, f.clone()])]
            }
            Op::Pack { layout, shard } => {
                let x = self.row_major_weight()?;
                if !layout.chars().all(plain_name_char) {
                    return Err(format!("`{layout}` is not the name of a layout"));
                }
                if shard.is_some_and(|rows| !rows.is_multiple_of(SHARD_ROWS)) {
                    return Err(format!("a shard has a multiple of {SHARD_ROWS} rows"));
                }
                vec![Type { layout: Some(layout.clone()), ..x.clone() }]
            }
            Op::Quantize { to } => {
                if !matches!(to, DType::Quant(_)) {
                    return Err(format!("{to} is not a quantized format"));
                }
                let x = self.row_major_weight()?;
                rank2(x)?;
                if !x.dtype.is_float() {
                    return Err(format!("{} cannot be quantized", x.dtype));
                }
                vec![Type { dtype: *to, ..x.clone() }]
            }
        };
        match self.args.len() - self.next {
            0 => Ok(results),
            extra => Err(format!("{extra} operands too many")),
        }
    }

    fn linear(&mut self, n: u32, bias: bool, norm: bool, post: Post) -> Result<Vec<Type>, String> {
        let n = n as usize;
        if n > self.args.len() {
            return Err(format!("n={n} weights, but {} operands", self.args.len()));
        }
        if (post == Post::SwiGlu && n != 2) || (post == Post::Add && n != 1) {
            return Err(format!("this epilogue does not take {n} weights"));
        }
        let x = self.activation("x")?;
        let [m, k] = rank2(x)?;
        let mut outs = Vec::with_capacity(n);
        for _ in 0..n {
            let [out, k2] = rank2(self.weight("weight")?)?;
            same_dim(k, k2, "features of x and of the weight")?;
            outs.push(out.clone());
        }
        if bias {
            for out in &outs {
                let [b] = rank1(self.weight("bias")?)?;
                same_dim(out, b, "outputs and bias length")?;
            }
        }
        if norm {
            self.norm_weight(k)?;
        }
        let f32 = |f: &Dim| Type::new(DType::F32, [m.clone(), f.clone()]);
        match post {
            Post::None => Ok(outs.iter().map(f32).collect()),
            Post::Add => {
                let residual = self.activation("residual")?;
                same(&residual.dims, &[m.clone(), outs[0].clone()])?;
                Ok(vec![f32(&outs[0])])
            }
            Post::SwiGlu => {
                same_dim(&outs[0], &outs[1], "gate and up outputs")?;
                Ok(vec![f32(&outs[0])])
            }
        }
    }

    fn attention(&mut self, head_dim: u32, masked: bool) -> Result<Type, String> {
        let q = self.activation("q")?;
        let k = self.activation("k")?;
        let v = self.activation("v")?;
        let [t, f] = rank2(q)?;
        let [s, fk] = rank2(k)?;
        same(&v.dims, &k.dims)?;
        let hd = Dim::Fixed(head_dim as usize);
        chunks(fk, &hd, "k features", "head_dim")?;
        let kv_heads = Dim::Fixed(fk.fixed().unwrap_or(0) / (head_dim as usize).max(1));
        heads_divide(f, head_dim, &kv_heads)?;
        if masked {
            let mask = self.any("mask")?;
            if mask.dtype != DType::Bool {
                return Err(format!("the mask is {}, not bool", mask.dtype));
            }
            same(&mask.dims, &[t.clone(), s.clone()])?;
        } else {
            same_dim(t, s, "rows of q and k under a static mask")?;
        }
        Ok(q.clone())
    }

    fn concat(&mut self) -> Result<Type, String> {
        let first = self.float("operand")?.clone();
        let Some((rows, rest)) = first.dims.split_first() else { return Err("concat needs a dimension".into()) };
        let mut total = rows.fixed().ok_or("concat needs static sizes")?;
        while self.next < self.args.len() {
            let x = self.float("operand")?;
            match x.dims.split_first() {
                Some((Dim::Fixed(n), r)) if r == rest && x.dtype == first.dtype => {
                    total = total.checked_add(*n).ok_or("the joined size overflows")?;
                }
                _ => return Err(format!("{x} cannot be joined to {first}")),
            }
        }
        let dims = std::iter::once(Dim::Fixed(total)).chain(rest.iter().cloned());
        Ok(Type::new(first.dtype, dims))
    }

    fn take(&mut self, what: &str) -> Result<Arg<'a>, String> {
        let arg = self
            .args
            .get(self.next)
            .copied()
            .ok_or_else(|| format!("operand {} ({what}) is missing", self.next + 1))?;
        self.next += 1;
        Ok(arg)
    }

    fn kind(&mut self, kind: ArgKind, what: &str) -> Result<&'a Type, String> {
        let arg = self.take(what)?;
        if arg.kind != kind {
            return Err(format!("{what} must be a {}", format!("{kind:?}").to_lowercase()));
        }
        Ok(arg.ty)
    }

    fn weight(&mut self, what: &str) -> Result<&'a Type, String> {
        self.kind(ArgKind::Weight, what)
    }

    fn row_major_weight(&mut self) -> Result<&'a Type, String> {
        let ty = self.weight("operand")?;
        if ty.layout.is_none() { Ok(ty) } else { Err(format!("{ty} has a layout already")) }
    }

    /// A state that `kv_write` writes.
    fn cache(&mut self, what: &str) -> Result<&'a Type, String> {
        let ty = self.kind(ArgKind::State, what)?;
        if ty.dtype.is_cache() { Ok(ty) } else { Err(format!("{what} is {ty}; a cache holds f32, f16, bf16 or q8")) }
    }

    /// A state that `store_rows` writes.
    fn rows(&mut self, what: &str) -> Result<&'a Type, String> {
        let ty = self.kind(ArgKind::State, what)?;
        if ty.dtype.is_float() { Ok(ty) } else { Err(format!("{what} is {ty}; only caches are quantized")) }
    }

    /// A value or a weight of any type.
    fn any(&mut self, what: &str) -> Result<&'a Type, String> {
        let arg = self.take(what)?;
        if arg.kind == ArgKind::State { Err(format!("{what} must not be a state")) } else { Ok(arg.ty) }
    }

    /// A row-major value or weight of a float type.
    fn float(&mut self, what: &str) -> Result<&'a Type, String> {
        let ty = self.any(what)?;
        if ty.dtype.is_float() && ty.layout.is_none() {
            Ok(ty)
        } else {
            Err(format!("{what} is {ty}, not a plain float tensor"))
        }
    }

    /// An f32 value, or an f32 weight where constants are allowed.
    fn activation(&mut self, what: &str) -> Result<&'a Type, String> {
        let ty = self.float(what)?;
        if ty.dtype == DType::F32 { Ok(ty) } else { Err(format!("{what} is {ty}, not f32")) }
    }

    fn vector(&mut self, dtype: DType, what: &str) -> Result<Dim, String> {
        let ty = self.kind(ArgKind::Value, what)?;
        match ty.dims.as_slice() {
            [n] if ty.dtype == dtype => Ok(n.clone()),
            _ => Err(format!("{what} is {ty}, not {dtype}[n]")),
        }
    }

    fn position(&mut self, what: &str) -> Result<(), String> {
        let ty = self.kind(ArgKind::Value, what)?;
        if ty.dtype == DType::I32 && ty.dims.is_empty() { Ok(()) } else { Err(format!("{what} is {ty}, not i32[]")) }
    }

    fn norm_weight(&mut self, len: &Dim) -> Result<(), String> {
        let w = self.weight("norm weight")?;
        let [c] = rank1(w)?;
        same_dim(len, c, "features and norm weight length")
    }
}

fn rank1(ty: &Type) -> Result<[&Dim; 1], String> {
    if let [a] = ty.dims.as_slice() { Ok([a]) } else { Err(format!("{ty} is not one-dimensional")) }
}

fn rank2(ty: &Type) -> Result<[&Dim; 2], String> {
    if let [a, b] = ty.dims.as_slice() { Ok([a, b]) } else { Err(format!("{ty} is not two-dimensional")) }
}

fn rank3(ty: &Type) -> Result<[&Dim; 3], String> {
    if let [a, b, c] = ty.dims.as_slice() { Ok([a, b, c]) } else { Err(format!("{ty} is not three-dimensional")) }
}

fn same(a: &[Dim], b: &[Dim]) -> Result<(), String> {
    let text = |d: &[Dim]| d.iter().map(Dim::to_string).collect::<Vec<_>>().join(", ");
    if a == b { Ok(()) } else { Err(format!("shapes [{}] and [{}] differ", text(a), text(b))) }
}

fn same_dim(a: &Dim, b: &Dim, what: &str) -> Result<(), String> {
    if a == b { Ok(()) } else { Err(format!("{what} differ: {a} and {b}")) }
}

fn even(head_dim: u32) -> Result<(), String> {
    if head_dim.is_multiple_of(2) { Ok(()) } else { Err(format!("head_dim {head_dim} is odd")) }
}

fn chunks(total: &Dim, part: &Dim, what: &str, of: &str) -> Result<(), String> {
    match (total.fixed(), part.fixed()) {
        (Some(t), Some(p)) if p > 0 && t % p == 0 => Ok(()),
        _ => Err(format!("{what} {total} is not a multiple of {of} {part}")),
    }
}

fn heads_divide(q_features: &Dim, head_dim: u32, kv_heads: &Dim) -> Result<(), String> {
    let hd = head_dim as usize;
    chunks(q_features, &Dim::Fixed(hd), "q features", "head_dim")?;
    match (q_features.fixed(), kv_heads.fixed()) {
        (Some(f), Some(kv)) if kv > 0 && (f / hd).is_multiple_of(kv) => Ok(()),
        _ => Err(format!("q features {q_features} do not group over {kv_heads} key heads of {hd}")),
    }
}
