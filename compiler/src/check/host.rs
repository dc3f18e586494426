//! What the host of an export gives its graphs: embeddings, angles, masks, and caches that it keeps between steps.
//!
//! Steps whose caches are outside take none of what `@forward` takes, so they are run as a host runs them, on the same tokens;
//! what they give is compared with the values that `@forward` has of them.

use std::collections::BTreeMap;

use dlx_ir::{Data, Error, Graph, Mask, Module, Op, Tensor, Type, ValueId};
use dlx_runtime::host::MASKED;
use dlx_targets::WeightSource;

use super::call::{Call, outside};
use crate::export::Embeddings;

/// A model whose caches may be outside.
pub struct Host<'a> {
    table: Embeddings<'a>,
    mask: Mask,
}

/// What a host keeps between calls.
#[derive(Default)]
pub struct Kept {
    caches: BTreeMap<String, Tensor>,
    hidden: Option<Tensor>,
}

impl<'a> Host<'a> {
    /// Of a model as it was imported; nothing where it has not one embedding and one table of angles, or several masks.
    pub fn of(module: &Module, source: &'a dyn WeightSource) -> Option<Self> {
        let masks = module.graph("forward")?.nodes.iter().filter_map(|n| match n.op {
            Op::Mask { rule } | Op::Attention { mask: Some(rule), .. } => Some(rule),
            _ => None,
        });
        let masks: Vec<Mask> = masks.collect();
        // Without attention no mask is read.
        let mask = masks.first().copied().unwrap_or(Mask::Full);
        // What cannot be read here is said where the model itself is run.
        let table = Embeddings::of(module, source).ok()?;
        masks.iter().all(|m| *m == mask).then_some(Host { table, mask })
    }

    /// Tokens of its vocabulary.
    pub fn vocab(&self) -> usize {
        self.table.rows
    }

    /// What a step or a head is given for a parameter; nothing for one that no host knows.
    ///
    /// # Errors
    /// A row of the table that cannot be read.
    pub fn argument(
        &self,
        graph: &Graph,
        param: ValueId,
        call: &Call,
        ids: &[i32],
        kept: &Kept,
    ) -> Result<Option<Tensor>, Error> {
        let value = &graph.values[param];
        let Some(shape) = value.ty.shape() else { return Ok(None) };
        let at = call.turn * call.rows;
        let Some(columns) = outside(graph) else {
            let hidden = kept.hidden.as_ref().filter(|_| call.role == "head");
            return Ok(hidden.and_then(|h| rows_of(h, call, &value.ty)));
        };
        let positions: Vec<usize> = (at..at + call.rows).collect();
        let numbers = match value.name.as_str() {
            "x" => {
                let mut x = Vec::new();
                for id in ids {
                    let id = usize::try_from(*id).unwrap_or(0);
                    x.extend(self.table.read(id..id + 1)?);
                }
                x
            }
            "cos" => self.table.angles(&positions).0,
            "sin" => self.table.angles(&positions).1,
            "mask" => {
                let sees = |row: usize, key: usize| if self.mask.sees(row, key) { 0.0 } else { MASKED };
                let cached = |row| (0..columns).map(move |key| if key < at { sees(row, key) } else { MASKED });
                let new = |row| (at..at + call.rows).map(move |key| sees(row, key));
                positions.iter().flat_map(|row| cached(*row).chain(new(*row))).collect()
            }
            name => match kept.caches.get(name).filter(|_| call.turn > 0) {
                Some(cache) => return Ok(Some(cache.clone())),
                None => vec![0.0; shape.iter().product()],
            },
        };
        let fits = numbers.len() == shape.iter().product::<usize>();
        Ok(fits.then_some(Tensor { dtype: value.ty.dtype, shape, data: Data::F32(numbers) }))
    }
}

impl Kept {
    /// Takes what a step gave: hidden rows, then new keys and values in the order in which it takes caches.
    pub fn take(&mut self, graph: &Graph, call: &Call, results: &[Tensor]) {
        self.hidden = results.first().cloned();
        let caches = graph.params.iter().skip_while(|p| graph.values[**p].name != "mask").skip(1);
        for (param, new) in caches.zip(&results[1.min(results.len())..]) {
            let value = &graph.values[*param];
            let Some(shape) = value.ty.shape() else { continue };
            let empty = || Tensor {
                dtype: value.ty.dtype,
                data: Data::F32(vec![0.0; shape.iter().product()]),
                shape: shape.clone(),
            };
            let cache = self.caches.entry(value.name.clone()).or_insert_with(empty);
            write(cache, new, call.turn * call.rows);
        }
    }
}

/// Writes new rows to a cache, along the axis on which it is longer.
fn write(cache: &mut Tensor, new: &Tensor, at: usize) {
    let axis = cache.shape.iter().zip(&new.shape).position(|(a, b)| a != b).unwrap_or(0);
    let inner: usize = new.shape.iter().skip(axis + 1).product();
    let (long, short) = (cache.shape[axis] * inner, new.shape[axis] * inner);
    let (Data::F32(to), Data::F32(from)) = (&mut cache.data, &new.data) else { return };
    for (to, from) in to.chunks_mut(long.max(1)).zip(from.chunks(short.max(1))) {
        if let Some(to) = to.get_mut(at * inner..at * inner + short) {
            to.copy_from_slice(from);
        }
    }
}

/// Rows of the last step, going round.
fn rows_of(hidden: &Tensor, call: &Call, ty: &Type) -> Option<Tensor> {
    let shape = ty.shape()?;
    let (&[rows, columns], &[_, wanted]) = (&hidden.shape[..], &shape[..]) else { return None };
    let all = hidden.floats().ok().filter(|_| columns == wanted)?;
    let round = (0..call.rows).flat_map(|r| &all[r % rows * columns..][..columns]).copied().collect();
    Some(Tensor { dtype: ty.dtype, shape, data: Data::F32(round) })
}
