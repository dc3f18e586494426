//! An initializer under the views that a graph takes of it.
//!
//! Nothing here reads a weight: a [`Stored`] says which tensors it is made of and how it is seen, and becomes a
//! [`Recipe`] when somebody wants its rows. Only what the importer computes with is read at once.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use dlx_ir::{DType, Data, Error, Tensor, Type};
use half::{bf16, f16};

use super::call::dtype_of;
use super::elem::ElemType;
use super::file::OnnxModel;
use super::proto::TensorProto;
use super::tensor::RawTensor;
use super::value::Val;
use super::weights::{BlockTable, NBits, OnnxWeights, Recipe};

/// A stored tensor, or what several together stand for, not read.
#[derive(Clone, Debug)]
pub struct Stored {
    base: Arc<Base>,
    views: Vec<View>,
    dtype: DType,
    dims: Vec<usize>,
}

/// What is stored.
#[derive(Debug)]
enum Base {
    Plain(TensorProto),
    Dequantized { tensors: Box<Packed>, axis: i64, block: usize },
    NBits { tensors: Box<Packed>, groups: Option<TensorProto>, shape: [usize; 2], bits: usize, block: usize },
    Table { tensors: Box<Packed>, shape: [usize; 2], bits: usize, block: usize },
}

/// Packed codes with what turns them into numbers.
#[derive(Debug)]
struct Packed {
    codes: TensorProto,
    scales: TensorProto,
    zeros: Option<TensorProto>,
}

/// How a matrix is seen.
#[derive(Clone, PartialEq, Eq, Debug)]
enum View {
    Turned,
    Rows(Range<usize>),
    Columns(Range<usize>),
    Shaped(Vec<usize>),
    Numbers,
}

/// The stored tensors behind a module's source weights, by the weight's name.
#[derive(Clone, Debug, Default)]
pub struct Sources(pub BTreeMap<String, Arc<Stored>>);

impl Sources {
    /// What reads them, as they are: in quantized types where the module has them so.
    ///
    /// # Errors
    /// Tensors that do not fit each other.
    pub fn weights<'a>(&'a self, model: &'a OnnxModel) -> Result<OnnxWeights<'a>, Error> {
        let mut weights = OnnxWeights::new(Some(model));
        for (name, stored) in &self.0 {
            weights.insert(name, stored.recipe(model)?);
        }
        Ok(weights)
    }
}

impl Stored {
    /// An initializer, or the tensor of a constant.
    pub(super) fn open(model: &OnnxModel, t: &TensorProto) -> Result<Val, Error> {
        let raw = model.tensor(t)?;
        let dtype = dtype_of(raw.elem);
        let place = || format!("{}: tensor `{}`", model.path.display(), t.name());
        let dtype = dtype.map_err(|e| Error::new(place(), e))?;
        Ok(Val::Stored(Arc::new(Stored::of(Base::Plain(t.clone()), dtype, raw.dims))))
    }

    fn of(base: Base, dtype: DType, dims: Vec<usize>) -> Self {
        Stored { base: Arc::new(base), views: Vec::new(), dtype, dims }
    }

    /// A tensor that the importer computed, as if it had been stored.
    pub(super) fn known(name: &str, t: &Tensor) -> Self {
        Stored::of(Base::Plain(encode(name, t)), t.dtype, t.shape.clone())
    }

    pub(super) fn dtype(&self) -> DType {
        self.dtype
    }

    pub(super) fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Its type as a source weight: a quantized one where a format of ours holds its codes.
    pub(super) fn ty(&self, model: &OnnxModel) -> Result<Type, String> {
        match &*self.base {
            Base::Plain(_) => Ok(Type::new(self.dtype, self.dims.iter().copied())),
            _ => self.recipe(model).map(|r| r.ty()).map_err(|e| e.to_string()),
        }
    }

    /// A name for the weight.
    pub(super) fn name(&self) -> String {
        let mut name = self.tensor_name().to_owned();
        for view in &self.views {
            match view {
                View::Turned | View::Shaped(_) | View::Numbers => {}
                View::Rows(r) => name.push_str(&format!("[{}:{}]", r.start, r.end)),
                View::Columns(r) => name.push_str(&format!("[:, {}:{}]", r.start, r.end)),
            }
        }
        name
    }

    pub(super) fn tensor_name(&self) -> &str {
        match &*self.base {
            Base::Plain(t) => t.name(),
            Base::Dequantized { tensors, .. } | Base::NBits { tensors, .. } | Base::Table { tensors, .. } => {
                tensors.codes.name()
            }
        }
    }

    /// Whether both are the same view of the same tensor.
    pub(super) fn same(&self, other: &Stored) -> bool {
        Arc::ptr_eq(&self.base, &other.base) && self.views == other.views
    }

    /// Whether nothing is stored but numbers.
    pub(super) fn is_plain(&self) -> bool {
        matches!(&*self.base, Base::Plain(_))
    }

