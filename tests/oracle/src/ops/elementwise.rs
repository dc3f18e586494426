//! Functions of each element, of two and of three, whose sizes of 1 repeat.

use burn::tensor::{DType as BurnType, FloatDType, IntDType, Shape, TensorData, activation};
use dlx_ir::{Binary, Compare, DType, Op, Unary};

use crate::value::{Bools, Floats, Ints, Operand, RANK, Value, device, float_type, int_type};

/// The sizes that two shapes repeat to.
fn joint(a: [usize; RANK], b: [usize; RANK]) -> [usize; RANK] {
    std::array::from_fn(|i| if a[i] == 1 { b[i] } else { a[i] })
}

pub(super) fn arithmetic(op: &Op, args: &[Operand]) -> Result<Value, String> {
    let sum = matches!(op, Op::Add {});
    Ok(match (&args[0].value, &args[1].value) {
        (Value::Float(a), Value::Float(b)) if sum => Value::Float(a.clone() + b.clone()),
        (Value::Float(a), Value::Float(b)) => Value::Float(a.clone() * b.clone()),
        (Value::Int(a), Value::Int(b)) if sum => Value::Int(a.clone() + b.clone()),
        (Value::Int(a), Value::Int(b)) => Value::Int(a.clone() * b.clone()),
        _ => return Err("operands of two kinds".into()),
    })
}

pub(super) fn silu(x: Floats) -> Floats {
    x.clone() * activation::sigmoid(x)
}

pub(super) fn unary(x: &Operand, kind: Unary) -> Result<Value, String> {
    if let Value::Int(v) = &x.value {
        return Ok(Value::Int(match kind {
            Unary::Abs => v.clone().abs(),
            Unary::Neg => v.clone().neg(),
            Unary::Sign => v.clone().sign(),
            Unary::BitNot => v.clone().bitwise_not(),
            _ => return Err(format!("{kind} of integers")),
        }));
    }
    if kind == Unary::Not {
        return Ok(Value::Bool(x.bool()?.bool_not()));
    }
    let x = x.float()?;
    Ok(Value::Float(match kind {
        Unary::Abs => x.abs(),
        Unary::Acos => x.acos(),
        Unary::Acosh => x.acosh(),
        Unary::Asin => x.asin(),
        Unary::Asinh => x.asinh(),
        Unary::Atan => x.atan(),
        Unary::Atanh => x.atanh(),
        Unary::Ceil => x.ceil(),
        Unary::Cos => x.cos(),
        Unary::Cosh => x.cosh(),
        Unary::Erf => x.erf(),
        Unary::Exp => x.exp(),
        Unary::Floor => x.floor(),
        Unary::IsInf => return Ok(Value::Bool(x.is_inf())),
        Unary::IsNan => return Ok(Value::Bool(x.is_nan())),
        Unary::Log => x.log(),
        Unary::Neg => x.neg(),
        Unary::Reciprocal => x.recip(),
        Unary::Round => x.round(),
        Unary::Sigmoid => activation::sigmoid(x),
        Unary::Sign => x.sign(),
        Unary::Sin => x.sin(),
        Unary::Sinh => x.sinh(),
        Unary::Sqrt => x.sqrt(),
        Unary::Tan => x.tan(),
        Unary::Tanh => x.tanh(),
        Unary::BitNot | Unary::Not => return Err(format!("{kind} of floats")),
    }))
}

pub(super) fn binary(kind: Binary, args: &[Operand]) -> Result<Value, String> {
    match (&args[0].value, &args[1].value) {
        (Value::Bool(a), Value::Bool(b)) => {
            let sizes = joint(a.dims(), b.dims());
            let (a, b) = (a.clone().expand(sizes), b.clone().expand(sizes));
            Ok(Value::Bool(match kind {
                Binary::And => a.bool_and(b),
                Binary::Or => a.bool_or(b),
                Binary::Xor => a.bool_xor(b),
                _ => return Err(format!("{kind} of bools")),
            }))
        }
        (Value::Float(a), Value::Float(b)) => of_floats(kind, a.clone(), b.clone()).map(Value::Float),
        (Value::Float(a), Value::Int(b)) => {
            of_floats(kind, a.clone(), b.clone().cast(FloatDType::F64)).map(Value::Float)
        }
        (Value::Int(a), Value::Int(b)) => of_ints(kind, a.clone(), b.clone(), args[0].dtype).map(Value::Int),
        _ => Err(format!("{kind} of two kinds")),
    }
}

fn of_floats(kind: Binary, a: Floats, b: Floats) -> Result<Floats, String> {
    let sizes = joint(a.dims(), b.dims());
    let (a, b) = (a.expand(sizes), b.expand(sizes));
    let nan_wins = |x: Floats| x.mask_where(a.clone().is_nan(), a.clone()).mask_where(b.clone().is_nan(), b.clone());
    Ok(match kind {
        Binary::Div => a / b,
        Binary::Max => nan_wins(b.clone().mask_where(a.clone().greater(b.clone()), a.clone())),
        Binary::Min => nan_wins(b.clone().mask_where(a.clone().lower(b.clone()), a.clone())),
        Binary::Mod => a.remainder(b),
        // `fmod` of burn rounds the quotient; what remains of the magnitudes is exact.
        Binary::Rem => a.clone().abs().remainder(b.abs()) * a.sign(),
        Binary::Pow => a.powf(b),
        Binary::Sub => a - b,
        _ => return Err(format!("{kind} of floats")),
    })
}

