//! What each input of a generator's graph is for, and the value it is bound to.
//!
//! A generator is imported for one sequence without a cache: ids stay an input, everything else has a value. Cache, batch and
//! padding are the runtime's business.

use std::collections::BTreeMap;

use dlx_ir::{DType, Data, Error, Mask, Tensor};

use super::call::dtype_of;
use super::file::OnnxModel;
use super::graph::{DimText, ValueInfo};
use super::import::Binding;
use super::value::{self, cast, ints};

/// What an input is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    Ids,
    /// Which rows each row may attend: for keys `[B, S]`, or whole.
    Mask,
    Positions,
    /// Type ids, flags and counts: zeros.
    Zeros,
    /// Keys or values of earlier tokens: none.
    Past,
}

impl Role {
    fn of(input: &ValueInfo, only_ints: bool) -> Option<Role> {
        let name = input.name.to_ascii_lowercase();
        let has = |part: &str| name.contains(part);
        let rank = input.dims.as_ref().map(Vec::len);
        if has("mask") {
            return Some(Role::Mask);
        }
        if has("position") {
            return Some(Role::Positions);
        }
        if has("past") || (has("cache") && rank.is_some_and(|r| r >= 3)) {
            return Some(Role::Past);
        }
        if has("token_type") || has("use_cache") || has("logits_to_keep") {
            return Some(Role::Zeros);
        }
        let named = ["input_ids", "ids", "tokens", "input", "x"].contains(&name.as_str()) || has("input_ids");
        (named || only_ints).then_some(Role::Ids)
    }
}

/// A generator's inputs, bound for a sequence of `len` tokens.
pub(super) struct Bound {
    pub(super) binding: Binding,
    /// Whether attention masks, positions or caches were inputs, for the user to know.
    pub(super) notes: Vec<String>,
}

/// The sequence length that the ids have in the file, if it is a number.
pub(super) fn fixed_length(model: &OnnxModel) -> Option<usize> {
    let ids = inputs(model).into_iter().find(|(_, role)| *role == Some(Role::Ids))?.0;
    match ids.dims.as_ref()?.last()? {
        DimText::Known(n) => Some(*n),
        _ => None,
    }
}

fn inputs(model: &OnnxModel) -> Vec<(&ValueInfo, Option<Role>)> {
    let graph = model.graph();
    let whole = |i: &&ValueInfo| i.elem.is_some_and(|e| dtype_of(e).is_ok_and(DType::is_int));
    let only = graph.inputs.iter().filter(whole).count() == 1;
    graph.inputs.iter().map(|i| (i, Role::of(i, only && whole(&i)))).collect()
}

/// Binds a generator's inputs for `len` tokens under the mask that its family has.
///
/// # Errors
/// An input whose meaning is not known, or of which there should be one.
pub(super) fn bind(model: &OnnxModel, len: usize, rule: Mask) -> Result<Bound, Error> {
    let place = |i: &ValueInfo| format!("{}: input `{}`", model.path.display(), i.name);
    let mut binding = Binding::default();
    let mut notes = Vec::new();
    let mut ids = 0;
    for (input, role) in inputs(model) {
        let role = role.ok_or_else(|| {
            Error::new(place(input), "it is not known what it is for").help(
                "a generator takes ids, an attention mask, positions and a cache; compile other models with --graph",
            )
        })?;
        let elem = input.elem.ok_or_else(|| Error::new(place(input), "has no element type, or is no tensor"))?;
        let dtype = dtype_of(elem).map_err(|e| Error::new(place(input), e))?;
        let rank = input.dims.as_ref().map_or(2, Vec::len);
        let value = match role {
            Role::Ids => {
                ids += 1;
                let shape = if rank == 1 { vec![len] } else { vec![1, len] };
                binding.shapes.insert(input.name.clone(), shape);
                continue;
            }
            Role::Mask if rank <= 2 => {
                notes.push(format!("`{}` is taken to be ones: a sequence is not padded", input.name));
                filled(dtype, vec![1; rank.max(1) - 1].into_iter().chain([len]).collect(), 1.0)
            }
            Role::Mask => {
                notes.push(format!("`{}` is taken to be the mask {rule}", input.name));
                whole_mask(dtype, rank, len, rule)
            }
            Role::Positions => {
                notes.push(format!(
                    "`{}` counts from 0: what the graph derives from gaps in them is left out",
                    input.name
                ));
                let mut t = ints((0..len as i64).collect::<Vec<_>>());
                t.shape = vec![1; rank.max(1) - 1].into_iter().chain([len]).collect();
                cast(&t, dtype)
            }
            Role::Zeros => filled(
                dtype,
                vec![1; rank.saturating_sub(1)].into_iter().chain((rank > 0).then_some(len)).collect(),
                0.0,
            ),
            Role::Past => Ok(empty(dtype, input)),
        };
        let value = value.map_err(|e| Error::new(place(input), e))?;
        binding.values.insert(input.name.clone(), value);
    }
    if ids != 1 {
        return Err(Error::new(model.path.display(), format!("has {ids} inputs that could be the token ids"))
            .help("a generator has one, named input_ids; compile other models with --graph"));
    }
    let outputs = &model.graph().outputs;
    let logits = outputs.iter().find(|o| o.name == "logits").or(outputs.first());
    let logits = logits.ok_or_else(|| Error::new(model.path.display(), "has no output"))?;
    binding.outputs = vec![logits.name.clone()];
    Ok(Bound { binding, notes })
}