    /// All of it, read now.
    pub(super) fn read(&self, model: &OnnxModel) -> Result<Tensor, String> {
        if let Some(t) = self.proto() {
            let t = model.known(t).map_err(|e| e.to_string())?;
            return Ok(Tensor { shape: self.dims.clone(), ..t });
        }
        let recipe = self.recipe(model).map_err(|e| e.to_string())?;
        let mut values = vec![0.0; recipe.len().saturating_mul(recipe.width())];
        recipe.read(0..recipe.len(), &mut values).map_err(|e| e.to_string())?;
        Ok(Tensor { dtype: self.dtype, shape: self.dims.clone(), data: Data::F32(values) })
    }

    /// How its rows are read.
    pub(super) fn recipe<'a>(&'a self, model: &'a OnnxModel) -> Result<Recipe<'a>, Error> {
        let raw = |t: &'a TensorProto| model.tensor(t).map(Arc::new);
        let optional = |t: &'a Option<TensorProto>| t.as_ref().map(raw).transpose();
        let place = format!("{}: tensor `{}`", model.path.display(), self.tensor_name());
        let mut recipe = match &*self.base {
            Base::Plain(t) => Recipe::plain(place, raw(t)?)?,
            Base::Dequantized { tensors, axis, block } => {
                let (codes, scales, zeros) = (raw(&tensors.codes)?, raw(&tensors.scales)?, optional(&tensors.zeros)?);
                Recipe::dequantized(place, codes, scales, zeros, *axis, *block)?
            }
            Base::NBits { tensors, groups, shape: [n, k], bits, block } => {
                let (codes, scales, zeros) = (raw(&tensors.codes)?, raw(&tensors.scales)?, optional(&tensors.zeros)?);
                let (n, k, bits, block) = (*n, *k, *bits, *block);
                Recipe::nbits(place, NBits { codes, scales, zeros, groups: optional(groups)?, n, k, bits, block })?
            }
            Base::Table { tensors, shape: [n, k], bits, block } => {
                let codes: Arc<RawTensor<'_>> = raw(&tensors.codes)?;
                let (scales, zeros) = (raw(&tensors.scales)?, optional(&tensors.zeros)?);
                let (n, k, bits, block) = (*n, *k, *bits, *block);
                Recipe::block_table(place, BlockTable { codes, scales, zeros, n, k, bits, block })?
            }
        };
        for view in &self.views {
            recipe = match view {
                View::Turned => recipe.transposed()?,
                View::Rows(r) => recipe.slice_rows(r.clone())?,
                View::Columns(r) => recipe.slice_columns(r.clone())?,
                View::Shaped(dims) => recipe.reshaped(dims)?,
                View::Numbers => recipe.numbers(),
            };
        }
        Ok(recipe)
    }

    /// This one under one more view; `None` where it must be read to be seen so.
    fn seen(&self, view: View, dims: Vec<usize>) -> Option<Stored> {
        let float = self.dtype.is_float() && !self.dims.contains(&0) || matches!(view, View::Shaped(_));
        let turns = !matches!((&*self.base, &view), (Base::NBits { groups: Some(_), .. }, View::Turned));
        if !float || !turns {
            return None;
        }
        let mut views = self.views.clone();
        if (views.last(), &view) == (Some(&View::Turned), &View::Turned) {
            views.pop();
        } else {
            views.push(view);
        }
        Some(Stored { base: self.base.clone(), views, dtype: self.dtype, dims })
    }

    /// Plain numbers, whatever is stored.
    pub(super) fn numbers(&self) -> Stored {
        let views = self.views.iter().cloned().chain([View::Numbers]).collect();
        Stored { views, ..self.clone() }
    }

    pub(super) fn transposed(&self) -> Option<Stored> {
        let &[n, k] = &self.dims[..] else { return None };
        self.seen(View::Turned, vec![k, n])
    }

    pub(super) fn sliced(&self, axis: usize, range: Range<usize>) -> Option<Stored> {
        let mut dims = self.dims.clone();
        dims[axis] = range.len();
        match (axis, self.dims.len()) {
            _ if range.is_empty() => None,
            (0, 1 | 2) => self.seen(View::Rows(range), dims),
            (1, 2) => self.seen(View::Columns(range), dims),
            _ => None,
        }
    }

    /// Under other sizes.
    pub(super) fn reshaped(&self, dims: &[usize]) -> Option<Stored> {
        self.proto()?;
        self.seen(View::Shaped(dims.into()), dims.into())
    }

    /// What is stored, if it is a tensor as it stands.
    fn proto(&self) -> Option<&TensorProto> {
        match &*self.base {
            Base::Plain(t) if self.views.iter().all(|v| matches!(v, View::Shaped(_))) => Some(t),
            _ => None,
        }
    }

    /// Codes of integers less a zero point, as numbers.
    pub(super) fn less(&self, model: &OnnxModel, zero: Option<&Val>) -> Option<Stored> {
        let shape = match zero {
            Some(Val::Stored(zero)) => zero.dims.clone(),
            Some(Val::Known(zero)) => zero.shape.clone(),
            _ => vec![],
        };
        let ones = vec![1.0; shape.iter().product()];
        let one = Tensor { dtype: DType::F32, shape, data: Data::F32(ones) };
        self.dequantized(model, 1, 0, &Val::from(one), zero)
    }

