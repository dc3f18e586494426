//! Tensors on their way into burn and back.
//!
//! Invariant: every burn tensor of this crate has [`RANK`] dimensions, the operand's own behind as many sizes of 1 as
//! that takes; so one function serves all ranks, and sizes repeat from the back as the op table has it. Floats are held in
//! f64, integers in their own type (those that burn lacks in i64), so that burn does the wrapping.

use burn::tensor::{Bool, Device, FloatDType, Int, IntDType, Tensor as Burn, TensorData};
use dlx_ir::{DType, Data, Tensor};

/// Dimensions of every tensor here.
pub const RANK: usize = 6;
/// Floats.
pub type Floats = Burn<RANK>;
/// Integers.
pub type Ints = Burn<RANK, Int>;
/// Booleans.
pub type Bools = Burn<RANK, Bool>;

/// Operands and results.
#[derive(Clone, Debug)]
pub enum Value {
    /// Floats, as f64.
    Float(Floats),
    /// Integers.
    Int(Ints),
    /// Booleans.
    Bool(Bools),
}

/// An operand as an oracle sees it.
#[derive(Clone, Debug)]
pub struct Operand {
    /// Elements.
    pub value: Value,
    /// Sizes, without those in front that fill up [`RANK`].
    pub shape: Vec<usize>,
    /// Element type in the IR.
    pub dtype: DType,
}

/// The device that computes: burn's portable CPU backend.
pub fn device() -> Device {
    Device::flex()
}

/// Sizes behind as many of 1 as fill up [`RANK`].
pub fn padded(shape: &[usize]) -> [usize; RANK] {
    let mut sizes = [1; RANK];
    sizes[RANK - shape.len()..].copy_from_slice(shape);
    sizes
}

/// An axis of a tensor with that many dimensions, as one of [`RANK`].
pub fn axis(axis: i64, rank: usize) -> usize {
    RANK - rank + usize::try_from(axis).expect("axes of the IR count from the front")
}

/// Burn's type for integers of the IR, where it has one.
pub fn int_type(dtype: DType) -> Option<IntDType> {
    Some(match dtype {
        DType::I64 => IntDType::I64,
        DType::I32 => IntDType::I32,
        DType::I16 => IntDType::I16,
        DType::I8 => IntDType::I8,
        DType::U32 => IntDType::U32,
        DType::U16 => IntDType::U16,
        DType::U8 => IntDType::U8,
        _ => return None,
    })
}

/// Burn's type for floats of the IR, where it has one.
pub fn float_type(dtype: DType) -> Option<FloatDType> {
    Some(match dtype {
        DType::F64 => FloatDType::F64,
        DType::F32 => FloatDType::F32,
        DType::F16 => FloatDType::F16,
        DType::BF16 => FloatDType::BF16,
        _ => return None,
    })
}

/// Floats of these sizes.
pub fn floats(values: Vec<f64>, shape: &[usize]) -> Floats {
    Floats::from_data(TensorData::new(values, padded(shape)), (&device(), FloatDType::F64.into()))
}

/// 64-bit integers of these sizes.
pub fn ints(values: Vec<i64>, shape: &[usize]) -> Ints {
    Ints::from_data(TensorData::new(values, padded(shape)), (&device(), IntDType::I64.into()))
}

/// Booleans of these sizes.
pub fn bools(values: Vec<bool>, shape: &[usize]) -> Bools {
    Bools::from_data(TensorData::new(values, padded(shape)), &device())
}

/// `0, 1, …` along one dimension of [`RANK`].
pub fn count(n: usize, dim: usize) -> Ints {
    let mut sizes = [1; RANK];
    sizes[dim] = n;
    ints((0..).take(n).collect(), &sizes)
}

impl Operand {
    /// A tensor of the evaluator.
    pub fn new(tensor: &Tensor) -> Self {
        let shape = tensor.shape.clone();
        let value = match &tensor.data {
            Data::F64(x) => Value::Float(floats(x.clone(), &shape)),
            Data::F32(x) => Value::Float(floats(x.iter().map(|v| f64::from(*v)).collect(), &shape)),
            Data::I32(x) => Value::Int(ints(x.iter().map(|v| i64::from(*v)).collect(), &shape).cast(IntDType::I32)),
            Data::I64(x) => {
                let wide = ints(x.clone(), &shape);
                Value::Int(int_type(tensor.dtype).map_or(wide.clone(), |ty| wide.cast(ty)))
            }
            Data::Bool(x) => Value::Bool(bools(x.clone(), &shape)),
        };
        Operand { value, shape, dtype: tensor.dtype }
    }

    /// The operand's floats.
    pub fn float(&self) -> Result<Floats, String> {
        if let Value::Float(x) = &self.value { Ok(x.clone()) } else { Err(format!("{} is no float", self.dtype)) }
    }

    /// The operand's integers.
    pub fn int(&self) -> Result<Ints, String> {
        if let Value::Int(x) = &self.value { Ok(x.clone()) } else { Err(format!("{} is no integer", self.dtype)) }
    }

    /// The operand's booleans.
    pub fn bool(&self) -> Result<Bools, String> {
        if let Value::Bool(x) = &self.value { Ok(x.clone()) } else { Err(format!("{} is no bool", self.dtype)) }
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }
}

impl Value {
    /// Sizes, those in front included.
    pub fn dims(&self) -> [usize; RANK] {
        match self {
            Value::Float(x) => x.dims(),
            Value::Int(x) => x.dims(),
            Value::Bool(x) => x.dims(),
        }
    }

    /// Elements as f64: integers and booleans (0, 1) of this crate's cases fit exactly.
    pub fn reals(&self) -> Result<Vec<f64>, String> {
        let wide = match self {
            Value::Float(x) => x.clone(),
            Value::Int(x) => return Ok(whole(x)?.into_iter().map(|v| v as f64).collect()),
            Value::Bool(x) => x.clone().cast(FloatDType::F64),
        };
        wide.try_into_vec_as::<f64>().map_err(|e| e.to_string())
    }
}

/// Integers of any type as i64.
pub fn whole(x: &Ints) -> Result<Vec<i64>, String> {
    x.clone().cast(IntDType::I64).try_into_vec_as::<i64>().map_err(|e| e.to_string())
}