fn filled(dtype: DType, shape: Vec<usize>, value: f64) -> Result<Tensor, String> {
    let n = shape.iter().product();
    cast(&Tensor { dtype: DType::F64, shape, data: Data::F64(vec![value; n]) }, dtype)
}

/// A mask input of three or four dimensions: which row may attend which, as bool or number, or added to the scores.
fn whole_mask(dtype: DType, rank: usize, len: usize, rule: Mask) -> Result<Tensor, String> {
    let shape = vec![1; rank - 2].into_iter().chain([len, len]).collect();
    let sees = (0..len * len).map(|n| rule.sees(n / len, n % len));
    let float = !dtype.is_int() && dtype != DType::Bool;
    let (yes, no) = if float { (0.0, f64::NEG_INFINITY) } else { (1.0, 0.0) };
    let data = Data::F64(sees.map(|s| if s { yes } else { no }).collect());
    cast(&Tensor { dtype: DType::F64, shape, data }, dtype)
}

/// A cache without rows. Its rows stand in the last dimension but one.
fn empty(dtype: DType, input: &ValueInfo) -> Tensor {
    let dims = input.dims.as_deref().unwrap_or_default();
    let size = |(n, dim): (usize, &DimText)| match dim {
        _ if n + 2 == dims.len() => 0,
        DimText::Known(size) => *size,
        _ => 1,
    };
    let shape: Vec<usize> = dims.iter().enumerate().map(size).collect();
    value::empty(dtype, shape)
}

/// Shapes of all inputs, from sizes for the names of dynamic dimensions.
///
/// # Errors
/// Names without a size, sizes without a name, and inputs without a shape or without elements.
pub fn shapes(model: &OnnxModel, sizes: &BTreeMap<String, usize>) -> Result<BTreeMap<String, Vec<usize>>, Error> {
    let (mut missing, mut known) = (Vec::new(), Vec::new());
    let mut shapes = BTreeMap::new();
    let graph = model.graph();
    for input in &graph.inputs {
        let place = || format!("{}: input `{}`", model.path.display(), input.name);
        let dims = input.dims.as_ref().ok_or_else(|| {
            Error::new(place(), "has no shape in the file")
                .help("export the model with one; what is dynamic in it is given a size here, with --dim NAME=N")
        })?;
        if dims.contains(&DimText::Known(0)) {
            return Err(Error::new(place(), format!("is an empty tensor in the file: {input}"))
                .help("export the model with that dimension dynamic, and give it a size here, with --dim NAME=N"));
        }
        let mut shape = Vec::with_capacity(dims.len());
        for (n, dim) in dims.iter().enumerate() {
            let name = match dim {
                DimText::Known(size) => {
                    shape.push(*size);
                    continue;
                }
                DimText::Named(name) => name.clone(),
                DimText::Unknown => format!("{}.{n}", input.name),
            };
            match sizes.get(&name) {
                Some(size) => shape.push(*size),
                None if missing.contains(&name) => {}
                None => missing.push(name.clone()),
            }
            if !known.contains(&name) {
                known.push(name);
            }
        }
        shapes.insert(input.name.clone(), shape);
    }
    if let Some(name) = sizes.keys().find(|name| !known.contains(name)) {
        let help = match known.is_empty() {
            true => "leave --dim out: all sizes stand in the file".to_owned(),
            false => format!("there are {}", known.join(", ")),
        };
        return Err(Error::new(model.path.display(), format!("has no dynamic dimension `{name}`")).help(help));
    }
    if missing.is_empty() {
        return Ok(shapes);
    }
    let flags: Vec<_> = missing.iter().map(|name| format!("--dim \"{name}=N\"")).collect();
    Err(Error::new(model.path.display(), format!("has dynamic dimensions without a size: {}", missing.join(", ")))
        .help(format!("give each one, or several for a bucket each: {}", flags.join(" "))))
}
