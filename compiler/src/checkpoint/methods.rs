//! The ways in which quantizers store weights: one row each, and what reading all of them shares.
//!
//! Invariant: which tensors make up a weight, and of which sizes, is decided by the tensors; what the config says of them must
//! agree, and decides only what tensors cannot show. A tensor that a weight needs and that is not there, or is of another
//! size, is an error that names it. Numbers are not read here.

mod awq_gptq;
mod bitsandbytes;
mod compressed;
mod float8;
mod torchao;

use std::collections::BTreeMap;

use dlx_ir::{DType, Error};

use super::Config;
use super::packed::{DAMAGED, Groups, Layout, Packed, Part};
use super::quantized::Declared;
use super::shard::{Entry, Shard};

/// A way of storing weights.
pub(super) struct Method {
    /// What configs call it.
    names: &'static [&'static str],
    read: fn(&mut Loader<'_>) -> Result<(), Error>,
}

/// Every method that is read, alphabetically.
const METHODS: &[Method] = &[
    Method { names: &["auto-round"], read: awq_gptq::auto_round },
    Method { names: &["awq"], read: awq_gptq::awq },
    Method { names: &["bitsandbytes"], read: bitsandbytes::read },
    Method { names: &["compressed-tensors"], read: compressed::read },
    Method { names: &["fbgemm_fp8", "fp8"], read: float8::read },
    Method { names: &["gptq"], read: awq_gptq::gptq },
    Method { names: &["torchao"], read: torchao::read },
];

/// The method of that name, in any case of letters.
pub(super) fn find(name: &str) -> Option<&'static Method> {
    METHODS.iter().find(|method| method.names.iter().any(|known| known.eq_ignore_ascii_case(name)))
}

/// Endings of tensors that say how activations or caches were rounded, which the kernels here do in their own way.
const OF_ACTIVATIONS: &[&str] =
    &[".input_global_scale", ".input_scale", ".input_zero_point", ".k_scale", ".output_scale", ".q_scale", ".v_scale"];

/// Tensor name → shard and entry.
type Tensors = BTreeMap<String, (usize, Entry)>;

/// Takes the tensors of quantized weights out of all tensors.
pub(super) struct Loader<'a> {
    shards: &'a [Shard],
    declared: &'a Declared,
    tensors: &'a mut Tensors,
    packed: BTreeMap<String, Packed>,
    notes: Vec<String>,
}

/// Takes the weights of a method out of all tensors: weights by name, and notes.
///
/// # Errors
/// Tensors or a config that do not fit each other.
pub(super) fn unpack(
    method: &Method,
    shards: &[Shard],
    declared: &Declared,
    tensors: &mut Tensors,
) -> Result<(BTreeMap<String, Packed>, Vec<String>), Error> {
    let mut loader = Loader { shards, declared, tensors, packed: BTreeMap::new(), notes: Vec::new() };
    (method.read)(&mut loader)?;
    if !loader.packed.is_empty() {
        loader.leave_out();
    }
    Ok((loader.packed, loader.notes))
}