fn of_ints(kind: Binary, a: Ints, b: Ints, dtype: DType) -> Result<Ints, String> {
    let sizes = joint(a.dims(), b.dims());
    let (a, b) = (a.expand(sizes), b.expand(sizes));
    Ok(match kind {
        Binary::BitAnd => a.bitwise_and(b),
        Binary::BitOr => a.bitwise_or(b),
        Binary::BitXor => a.bitwise_xor(b),
        Binary::Div => a / b,
        Binary::Max => b.clone().mask_where(a.clone().greater(b), a),
        Binary::Min => b.clone().mask_where(a.clone().lower(b), a),
        Binary::Mod => a.remainder(b),
        Binary::Rem => a.clone().abs().remainder(b.abs()) * a.sign(),
        Binary::Pow => a.powi(b),
        Binary::Shl | Binary::Shr => return shifted(kind, a, b, dtype),
        Binary::Sub => a - b,
        _ => return Err(format!("{kind} of integers")),
    })
}

/// Burn takes a shift modulo the bits; by a number that is none of the bits, nothing but the sign is left here.
fn shifted(kind: Binary, a: Ints, b: Ints, dtype: DType) -> Result<Ints, String> {
    let bits = i64::try_from(dtype.bits().ok_or("an element without bits")?).map_err(|e| e.to_string())?;
    let wide = b.clone().cast(IntDType::I64);
    let none = wide.clone().lower_scalar(0).bool_or(wide.greater_equal_scalar(bits));
    let by = b.mask_fill(none.clone(), 0);
    let left = a.zeros_like();
    Ok(match kind {
        Binary::Shl => a.bitwise_left_shift(by).mask_where(none, left),
        _ => {
            let sign = if dtype.is_unsigned() { left } else { left.mask_fill(a.clone().lower_scalar(0), -1) };
            a.bitwise_right_shift(by).mask_where(none, sign)
        }
    })
}

pub(super) fn compare(kind: Compare, args: &[Operand]) -> Result<Value, String> {
    macro_rules! ordered {
        ($a:expr, $b:expr) => {{
            let sizes = joint($a.dims(), $b.dims());
            let (a, b) = ($a.clone().expand(sizes), $b.clone().expand(sizes));
            match kind {
                Compare::Eq => a.equal(b),
                Compare::Ge => a.greater_equal(b),
                Compare::Gt => a.greater(b),
                Compare::Le => a.lower_equal(b),
                Compare::Lt => a.lower(b),
            }
        }};
    }
    Ok(Value::Bool(match (&args[0].value, &args[1].value) {
        (Value::Float(a), Value::Float(b)) => ordered!(a, b),
        (Value::Int(a), Value::Int(b)) => ordered!(a, b),
        (Value::Bool(a), Value::Bool(b)) if kind == Compare::Eq => {
            let sizes = joint(a.dims(), b.dims());
            a.clone().expand(sizes).equal(b.clone().expand(sizes))
        }
        _ => return Err(format!("{kind} of these kinds")),
    }))
}

pub(super) fn select(args: &[Operand]) -> Result<Value, String> {
    let condition = args[0].bool()?;
    let sizes = joint(condition.dims(), joint(args[1].value.dims(), args[2].value.dims()));
    let condition: Bools = condition.expand(sizes);
    macro_rules! chosen {
        ($a:expr, $b:expr) => {
            $b.clone().expand(sizes).mask_where(condition, $a.clone().expand(sizes))
        };
    }
    Ok(match (&args[1].value, &args[2].value) {
        (Value::Float(a), Value::Float(b)) => Value::Float(chosen!(a, b)),
        (Value::Int(a), Value::Int(b)) => Value::Int(chosen!(a, b)),
        (Value::Bool(a), Value::Bool(b)) => Value::Bool(chosen!(a, b)),
        _ => return Err("a choice between two kinds".into()),
    })
}

/// Floats stay f64: the comparison knows how the type that they are cast to rounds.
pub(super) fn cast(x: &Operand, to: DType) -> Result<Value, String> {
    if to == DType::Bool {
        return Ok(Value::Bool(match &x.value {
            Value::Float(v) => v.clone().equal_scalar(0.0).bool_not(),
            Value::Int(v) => v.clone().equal_scalar(0).bool_not(),
            Value::Bool(v) => v.clone(),
        }));
    }
    if let Some(ty) = int_type(to) {
        return Ok(Value::Int(match &x.value {
            Value::Float(v) => v.clone().cast(ty),
            Value::Int(v) => v.clone().cast(ty),
            Value::Bool(v) => v.clone().cast(ty),
        }));
    }
    float_type(to).ok_or_else(|| format!("burn has no {to}"))?;
    Ok(Value::Float(match &x.value {
        Value::Float(v) => v.clone(),
        Value::Int(v) => v.clone().cast(FloatDType::F64),
        Value::Bool(v) => v.clone().cast(FloatDType::F64),
    }))
}

/// Burn reinterprets nothing on a device, but says what bytes a tensor has and makes tensors of bytes.
pub(super) fn bitcast(x: &Operand, to: DType) -> Result<Value, String> {
    let data = match &x.value {
        Value::Float(v) => v.clone().cast(float_type(x.dtype).ok_or("burn lacks the type")?).into_data(),
        Value::Int(v) => v.clone().into_data(),
        Value::Bool(_) => return Err("the bits of a bool".into()),
    };
    let (bytes, shape, _): (_, Shape, BurnType) = data.into_parts();
    if let Some(ty) = int_type(to) {
        let ty: BurnType = ty.into();
        return Ok(Value::Int(Ints::from_data(TensorData::from_bytes(bytes, shape, ty), (&device(), ty))));
    }
    let ty: BurnType = float_type(to).ok_or_else(|| format!("burn has no {to}"))?.into();
    let floats = Floats::from_data(TensorData::from_bytes(bytes, shape, ty), (&device(), ty));
    Ok(Value::Float(floats.cast(FloatDType::F64)))
}