    /// What codes stand for; `None` where that must be computed.
    pub(super) fn dequantized(
        &self,
        model: &OnnxModel,
        axis: usize,
        block: i64,
        scale: &Val,
        zero: Option<&Val>,
    ) -> Option<Stored> {
        let codes = self.proto().filter(|_| self.views.is_empty())?.clone();
        let (scales, zeros) = (tensor_of(scale)?, zero.map(tensor_of));
        if matches!(zeros, Some(None)) {
            return None;
        }
        // Several scales under one zero point, or the other way round, are not what a recipe reads.
        let count = |t: &TensorProto| t.dims.iter().product::<i64>();
        if zeros.iter().flatten().any(|z| count(z) != count(&scales)) {
            return None;
        }
        let (axis, block) = (i64::try_from(axis).ok()?, usize::try_from(block).ok()?);
        let dtype = dtype_of(ElemType::from_number(scales.data_type())?).ok()?;
        let tensors = Box::new(Packed { codes, scales, zeros: zeros.flatten() });
        let base = Base::Dequantized { tensors, axis, block };
        // A scale of 16 bits rounds the numbers, which a recipe does not.
        let made = Stored::of(base, DType::F32, self.dims.clone());
        (dtype == DType::F32 && made.recipe(model).is_ok()).then_some(made)
    }

    /// The weight `[N, K]` of a `MatMulNBits`.
    pub(super) fn nbits(
        [codes, scales]: [&Stored; 2],
        [zeros, groups]: [Option<&Stored>; 2],
        shape: [usize; 2],
        bits: i64,
        block: usize,
    ) -> Result<Stored, String> {
        let groups = groups.map(|g| g.proto().cloned().ok_or("its groups are no initializer")).transpose()?;
        let (tensors, bits) = (packed(codes, scales, zeros)?, usize::try_from(bits).unwrap_or(0));
        Ok(Stored::of(Base::NBits { tensors, groups, shape, bits, block }, DType::F32, shape.into()))
    }

    /// The table `[V, K]` of a `GatherBlockQuantized`, whose codes may be bytes of several.
    pub(super) fn block_table(
        [codes, scales]: [&Stored; 2],
        zeros: Option<&Stored>,
        bits: i64,
        block: usize,
    ) -> Result<Stored, String> {
        let &[n, width] = codes.dims() else { return Err("its table has not two dimensions".into()) };
        let bits = usize::try_from(bits).ok().filter(|b| matches!(b, 4 | 8)).ok_or("has neither 4 nor 8 bits")?;
        let bytes = codes.proto().map(TensorProto::data_type) == Some(ElemType::Uint8.number());
        let k = if bytes { width * 8 / bits } else { width };
        let tensors = packed(codes, scales, zeros)?;
        Ok(Stored::of(Base::Table { tensors, shape: [n, k], bits, block }, DType::F32, vec![n, k]))
    }
}

fn packed(codes: &Stored, scales: &Stored, zeros: Option<&Stored>) -> Result<Box<Packed>, String> {
    let tensor = |s: &Stored| s.proto().cloned().ok_or("is made of tensors that are no initializers");
    Ok(Box::new(Packed { codes: tensor(codes)?, scales: tensor(scales)?, zeros: zeros.map(tensor).transpose()? }))
}

/// The tensor behind a value that is known now.
fn tensor_of(v: &Val) -> Option<TensorProto> {
    match v {
        Val::Stored(s) => s.proto().filter(|_| s.views.is_empty()).cloned(),
        Val::Known(t) => Some(encode("", t)),
        Val::Run(_) | Val::List(_) | Val::Nothing => None,
    }
}

/// A computed tensor as one of the file.
fn encode(name: &str, t: &Tensor) -> TensorProto {
    let bytes: Vec<u8> = match (&t.data, t.dtype) {
        (Data::F64(x), _) => x.iter().flat_map(|v| v.to_le_bytes()).collect(),
        (Data::F32(x), DType::F16) => x.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        (Data::F32(x), DType::BF16) => x.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        (Data::F32(x), _) => x.iter().flat_map(|v| v.to_le_bytes()).collect(),
        (Data::I32(x), _) => x.iter().flat_map(|v| v.to_le_bytes()).collect(),
        (Data::I64(x), dtype) => {
            let size = dtype.size().unwrap_or(8);
            x.iter().flat_map(|v| v.to_le_bytes().into_iter().take(size)).collect()
        }
        (Data::Bool(x), _) => x.iter().map(|b| u8::from(*b)).collect(),
    };
    let elem = ElemType::all().find(|e| dtype_of(*e).is_ok_and(|dtype| dtype == t.dtype));
    TensorProto {
        name: Some(name.into()),
        dims: t.shape.iter().map(|d| i64::try_from(*d).unwrap_or(i64::MAX)).collect(),
        data_type: elem.map(ElemType::number),
        raw_data: Some(bytes.into()),
        ..TensorProto::default()
    }
}