impl<'a> Loader<'a> {
    /// What the config says of the method; an empty one if it says nothing.
    fn config(&self) -> &'a Config {
        &self.declared.config
    }

    /// What stands before an ending in the names of tensors of these element types.
    fn stems(&self, ending: &str, dtypes: &[DType]) -> Vec<String> {
        let of_type = self.tensors.iter().filter(|(_, (_, entry))| dtypes.contains(&entry.dtype));
        of_type.filter_map(|(name, _)| name.strip_suffix(ending)).map(str::to_owned).collect()
    }

    /// Whether there is such a tensor.
    fn has(&self, stem: &str, ending: &str) -> bool {
        self.tensors.contains_key(&format!("{stem}{ending}"))
    }

    /// Takes a tensor, if there is one.
    fn optional(&mut self, stem: &str, ending: &str) -> Option<Part> {
        let (name, (shard, entry)) = self.tensors.remove_entry(&format!("{stem}{ending}"))?;
        Some(Part { name, shard, entry })
    }

    /// Takes a tensor of one of these types and these dimensions. Those of size 0 may be of any.
    fn part(&mut self, stem: &str, ending: &str, dtypes: &[DType], shape: &[usize]) -> Result<Part, Error> {
        let Some(part) = self.optional(stem, ending) else {
            let message = format!("`{stem}` is quantized with {}, and has no `{stem}{ending}`", self.declared.method);
            return Err(Error::new(&self.declared.place, message)
                .help("download all weight files of the model's repository, and its index if there is one"));
        };
        let Entry { dtype, shape: found, .. } = &part.entry;
        let fits = found.len() == shape.len() && found.iter().zip(shape).all(|(f, s)| *s == 0 || f == s);
        if !dtypes.contains(dtype) || !fits {
            let shape: Vec<String> = shape.iter().map(|d| if *d == 0 { "_".into() } else { d.to_string() }).collect();
            let types: Vec<String> = dtypes.iter().map(DType::to_string).collect();
            let message = format!(
                "is {dtype} {found:?}, where the tensors beside it ask for {} [{}]",
                types.join(" or "),
                shape.join(", ")
            );
            return Err(self.refuse(&part, message));
        }
        Ok(part)
    }

    /// The error for a tensor that does not fit what it belongs to.
    fn refuse(&self, part: &Part, message: impl Into<String>) -> Error {
        Error::new(part.place(self.shards), message).help(DAMAGED)
    }

    /// The error for a config that says something else than a tensor.
    fn contradiction(&self, key: &str, says: impl std::fmt::Display, part: &Part, found: &str) -> Error {
        let message = format!("is {says}, but {} {found}", part.place(self.shards));
        self.config().error(key, message).help(RESTORE)
    }

    /// Columns of a group, from the number of groups of a row of `k`; they must divide it.
    fn group_len(&self, part: &Part, k: usize, groups: usize) -> Result<usize, Error> {
        if groups > 0 && k.is_multiple_of(groups) {
            return Ok(k / groups);
        }
        Err(self.refuse(part, format!("has {groups} groups, which do not divide rows of {k}")))
    }

    /// The group of each column; none if they are in order. Every group must have its columns.
    fn in_groups(&self, part: &Part, k: usize, len: usize) -> Result<Option<Vec<u32>>, Error> {
        let groups = k / len.max(1);
        let mut columns = vec![0usize; groups];
        let mut all = Vec::with_capacity(k);
        for (column, bytes) in part.bytes(self.shards).as_chunks().0.iter().enumerate() {
            let group = i32::from_le_bytes(*bytes);
            let place = usize::try_from(group).ok().and_then(|g| columns.get_mut(g));
            let (Some(count), Ok(known)) = (place, u32::try_from(group)) else {
                return Err(self.refuse(part, format!("puts column {column} into group {group} of {groups}")));
            };
            *count += 1;
            all.push(known);
        }
        if let Some(group) = columns.iter().position(|count| *count != len) {
            return Err(self.refuse(part, format!("puts {} columns into group {group} of {len}", columns[group])));
        }
        let in_order = all.iter().enumerate().all(|(column, g)| usize::try_from(*g) == Ok(column / len));
        Ok((!in_order).then_some(all))
    }

    /// How scales of a matrix `[n, k]` lie, which are one for all, one per row, several per row, or one per `block` of rows and
    /// columns.
    fn grain(&self, scales: &Part, [n, k]: [usize; 2], block: Option<[usize; 2]>) -> Result<Grain, Error> {
        let shape = &scales.entry.shape[..];
        if let Some([rows, columns]) = block.filter(|block| !block.contains(&0)) {
            let groups = k.div_ceil(columns);
            if shape == [n.div_ceil(rows), groups] {
                let said = format!("blocks of {rows} × {columns}");
                return Ok(Grain { groups: Groups::Blocks { rows, columns }, strides: [groups, 1], said });
            }
            let message =
                format!("has {shape:?} scales, where blocks of {rows} × {columns} of [{n}, {k}] were expected");
            return Err(self.refuse(scales, message));
        }
        if shape.iter().all(|d| *d == 1) {
            let groups = Groups::Blocks { rows: n, columns: k };
            return Ok(Grain { groups, strides: [0, 0], said: "one scale".into() });
        }
        let groups = match shape {
            [rows] if *rows == n => 1,
            [rows, groups] if *rows == n => *groups,
            _ => {
                let message = format!("has {shape:?} scales, which do not fit codes of [{n}, {k}]");
                return Err(self.refuse(scales, message));
            }
        };
        let columns = self.group_len(scales, k, groups)?;
        let said = if groups == 1 { "rows".to_owned() } else { format!("groups of {columns}") };
        Ok(Grain { groups: Groups::Blocks { rows: 1, columns }, strides: [groups, 1], said })
    }

    /// Adds a weight under the name that the model knows it by.
    fn add(&mut self, name: String, layout: Layout) -> Result<(), Error> {
        if self.tensors.contains_key(&name) || self.packed.contains_key(&name) {
            let message = format!("is there besides `{}`, which stands for the same", layout.codes.name);
            return Err(Error::new(format!("{}: `{name}`", self.declared.place), message).help(DAMAGED));
        }
        self.packed.insert(name, Packed::new(layout, self.shards));
        Ok(())
    }

    /// Takes out what concerns activations, and says so.
    fn leave_out(&mut self) {
        let before = self.tensors.len();
        self.tensors.retain(|name, _| !OF_ACTIVATIONS.iter().any(|end| name.ends_with(end)));
        let left_out = before - self.tensors.len();
        if left_out > 0 {
            self.notes.push(format!(
                "{left_out} tensors left out: scales of activations or caches, which the kernels here find themselves"
            ));
        }
    }
}

/// What to do about a config that says something else than the tensors.
const RESTORE: &str = "download config.json and all weight files of one commit of the model's repository";

/// Types that scales of integers have.
const FLOATS: &[DType] = &[DType::F16, DType::BF16, DType::F32];

/// How scales lie.
struct Grain {
    groups: Groups,
    strides: [usize; 2],
    said: String,
}

/// The dimensions of a tensor that has two.
fn dims(part: &Part) -> [usize; 2] {
    match part.entry.shape[..] {
        [rows, columns] => [rows, columns],
        _ => [1, 1],
    }
}
